"""A comparison as data, text and HTML."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inlay.comparison import Answer, Comparison, Row

NASTY = "<script>alert('x')</script> & \x1b[2J \"q\""


def made(answer: str = "the red house", name: str = "tuned") -> Comparison:
    rows = (
        Row("Describe it.", (Answer("the blue house", 2.5), Answer(answer, 1.25)), "the red house"),
        Row("Say nothing.", (Answer("well"), Answer(""))),
    )
    return Comparison(("base", name), rows, {"seed": 3})


class Checker(HTMLParser):
    """Tags in order; complains of what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_losses_are_means_of_rows_that_have_one() -> None:
    assert made().losses == {"base": 2.5, "tuned": 1.25}
    assert Comparison(("base",), (Row("p", (Answer("a"),)),)).losses == {"base": None}


@pytest.mark.parametrize(
    ("losses", "best"),
    [((2.0, 1.0), 1), ((1.0, 2.0), 0), ((1.0, 1.0), None), ((None, 1.0), None), ((None, None), None)],
)
def test_best(losses: tuple[float | None, float | None], best: int | None) -> None:
    assert Row("p", tuple(Answer("", loss) for loss in losses)).best == best


def test_wins_count_the_rows_with_the_lowest_loss() -> None:
    assert made().wins == {"base": 0, "tuned": 1} == made().to_dict()["wins"]
    assert Comparison(("a", "b"), (Row("p", (Answer("x"), Answer("y"))),)).wins == {}


def test_html_is_well_formed_and_loads_nothing() -> None:
    page = made().html()
    tags = checked(page).tags
    assert {t for t, _ in tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not any(name in ("src", "href") or name.startswith("on") for _, attrs in tags for name in attrs)
    assert "url(" not in page and "@import" not in page and "http" not in re.sub(r'http-equiv="', "", page)
    assert any("default-src 'none'" in (attrs.get("content") or "") for t, attrs in tags if t == "meta")


def test_html_marks_the_words_that_differ_on_both_sides() -> None:
    assert checked(made().html()).marked == ["blue", "red", "well"]


def test_html_escapes_every_text() -> None:
    row = Row(NASTY, (Answer(NASTY), Answer("<b>")), NASTY)
    page = Comparison(("base", NASTY), (row,), {NASTY: NASTY}).html()
    assert "<script" not in page and "<b>" not in re.sub(r"<b>&lt;|<b>1</b>", "", page)
    checked(page)


def test_notebooks_get_the_page_without_its_head() -> None:
    fragment = made()._repr_html_()
    assert fragment.startswith('<div class="inlay-comparison">') and fragment in made().html()
    checked(fragment)


def test_html_says_which_answer_is_empty_and_which_loss_is_best() -> None:
    page = made().html()
    assert '<span class="none">(empty)</span>' in page and '<span class="best">loss 1.2500</span>' in page


def test_text_has_everything_once() -> None:
    text = str(made())
    for part in ("Describe it.", "the blue house", "reference: the red house", "loss 2.5000", "(empty)"):
        assert text.count(part) == 1, part
    assert text.count("tuned ") == 4 and text.rstrip().endswith(
        "mean loss: base 2.5000   tuned 1.2500\nrows with the lowest loss: base 0   tuned 1"
    )
    assert max(map(len, text.splitlines())) <= 100


def test_text_has_color_only_if_asked_for() -> None:
    assert "\x1b" not in made().text()
    assert "\x1b[32mred" in made().text(color=True) and "\x1b[31mblue" in made().text(color=True)


def test_text_gives_a_terminal_no_orders() -> None:
    row = Row(NASTY, (Answer(NASTY), Answer("[red]x[/red]")), NASTY)
    text = Comparison(("base", "[b]"), (row,)).text()
    assert "\x1b" not in text and "[red]x[/red]" in text and "[b]" in text


def test_save(tmp_path: Path) -> None:
    c = made()
    for name in ("c.html", "c.json", "c.txt"):
        c.save(tmp_path / name)
    assert (tmp_path / "c.html").read_text() == c.html() and (tmp_path / "c.txt").read_text() == str(c)
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["columns"] == ["base", "tuned"] and data["rows"][0]["answers"][1] == {
        "text": "the red house",
        "loss": 1.25,
    }
