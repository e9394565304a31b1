"""Which of the tasks that a model wrote are kept. Reports count by a filter's name what it drops."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

from inlay.selfinstruct.prompt import Task

ENGLISH_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
CHINESE_WORDS = (
    *("图片", "图像", "照片", "图表", "示意图", "流程图", "地图", "曲线图", "文件", "附件", "画一", "画出", "绘制"),
    *("视频", "音频", "音乐", "录音", "打开网页", "前往"),
)


class Filter(NamedTuple):
    """What is dropped, and under which name it is counted."""

    name: str
    drops: Callable[[Task], bool]


def word_count(low: int, high: int) -> Filter:
    """Instructions of fewer than `low` or more than `high` words between white space."""
    return Filter("length", lambda task: not low <= len(task.instruction.split()) <= high)


def character_count(low: int, high: int) -> Filter:
    """Instructions of fewer than `low` or more than `high` characters, white space not counted."""
    return Filter("length", lambda task: not low <= len("".join(task.instruction.split())) <= high)


def words(banned: Iterable[str]) -> Filter:
    """Instructions with one of these as a whole word, in any case."""
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, banned))})\b", re.IGNORECASE)
    return Filter("blacklist", lambda task: pattern.search(task.instruction) is not None)


def substrings(banned: Iterable[str]) -> Filter:
    """Instructions with one of these anywhere: for languages that put no space between words."""
    pattern = re.compile("|".join(map(re.escape, banned)))
    return Filter("blacklist", lambda task: pattern.search(task.instruction) is not None)


def openings(*banned: str) -> Filter:
    """Instructions that begin with one of these: it is unclear whether a program or its output is asked for."""
    return Filter("program", lambda task: task.instruction.startswith(banned))


_PUNCTUATION = tuple(string.punctuation)

ASCII_PUNCTUATION_FIRST = Filter("punctuation", lambda task: task.instruction.startswith(_PUNCTUATION))
PUNCTUATION_FIRST = Filter("punctuation", lambda task: unicodedata.category(task.instruction[:1] or ".")[0] == "P")
NOT_ASCII_FIRST = Filter("not ascii", lambda task: not task.instruction[:1].isascii())
NO_OUTPUT = Filter("no output", lambda task: not task.output)


def first_to_drop(task: Task, filters: Iterable[Filter]) -> str | None:
    """The name of the first of `filters` that drops the task; None if all keep it."""
    return next((f.name for f in filters if f.drops(task)), None)
