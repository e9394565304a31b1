"""The scorer: the figures of the public responses, and each rule by itself."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from typing import Any

import pytest

from inlay.errors import ConfigError, MissingExtraError
from inlay.gorilla import Example, Report, Response, read_apis, read_examples, read_responses, score
from inlay.gorilla.score import _cut
from inlay.gorilla.syntax import call, subtrees
from tests.gorilla.apis import DATA, api, example, needs_data

pytest.importorskip("tree_sitter_python", reason="the scorer reads code through tree-sitter, which is not installed")

EVAL = {"huggingface": "huggingface", "tensorflowhub": "tensorflow", "torchhub": "torchhub"}


@cache
def public(hub: str, kind: str, strict: bool) -> Report:
    return score(
        read_responses(DATA / "responses" / f"{hub}_{kind}.jsonl"),
        read_apis(DATA / "api" / f"{hub}_api.jsonl"),
        read_examples(DATA / f"{EVAL[hub]}_eval.json"),
        hub,
        strict,
    )


@needs_data
@pytest.mark.parametrize(
    ("hub", "kind", "published", "strict"),
    [
        ("huggingface", "FT_0_shot", (0.6936, 0.1095), (0.6936, 0.1117)),
        ("huggingface", "RT_bm25", (0.1571, 0.0642), (0.1571, 0.0708)),
        ("tensorflowhub", "FT_0_shot", (0.8394, 0.0526), (0.8394, 0.0526)),
        ("tensorflowhub", "RT_bm25", (0.4190, 0.0277), (0.4190, 0.0277)),
        ("torchhub", "FT_0_shot", (0.7581, 0.1613), (0.7581, 0.1613)),
        ("torchhub", "RT_bm25", (0.5000, 0.0591), (0.4946, 0.0645)),
    ],
)
def test_golden_values(hub: str, kind: str, published: tuple[float, float], strict: tuple[float, float]) -> None:
    """An independent port's figures; that of HF RT-bm25 in strict mode is our own (see the test below)."""
    loose = public(hub, kind, False)
    assert (round(loose.accuracy, 4), round(loose.hallucination, 4)) == published
    firm = public(hub, kind, True)
    assert (round(firm.accuracy, 4), round(firm.hallucination, 4)) == strict
    for a, b in zip(loose.verdicts, firm.verdicts, strict=True):  # strict only takes matches away
        assert a == b or (b.outcome == "hallucination" and "no subtree calls" in a.reason)


@needs_data
def test_what_strict_mode_takes_away_is_no_call() -> None:
    """Six responses of prose, in which "ner" (energy, sooner) passes for pipeline('ner')."""
    responses = {r.question_id: r for r in read_responses(DATA / "responses" / "huggingface_RT_bm25.jsonl")}
    loose, firm = public("huggingface", "RT_bm25", False), public("huggingface", "RT_bm25", True)
    taken = [a for a, b in zip(loose.verdicts, firm.verdicts, strict=True) if a != b]
    assert len(taken) == 6 and {v.index for v in taken} == {928} and {v.outcome for v in taken} == {"wrong"}
    assert all("pipeline(" not in responses[v.question_id].text for v in taken)
    assert all("ner" in responses[v.question_id].text for v in taken)


@needs_data
def test_python_cannot_parse_what_the_models_wrote() -> None:
    """Why the scorer does not use `ast`: the counts that the module's docstring gives."""
    import ast

    read: Counter[tuple[str, bool]] = Counter()
    for hub in EVAL:
        for kind in ("FT_0_shot", "RT_bm25"):
            for response in read_responses(DATA / "responses" / f"{hub}_{kind}.jsonl"):
                code = _cut(response.text)
                if code is None:
                    continue
                try:
                    ast.parse(code)
                    read[hub, True] += 1
                except SyntaxError:
                    read[hub, False] += 1
    assert (read["torchhub", True], read["torchhub", False]) == (0, 372)
    others = [read["huggingface", ok] + read["tensorflowhub", ok] for ok in (True, False)]
    assert others == [1796, 1221]


@needs_data
def test_broken_quotes_are_told_from_inventions() -> None:
    reasons = Counter(v.reason for v in public("torchhub", "FT_0_shot", True).verdicts if v.outcome == "hallucination")
    assert reasons == {
        "names torch.hub.load, but as broken code, in which no call of it can be read": 18,
        "calls torch.hub.load, but with arguments that no record has": 12,
    }


