"""Words, and which of them another text lacks."""

from __future__ import annotations

import pytest

from inlay.comparison.difference import Piece, difference, words


@pytest.mark.parametrize("text", ["", "a b", " a\n\n b, c!", "北京 is 大", "naïve 3.5", "日本語テキスト", "a\u0301 b"])
def test_words_are_the_whole_text(text: str) -> None:
    assert "".join(words(text)) == text


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("abc中文de") == ["abc", "中", "文", "de"]


def test_what_differs() -> None:
    assert difference("the red house", ["the blue house"]) == [
        Piece("the ", False),
        Piece("red", True),
        Piece(" house", False),
    ]


def test_a_word_that_any_other_text_has_does_not_differ() -> None:
    assert difference("a b c", ["a x c", "y b y"]) == [Piece("a b c", False)]


def test_alone_nothing_differs() -> None:
    assert difference("a b", []) == [Piece("a b", False)]


def test_against_an_empty_text_all_differs() -> None:
    assert difference("a b", [""]) == [Piece("a b", True)]
    assert difference("", ["a"]) == []


def test_white_space_is_of_the_words_beside_it() -> None:
    assert difference("a red big b", ["x y"]) == [Piece("a red big b", True)]  # both have spaces
    assert difference("game with it", ["game"]) == [Piece("game ", False), Piece("with it", True)]
    assert difference("a  b", ["a b"]) == [Piece("a", False), Piece("  ", True), Piece("b", False)]


def test_order_counts() -> None:
    pieces = difference("b a", ["a b"])
    assert any(p.differs for p in pieces) and "".join(p.text for p in pieces) == "b a"
