"""The weights of an adapter: safetensors in, safetensors out, and nothing allocated before the header is believed.

A safetensors file is `length of the header (8 bytes, little endian) | header (JSON) | data`. The header says of each
tensor its dtype, its shape and where its bytes lie. `read_header` checks all of it against the size of the file: what
passes can be allocated, and every byte of the file belongs to exactly one tensor.

Tensors of an adapter are floating point and finite. Integers are an error unless the caller expects them under that
name (indices of a sparse method, `num_batches_tracked` of a batch norm): an int64 weight is a weight cut to integers.
"""

from __future__ import annotations

import math
import os
import pickle
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inlay.errors import ConfigError, CorruptFileError, FileError, MissingFileError, NumericsError, UnsafeFileError
from inlay.io.disk import DISK, reason
from inlay.io.strict_json import parse_json

MAX_HEADER = 64 << 20
MAX_DIMS = 16

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Names of the safetensors format for the dtypes that a file may hold."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_AGAIN = "Fetch or save the adapter again."


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def no_integers(name: str) -> bool:
    """The `integer_ok` of an adapter in which every tensor is floating point."""
    return False


def read_header(path: Path | str) -> dict[str, TensorInfo]:
    """Dtype and shape of every tensor in a safetensors file, without reading any; in the order of their bytes.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: the header does not fit the file: its length, its JSON (a key given twice included), a dtype
            or shape that does not exist, bytes outside the data, shared by two tensors, or belonging to none.
    """
    path = Path(path)
    header, room = _read_json_header(path)
    placed: list[tuple[int, int, str]] = []
    infos: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise _corrupt(path, "its '__metadata__' is not a dict of texts")
            continue
        infos[name], start, end = _read_entry(path, name, entry)
        placed.append((start, end, name))
    placed.sort()
    reached = 0
    for start, end, name in placed:
        if start != reached:
            raise _corrupt(path, f"the bytes of {name!r} start at {start}, expected {reached} (a gap or an overlap)")
        reached = end
    if reached != room:
        raise _corrupt(path, f"its tensors take {reached} bytes, but {room} follow the header")
    return {name: infos[name] for _, _, name in placed}


