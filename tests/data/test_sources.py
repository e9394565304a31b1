"""Sources: every kind gives the same rows with their numbers, and a bad file or row says what is wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from inlay.data import BadRow, prepare, read
from inlay.errors import ConfigError, CorruptFileError, DataError, MissingExtraError, MissingFileError

from .tokenizers import gpt2_like

ROWS = [{"prompt": 'a, "b"\nc', "completion": "é 类"}, {"prompt": "", "completion": "x"}]


def numbered(source: Any, **options: Any) -> list[tuple[int, Any]]:
    return [(n, str(row) if isinstance(row, BadRow) else dict(row)) for n, row in read(source, **options).rows]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


GOOD = list(enumerate(ROWS, start=1))


def test_files_of_every_kind(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = 'prompt,completion\n"a, ""b""\nc",é 类\n,x\n'
    for path in (
        written(tmp_path / "a.json", json.dumps(ROWS)),
        written(tmp_path / "b.json", lines),
        written(tmp_path / "c.jsonl", lines),
        written(tmp_path / "d.JSONL", "\ufeff" + lines),
        written(tmp_path / "e.ndjson", lines.rstrip("\n")),
        written(tmp_path / "f.csv", table),
        written(tmp_path / "g.csv", "\ufeff" + table.replace("\n,x", "\r\n,x")),
        written(tmp_path / "h.tsv", 'prompt\tcompletion\n"a, ""b""\nc"\té 类\n\tx\n'),
        written(tmp_path / "i.json", "\ufeff \n" + json.dumps(ROWS)),
    ):
        assert numbered(path) == GOOD == numbered(str(path)), path.name
        assert read(str(path)).name == str(path)


def test_objects() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    for source in (ROWS, tuple(ROWS), iter(ROWS), dataset, dataset.to_iterable_dataset(), {"train": ROWS}):
        assert numbered(source) == GOOD
    both = datasets.DatasetDict({"train": dataset, "test": dataset.select([1])})
    assert numbered(both) == GOOD and numbered(both, split="test") == [(1, ROWS[1])]
    with pytest.raises(ConfigError, match=r"split='dev' is not allowed: expected one of \['train', 'test'\]"):
        read(both, split="dev")


def test_a_column_without_a_name() -> None:
    assert numbered([{3: "a", "b": "c"}, 4]) == [
        (1, "a column's name is no text"),
        (2, "the row is int, expected an object with columns"),
    ]


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow.csv", None)
    for name in ("nobody/nothing", str(tmp_path)):
        with pytest.raises(MissingExtraError, match=r"pip install 'inlay\[data\]'"):
            read(name)
    with pytest.raises(MissingExtraError, match=r"pip install 'inlay\[data\]'"):
        numbered(written(tmp_path / "a.csv", "a,b\n1,2\n"))
    assert numbered(written(tmp_path / "a.jsonl", '{"a": 1}\n')) == [(1, {"a": 1})], "JSON needs none"


def test_parquet_and_saved_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "dict")
    for name in ("a.parquet", "saved", "dict"):
        assert numbered(tmp_path / name) == GOOD
    with pytest.raises(CorruptFileError, match=r"broken.parquet' is not a parquet file"):
        numbered(written(tmp_path / "broken.parquet", b"PAR1 no"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"is not one that datasets' save_to_disk wrote .*Name a file in it"):
        read(tmp_path / "empty")


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    good = '{"prompt": "a", "completion": "b"}\n'
    lines = "\n" + good + "not json\n" + "[1]\n" + '{"prompt": "caf\\u00e9"\n' + "  \n" + good + "3"
    found = numbered(written(tmp_path / "a.jsonl", lines.encode() + b'\n{"x": "\xe9"}\n'))
    assert [n for n, _ in found] == [2, 3, 4, 5, 7, 8, 9]
    assert [row for _, row in found if isinstance(row, str)] == [
        "the line is not JSON",
        "the row is list, expected an object with columns",
        "the line is not JSON",
        "the row is int, expected an object with columns",
        "the line is not UTF-8",
    ]


def test_table_rows_of_another_width_keep_their_place(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "prompt,completion\n1,2\n3\n4,5,6\n7,8\n9\n")
    reason = "the row has {} columns, the header 2"
    assert numbered(path) == [
        (1, {"prompt": "1", "completion": "2"}),
        (2, reason.format(1)),
        (3, reason.format(3)),
        (4, {"prompt": "7", "completion": "8"}),
        (5, reason.format(1)),
    ]


def test_a_huge_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inlay.data.sources.LONGEST_LINE", 2**20)
    good = b'{"prompt": "a", "completion": "b"}\n'
    path = written(tmp_path / "a.jsonl", good + b'{"prompt": "' + b"x" * 5 * 2**20 + b'"}\n' + good)
    found = numbered(path)
    assert [n for n, _ in found] == [1, 2, 3] and found[1][1] == "the line is longer than 1 MiB"


def test_the_catalogue_of_bad_alpaca_rows(tmp_path: Path) -> None:
    """Missing output, null input, int input, a row that is none, half a surrogate pair: number and reason."""
    rows: list[Any] = [
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": ""},
        {"instruction": "a", "input": None, "output": "b"},
        {"instruction": "a", "input": 3, "output": "b"},
        {"instruction": None, "input": "", "output": "b"},
        ["a", "", "b"],
        {"instruction": "\ud800", "output": "b"},
        {"instruction": "a", "output": ["b"]},
        {"input": "a", "output": "b"},
        {},
        {"instruction": "### Response:", "input": "{input} {x}", "output": "<|endoftext|>"},
    ]
    path = written(tmp_path / "a.json", json.dumps(rows))
    report = prepare(path, gpt2_like()).report
    assert report.dropped == {
        "output is missing": [2, 10],
        "input is int, expected text": [4],
        "instruction is null": [5],
        "the row is list, expected an object with columns": [6],
        "instruction holds half of a surrogate pair, which is no character": [7],
        "output is list, expected text": [8],
        "instruction is missing": [9],
    }
    assert report.notes == {
        "input is null, read as empty": [3],
        "the text holds a special token, which is read as one": [11],
    }
    assert report.rows == 11 and report.kept == 3
    assert "dropped    1: input is int, expected text (rows 4)" in str(report)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.json", "", CorruptFileError, "a.json' has no rows."),
        ("a.json", " \n ", CorruptFileError, "a.json' has no rows."),
        ("a.json", "[]", CorruptFileError, "a.json' has no rows."),
        ("a.jsonl", "", CorruptFileError, "a.jsonl' has no rows."),
        ("a.csv", "", CorruptFileError, "a.csv' has no rows."),
        ("a.csv", "prompt,completion\n", CorruptFileError, "a.csv' has no rows."),
        ("a.csv", "a,a\n1,2\n", CorruptFileError, "a.csv' has more than one column of the name 'a'."),
        ("a.csv", b"prompt,completion\n\xe9,b\n", CorruptFileError, "a.csv' is not UTF-8"),
        ("a.json", b'[{"a": "\xe9"}]', CorruptFileError, "iconv -f LATIN1 -t UTF-8"),
        ("a.json", '{\n "data": [{"prompt": "a"}]\n}', CorruptFileError, "holds one object, not a list of rows."),
        ("a.json", '[{"prompt": "a"}', CorruptFileError, "a.json' is not JSON: "),
        ("a.json", "[" * 100_000, CorruptFileError, "a.json' is not JSON: "),
        ("a.json", '"text"', DataError, "has no rows that can be read."),
        ("a.jsonl", "x\ny\n", DataError, "bad        2: the line is not JSON (rows 1, 2)"),
        ("a.json", '{"data": [{"prompt": "a"}]}', DataError, "Its columns are ['data']."),
        ("a.txt", "x", ConfigError, "ends in one of ['.csv', '.json', '.jsonl', '.ndjson', '.parquet', '.tsv']"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        prepare(written(tmp_path / name, content), gpt2_like())
    assert message in str(raised.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"There is no file 'rows.jsonl' \(looked in '/"):
        read("rows.jsonl")
    with pytest.raises(MissingFileError, match=r"There is no file '/no/where'"):
        read("/no/where")
    with pytest.raises(ConfigError, match="source=3 is not allowed: expected a path, a Hub id"):
        read(3)


def test_a_hub_id_without_network() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(MissingFileError, match="'nobody/nothing' is no file here, and as a data set of the Hub"):
        read("nobody/nothing")
