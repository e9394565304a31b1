"""`convert`: an adapter's folder in another form, beside the old one.

inlay   with a manifest: checksums, and the base's fingerprint if the base is given; weights as safetensors
peft    the files that peft has, and no others
lora    any method that is a change of weights as plain LoRA (`inlay.merge.convert`): exactly, where it has no higher
        rank than is asked for, and for an anchored LoRA (PiSSA, ...), which is one of twice the rank
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from inlay.config import PeftConfig
from inlay.core.index import index_of
from inlay.errors import ConfigError, MissingFileError, did_you_mean
from inlay.exporting.adapter import write_adapter
from inlay.exporting.readers import rejected_by_vllm
from inlay.hf.auto import load_view
from inlay.io.disk import appearing
from inlay.io.fingerprint import fingerprint
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, STATE_NAME, WEIGHTS_NAME, reading, write_folder
from inlay.io.save import version
from inlay.io.strict_json import dump_json, read_json
from inlay.io.tensors import pack_tensors, read_pickle, read_tensors
from inlay.merge.convert import ConversionReport, save_as_lora
from inlay.methods.lora.plain import as_plain_lora

FORMS = ("inlay", "peft", "lora")
NOT_IN_PEFT = ("BITFIT", "BOTTLENECK")

_ADAPTERS_OWN = {CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME, STATE_NAME, MANIFEST_NAME}
_OF_TRAINING = ("*.pt", "*.pth", "training_args.bin", "trainer_state.json", ".*")
_PLAIN = "plain"
_FAR = 0.1  # an error worth a word


@dataclass
class Converted:
    """What was written.

    Attributes:
        to: the form.
        folder: where it is.
        methods: of the adapter before and now.
        tensors: dtype -> how many.
        parameters: how many numbers they hold.
        report: how close a LoRA is to what it was made of; None if nothing was approximated.
        rejections: why vLLM would not load it; empty if it would.
        notes: what else is worth knowing.
    """

    to: str
    folder: Path
    methods: tuple[str, str]
    tensors: dict[str, int]
    parameters: int
    report: ConversionReport | None = None
    rejections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        before, now = self.methods
        lines = [f"{self.to}: {self.folder}", f"  {before if before == now else f'{before} as {now}'}"]
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.tensors.items())
        lines.append(f"  tensors: {dtypes}; {self.parameters:,} parameters")
        lines += [] if self.report is None else [f"  approximation: {self.report}"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  vLLM would reject it: {reason}" for reason in self.rejections] or ["  vLLM would load it"]
        return "\n".join(lines)


def convert(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    base: Any = None,
    rank: int | float | None = None,
    allow_pickle: bool = False,
) -> Converted:
    """Writes the adapter in the folder `source` to the folder `out`, which appears when it is complete.

    Tokenizer and card come along; what only training needs stays with the form "inlay".

    Args:
        to: "inlay", "peft" or "lora".
        base: the base, or its name. For "lora", where the adapter names another or none; for "inlay", to check that
            every tensor fits it, and to note which base it is.
        rank: of the LoRA: an integer, or the share of each layer's energy that is kept, in (0, 1].
        allow_pickle: read `adapter_model.bin`; a pickle is a program, so only if you trust it.

    Raises:
        ConfigError: an unknown form, an argument that does not belong to it, or a method that has no such form.
        StateError: `out` is there and not empty.
        FileError: the folder is not an adapter, is damaged, or a pickle that was not allowed.
        MismatchError: tensors do not fit the base. NumericsError: a tensor holds NaN or infinity.
    """
    if to not in FORMS:
        raise ConfigError.of("to", to, f"one of {', '.join(FORMS)}", did_you_mean(str(to), FORMS).strip())
    if rank is not None and to != "lora":
        raise ConfigError.of("rank", rank, f"None for {to!r}", "Only 'lora' makes tensors of another rank.")
    if base is not None and to == "peft":
        raise ConfigError.of("base", str(base)[:60], "None for 'peft'", "Its files are made without a base.")
    source, out = Path(source), Path(out)
    adapter = _read(source, allow_pickle)
    with appearing(out) as staged:
        for file in _beside(source):
            shutil.copy2(file, staged / file.name)
        notes, report = _WRITERS[to](adapter, staged, base, rank, allow_pickle)
        now = _read(staged, allow_pickle=False)
        rejections = rejected_by_vllm(staged)
    return Converted(
        to,
        out,
        (str(adapter.config.peft_type), str(now.config.peft_type)),
        dict(Counter(str(t.dtype).removeprefix("torch.") for t in now.tensors.values())),
        sum(t.numel() for t in now.tensors.values()),
        report,
        rejections,
        [*adapter.notes, *notes],
    )


@dataclass
class _Adapter:
    folder: Path
    config: PeftConfig
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]
    state: bytes | None
    notes: list[str]


def _read(folder: Path, allow_pickle: bool) -> _Adapter:
    notes = []
    with reading(folder) as files:
        config = PeftConfig.from_dict(read_json(files.path(CONFIG_NAME)))
        if files.has(WEIGHTS_NAME):
            tensors = read_tensors(files.path(WEIGHTS_NAME), integer_ok=_any)
        else:
            tensors = read_pickle(files.path(PICKLE_NAME), allow_pickle, _any)
            notes.append(f"{PICKLE_NAME}, a pickle, became {WEIGHTS_NAME}")
        state = files.path(STATE_NAME).read_bytes() if files.has(STATE_NAME) else None
        return _Adapter(folder, config, files.manifest or {}, tensors, state, notes)


def _any(key: str) -> bool:
    """Which tensors may hold integers is checked when they are loaded into a model."""
    return True


def _beside(folder: Path) -> list[Path]:
    """The files in an adapter's folder that are not the adapter's own, nor of training alone."""
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.name not in _ADAPTERS_OWN]
    return [f for f in files if not any(map(f.match, _OF_TRAINING))]


Outcome = tuple[list[str], ConversionReport | None]


def _to_inlay(adapter: _Adapter, out: Path, base: Any, rank: Any, allow_pickle: bool) -> Outcome:
    extra = {**{k: v for k, v in adapter.manifest.items() if k not in ("format", "files")}, "inlay": version()}
    notes = []
    if base is not None:
        view = load_view(adapter.folder, base, allow_pickle=allow_pickle)
        index = index_of(view)
        brought = {id(p) for path, a in index.placed["default"].items() for p in a.brings(index.hosts[path])}
        extra["base"] = fingerprint(view, brought)
        notes.append("every tensor fits the base, whose fingerprint is in the manifest")
    elif "base" not in extra:
        notes.append("the manifest does not say which base it is for: with base (--base) it is checked, and noted")
    files = {CONFIG_NAME: dump_json(adapter.config.to_dict()), WEIGHTS_NAME: pack_tensors(adapter.tensors)}
    write_folder(out, files | ({} if adapter.state is None else {STATE_NAME: adapter.state}), extra)
    return notes, None


def _to_peft(adapter: _Adapter, out: Path, base: Any, rank: Any, allow_pickle: bool) -> Outcome:
    config = adapter.config
    if config.peft_type in NOT_IN_PEFT:
        hint = "Convert it to 'lora', if it changes weights alone, or export it merged."
        raise ConfigError.of("to", "peft", f"another form: peft has no method {config.peft_type}", hint)
    for own in out.glob("inlay_*.json"):
        own.unlink()
    (out / CONFIG_NAME).write_bytes(dump_json(config.to_dict()))
    (out / WEIGHTS_NAME).write_bytes(pack_tensors(adapter.tensors))
    notes = [] if adapter.state is None else [f"{STATE_NAME}, which only Inlay reads, was left out"]
    if getattr(config, "anchor", None) is not None:
        notes.append(
            f"init_lora_weights={config.init_lora_weights!r}: peft decomposes the base again when it loads this, so "  # type: ignore[attr-defined]
            "it needs the very same base; the form 'lora' does not"
        )
    return notes, None


def _to_lora(adapter: _Adapter, out: Path, base: Any, rank: Any, allow_pickle: bool) -> Outcome:
    anchored = getattr(adapter.config, "anchor", None) is not None
    if rank is None and not anchored:
        what = "is LoRA already" if adapter.config.peft_type == "LORA" else f"is {adapter.config.peft_type}"
        allowed = "a rank such as 16, or a share of the energy such as 0.99"
        raise ConfigError.of("rank", None, allowed, f"The adapter {what}; only PiSSA and its kin need no rank.")
    if base is None and adapter.config.base_model_name_or_path is None:
        raise MissingFileError(
            f"'{adapter.folder}' does not name its base, and 'lora' needs its weights: give base (--base)."
        )
    view = load_view(adapter.folder, base, allow_pickle=allow_pickle)
    if rank is not None:
        report = save_as_lora(out, view, rank)
        far = report.worst[1] > _FAR
        return ["more than a tenth of a layer's change is lost: take a larger rank"] if far else [], report
    as_plain_lora(view, "default", _PLAIN)
    view.set_adapter(_PLAIN)
    write_adapter(view, out, None, verify=False)
    return ["exact: W + s (B A - B0 A0) is LoRA of twice the rank"], None


_WRITERS = {"inlay": _to_inlay, "peft": _to_peft, "lora": _to_lora}
