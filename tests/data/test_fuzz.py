"""Whatever rows or bytes come in, the result is a data set or a typed error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inlay.data import known_formats, prepare
from inlay.errors import InlayError

from .tokenizers import gpt2_like

ATOM = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
VALUE = st.recursive(
    ATOM, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=6), v, max_size=3))
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "x"]) | ATOM,
        "content": VALUE,
        "from": st.sampled_from(["human", "gpt"]) | ATOM,
        "value": VALUE,
    },
)
COLUMNS = sorted({c for f in known_formats().values() for shape in f.shapes for c in (*shape, *f.optional)})
ROW = st.dictionaries(st.sampled_from(COLUMNS), st.one_of(VALUE, st.lists(TURN, max_size=3)), max_size=4)


def holds(prepared: Any) -> bool:
    """What is true of every data set."""
    report = prepared.report
    dropped = sorted(n for rows in report.dropped.values() for n in rows)
    assert sorted([*prepared.rows, *dropped]) == list(range(1, report.rows + 1)), "every row is kept or accounted for"
    assert all(any(label != -100 for label in row["labels"]) for row in prepared)
    assert all(label in (-100, i) for row in prepared for i, label in zip(row["input_ids"], row["labels"], strict=True))
    assert str(report) and report.to_dict()
    return True


@pytest.mark.parametrize("name", ["auto", *known_formats()])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.one_of(ROW, VALUE), min_size=1, max_size=4))
def test_any_rows(name: str, rows: list[Any]) -> None:
    good = {"text": "a"} if name in ("auto", "text") else dict.fromkeys(known_formats()[name].shapes[0], "a")
    try:
        prepared = prepare([good, *rows], gpt2_like(), name)
    except InlayError as error:
        assert str(error)
    else:
        assert holds(prepared)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text('{}[]",:\\ntex \t12', max_size=60).map(str.encode)))
def test_any_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    start: dict[str, Callable[[bytes], bytes]] = {
        ".json": lambda b: b"[" + b,
        ".jsonl": lambda b: b'{"text": "a"}\n' + b,
        ".csv": lambda b: b"text\na\n" + b,
        ".tsv": lambda b: b"text\tx\na\tb\n" + b,
        ".parquet": lambda b: b"PAR1" + b + b"PAR1",
    }
    for data in (content, start[suffix](content)):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        try:
            prepared = prepare(path, gpt2_like())
        except InlayError as error:
            assert str(error)
        else:
            assert prepared.report.kept == len(prepared) > 0
