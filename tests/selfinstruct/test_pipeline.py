"""The pipeline: Alpaca's rows from the same answers, budgets, order, and what the files hold."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay.errors import ConfigError, CorruptFileError, DataError, EndpointError, MissingFileError
from inlay.selfinstruct import Answer, Budget, Endpoint, Report, Retry, Sampling, Task, generate_instructions, to_json
from inlay.selfinstruct.prompt import own_seeds
from inlay.selfinstruct.similarity import rouge_tokens
from tests.selfinstruct import endpoint as fake
from tests.selfinstruct.endpoint import KEY, FakeEndpoint
from tests.selfinstruct.test_filters import alpaca_says
from tests.selfinstruct.test_similarity import reference

for needed in ("openai", "rapidfuzz", "numpy"):
    pytest.importorskip(needed, reason="needs the extra generate")

FIELDS = ["instruction", "input", "output", "most_similar_instructions", "avg_similarity_score"]
WORDS = [
    "name",
    "sort",
    "tell",
    "write",
    "compare",
    "three",
    "birds",
    "rivers",
    "towns",
    "poems",
    "about",
    "of",
    "and",
    "the",
    "old",
    "new",
    "map",
    "(a)",
    "(b)",
    "red",
]


def mixed(prompt: str) -> str:
    """Answers of every kind: kept, similar, filtered, wrongly numbered, without a label."""
    rng = random.Random(zlib.crc32(prompt.encode()))
    pieces = []
    for number in range(4, 12):
        label = number + (rng.random() < 0.1)
        words = rng.choices(WORDS, k=rng.randint(2, 9)) if rng.random() < 0.8 else WORDS[3:8] + rng.choices(WORDS[:3])
        body = f"\n{label}. Input:\n{rng.choice(['<noinput>', 'some'])}\n{label}. Output:\n{rng.choice('abc')}\n"
        start = "" if number == 4 else f"{label}. Instruction:"
        pieces.append(f"{start} {' '.join(words)}{body if rng.random() < 0.95 else ''}")
    return "###\n".join(pieces)


def model_of(server: FakeEndpoint, **kwargs: Any) -> Endpoint:
    return Endpoint("m", base_url=server.url, api_key=KEY, **kwargs)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def alpaca(prompts: list[str], count: int, batch: int = 5) -> list[dict[str, Any]]:
    """What Alpaca's loop keeps of the answers to these prompts, by its rules as systems.md A2 has them."""
    known = [task.instruction for task in own_seeds("seeds.jsonl")]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), batch):
        if len(rows) >= count:
            break
        for prompt in prompts[start : start + batch]:
            for i, text in enumerate(("4. Instruction:" + mixed(prompt)).split("###"), 4):
                parts = re.split(rf"{i}\.\s+(Instruction|Input|Output):", text)
                if len(parts) != 7 or alpaca_says(parts[2].strip()):
                    continue
                instruction, given, output = (p.strip() for p in parts[2::2])
                scores = [reference(rouge_tokens(instruction), rouge_tokens(k)) for k in known]
                if max(scores) > 0.7:
                    continue
                closest = {known[j]: scores[j] for j in np.argsort(scores, kind="stable")[-10:][::-1]}
                values = (instruction, given.replace("<noinput>", ""), output, closest, float(np.mean(scores)))
                rows.append(dict(zip(FIELDS, values, strict=True)))
                known.append(instruction)
    return rows


def test_the_rows_are_alpacas(tmp_path: Path) -> None:
    with FakeEndpoint(write=mixed) as server, model_of(server, api="completions", concurrency=1) as model:
        report = generate_instructions(tmp_path / "regen.jsonl", model, 30)
    rows = read(tmp_path / "regen.jsonl")
    assert rows == alpaca(server.prompts, 30) and [list(row) for row in rows] == [FIELDS] * len(rows)
    assert len(rows) == report.rows == report.accepted >= 30 and report.stopped == "count"
    assert all(len(p) == 5 for _, r, _ in server.served for p in [r["prompt"]]), "batches of five"
    assert {"malformed", "length", "blacklist", "punctuation", "similar"} <= set(report.dropped)
    assert report.calls == len(server.served)
    assert report.prompt_tokens == sum(reply["usage"]["prompt_tokens"] for *_, reply in server.served)


