from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import ConfigError, CorruptFileError, FileError, InlayError, MissingFileError
from inlay.io.strict_json import dump_json, parse_json, read_json


class Kind(str, enum.Enum):
    LORA = "LORA"


# --- writing


def test_text_is_sorted_indented_and_ends_with_a_newline() -> None:
    assert dump_json({"b": (1, 2.5), "a": {"y": None, "x": True}}) == (
        b'{\n  "a": {\n    "x": true,\n    "y": null\n  },\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    )


def test_sets_are_sorted_whatever_their_order_in_memory() -> None:
    names = {f"layer{i}" for i in range(50)}
    assert parse_json(dump_json({"s": names}), "x") == {"s": sorted(names)}
    assert parse_json(dump_json({"s": frozenset({10, 9})}), "x") == {"s": [9, 10]}
    assert parse_json(dump_json({"s": {1, "a"}}), "x") == {"s": ["a", 1]}  # no order of their own: by repr


def test_enums_are_written_as_their_value() -> None:
    assert parse_json(dump_json({"peft_type": Kind.LORA, Kind.LORA: 1}), "x") == {"peft_type": "LORA", "LORA": 1}


def test_round_trip() -> None:
    value = {"": {"ä\ud800\n": [[], {}, -0.0, 1e-300, 2**64, False, "x" * 1000]}, "deep": nested(99)}
    assert parse_json(dump_json(value), "x") == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"a\.b\[1\]=nan is not allowed: expected a finite number"),
        ({"a": float("inf")}, "a=inf"),
        ({"a": {1: 2}}, "a=1 is not allowed: expected a string as key"),
        ({"a": Path("x")}, "expected text, a number"),
        ({"a": b"x"}, "a=b'x'"),
        ({"a": {object}}, "expected text"),
    ],
)
def test_what_json_would_alter_is_refused(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dump_json(value)


# --- reading


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + b'{"r": 8}')
    assert read_json(tmp_path / "c.json") == {"r": 8}
    assert read_json(str(tmp_path / "c.json")) == {"r": 8}


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", CorruptFileError, "is empty: its save was cut off"),
        (b" \n\t", CorruptFileError, "is empty"),
        (b"\xef\xbb\xbf", CorruptFileError, "not valid JSON"),
        (bytes(40), CorruptFileError, "not valid JSON at line 1, column 1"),
        (b'{"r": 8,\n "a": }', CorruptFileError, "at line 2, column 7: Expecting value"),
        (b'{"r": 8} x', CorruptFileError, "at line 1, column 10: Extra data"),
        (b"{'r': 8}", CorruptFileError, "column 2"),
        (b'{"r": 08}', CorruptFileError, "column 8"),
        (b'{"r": "a\nb"}', CorruptFileError, "control character"),
        ('{"r": 8}'.encode("utf-16"), CorruptFileError, r"is not UTF-8 \(byte 0"),
        ('{"r": 8}'.encode("utf-16-le"), CorruptFileError, "not valid JSON"),
        ('{"r": 8}'.encode("utf-32"), CorruptFileError, "is not UTF-8"),
        (b'{"r": "\xff"}', CorruptFileError, r"is not UTF-8 \(byte 7"),
        (b"[]", ConfigError, "holds a list at top level: expected an object"),
        (b"null", ConfigError, "holds a NoneType at top level"),
        (b"8", ConfigError, "holds a int at top level"),
        (b'{"r": 8, "r": 9}', ConfigError, "gives the key 'r' twice"),
        (b'{"a": [{"r": 8, "\\u0072": 8}]}', ConfigError, "gives the key 'r' twice"),
        (b'{"a": NaN}', ConfigError, "holds the number NaN: expected a finite number"),
        (b'{"a": -Infinity}', ConfigError, "holds the number -Infinity"),
        (b'{"a": 1e999}', ConfigError, "holds the number 1e999"),
        (b'{"a": -' + b"9" * 100 + b"}", ConfigError, "holds the number -999"),
        (b'{"a": ' + b"9" * 100_000 + b"}", ConfigError, "holds the number 999"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", ConfigError, "nested more than 100 deep"),
        (b'{"a":' * 200_000, InlayError, "x.json"),
        (dump_json({"x": nested(100)}), ConfigError, "nested more than 100 deep"),
    ],
)
def test_what_is_refused(data: bytes, error: type[InlayError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        parse_json(data, "x.json")
    assert type(caught.value) is error or error is InlayError
    assert "x.json" in str(caught.value)


def test_every_truncation_is_found() -> None:
    data = dump_json({"r": 8, "target_modules": {"q_proj", "v_proj"}, "bias": "none", "rank_pattern": {"ä": 1.5}})
    for cut in range(len(data) - 1):  # the last byte is the newline
        with pytest.raises(CorruptFileError):
            parse_json(data[:cut], "x")


@pytest.mark.parametrize(
    "data",
    [
        b'{"' + b'\\"' * 1_000_000,
        b'{"a": "' + b"x" * 4_000_000,
        b"{" + b",".join(b'"%d": 1' % i for i in range(200_000)) + b', "0": 1}',
        b'{"a": [' + b"[]," * 500_000 + b"[]]",
        b'{"a": 1' + b"e" * 1_000_000,
    ],
    ids=["escapes", "open string", "many keys", "many lists", "number"],
)
def test_hostile_text_is_refused_quickly(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InlayError):
        parse_json(data, "x")
    assert time.process_time() - started < 2


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(dump_json({"a": "x" * 100}))
    size = path.stat().st_size
    assert read_json(path, max_bytes=size)
    with pytest.raises(CorruptFileError, match=f"is larger than {size - 1} bytes"):
        read_json(path, max_bytes=size - 1)


def test_a_sparse_giant_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptFileError, match=r"is larger than 16777216 bytes"):
        read_json(path)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda path: None, MissingFileError, "does not exist"),
        (lambda path: path.mkdir(), FileError, "cannot be read: not a regular file"),
        (lambda path: os.mkfifo(path), FileError, "cannot be read: not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), FileError, "cannot be read: not a regular file"),
        (lambda path: path.symlink_to(path.name), FileError, "cannot be read: Too many levels"),
    ],
    ids=["nothing", "folder", "pipe", "device", "link to itself"],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None], error: type[FileError], said: str) -> None:
    make(tmp_path / "c.json")
    with pytest.raises(error, match=said) as caught:
        read_json(tmp_path / "c.json")
    assert "c.json" in str(caught.value)
