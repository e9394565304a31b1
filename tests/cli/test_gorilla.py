"""`inlay gorilla`: records that are found, rows that are made, answers that are scored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from inlay.data import prepare
from inlay.gorilla import Example, read_apis, read_examples, retrieved
from inlay.gorilla.retriever import BM25Retriever
from tests.cli.line import command
from tests.data.tokenizers import gpt2_like
from tests.gorilla.apis import DATA, api, example, needs_data, write

pytest.importorskip("bm25s", reason="needs the extra retrieval")
pytest.importorskip("tree_sitter_python", reason="needs the extra gorilla")

APIS = [
    api("pipeline('ner')", "Tokens", functionality="it finds names in a text"),
    api("AutoModel.from_pretrained('a/b')", "Text", functionality="it writes a text for you"),
    api("AutoModel.from_pretrained('c/d')", "Images", functionality="it sees cats well"),
]
ASKED = [
    example("Who is named in the letter?", "pipeline('ner')", "Tokens"),
    example("Is it a cat?", "AutoModel.from_pretrained('c/d')", "Images"),
    example("Cut off.", "pipeline('ner')", "Tokens", answer=""),
]


run = command("gorilla")


def row(made: Example) -> dict[str, Any]:
    code = (
        f"###Instruction: {made.question}\n###Output: {made.answer}" if made.answer else f"Instruction: {made.question}"
    )
    return {"code": code, "api_call": made.api_call, "provider": made.provider, "api_data": made.api}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    answers = [
        {"question_id": 1, "text": "<<<api_call>>>: pipeline('ner'), <<<api_provider>>>: Hub"},
        {"question_id": 2, "text": "<<<api_call>>>: AutoModel.from_pretrained('a/b'), <<<api_provider>>>: Hub"},
        {"question_id": 3, "text": "I do not know, sooner or later."},
    ]
    questions = [{"question_id": 7, "text": "who sees cats"}, {"question_id": 9, "text": "what writes a text"}]
    return {
        "apis": write(tmp_path / "apis.jsonl", APIS),
        "examples": write(tmp_path / "eval.json", [row(e) for e in ASKED]),
        "answers": write(tmp_path / "answers.jsonl", answers),
        "others": write(tmp_path / "others.jsonl", answers[:2]),
        "questions": write(tmp_path / "questions.jsonl", questions),
    }


def test_help_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("retrieve", "rows", "ask", "score"):
        assert run(name, "--help") == 0
        out = capsys.readouterr().out
        assert f"Usage: inlay gorilla {name}" in out and "Example: inlay gorilla" in out


def test_records_are_found(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retrieve", "who sees cats", "--apis", files["apis"], "-k", 2) == 0
    title, head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert title.strip() == "who sees cats" and head.split() == ["score", "record", "domain", "call"]
    assert re.fullmatch(r" *\d+\.\d{3} +3 +Images +AutoModel\.from_pretrained\('c/d'\) *", first)
    assert float(first.split()[0]) > float(second.split()[0])


def test_records_found_for_a_file_of_questions_as_json(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("retrieve", "--questions", files["questions"], "--apis", files["apis"], "-k", 1, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["question_id"], f["found"][0]["place"], f["found"][0]["record"]) for f in found] == [
        (7, 3, APIS[2]),
        (9, 2, APIS[1]),
    ]
    retriever = BM25Retriever(APIS)
    assert [f["prompt"] for f in found] == [retriever.prompt(q) for q in ("who sees cats", "what writes a text")]
    assert run("retrieve", "who sees cats", "--apis", files["apis"], "-k", 1, "--prompt") == 0
    assert capsys.readouterr().out == found[0]["prompt"] + "\n"


def test_a_question_without_a_known_word_is_said(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retrieve", "Qwertz?", "--apis", files["apis"], "-k", 1) == 0
    assert capsys.readouterr().err == "No word of 'Qwertz?' is in the database, as it is written there.\n"


def test_records_found_by_embeddings(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import inlay.gorilla

    asked: list[Any] = []

    def letters(*model: Any) -> Any:
        asked.append(model)
        return lambda texts: [[t.count("c") + 1, t.count("a") + 1, t.count("q") + 1] for t in texts]

    monkeypatch.setenv("MINE", "key")
    for name, options in (
        ("sentence_transformer", ["--embedding", "small"]),
        ("openai_endpoint", ["--embedding", "small", "--endpoint", "http://localhost:1/v1", "--key-env", "MINE"]),
        ("openai_endpoint", ["--embedding", "small", "--endpoint", "openai", "--key-env", "MINE"]),
    ):
        monkeypatch.setattr(inlay.gorilla, name, letters)
        args = ("retrieve", "cccccc", "--apis", files["apis"], "-k", 1, "--cache", tmp_path / "index.npz", *options)
        assert run(*args) == 0
        assert "AutoModel.from_pretrained('c/d')" in capsys.readouterr().out
    assert asked == [("small",), ("small", "http://localhost:1/v1", "key"), ("small", None, "key")]
    assert (tmp_path / "index.npz").is_file()


@pytest.mark.parametrize("kind", ["zero-shot", "oracle", "retrieved", "raft"])
@pytest.mark.parametrize("prompts", [False, True])
def test_rows_can_be_trained_on(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, prompts: bool
) -> None:
    out = tmp_path / "rows.jsonl"
    more = ["--prompts"] if prompts else []
    args = ["rows", files["examples"], "--kind", kind, "--apis", files["apis"], "--distractors", 1, "--out", out]
    with pytest.warns(UserWarning, match="1 of 3 rows have no answer and were left out: 3"):
        assert run(*args, *more) == 0
    said = capsys.readouterr().out
    assert said == f"2 rows ({kind}) are in {out}. To train on them:\n    inlay train --model MODEL --data {out}\n"
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(made[0]) == (["prompt", "completion"] if prompts else ["instruction", "input", "output"])
    shown = made[0]["prompt" if prompts else "instruction"]
    assert ("pipeline('ner')" in shown) == (kind in ("oracle", "raft", "retrieved"))
    prepared = prepare(out, gpt2_like())
    assert len(prepared) == 2 and prepared.report.detected and (prompts or prepared.report.format == "alpaca")


@pytest.mark.filterwarnings("ignore:1 of 3 rows have no answer")
def test_rows_are_those_of_the_library(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert run("rows", files["examples"], "--kind", "retrieved", "-k", 2, "--apis", files["apis"], "--out", out) == 0
    expected = retrieved(read_examples(files["examples"]), BM25Retriever(read_apis(files["apis"])), 2)
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_model_answers_and_is_scored(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inlay.runs import together
    from tests.train import tiny

    asked: list[Any] = []
    compare = together.compare_sources

    def spy(source: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        asked.append((prompts, options["format"]))
        return compare(source, prompts, *args, **options)

    monkeypatch.setattr(together, "compare_sources", spy)
    tiny.base(tmp_path / "base")
    out = tmp_path / "made.jsonl"
    args = ["ask", tmp_path / "base", "--examples", files["examples"], "--out", out, "--max-new-tokens", 8]
    assert run(*args, "--limit", 2) == 0
    assert run(*args, "--apis", files["apis"]) == 0
    assert run(*args, "--apis", files["apis"], "--prompts", "--limit", 1) == 0
    questions, retriever = [e.question for e in ASKED], BM25Retriever(APIS)
    assert asked == [
        (questions[:2], None),
        ([retriever.instruction(q) for q in questions], None),
        ([retriever.prompt(questions[0])], "plain"),
    ]
    said = capsys.readouterr().out
    assert "3 answers are in" in said and f"    inlay gorilla score {out} --apis {files['apis']} --examples" in said
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["question_id"] == 1 and isinstance(row["text"], str) and row["model_id"] == str(tmp_path / "base")
    assert run("score", out, "--apis", files["apis"], "--examples", files["examples"], "--hub", "huggingface") == 0
    assert capsys.readouterr().out.startswith("1 responses, huggingface")


def test_a_score_in_full(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--apis", files["apis"], "--examples", files["examples"], "--hub", "huggingface"]
    assert run("score", files["answers"], *args) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        "3 responses, huggingface, as Gorilla's own scorer",
        "  correct           2   66.67%",  # "sooner" passes for pipeline('ner')
    ]
    assert run("score", files["answers"], *args, "--strict", "--json", "--verdicts", tmp_path / "v.jsonl") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "file": str(files["answers"]),
        "hub": "huggingface",
        "strict": True,
        "responses": 3,
        "accuracy": 1 / 3,
        "hallucination": 1 / 3,
        "counts": {"correct": 1, "wrong": 1, "hallucination": 1, "passed over": 0},
    }
    verdicts = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [v["outcome"] for v in verdicts] == ["correct", "wrong", "hallucination"]
    assert verdicts[0]["reason"] == "calls pipeline('ner')" and verdicts[0]["file"] == str(files["answers"])


def test_scores_of_several_files_side_by_side(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--apis", files["apis"], "--examples", files["examples"], "--hub", "huggingface", "--strict"]
    assert run("score", files["answers"], files["others"], *args) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["huggingface,", "strict"]
    assert lines[2:4] == [
        [str(files["answers"]), "33.33%", "33.33%", "3"],
        [str(files["others"]), "50.00%", "0.00%", "2"],
    ]


@needs_data
@pytest.mark.parametrize(
    ("hub", "data", "golden"),
    [
        ("huggingface", "huggingface", {"FT_0_shot": (0.6936, 0.1095), "RT_bm25": (0.1571, 0.0642)}),
        ("tensorflowhub", "tensorflow", {"FT_0_shot": (0.8394, 0.0526), "RT_bm25": (0.4190, 0.0277)}),
        ("torchhub", "torchhub", {"FT_0_shot": (0.7581, 0.1613), "RT_bm25": (0.5000, 0.0591)}),
    ],
)
def test_the_published_answers(hub: str, data: str, golden: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    answers = [DATA / "responses" / f"{hub}_{kind}.jsonl" for kind in golden]
    apis, examples = DATA / "api" / f"{hub}_api.jsonl", DATA / f"{data}_eval.json"
    assert run("score", *answers, "--apis", apis, "--examples", examples, "--hub", hub, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(round(f["accuracy"], 4), round(f["hallucination"], 4)) for f in found] == list(golden.values())


@needs_data
@pytest.mark.filterwarnings("ignore:1 of 837 rows have no answer")
def test_rows_of_the_published_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apis, out = DATA / "api" / "torchhub_api.jsonl", tmp_path / "rows.jsonl"
    args = ["--kind", "retrieved", "--apis", apis, "--out", out]
    assert run("rows", DATA / "torchhub_train.json", *args) == 0
    assert capsys.readouterr().out.startswith("836 rows (retrieved) are in ")
    assert len(out.read_text().splitlines()) == 836


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["retrieve", "--apis", "{apis}"], 2, "Give questions, or a file of them with --questions: one of both."),
        (["retrieve", "q", "--questions", "{questions}", "--apis", "{apis}"], 2, "Give questions, or a file"),
        (["retrieve", "q", "--apis", "{apis}", "-k", "9"], 2, "k=9 is not allowed: expected an integer from 1 to 3"),
        (["retrieve", "q", "--apis", "{apis}", "--cache", "x"], 2, "--cache needs --embedding MODEL."),
        (["retrieve", "q", "--apis", "{apis}", "--endpoint", "u"], 2, "--endpoint needs --embedding MODEL."),
        (["retrieve", "q", "--apis", "none.jsonl"], 1, "none.jsonl"),
        (["rows", "{examples}", "--out", "{out}", "--kind", "retrieved"], 2, "--kind retrieved needs the API database"),
        (["rows", "{examples}", "--out", "{out}", "--kind", "raftt"], 2, "expected one of zero-shot, oracle, "),
        (["rows", "{apis}", "--out", "{out}"], 1, "3 of 3 rows are faulty"),
        (
            ["score", "{answers}", "--apis", "{apis}", "--examples", "{examples}", "--hub", "torchub"],
            2,
            "hub='torchub' is not allowed: expected one of 'huggingface', 'tensorflowhub', 'torchhub'. Did you mean",
        ),
    ],
)
def test_wrong_lines(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "made.jsonl"
    assert run(*(text.format(out=out, **files) for text in args)) == code
    err = capsys.readouterr().err
    assert err.startswith("inlay: ") and message in err and not out.exists(), err