@needs_data
@pytest.mark.parametrize("hub", EVAL)
def test_the_reference_answers_are_no_hallucinations(hub: str) -> None:
    """What the database says itself, as responses: almost all are correct, where a call is Python and unambiguous."""
    examples = read_examples(DATA / f"{EVAL[hub]}_eval.json")
    responses = [Response(i, f"api_call: {e.api_call}, api_provider") for i, e in enumerate(examples, start=1)]
    report = score(responses, read_apis(DATA / "api" / f"{hub}_api.jsonl"), examples, hub, strict=True)
    assert report.accuracy > {"huggingface": 0.85, "tensorflowhub": 0.9, "torchhub": 0.95}[hub]
    assert report.hallucination < 0.03


APIS = [
    api("pipeline('ner')", "Tokens"),
    api("AutoModel.from_pretrained('a/b', revision='main')", "Text"),
    api("AutoModel.from_pretrained('c/d')", "Images"),
    api("./run.sh --model x", "Shell"),
    api("load()", "Nothing"),
]
ASKED = [example("q1", "AutoModel.from_pretrained('a/b')", "Text"), example("q2", "pipeline('ner')", "Tokens")]


def one(text: str, hub: str = "huggingface", strict: bool = False, apis: list[Any] | None = None, n: int = 1) -> Any:
    (verdict,) = score([Response(n, text)], APIS if apis is None else apis, ASKED, hub, strict).verdicts
    return verdict


def answer(code: str) -> str:
    return f"<<<domain>>>: x, <<<api_call>>>: {code}, <<<api_provider>>>: Hub, <<<code>>>: pipeline('ner')"


@pytest.mark.parametrize(
    ("text", "outcome", "index"),
    [
        (answer("AutoModel.from_pretrained('a/b', revision='main')"), "correct", 1),
        (answer('model = AutoModel.from_pretrained("a/b", revision="main", x=1)'), "correct", 1),
        (answer("AutoModel.from_pretrained('a/b').to(AutoModel.from_pretrained('c/d'), 'main')"), "wrong", 2),
        (answer("AutoModel.from_pretrained('c/d')"), "wrong", 2),
        (answer("AutoModel.from_pretrained('c/d-large')"), "wrong", 2),  # a substring, as the reference has it
        (answer("AutoModel.from_pretrained('e/f')"), "hallucination", None),
        (answer("AutoModel.from_pretrained('a/b')"), "hallucination", None),  # a compared argument is missing
        (answer("OtherModel.from_pretrained('a/b', revision='main')"), "hallucination", None),
        (answer("load()"), "hallucination", None),  # a record without arguments fits nothing
        ("model = AutoModel.from_pretrained('c/d')", "wrong", 2),  # no field: code as a whole
        ("I cannot help.", "hallucination", None),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_verdicts(text: str, outcome: str, index: int | None, strict: bool) -> None:
    verdict = one(text, strict=strict)
    assert (verdict.outcome, verdict.index) == (outcome, index)


def test_the_domain_decides_not_the_call() -> None:
    apis = [api("pipeline('x')", "Text"), *APIS]
    assert one(answer("pipeline('x')"), apis=apis).outcome == "correct"
    assert one(answer("pipeline('x')"), apis=apis, n=2).outcome == "wrong"
    reason = one(answer("pipeline('x')"), apis=apis, n=2).reason
    assert reason == "calls an API for 'Text', the question is of 'Tokens'"


def test_the_first_record_of_the_database_that_fits_counts() -> None:
    apis = [api("f('x')", "Images"), api("f('x', 'y')", "Text")]
    assert one(answer("f('x', 'y')"), apis=apis).index == 0
    assert one(answer("f('x', 'y')"), apis=apis[::-1]).index == 0


def test_the_fault_of_the_reference_and_strict_mode() -> None:
    """Where no subtree has a record's name, the reference goes on with the last one, here that of a sentence."""
    loose, firm = one("renewable energy sources"), one("renewable energy sources", strict=True)
    assert (loose.outcome, loose.index, firm.outcome) == ("wrong", 0, "hallucination")
    assert loose.reason.endswith("(no subtree calls pipeline: its arguments occur in the text)")
    assert firm.reason == "calls nothing that the database has"


def test_what_is_compared_in_each_hub() -> None:
    torch_hub = [api("torch.hub.load(repo_or_dir='a/b', model='m', pretrained=True, model_math='fp16')")]
    text = answer("torch.hub.load('a/b', 'm', 'fp16')")
    assert one(text, "torchhub", apis=torch_hub).outcome == "correct"
    assert one(text, "huggingface", apis=torch_hub).outcome == "hallucination"  # pretrained=True
    assert one(answer("torch.hub.load('a/b', 'm')"), "torchhub", apis=torch_hub).outcome == "hallucination"
    tf_hub = [api("hub.KerasLayer('https://x/4', model='m', trainable=True)")]
    assert one(answer("hub.KerasLayer('https://x/4', 'm')"), "tensorflowhub", apis=tf_hub).outcome == "correct"
    assert one(answer("hub.KerasLayer('https://x/4')"), "tensorflowhub", apis=tf_hub).outcome == "hallucination"


def test_torchhub_passes_over_what_has_no_api_call() -> None:
    apis = [api("torch.hub.load(repo_or_dir='a/b', model='m')")]
    verdict = one("torch.hub.load('a/b', 'm')", "torchhub", apis=apis)
    assert (verdict.outcome, verdict.reason) == ("passed over", "the response has no api_call")
    report = score([Response(1, "x"), Response(2, answer("no()"))], apis, ASKED, "torchhub")
    assert (report.accuracy, report.hallucination) == (0.0, 0.5)  # it counts among all responses


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("no field f()", None),
        ("api_call: f('x'), api_provider: g()", "f('x')"),
        ("<<<api_call>>>: f('x'), <<<api_provider>>>: g()", "f('x')"),
        ("'api_call': 'm = f('x')', 'api_provider': 'H'", "'m = f('x')"),
        ("api_call f('x') api_provider", "('x')"),  # no colon: two characters are gone
        ("api_call: f, api_provider", "f,"),  # no bracket: the last character is gone
        ("api_call: f(1) api_call: g(2)", "f(1)"),
        ("api_call", ""),
    ],
)
def test_the_cut(text: str, cut: str | None) -> None:
    assert _cut(text) == cut


