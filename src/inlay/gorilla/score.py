r"""Gorilla's accuracy and hallucination: which API does a response call, and is it one for the question's task?

For each response:

1. **Cut.** The text after the first "api_call" up to "api_provider"; of that, from the second character after the first
   ":" to the last ")". A response without "api_call" is code as a whole, except that TorchHub's scorer passes over it.
2. **Match.** The first record of the database that fits. For a record `name(arguments)` the candidate is the first
   subtree of the response's syntax tree whose first child is `name` (outer before inner, later before earlier); the
   record fits if each of its compared arguments, without quotes, occurs in the candidate's text. What is compared is
   the hub's rule (`HUBS`); a record without such arguments fits nothing.
3. **Verdict.** No record: *hallucination*. A record of the domain of the question's own record: *correct*; of another
   domain: *wrong*. Neither is what is passed over. Accuracy and hallucination are shares of all responses.

Gorilla's own scorer, which is reproduced by default, has a fault: where no subtree has the record's name, it goes on
with the last subtree as the candidate, so that text in which "ner" occurs (energy, generate) counts as a call of
`pipeline('ner')`. With `strict=True` such a record does not fit. Report strict figures for your own models, the others
beside published ones.

What cannot be read in a broken text counts as hallucination in both modes: 18 of the 186 published zero-shot TorchHub
responses put the call in quotes of the kind it uses itself. The reason of such a verdict says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from inlay.errors import ConfigError, did_you_mean
from inlay.gorilla.records import Example, Record, Response
from inlay.gorilla.syntax import Subtree, call, subtrees

CORRECT, WRONG, HALLUCINATION, PASSED = "correct", "wrong", "hallucination", "passed over"


@dataclass(frozen=True)
class Hub:
    """How responses of a hub's models are read.

    Attributes:
        compared: whether an argument with this keyword (None: positional) has to occur in the response.
        needs_field: whether a response without "api_call" is passed over, instead of read as code.
    """

    compared: Callable[[str | None], bool]
    needs_field: bool = False


HUBS: Mapping[str, Hub] = MappingProxyType(
    {
        "huggingface": Hub(lambda key: True),
        "tensorflowhub": Hub(lambda key: key in (None, "model")),
        # "model" also within a keyword (model_type, model_math), as the reference has it: its figures need that
        "torchhub": Hub(lambda key: key is not None and (key == "repo_or_dir" or "model" in key), needs_field=True),
    }
)
"""The rules of Gorilla's three databases. For a database of your own, "huggingface" compares every argument."""


@dataclass(frozen=True)
class Verdict:
    """What became of a response.

    Attributes:
        outcome: "correct", "wrong", "hallucination" or "passed over".
        index: the place of the matched record in the database, or None.
        reason: why, in a sentence.
    """

    question_id: int
    outcome: str
    index: int | None
    reason: str


