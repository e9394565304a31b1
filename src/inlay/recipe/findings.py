"""What is wrong with a recipe's rows, found before anything is trained. `train` and `check` both begin with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from inlay.data import Prepared, overlap
from inlay.data.audit import foreign_marks, mask_faults
from inlay.data.report import numbers
from inlay.errors import DataError
from inlay.recipe.recipe import Recipe


@dataclass
class Findings:
    """What makes a run useless, each with what to do, and what may be meant so.

    Attributes:
        stops, warnings: sentences.
        shared: how many evaluation rows are trained on, and of how many more the prompt is.
        endless: trained end tokens at which the base's generation does not stop.
    """

    stops: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shared: tuple[int, int] = (0, 0)
    endless: list[str] = field(default_factory=list)

    def raise_stops(self) -> None:
        """Raises DataError with all of them, if there are any."""
        if self.stops:
            raise DataError("\n".join(self.stops))


def findings(recipe: Recipe, tokenizer: Any, rows: Prepared, held_out: Prepared | None, config: Any) -> Findings:
    """Looks at rows, at what both parts have, and at whether the base (its config) and its tokenizer go with them."""
    found, report = Findings(), rows.report
    if report.no_end is not None:
        found.stops.append(f"{report.no_end} Key: data.chat_template.")
    found.stops += list(_beyond(rows, held_out, config))
    data = recipe.data
    faults = mask_faults(
        data.train,
        rows,
        tokenizer,
        loss_on=data.loss_on,
        columns=data.columns,
        chat_template=data.chat_template,
    )
    if faults:
        more = f" So it is in {len(faults)} of the first rows." if len(faults) > 1 else ""
        found.stops.append(f"{faults[0]}{more}")

    found.warnings += report.row_warnings
    found.endless = _endless(recipe, tokenizer, rows, config)
    if found.endless:
        found.warnings.append(
            f"Answers end with {' or '.join(map(repr, found.endless))}, but the base's generation does not stop there: "
            "answers will run on. Set eos_token_id in the base's generation_config.json."
        )
    own = "" if data.chat_template else str(getattr(tokenizer, "chat_template", None) or "")
    found.warnings += [
        f"Rows hold {mark!r}, which this tokenizer reads as {length} tokens: it is a mark of another model's template."
        for mark, length in foreign_marks(rows, tokenizer, own)
    ]
    if held_out is not None:
        _compare(rows, held_out, found)
    return found


def _beyond(rows: Prepared, held_out: Prepared | None, config: Any) -> Iterator[str]:
    """Ids without an embedding, and rows that are longer than there are positions."""
    text = config.get_text_config()
    for part in (rows, held_out) if held_out is not None else (rows,):
        if (size := getattr(text, "vocab_size", None)) is not None:
            try:
                part.check_vocabulary(size)
            except DataError as error:
                yield str(error)
    # where positions are rotations, any number can be computed; where they are embeddings, there is none beyond
    turned = any(getattr(text, name, None) for name in ("rope_parameters", "rotary_dim", "rotary_pct", "alibi"))
    positions, longest = getattr(text, "max_position_embeddings", None), max(rows.lengths)
    if isinstance(positions, int) and not turned and longest > positions:
        yield f"Rows have up to {longest} tokens, the base {positions} positions: set data.max_length={positions}."


def _endless(recipe: Recipe, tokenizer: Any, rows: Prepared, config: Any) -> list[str]:
    from transformers import GenerationConfig

    base = recipe.model
    try:
        generation = GenerationConfig.from_pretrained(base.name, revision=base.revision or "main")
    except OSError:  # it has none of its own
        generation = GenerationConfig.from_model_config(config)
    stops = generation.eos_token_id
    known = stops if isinstance(stops, list) else [stops]
    return [token for token in rows.report.end_tokens if tokenizer.convert_tokens_to_ids(token) not in known]


def _compare(rows: Prepared, held_out: Prepared, found: Findings) -> None:
    same, asked = overlap(rows, held_out)
    found.shared = len(same), len(asked)
    if len(same) == len(held_out):
        found.stops.append(
            f"All {len(same)} rows of the evaluation are trained on, too: it would tell nothing. Give other rows "
            "(data.eval), or take out rows that repeat others."
        )
    elif same:
        found.warnings.append(f"{len(same)} rows of the evaluation are trained on, too: its loss will look too good.")
    if asked:
        found.warnings.append(
            f"{len(asked)} rows of the evaluation have a prompt that is trained on with another answer "
            f"(rows {numbers([row for _, row in asked])})."
        )
