"""How segments become rows: the plain layout, and ChatGLM's against a re-statement of its steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.data import Causal, ChatGLM, prepare
from inlay.data.tokenize import Segment
from inlay.errors import DataError

from .tokenizers import gpt2_like


def test_the_plain_layout() -> None:
    layout = Causal(head=[1], end=[2], max_length=8)
    row = layout([Segment([5, 6], False), Segment([7], True)], complete=False)
    assert row == ([1, 5, 6, 7, 2], [False, False, False, True, True], False, 2)
    assert row.labels == [-100, -100, -100, 7, 2]
    complete = layout([Segment([5, 6], False), Segment([7], True)], complete=True)
    assert complete == ([5, 6, 7], [False, False, True], False, None), "nothing is added, and 7 ends nothing"


@pytest.mark.parametrize(("room", "cut", "end"), [(5, False, 2), (4, True, None), (3, True, None)])
def test_what_is_cut_has_no_end(room: int, cut: bool, end: int | None) -> None:
    row = Causal([1], [2], room)([Segment([5, 6], False), Segment([7], True)], False)
    assert (row.ids, row.cut, row.end) == ([1, 5, 6, 7, 2][:room], cut, end)


def chatglm(a: list[int], b: list[int], max_source: int, max_target: int) -> tuple[list[int], list[int]]:
    """The steps of its training script, with its ids: build, find bos, copy, pad, and mask the padding."""
    gmask, bos, eop, pad = 130001, 130004, 130005, 3
    a = a[: max_source - 1] if len(a) > max_source - 1 else a
    b = b[: max_target - 2] if len(b) > max_target - 2 else b
    ids = a + [gmask, bos] + b + [eop]
    context = ids.index(bos)
    labels = [-100] * context + ids[context:]
    fill = max_source + max_target - len(ids)
    ids, labels = ids + [pad] * fill, labels + [pad] * fill
    return ids, [-100 if label == pad else label for label in labels]


IDS = st.lists(st.integers(5, 129_999), min_size=1, max_size=20)


@given(IDS, IDS, st.integers(2, 12), st.integers(3, 12))
def test_chatglm(a: list[int], b: list[int], source: int, target: int) -> None:
    layout = ChatGLM(max_source=source, max_target=target)
    assert layout.padded(layout.row(a, b)) == chatglm(a, b, source, target)


def test_chatglm_golden() -> None:
    layout = ChatGLM(max_source=5, max_target=5)
    row = layout.row([11, 12], [21, 22])
    assert row.ids == [11, 12, 130001, 130004, 21, 22, 130005]
    assert row.labels == [-100, -100, -100, 130004, 21, 22, 130005]
    long = layout.row([11, 12, 13, 14, 15], [21, 22, 23, 24])
    assert long.ids == [11, 12, 13, 14, 130001, 130004, 21, 22, 23, 130005] and long.cut


def test_prepare_with_chatglms_layout() -> None:
    tokenizer = gpt2_like()
    layout = ChatGLM(gmask=1, bos=2, eop=0, pad=0, max_source=8, max_target=8)
    rows = [{"content": "ab", "summary": "cd"}, {"content": "a" * 40, "summary": "b"}, {"content": "a", "summary": ""}]
    prepared = prepare(rows, tokenizer, layout=layout)
    a, b = tokenizer(["ab", "cd"], add_special_tokens=False)["input_ids"]
    assert prepared[0]["input_ids"] == [*a, 1, 2, *b, 0]
    assert prepared[0]["labels"] == [-100] * (len(a) + 1) + [2, *b, 0]
    assert prepared.report.truncated == [2] and prepared.report.dropped == {"summary is empty": [3]}
    (warning,) = prepared.report.warnings
    assert warning.startswith(
        "1 of 3 rows are cut at the lengths of the layout: the ends of their answers are not trained"
    )
    chat = [{"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]}]
    with pytest.raises(DataError, match="ChatGLM's layout takes one prompt and one answer"):
        prepare(chat, tokenizer, layout=layout)