def read_tensors(
    path: Path | str,
    device: str | torch.device = "cpu",
    integer_ok: Callable[[str], bool] = no_integers,
) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on `device`, in memory of its own (not mapped from the file).

    Args:
        integer_ok: whether the tensor of that name may hold integers.

    Raises:
        CorruptFileError: as `read_header`, or a tensor is neither floating point nor an integer that is expected.
        NumericsError: a tensor holds NaN or infinity.
    """
    path = Path(path)
    infos = read_header(path)
    for name, info in infos.items():
        _check_dtype(path, name, info.dtype, integer_ok)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in infos:
                tensor = file.get_tensor(name)
                # On the CPU it is a view of the mapped file: a later change of the file would change the weights.
                tensors[name] = tensor.clone() if tensor.device.type == "cpu" else tensor
    except SafetensorError as error:
        raise _corrupt(path, f"safetensors says: {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    for name, tensor in tensors.items():
        check_finite(name, tensor, f"'{path}'")
    return tensors


@contextmanager
def looking_up(path: Path | str) -> Iterator[Callable[[str], Tensor]]:
    """A function from the name of a tensor in a safetensors file to the tensor, read when it is asked for.

    Tensors may be of any dtype, NaN and infinity included. Raises as `read_header`.
    """
    path = Path(path)
    read_header(path)
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise _corrupt(path, f"safetensors says: {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    with opened as file:
        yield file.get_tensor


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """`tensors` as the bytes of a safetensors file, with the metadata that peft and transformers write.

    Tensors may be on any device, have any strides, require grad and share memory: each is written in full. Equal
    tensors give equal bytes, in whatever order they come.

    Raises:
        NumericsError: a tensor holds NaN or infinity.
        ConfigError: a tensor has no bytes to write (meta, sparse), or a dtype or name the format lacks.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        if name == "__metadata__":
            raise ConfigError.of("name", name, "any other name: the format keeps this one for itself")
        if not _is_dense(tensor) or tensor.dtype not in DTYPES.values():
            given = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ConfigError.of(name, given, f"a dense tensor with data, of dtype {', '.join(DTYPES)}")
        check_finite(name, tensor, "the adapter that is being saved")
        # Always a copy: safetensors takes neither strides nor tensors that share memory.
        packed[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return save(packed, metadata={"format": "pt"})


def read_pickle(
    path: Path | str, allow_pickle: bool = False, integer_ok: Callable[[str], bool] = no_integers
) -> dict[str, Tensor]:
    """The tensors of an `adapter_model.bin`, on the CPU. A pickle is a program: it runs only if `allow_pickle`.

    With `allow_pickle` it is read by `torch.load(weights_only=True)`, and the same is asked of the tensors as by
    `read_tensors`.

    Raises:
        UnsafeFileError: `allow_pickle` is False (the message says how to convert the file), or the pickle calls for
            anything but tensors.
        MissingFileError: there is no such file.
        CorruptFileError: it is not a dict of tensors, or one of them is an integer that is not expected.
        NumericsError: a tensor holds NaN or infinity.
    """
    path = Path(path)
    if not allow_pickle:
        raise UnsafeFileError(
            f"'{path}' is a pickle, and reading a pickle can run any code that is in it. If you trust it, pass "
            f"allow_pickle=True, or convert it once and delete it:\n    {_conversion(path)}"
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"'{path}' holds more than tensors, or is damaged: {error}") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise _corrupt(path, f"torch.load says: {error}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_dense(tensor) for name, tensor in loaded.items()
    ):
        raise _corrupt(path, "it is not a dict of tensors by name")
    tensors = dict(loaded)
    for name, tensor in tensors.items():
        _check_dtype(path, name, tensor.dtype, integer_ok)
        check_finite(name, tensor, f"'{path}'")
    return tensors


def _read_json_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes follow it."""
    try:
        fd = DISK.open_read(path)
        with open(fd, "rb") as file:
            size = os.fstat(fd).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _corrupt(path, f"it has {size} bytes, too few for its header of {length} bytes: it was cut off")
            if length > MAX_HEADER:
                raise _corrupt(path, f"its header of {length} bytes is larger than {MAX_HEADER}")
            raw = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not raw.startswith(b"{"):
        raise _corrupt(path, "its header does not start with '{'")
    try:
        return parse_json(raw, f"header of {path}", MAX_HEADER), size - 8 - length
    except ConfigError as error:
        raise CorruptFileError(f"{error} {_AGAIN}") from error


def _read_entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    """What the header says of one tensor: its info, and where its bytes start and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(path, f"the header's entry of {name!r} does not consist of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _corrupt(path, f"{name!r} has dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMS:
        raise _corrupt(path, f"{name!r} has shape {str(shape)[:80]}; expected at most {MAX_DIMS} sizes from 0 up")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(path, f"{name!r} has data_offsets {str(offsets)[:80]}; expected [start, end]")
    info = TensorInfo(DTYPES[dtype], tuple(shape))
    start, end = offsets
    if (needed := math.prod(shape) * info.dtype.itemsize) != end - start:
        raise _corrupt(path, f"{name!r} of shape {shape} and dtype {dtype} needs {needed} bytes, but has {end - start}")
    return info, start, end


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _is_dense(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.layout is torch.strided


def _check_dtype(path: Path, name: str, dtype: torch.dtype, integer_ok: Callable[[str], bool]) -> None:
    if not dtype.is_floating_point and not (dtype in _INTEGERS and integer_ok(name)):
        raise _corrupt(path, f"{name!r} has dtype {dtype}; expected floating point")


def check_finite(name: str, tensor: Tensor, where: str) -> None:
    """Raises NumericsError if a tensor holds NaN or infinity; `where` says what it belongs to."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    values = tensor.detach()
    low, high = torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(values.double())).sum())
        raise NumericsError(
            f"{name!r} in {where} holds {bad} value(s) of {values.numel()} that are NaN or infinite. Training went "
            "wrong before it was saved: go back to an earlier checkpoint, and lower the learning rate."
        )


def _corrupt(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(f"'{path}' is damaged: {what}. {_AGAIN}")


def _unreadable(path: Path, error: OSError) -> FileError:
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"'{path}' does not exist.")
    return FileError(f"'{path}' cannot be read: {reason(error)}.")


def _conversion(path: Path) -> str:
    """A command that turns the pickle into safetensors."""
    return (
        'python -c "import sys, torch, safetensors.torch as s; '
        "s.save_file({k: v.contiguous().clone() for k, v in torch.load(sys.argv[1], map_location='cpu', "
        "weights_only=True).items()}, sys.argv[2], metadata={'format': 'pt'})\" "
        f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.safetensors')))}"
    )
