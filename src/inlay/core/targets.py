"""Which modules of a model a config means. Pure functions over paths; no torch.

Names match as in peft: a module matches a list entry when its path is the entry or ends in `.entry`; a string is a
regular expression for the whole path. An entry that matches nothing is an error. Paths of earlier releases of
the model's library (`aliases`: path today -> path then) match too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from inlay.config import AdapterConfig
from inlay.core.regex import compile_regex, within_limits
from inlay.errors import TargetError, did_you_mean

ALL_LINEAR = "all-linear"


def matches_name(path: str, name: str) -> bool:
    """True if `path` is `name` or ends in `.name`."""
    return path == name or path.endswith("." + name)


def meant_by(
    names: Sequence[str] | str,
    field: str,
    paths: Collection[str],
    aliases: Callable[[], Mapping[str, str]],
    matches: Callable[[str, str], bool] = matches_name,
) -> tuple[list[str], list[str]]:
    """The paths that `names` (a list, or one regex) means, in order, and those meant by their earlier name only.

    A path is meant by an entry of a list that it `matches`. An entry is looked up under earlier names when it means
    nothing today. Raises TargetError naming every entry that means nothing at all.
    """
    if isinstance(names, str):
        test = within_limits(names, field)
        names, matches = [names], lambda path, _: test(path)
    found: set[str] = set()
    missed = []
    for entry in dict.fromkeys(names):
        hits = [p for p in paths if p and matches(p, entry)]
        found.update(hits)
        if not hits:
            missed.append(entry)
    renamed: set[str] = set()
    if missed:
        earlier = aliases()
        for entry in list(missed):
            hits = [p for p in paths if p in earlier and matches(earlier[p], entry)]
            renamed.update(hits)
            if hits:
                missed.remove(entry)
    if missed:
        raise _no_match(field, missed, paths)
    return [p for p in paths if p in found or p in renamed], [p for p in paths if p in renamed - found]


def _no_match(field: str, missed: Sequence[str], paths: Collection[str]) -> TargetError:
    leaves = sorted({p.rsplit(".", 1)[-1] for p in paths} - {""})
    hints = "".join(did_you_mean(name.rsplit(".", 1)[-1], leaves) for name in missed)
    shown = ", ".join([n for n in leaves if not n.isdigit()][:40])
    return TargetError(
        f"{field}: {', '.join(map(repr, missed))} match{'es' if len(missed) == 1 else ''} no module of the model."
        f"{hints} Names of its modules: {shown}.",
        field,
        list(missed),
    )


def layer_index(path: str, patterns: Sequence[str] | str | None) -> int | None:
    """The index of the layer that `path` lies in: the number after `patterns` (by default the first number)."""
    names = [patterns] if isinstance(patterns, str) else (patterns or [])
    for pattern in map(re.escape, names) if names else [r"[^.]*"]:
        found = re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", path)
        if found:
            return int(found.group(1))
    return None


def select(
    config: AdapterConfig,
    paths: Collection[str],
    *,
    default: Sequence[str] | str | None,
    linear: Collection[str],
    aliases: Callable[[], Mapping[str, str]],
) -> tuple[list[str], list[str]]:
    """The paths that `config` targets, in model order, and which of them were meant by an earlier name.

    Args:
        paths: of every module of the model that may be targeted.
        default: the method's targets for this model type, used when the config gives none.
        linear: the paths that `"all-linear"` means.
        aliases: computes path -> its name in earlier releases; called only when an entry means nothing today.

    Raises TargetError when nothing is given and there is no default, or when an entry means nothing.
    """
    wanted = config.target_modules if config.target_modules is not None else default
    if wanted is None:
        leaves = sorted({p.rsplit(".", 1)[-1] for p in linear})
        raise TargetError(
            "There are no default target_modules for this model: give target_modules as a list of names, a regular "
            f"expression, or 'all-linear'. Its linear layers are called: {', '.join(leaves[:40])}.",
            "target_modules",
            None,
        )
    renamed: list[str] = []
    if wanted == ALL_LINEAR:
        chosen = [p for p in paths if p in linear]
        if not chosen:
            raise TargetError("target_modules='all-linear': the model has no linear layer.", "target_modules", wanted)
    else:
        chosen, renamed = meant_by(wanted, "target_modules", paths, aliases)
    if config.exclude_modules is not None:
        excluded = set(meant_by(config.exclude_modules, "exclude_modules", paths, aliases)[0])
        chosen = [p for p in chosen if p not in excluded]
        if not chosen:
            raise TargetError.of("exclude_modules", config.exclude_modules, "names that leave a target module")
    if config.layers_to_transform is not None:
        indices = config.layers_to_transform
        layers = {indices} if isinstance(indices, int) else set(indices)
        at = {p: layer_index(p, config.layers_pattern) for p in chosen}
        have = sorted({i for i in at.values() if i is not None})
        if not layers <= set(have):
            raise TargetError.of("layers_to_transform", sorted(layers - set(have)), f"indices among {have}")
        chosen = [p for p in chosen if at[p] in layers]
    return chosen, [p for p in renamed if p in set(chosen)]


def pattern_value(patterns: Mapping[str, float], path: str, default: float, field: str) -> float:
    """The value of the first key that means `path` (`(.*\\.)?key`, so keys are names or regexes), else `default`."""
    for key, value in patterns.items():
        if matches_name(path, key) or compile_regex(key, field, any_prefix=True).fullmatch(path):
            return value
    return default
