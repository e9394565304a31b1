from __future__ import annotations

import json
import math
import os
import pickle
import shlex
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.errors import ConfigError, CorruptFileError, FileError, MissingFileError, NumericsError, UnsafeFileError
from inlay.io.tensors import DTYPES, TensorInfo, pack_tensors, read_header, read_pickle, read_tensors

GOOD = {"a": ("F32", [2, 3], [0, 24]), "b": ("BF16", [4], [24, 32])}


def encode(header: dict[str, Any] | str, data: bytes = bytes(32), length: int | None = None) -> bytes:
    """A safetensors file by hand. A tensor is given as (dtype, shape, data_offsets)."""
    if isinstance(header, dict):
        keys = ("dtype", "shape", "data_offsets")
        header = json.dumps(
            {k: dict(zip(keys, v, strict=True)) if isinstance(v, tuple) else v for k, v in header.items()}
        )
    raw = header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


# --- round trips


def test_round_trip_with_safetensors_itself(path: Path) -> None:
    tensors = {
        "w": torch.randn(3, 5),
        "h": torch.randn(7).half(),
        "b": torch.randn(2, 2, 2).bfloat16(),
        "d": torch.randn(3).double(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "ä b": torch.randn(1),
    }
    path.write_bytes(pack_tensors(tensors))
    for back in (read_tensors(path), load_file(path)):
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.read_bytes() == pack_tensors(tensors)
    assert read_header(path) == {k: TensorInfo(v.dtype, tuple(v.shape)) for k, v in tensors.items()}


def test_equal_tensors_give_equal_bytes() -> None:
    a, b = torch.randn(3), torch.randn(4)
    assert pack_tensors({"a": a, "b": b}) == pack_tensors({"b": b.clone(), "a": a.clone()})
    header = json.loads(pack_tensors({"a": a})[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt"}


def test_views_are_written_in_full(path: Path) -> None:
    w = torch.nn.Parameter(torch.randn(4, 6))
    tensors = {"w": w, "again": w, "t": w.t(), "row": w[1], "wide": torch.ones(1).expand(5), "strided": w[:, ::2]}
    path.write_bytes(pack_tensors(tensors))
    back = read_tensors(path)
    assert all(torch.equal(back[k], v) and not back[k].requires_grad for k, v in tensors.items())
    assert path.stat().st_size < 1000
    assert w.requires_grad  # and the given tensors are as they were


def test_tensors_own_their_memory(path: Path) -> None:
    path.write_bytes(pack_tensors({"a": torch.ones(1000)}))
    a = read_tensors(path)["a"]
    with path.open("r+b") as file:
        file.truncate(8)  # with a mapped file, the next line would kill the process
    assert bool((a == 1).all())


def test_empty_file_of_tensors(path: Path) -> None:
    path.write_bytes(pack_tensors({}))
    assert read_header(path) == read_tensors(path) == {}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_of_the_table(path: Path, dtype: str) -> None:
    """What packs has the header that is expected, and only floating point comes back."""
    path.write_bytes(pack_tensors({"a": torch.zeros(3).to(DTYPES[dtype])}))
    assert read_header(path) == {"a": TensorInfo(DTYPES[dtype], (3,))}
    if DTYPES[dtype].is_floating_point:
        assert read_tensors(path)["a"].dtype == DTYPES[dtype]
    else:
        with pytest.raises(CorruptFileError, match=r"'a' has dtype torch.*; expected floating point"):
            read_tensors(path)


def test_integers_only_where_expected(path: Path) -> None:
    path.write_bytes(pack_tensors({"w": torch.ones(2), "num_batches_tracked": torch.tensor(7)}))
    back = read_tensors(path, integer_ok=lambda name: name.endswith("num_batches_tracked"))
    assert back["num_batches_tracked"].item() == 7
    with pytest.raises(CorruptFileError, match=r"'num_batches_tracked' has dtype torch.int64"):
        read_tensors(path, integer_ok=lambda name: name == "w")
    path.write_bytes(pack_tensors({"w": torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(CorruptFileError, match=r"torch.bool"):
        read_tensors(path, integer_ok=lambda name: True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_not_finite(path: Path, bad: float, dtype: torch.dtype) -> None:
    tensors = {"ok": torch.ones(3), "x.lora_A.weight": torch.tensor([[1.0, bad], [2.0, 3.0]]).to(dtype)}
    with pytest.raises(
        NumericsError, match=r"'x.lora_A.weight' in the adapter that is being saved holds 1 value\(s\) of 4"
    ):
        pack_tensors(tensors)
    save_file(tensors, path)
    with pytest.raises(
        NumericsError, match=r"'x.lora_A.weight' in '.*adapter_model.safetensors' holds 1 value\(s\) of 4"
    ):
        read_tensors(path)
    torch.save(tensors, path.with_suffix(".bin"))
    with pytest.raises(NumericsError, match=r"'x.lora_A.weight' in '.*bin'"):
        read_pickle(path.with_suffix(".bin"), allow_pickle=True)


def test_the_largest_numbers_are_finite(path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    tensors = {
        str(d): torch.tensor([torch.finfo(d).max, torch.finfo(d).min, torch.finfo(d).tiny], dtype=d) for d in dtypes
    }
    path.write_bytes(pack_tensors(tensors))
    assert len(read_tensors(path)) == 4


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.ones(2, device="meta")}, "a='torch.float32, torch.strided, on meta' is not allowed"),
        ({"a": torch.ones(2).to_sparse()}, "torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "torch.complex128"),
        ({"__metadata__": torch.ones(2)}, "the format keeps this one for itself"),
    ],
    ids=["meta", "sparse", "dtype", "name"],
)
def test_what_cannot_be_packed(tensors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pack_tensors(tensors)


# --- damage


def test_the_file_by_hand_is_good(path: Path) -> None:
    path.write_bytes(encode({"__metadata__": {"format": "pt"}, **GOOD}))
    assert read_tensors(path).keys() == {"a", "b"}
    path.write_bytes(encode(json.dumps({"a": {"data_offsets": [0, 4], "shape": [], "dtype": "F32"}}) + "   ", bytes(4)))
    assert read_header(path) == {"a": TensorInfo(torch.float32, ())}


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
    return encode({"a": (dtype, shape, offsets)}, bytes(8))


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes, too few for its header"),
    "zeros": (bytes(64), "does not start with '{'"),
    "length beyond the file": (encode(GOOD, length=10**6), "too few for its header of 1000000 bytes: it was cut off"),
    "length of 2^63": (encode(GOOD, length=2**63), "too few for its header"),
    "length of 2^64 - 1": (encode(GOOD, length=2**64 - 1), "too few for its header"),
    "length one short": (encode("{}  ", b"", length=1), "not valid JSON"),
    "not JSON": (encode("{'a': 1}"), "not valid JSON"),
    "list": (encode("[]"), "does not start with '{'"),
    "byte order mark": (encode("\ufeff{}"), "does not start with '{'"),
    "leading space": (encode(" {}", b""), "does not start with '{'"),
    "deep": (encode('{"a":' * 100_000), "header of"),
    "key twice": (
        encode('{"a": %s, "a": %s}' % ((json.dumps({"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}),) * 2)),
        "gives the key 'a' twice",
    ),
    "offsets twice": (
        encode('{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 8], "data_offsets": [0, 32]}}'),
        "gives the key 'data_offsets' twice",
    ),
    "metadata of numbers": (encode({"__metadata__": {"a": 1}, **GOOD}), "'__metadata__' is not a dict of texts"),
    "metadata list": (encode({"__metadata__": [], **GOOD}), "'__metadata__' is not a dict of texts"),
    "entry is a list": (encode({"a": [1]}), "entry of 'a' does not consist of dtype, shape and data_offsets"),
    "entry lacks shape": (encode({"a": {"dtype": "F32", "data_offsets": [0, 32]}}), "does not consist of"),
    "entry has more": (encode('{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32],"x":1}}'), "does not consist of"),
    "unknown dtype": (entry("F33"), "has dtype 'F33'; known are F64"),
    "dtype number": (entry(32), "has dtype '32'"),
    "shape is no list": (entry(shape="2"), "has shape 2"),
    "negative size": (entry(shape=[-2]), r"has shape \[-2\]"),
    "two negative sizes": (entry(shape=[-1, -2]), r"has shape \[-1, -2\]"),
    "size of 2.0": (entry(shape=[2.0]), "has shape"),
    "size true": (entry(shape=[True, 2]), "has shape"),
    "size of 2^63": (entry(shape=[2**63]), "has shape"),
    "overflowing shape": (entry(shape=[2**62, 4, 2]), "needs 147573952589676412928 bytes, but has 8"),
    "shape too large": (entry(shape=[3]), r"of shape \[3\] and dtype F32 needs 12 bytes, but has 8"),
    "shape too small": (entry(shape=[1]), "needs 4 bytes, but has 8"),
    "17 dimensions": (entry(shape=[1] * 16 + [2]), "at most 16 sizes"),
    "offsets reversed": (entry(offsets=[8, 0]), r"has data_offsets \[8, 0\]"),
    "offsets negative": (entry(offsets=[-8, 0]), "has data_offsets"),
    "three offsets": (entry(offsets=[0, 4, 8]), "has data_offsets"),
    "offsets beyond the file": (entry(shape=[4], offsets=[0, 16]), "its tensors take 16 bytes, but 8 follow"),
    "gap at the start": (entry(shape=[1], offsets=[4, 8]), r"the bytes of 'a' start at 4, expected 0 \(a gap"),
    "gap": (encode({"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [8, 12])}), "'b' start at 8, expected 4"),
    "overlap": (encode({"a": ("F32", [4], [0, 16]), "b": ("F32", [4], [8, 24])}), "'b' start at 8, expected 16"),
    "same bytes twice": (encode({"a": ("F32", [8], [0, 32]), "b": ("F32", [8], [0, 32])}), "start at 0, expected 32"),
    "bytes of no tensor": (encode(GOOD, bytes(40)), "its tensors take 32 bytes, but 40 follow the header"),
    "no tensor, but bytes": (encode({}, bytes(4)), "take 0 bytes, but 4 follow"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_refused(path: Path, name: str) -> None:
    data, said = HEADERS[name]
    path.write_bytes(data)
    for read in (read_header, read_tensors):
        with pytest.raises(CorruptFileError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value) and str(caught.value).endswith("again.")


def test_a_huge_header_is_refused_by_its_length(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(300_000_000)  # sparse
    with pytest.raises(CorruptFileError, match=r"header of 200000000 bytes is larger than"):
        read_header(path)


def test_a_zip_glued_to_the_end(path: Path) -> None:
    path.write_bytes(encode(GOOD))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.py", "evil")
    with pytest.raises(CorruptFileError, match=r"follow the header"):
        read_tensors(path)


def test_truncated_at_every_byte(path: Path) -> None:
    data = pack_tensors({"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16()})
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFileError, match=str(path)):
            read_header(path)


def test_a_flipped_bit_of_the_header_never_gives_other_numbers(path: Path) -> None:
    """It is refused, or it is another name or dtype of the same bytes: which the caller's expected keys catch."""
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4).bfloat16()}
    data = pack_tensors(tensors)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    refused = 0
    for bit in range(end * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            back = read_tensors(path)
        except (CorruptFileError, NumericsError):
            refused += 1
        else:
            same = [k for k in back if k in tensors and back[k].dtype == tensors[k].dtype]
            assert all(torch.equal(back[k].flatten(), tensors[k].flatten()) for k in same)
    assert refused > end * 6


@pytest.mark.parametrize("read", [read_header, read_tensors, lambda path: read_pickle(path, allow_pickle=True)])
@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda path: None, MissingFileError, "does not exist"),
        (lambda path: path.mkdir(), FileError, "cannot be read|is damaged"),
    ],
    ids=["nothing", "folder"],
)
def test_what_is_no_file(
    path: Path, read: Callable[[Path], Any], make: Callable[[Path], None], error: type[FileError], said: str
) -> None:
    make(path)
    with pytest.raises(error, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FileError, match=r"not a regular file"):
        read_tensors(path)


# --- pickles


class Payload:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"can run any code.*allow_pickle=True, or convert it once"):
        read_pickle(tmp_path / "not even there.bin")


@pytest.mark.parametrize("protocol", ["torch", "raw"])
def test_a_payload_does_not_run(tmp_path: Path, protocol: str) -> None:
    path, ran = tmp_path / "adapter_model.bin", tmp_path / "ran"
    payload = {"a": Payload(f"touch {ran}")}
    if protocol == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(UnsafeFileError, match=r"holds more than tensors, or is damaged"):
        read_pickle(path, allow_pickle=True)
    assert not ran.exists()


def test_a_benign_pickle(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    tensors = {"a": torch.randn(2, 2), "b": torch.nn.Parameter(torch.randn(3).half())}
    torch.save(tensors, path)
    back = read_pickle(path, allow_pickle=True)
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], v) for k, v in tensors.items())


def test_the_command_that_the_refusal_gives_works(tmp_path: Path) -> None:
    path = tmp_path / "it's mine" / "adapter_model.bin"
    path.parent.mkdir()
    w = torch.randn(2, 3)
    torch.save({"w": w, "t": w.t()}, path)
    with pytest.raises(UnsafeFileError) as caught:
        read_pickle(path)
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    back = read_tensors(path.with_suffix(".safetensors"))
    assert torch.equal(back["w"], w) and torch.equal(back["t"], w.t())


@pytest.mark.parametrize(
    "value", [[torch.ones(2)], {"a": 1}, {1: torch.ones(2)}, {"a": torch.ones(2, device="meta")}, torch.ones(2)]
)
def test_a_pickle_of_something_else(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(CorruptFileError, match=r"not a dict of tensors by name"):
        read_pickle(tmp_path / "x.bin", allow_pickle=True)


def test_integers_in_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, dtype=torch.int64)}, tmp_path / "x.bin")
    with pytest.raises(CorruptFileError, match=r"'a' has dtype torch.int64"):
        read_pickle(tmp_path / "x.bin", allow_pickle=True)
    assert read_pickle(tmp_path / "x.bin", allow_pickle=True, integer_ok=lambda name: True)


def test_a_truncated_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    data = (tmp_path / "x.bin").read_bytes()
    for cut in (0, 1, 2, 10, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "x.bin").write_bytes(data[:cut])
        with pytest.raises((CorruptFileError, UnsafeFileError), match=r"is damaged"):
            read_pickle(tmp_path / "x.bin", allow_pickle=True)