def test_the_threshold_itself_is_kept(tmp_path: Path) -> None:
    """Seven words of ten in common are F = 0.7 exactly; eight are more."""
    seed = Task("a b c d e f g h i j", "", "x")

    def write(prompts: list[str], sampling: Sampling) -> list[str]:
        pieces = [f" {words}\n{n}. Input:\n-\n{n}. Output:\ny\n" for n, words in enumerate(variants, 2)]
        return ["###\n".join([pieces[0], *(f"{n}. Instruction:{p}" for n, p in enumerate(pieces[1:], 3))])] * len(
            prompts
        )

    variants = ["a b c d e f g h x y", "a b c d e f g x y z", "p q a b c d e f g r"]
    report = generate_instructions(tmp_path / "r", write, 1, seeds=[seed], shots=1)
    rows = read(tmp_path / "r")
    assert [row["instruction"] for row in rows] == variants[1:] and report.dropped["similar"] == 13
    assert rows[0]["most_similar_instructions"] == {seed.instruction: 0.7} and rows[0]["avg_similarity_score"] == 0.7
    assert list(rows[1]["most_similar_instructions"]) == [variants[1], seed.instruction]


def test_three_seeds_a_prompt_drawn_from_the_seeds_alone(tmp_path: Path) -> None:
    with FakeEndpoint() as server, model_of(server) as model:
        generate_instructions(tmp_path / "r", model, 60)
    seeds = {s.instruction for s in own_seeds("seeds.jsonl")}
    shown = [re.findall(r"\d\. Instruction: (.+)", prompt) for prompt in server.prompts]
    assert all(len(set(s)) == 3 and set(s) <= seeds for s in shown)
    assert len(server.prompts) >= 15 and len(set(server.prompts)) == len(server.prompts)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_order_of_arrival_changes_nothing(tmp_path: Path, api: str) -> None:
    outputs = []
    for concurrency in (1, 4):
        delay = (lambda prompt: 0.02 + random.random() / 30) if concurrency > 1 else 0.0
        with (
            FakeEndpoint(write=mixed, delay=delay) as server,
            model_of(server, api=api, concurrency=concurrency) as model,
        ):
            generate_instructions(tmp_path / str(concurrency), model, 40)
            assert min(concurrency, 2) <= server.most_at_once <= concurrency
        outputs.append((tmp_path / str(concurrency)).read_bytes())
    assert outputs[0] == outputs[1]


def test_an_earlier_run_goes_on(tmp_path: Path) -> None:
    with FakeEndpoint(write=mixed) as whole, model_of(whole, concurrency=1) as model:
        generate_instructions(tmp_path / "whole", model, 40)
    with FakeEndpoint(write=mixed) as server, model_of(server) as model:
        first = generate_instructions(tmp_path / "parts", model, 12)
        asked = len(server.served)
        again = generate_instructions(tmp_path / "parts", model, 12)
        assert len(server.served) == asked and again.accepted == 0 and again.rows == first.rows
        last = generate_instructions(tmp_path / "parts", model, 40, concurrency=2)
        assert len(set(server.prompts)) == len(server.prompts), "nothing is asked twice"
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert last.rows == first.rows + last.accepted and last.calls == len(whole.served)
    assert last.dropped["similar"] > first.dropped["similar"] > 0


def test_progress_and_the_report_read_well(tmp_path: Path) -> None:
    seen: list[Report] = []
    with FakeEndpoint(write=mixed) as server, model_of(server, concurrency=1) as model:
        report = generate_instructions(
            tmp_path / "r", model, 12, progress=seen.append, budget=Budget(prompt_price=1.0, completion_price=2.0)
        )
    assert [r.calls for r in seen] == list(range(report.calls + 1)) and seen[-1].rows == report.rows
    assert report.output == tmp_path / "r"
    assert report.cost == pytest.approx((report.prompt_tokens + 2 * report.completion_tokens) / 1e6)
    assert re.fullmatch(
        r"\d+ rows \(\d+ new\) from \d+ calls; dropped: \d+ \w+(, \d+ [\w ]+)*; \d+ \+ \d+ tokens, 0\.\d{4} spent\.",
        str(report),
    )


def test_tokens_are_never_passed(tmp_path: Path) -> None:
    used = []
    for cap in (20_000, 40_000):  # each of the second run's calls is held back until its most is left
        with FakeEndpoint(write=mixed, delay=0.01) as server, model_of(server, concurrency=4) as model:
            report = generate_instructions(tmp_path / "r", model, 10**6, budget=Budget(tokens=cap))
        assert report.stopped == "budget" and report.prompt_tokens + report.completion_tokens <= cap
        used.append(report.prompt_tokens + report.completion_tokens)
        assert "Stopped: the next call might pass the budget." in str(report)
    assert used[1] > used[0] + 10_000
    assert generate_instructions(tmp_path / "r", _no_model(), 10**6, budget=Budget(tokens=40_000)).accepted == 0


def _no_model() -> Any:
    class Never:
        name, batch, concurrency = "m", 1, 1

        def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Any:
            raise AssertionError("asked")

    return Never()