def test_calls() -> None:
    parsed = call(" a.b('x', \"y\", k='v', n=3) ")
    assert parsed is not None and parsed.name == "a.b"
    assert parsed.arguments == ((None, "x"), (None, "y"), ("k", "v"), ("n", "3"))
    assert call("f(#a\n1)").arguments == ((None, "1"),)  # type: ignore[union-attr]
    assert call("f('x').g('y')").name == "f('x').g"  # type: ignore[union-attr]
    assert call("f('x').") is not None, "a full stop behind it, as six records have it"
    assert call("./run.sh --x") is None is call("") is call("x = 1")


def test_subtrees_come_outer_first_and_later_first() -> None:
    heads = [tree.head for tree in subtrees("f(g(1))\nh(2)")]
    assert [h for h in heads if h in "fgh"] == ["h", "f", "g"]
    assert subtrees("") == [] and subtrees("\ud800(1)")[0].text == "?(1)"


def test_the_report_reads() -> None:
    responses = [Response(2, answer("pipeline('ner')")), Response(1, answer("AutoModel.from_pretrained('c/d')"))]
    report = score(responses, APIS, ASKED, "huggingface", strict=True)
    assert [v.question_id for v in report.verdicts] == [2, 1] and report.strict
    assert str(report).splitlines() == [
        "2 responses, huggingface, strict",
        "  correct           1   50.00%",
        "  wrong             1   50.00%",
        "       1 x calls an API for 'Images', the question is of 'Text'",
        "  hallucination     0    0.00%",
        "  passed over       0    0.00%",
    ]
    assert "as Gorilla's own scorer" in str(score(responses, APIS, ASKED, "huggingface"))
    assert report.verdicts[0].reason == "calls pipeline('ner')"


@pytest.mark.parametrize(
    ("responses", "hub", "message"),
    [
        ([Response(1, "x")], "torchub", "hub='torchub' is not allowed: .* Did you mean 'torchhub'"),
        ([], "torchhub", r"responses=\[\] is not allowed"),
        ([Response(3, "x")], "torchhub", "Response 1 answers question 3, but there are 2 examples"),
        ([Response(1, "x"), Response(1, "y")], "torchhub", "Response 2 answers question 1 again"),
    ],
)
def test_wrong_arguments(responses: list[Response], hub: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score(responses, APIS, ASKED, hub)


def test_without_tree_sitter_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.gorilla import syntax

    syntax._parser.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    with pytest.raises(MissingExtraError, match=r"'tree_sitter'.*pip install 'inlay\[gorilla\]'"):
        one("x")
    assert isinstance(ASKED[0], Example)
