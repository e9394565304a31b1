"""Curves: what they show, in the page's colours, the same at every call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inlay.errors import MissingExtraError
from inlay.runs.history import History
from inlay.runs.report.charts import charts, smoothed
from tests.comparison.test_result import checked

LINES = [
    {"step": s, "loss": 3 - s / 50, "learning_rate": 2e-5 * s, "grad_norm": 1.5, "tokens_per_second": 1000.0 * s}
    for s in range(1, 31)
] + [{"step": s, "eval_loss": abs(s - 20) / 10 + 1} for s in range(0, 31, 5)]


def test_there_is_one_for_each_kind_of_number() -> None:
    made = charts(History.of(LINES))
    assert [c.title for c in made] == ["Loss", "Learning rate", "Gradient norm", "Tokens per second"]
    assert [c.title for c in charts(History.of([{"step": 1, "loss": 1.0}]))] == ["Loss"]
    assert charts(History.of([{"step": 1, "loss": None}])) == []


def test_text_is_text_and_colours_are_the_pages() -> None:
    svg = charts(History.of(LINES))[0].svg
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"train", "held out", "step", "best 1.000, step 20"} <= set(texts)
    assert {"var(--train)", "var(--held)", "var(--ink)", "var(--faint)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg) and "font-family" not in svg


def test_it_is_told_in_words() -> None:
    svg = charts(History.of(LINES))[0].svg
    said = (
        "Loss of training: 2.980 at step 1, 2.400 at step 30. Held-out loss: 3.000 at step 0, 2.000 at step 30. "
        "The lowest held-out loss is 1.000, at step 20."
    )
    assert f'role="img" aria-label="{said}"' in svg and f"<title>{said}</title>" in svg


def test_nothing_is_loaded_and_no_name_is_there_twice() -> None:
    page = "".join(c.svg for c in charts(History.of(LINES)))
    assert "http" not in page and "<style" not in page and "xmlns" not in page and "<metadata" not in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#(\w+)', page)) == set(ids)
    checked(page)


def test_the_line_goes_through_the_points() -> None:
    """Where the scale of the axes says; y goes down in SVG."""
    svg = charts(History.of([{"step": s, "grad_norm": v} for s, v in ((10, 4.0), (20, 1.0), (40, 2.0))]))[0].svg
    (path,) = re.findall(r'd="([^"]*)"[^>]*stroke: var\(--train\)', svg)
    (x1, y1), (x2, y2), (x3, y3) = [tuple(map(float, p)) for p in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert x3 - x2 == pytest.approx(2 * (x2 - x1)) and y2 - y3 == pytest.approx((y2 - y1) / 3) and y2 > y3 > y1


def test_one_point_is_seen() -> None:
    made = charts(History.of([{"step": 7, "loss": 2.0, "learning_rate": 0.0, "grad_norm": 1.0}]))
    assert all("<use" in c.svg for c in made)  # a marker


def test_the_same_numbers_are_the_same_bytes() -> None:
    code = (
        "from tests.runs.report.test_charts import LINES\nfrom inlay.runs.history import History\n"
        "from inlay.runs.report.charts import charts\nimport hashlib\n"
        "print(hashlib.sha256(''.join(c.svg for c in charts(History.of(LINES))).encode()).hexdigest())\n"
        "import sys; assert 'matplotlib.pyplot' not in sys.modules"  # which would keep figures
    )
    root = Path(__file__).parents[3]
    found = set()
    for seed in "12":
        env = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_settings_of_matplotlib_are_as_before() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts(History.of(LINES))
    assert dict(matplotlib.rcParams) == before


def test_smoothing_begins_at_the_first_value_and_keeps_a_constant() -> None:
    assert smoothed([(1, 3.0), (2, 3.0), (3, 3.0)]) == [(s, pytest.approx(3.0)) for s in (1, 2, 3)]
    made = smoothed([(1, 3.0), (2, 1.0)])
    assert made == [(1, pytest.approx(3.0)), (2, pytest.approx((0.1 * 0.9 * 3 + 0.1 * 1) / 0.19))]
    many = charts(History.of([{"step": s, "loss": s % 2 + 1.0} for s in range(50)]))[0].svg
    assert "train, smoothed" in many and "smoothed" not in charts(History.of(LINES))[0].svg


def test_a_long_run_is_not_a_large_page() -> None:
    long = [{"step": s, "loss": (s * 7919 % 1000) / 1000} for s in range(200_000)]
    (chart,) = charts(History.of(long))
    assert len(chart.svg) < 400_000 and "at step 199999." in chart.svg


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'inlay\[cli\]'"):
        charts(History.of(LINES))