def test_money_is_never_passed(tmp_path: Path) -> None:
    budget = Budget(money=0.05, prompt_price=1.0, completion_price=4.0)
    with FakeEndpoint(write=mixed, usage=False) as server, model_of(server) as model:  # and where no usage is told
        report = generate_instructions(tmp_path / "r", model, 10**6, budget=budget)
    assert report.stopped == "budget" and 0.03 < report.cost <= 0.05
    sent = sum(len(p.encode()) for p in server.prompts)
    assert report.prompt_tokens == sent, "a token per byte where the endpoint says nothing"


def test_a_budget_too_small_for_one_call_asks_nothing(tmp_path: Path) -> None:
    report = generate_instructions(tmp_path / "r", _no_model(), budget=Budget(tokens=4000))
    assert report.stopped == "budget" and report.rows == report.calls == 0


def test_a_model_that_writes_nothing_of_use_is_given_up(tmp_path: Path) -> None:
    with FakeEndpoint(write=lambda prompt: "I cannot help with that.") as server, model_of(server) as model:
        report = generate_instructions(tmp_path / "r", model, 5, patience=7)
    assert report.stopped == "barren" and report.calls == 7 and report.rows == 0 and report.dropped == {"malformed": 7}
    assert str(report).endswith("held nothing that could be kept.")


def test_skipped_calls_are_counted(tmp_path: Path) -> None:
    with FakeEndpoint(context=8) as server, model_of(server) as model:
        report = generate_instructions(tmp_path / "r", model, 5, patience=2)
    assert report.skipped == report.calls == 2 and report.prompt_tokens == 0 and "2 calls skipped" in str(report)


def test_an_answer_cut_by_its_budget_loses_its_last_task(tmp_path: Path) -> None:
    rows = []
    for reason in ("length", "stop"):
        with (
            FakeEndpoint(finish=lambda prompt, reason=reason: reason) as server,
            model_of(server, concurrency=1) as model,
        ):
            rows.append(generate_instructions(tmp_path / reason, model, 1).rows)
    assert rows == [3, 4]


def test_faults_in_the_middle_change_nothing(tmp_path: Path) -> None:
    faults = [fake.SERVER_ERROR, fake.rate_limit(), fake.NO_JSON, fake.HANG_UP, fake.rate_limit(**{"retry-after": "3"})]
    waits: list[float] = []
    with FakeEndpoint(write=mixed, faults=faults) as server, model_of(server) as model:
        generate_instructions(tmp_path / "a", model, 30, sleep=waits.append)
    with FakeEndpoint(write=mixed) as calm, model_of(calm) as model:
        generate_instructions(tmp_path / "b", model, 30, sleep=pytest.fail)
    assert len(server.refused) == 5 == len(waits) and max(waits) >= 3
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bad_key_stops_the_run_and_what_arrived_is_kept(tmp_path: Path) -> None:
    with FakeEndpoint(write=mixed) as server, model_of(server) as model:
        generate_instructions(tmp_path / "r", model, 5)
        server.key, asked, rows = "revoked", len(server.served), read(tmp_path / "r")
        with pytest.raises(EndpointError, match=r"refused the API key \(401\)"):
            generate_instructions(tmp_path / "r", model, 50)
        assert len(server.served) == asked and read(tmp_path / "r")[: len(rows)] == rows
        server.key = KEY
        generate_instructions(tmp_path / "r", model, 50)
        assert len(set(server.prompts)) == len(server.prompts)
    everything = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert KEY.encode() not in everything and server.url.encode() not in everything