@dataclass(frozen=True)
class Report:
    """The verdicts on all responses, in their order, and the figures. `print(report)` shows them."""

    hub: str
    strict: bool
    verdicts: tuple[Verdict, ...]

    def count(self, outcome: str) -> int:
        """How many verdicts are this outcome."""
        return sum(v.outcome == outcome for v in self.verdicts)

    @property
    def accuracy(self) -> float:
        """correct / all responses."""
        return self.count(CORRECT) / len(self.verdicts)

    @property
    def hallucination(self) -> float:
        """hallucination / all responses."""
        return self.count(HALLUCINATION) / len(self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The figures, for files; `verdicts` has each response's."""
        counts = {outcome: self.count(outcome) for outcome in (CORRECT, WRONG, HALLUCINATION, PASSED)}
        return {
            "hub": self.hub,
            "strict": self.strict,
            "responses": len(self.verdicts),
            "accuracy": self.accuracy,
            "hallucination": self.hallucination,
            "counts": counts,
        }

    def __str__(self) -> str:
        total = len(self.verdicts)
        mode = "strict" if self.strict else "as Gorilla's own scorer"
        lines = [f"{total} responses, {self.hub}, {mode}"]
        for outcome in (CORRECT, WRONG, HALLUCINATION, PASSED):
            of_it = [v for v in self.verdicts if v.outcome == outcome]
            lines.append(f"  {outcome:<13} {len(of_it):>5}  {len(of_it) / total:>7.2%}")
            if outcome in (WRONG, HALLUCINATION):
                for reason, n in Counter(v.reason for v in of_it).most_common(3):
                    lines.append(f"    {n:>4} x {reason if len(reason) <= 100 else reason[:97] + '...'}")
        return "\n".join(lines)


def score(
    responses: Sequence[Response],
    apis: Sequence[Record],
    examples: Sequence[Example],
    hub: str,
    strict: bool = False,
) -> Report:
    """Scores `responses` against the database `apis`; the record of question n is that of `examples[n - 1]`.

    Args:
        hub: whose rules: "huggingface", "tensorflowhub" or "torchhub".
        strict: a record whose name no subtree has does not fit.

    Raises ConfigError if the hub is unknown, if there is no response, or one to a question that `examples` lacks or
    that was answered before; MissingExtraError without `inlay[gorilla]`.
    """
    if hub not in HUBS:
        raise ConfigError.of("hub", hub, f"one of {', '.join(map(repr, HUBS))}", did_you_mean(hub, HUBS).strip())
    if not responses:
        raise ConfigError.of("responses", responses, "at least one response")
    seen: set[int] = set()
    for number, response in enumerate(responses, start=1):
        if response.question_id > len(examples) or response.question_id < 1:
            raise ConfigError(
                f"Response {number} answers question {response.question_id}, but there are {len(examples)} examples. "
                "Give the eval file that the questions were made from."
            )
        if response.question_id in seen:
            raise ConfigError(f"Response {number} answers question {response.question_id} again. Give one for each.")
        seen.add(response.question_id)
    scorer = _Scorer(apis, HUBS[hub], strict)
    return Report(hub, strict, tuple(scorer.verdict(r, examples[r.question_id - 1].api["domain"]) for r in responses))


class _Scorer:
    """The database as calls, and the rules."""

    def __init__(self, apis: Sequence[Record], hub: Hub, strict: bool):
        self.apis, self.hub, self.strict = apis, hub, strict
        self.calls: list[tuple[int, str, list[str]]] = []  # record, name, compared arguments
        for index, record in enumerate(apis):
            parsed = call(record["api_call"])
            compared = [text for keyword, text in parsed.arguments if hub.compared(keyword)] if parsed else []
            if parsed and compared:
                self.calls.append((index, parsed.name, compared))

    def verdict(self, response: Response, domain: str) -> Verdict:
        code = _cut(response.text)
        if code is None and self.hub.needs_field:
            return Verdict(response.question_id, PASSED, None, "the response has no api_call")
        trees = subtrees(response.text if code is None else code)
        heads: dict[str, Subtree] = {}
        for tree in trees:
            heads.setdefault(tree.head, tree)
        match = self._match(heads, None if self.strict or not trees else trees[-1])
        if match is None:
            return Verdict(response.question_id, HALLUCINATION, None, self._missing(heads, response.text))
        index, name = match
        found = self.apis[index]["domain"]
        if found == domain:
            outcome, reason = CORRECT, f"calls {self.apis[index]['api_call']}"
        else:
            outcome, reason = WRONG, f"calls an API for {found!r}, the question is of {domain!r}"
        if name not in heads:
            reason += f" (no subtree calls {name}: its arguments occur in the text)"
        return Verdict(response.question_id, outcome, index, reason)

    def _match(self, heads: Mapping[str, Subtree], last: Subtree | None) -> tuple[int, str] | None:
        """The first record that fits, as its place and name. `last` stands in for a name that is not there."""
        for index, name, compared in self.calls:
            candidate = heads.get(name, last)
            if candidate is not None and all(text in candidate.text for text in compared):
                return index, name
        return None

    def _missing(self, heads: Mapping[str, Subtree], text: str) -> str:
        names = dict.fromkeys(name for _, name, _ in self.calls)
        called = [name for name in names if name in heads]
        if called:
            return f"calls {called[0]}, but with arguments that no record has"
        named = [name for name in names if f"{name}(" in text]
        if named:
            return f"names {named[0]}, but as broken code, in which no call of it can be read"
        return "calls nothing that the database has"


def _cut(text: str) -> str | None:
    """The code behind the field "api_call"; None where there is no such field."""
    _, field, rest = text.partition("api_call")
    if not field:
        return None
    rest = rest.split("api_call")[0].split("api_provider")[0]
    start = rest.find(":") + 2 if ":" in rest else 2
    return rest[start : rest.rindex(")") + 1 if ")" in rest else -1]