def test_retries_used_up_end_the_run_without_waiting_for_the_others(tmp_path: Path) -> None:
    with FakeEndpoint(faults=[fake.SERVER_ERROR] * 99) as server, model_of(server) as model:
        with pytest.raises(EndpointError, match="did not answer in 2 attempts"):
            generate_instructions(tmp_path / "r", model, 5, retry=Retry(attempts=2), sleep=lambda seconds: None)
        assert len(server.refused) <= 10


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Path]:
    """A place where nothing may have been written in the end."""
    yield tmp_path / "new" / "r"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "alpacca"}, "Did you mean 'alpaca'"),
        ({"model": "gpt"}, "model='gpt' is not allowed: expected an Endpoint, a TransformersModel, or a function"),
        ({"count": 0}, "count=0 is not allowed: expected an integer of at least 1"),
        ({"shots": 0}, "shots=0"),
        ({"patience": 0}, "patience=0"),
        ({"concurrency": -1}, "concurrency=-1"),
        ({"threshold": 1.5}, r"threshold=1\.5 is not allowed: expected a number from 0 to 1"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(
    refused: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_instructions(**{"output": refused, "model": _no_model(), **arguments})


def test_files_are_checked_before_anything_is_written(refused: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 seed tasks, but each prompt shows 3: give more seeds, or fewer shots"):
        generate_instructions(refused, _no_model(), seeds=[Task("a", "", "b")] * 2)
    with pytest.raises(MissingFileError, match="No prompt at"):
        generate_instructions(refused, _no_model(), prompt=tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(DataError, match="is not UTF-8"):
        generate_instructions(refused, _no_model(), prompt=tmp_path / "latin")


def test_budgets_are_checked() -> None:
    with pytest.raises(ConfigError, match="money is limited without prices"):
        Budget(money=1.0)
    with pytest.raises(ConfigError, match="tokens=-1"):
        Budget(tokens=-1)


def test_a_prompt_and_seeds_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("MY HEAD", encoding="utf-8")
    prompts: list[str] = []

    def write(given: list[str], sampling: Sampling) -> list[str]:
        prompts.extend(given)
        return [f" Name {n} things in town {len(prompts)}\n2. Input:\n\n2. Output:\nyes" for n in range(len(given))]

    seeds = [Task(f"Seed {i}", "", "x") for i in range(9)]
    generate_instructions(tmp_path / "r", write, 1, prompt=tmp_path / "prompt.txt", seeds=seeds, shots=1)
    assert re.fullmatch(r"MY HEAD\n###\n1\. Instruction: Seed \d\n.*###\n2\. Instruction:", prompts[0], re.S)
    assert len(prompts) == 5


def test_chinese(tmp_path: Path) -> None:
    verbs, nouns = (
        ["介绍", "描述", "解释", "比较", "总结", "分析"],
        ["长城", "月亮", "茶叶", "火车", "竹子", "春节", "围棋", "饺子", "沙漠", "蜜蜂"],
    )

    def write(prompts: list[str], sampling: Sampling) -> list[Answer]:
        assert all("下面" in p and "<noinput>" in p for p in prompts if "输入写<noinput>" in p)
        out = []
        for prompt in prompts:
            rng = random.Random(prompt)
            v, n = rng.choice(verbs), rng.sample(nouns, 3)
            out.append(Answer(f" {v}{n[0]}、{n[1]}和{n[2]}的来历与特点\n4. Input:\n<noinput>\n4. Output:\n好的。"))
        return out

    for profile in ("zh", "any"):
        report = generate_instructions(tmp_path / profile, write, 5, profile=profile)
        rows = read(tmp_path / profile)
        assert len(rows) == report.rows >= 5 and report.dropped["similar"] > 0
        assert "的来历与特点" in (tmp_path / profile).read_text(encoding="utf-8"), "characters, not escapes"
    assert generate_instructions(tmp_path / "alpaca", write, 5, patience=2).dropped == {"length": 10}


def test_text_that_is_no_unicode_is_kept_readable(tmp_path: Path) -> None:
    text = " Explain a half \ud83d emoji and \u2028 lines\n4. Input:\n<noinput>\n4. Output:\nx\x00\x85y"
    generate_instructions(tmp_path / "r", lambda prompts, sampling: [text] * len(prompts), 1)
    (row,) = read(tmp_path / "r")
    assert row["instruction"] == "Explain a half ? emoji and \u2028 lines" and row["output"] == "x\x00\x85y"


def test_rows_as_one_list(tmp_path: Path) -> None:
    with FakeEndpoint() as server, model_of(server) as model:
        report = generate_instructions(tmp_path / "r.jsonl", model, 5)
    assert to_json(tmp_path / "r.jsonl", tmp_path / "regen.json") == report.rows
    assert json.loads((tmp_path / "regen.json").read_text(encoding="utf-8")) == read(tmp_path / "r.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.journal", "regen.json"]
    with pytest.raises(MissingFileError, match="No rows at"):
        to_json(tmp_path / "none", tmp_path / "x")
    (tmp_path / "bad").write_text('{}\n{"a":\n', encoding="utf-8")
    with pytest.raises(CorruptFileError, match="bad, line 2, is not JSON"):
        to_json(tmp_path / "bad", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["r.jsonl", "regen.json"])
def test_rows_are_alpacas_format_for_inlay_data(tmp_path: Path, name: str) -> None:
    data = pytest.importorskip("inlay.data")
    tokenizers = pytest.importorskip("tests.data.tokenizers")
    with FakeEndpoint() as server, model_of(server) as model:
        report = generate_instructions(tmp_path / "r.jsonl", model, 8)
    to_json(tmp_path / "r.jsonl", tmp_path / "regen.json")
    prepared = data.prepare(tmp_path / name, tokenizers.gpt2_like())
    assert prepared.report.format == "alpaca" and prepared.report.kept == report.rows == len(prepared)


def test_importing_it_imports_nothing_large() -> None:
    heavy = ["torch", "numpy", "openai", "rapidfuzz", "jieba", "transformers"]
    code = f"import sys, inlay.selfinstruct; print([m for m in {heavy} if m in sys.modules])"
    src = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": src})
    assert done.stdout.strip() == "[]", done.stderr
