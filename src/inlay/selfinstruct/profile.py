"""What depends on the language of the tasks: the prompt's head, the seeds, the filters, and what a token is.

| profile    | tokens                     | length of an instruction | first character | blacklist          |
| ---------- | -------------------------- | ------------------------ | --------------- | ------------------ |
| `alpaca`   | runs of a-z and 0-9        | 4 to 150 words           | ASCII           | English            |
| `any`      | words, or characters       | 4 to 1000 characters     | no punctuation  | English, Chinese   |
| `zh`       | words, or characters       | 4 to 500 characters      | no punctuation  | Chinese            |
| `zh-jieba` | jieba's words              | 4 to 500 characters      | no punctuation  | Chinese            |

`alpaca` is Stanford Alpaca's pipeline, filter by filter, and cannot be used for other scripts: it has no tokens for
them. The others also drop tasks without an output.
"""

from __future__ import annotations

from dataclasses import dataclass

from inlay.errors import ConfigError, did_you_mean
from inlay.selfinstruct import filters
from inlay.selfinstruct.filters import Filter
from inlay.selfinstruct.heads import CHINESE, ENGLISH
from inlay.selfinstruct.similarity import Jieba, Tokens, any_tokens, rouge_tokens


@dataclass(frozen=True)
class Profile:
    """One way to write, read and judge tasks.

    Attributes:
        name: what journals and `profile=` call it.
        head: the text above the tasks of a prompt, unless the user gives another.
        seeds: the file of our own seeds.
        filters: applied in this order; the first one that drops a task is counted.
        tokens: what similarity compares.
    """

    name: str
    head: str
    seeds: str
    filters: tuple[Filter, ...]
    tokens: Tokens


_CHINESE_FILTERS = (
    filters.character_count(4, 500),
    filters.substrings(filters.CHINESE_WORDS),
    filters.openings("编写一个程序", "写一个程序", "编写程序", "写程序", "编程实现"),
    filters.PUNCTUATION_FIRST,
    filters.NO_OUTPUT,
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "alpaca",
            ENGLISH,
            "seeds.jsonl",
            (
                filters.word_count(4, 150),
                filters.words(filters.ENGLISH_WORDS),
                filters.openings("Write a program"),
                filters.ASCII_PUNCTUATION_FIRST,
                filters.NOT_ASCII_FIRST,
            ),
            rouge_tokens,
        ),
        Profile(
            "any",
            ENGLISH.replace(" is in English and", ""),
            "seeds.jsonl",
            (
                filters.character_count(4, 1000),
                filters.words(filters.ENGLISH_WORDS),
                filters.substrings(filters.CHINESE_WORDS),
                filters.openings("Write a program"),
                filters.PUNCTUATION_FIRST,
                filters.NO_OUTPUT,
            ),
            any_tokens,
        ),
        Profile("zh", CHINESE, "seeds_zh.jsonl", _CHINESE_FILTERS, any_tokens),
        Profile("zh-jieba", CHINESE, "seeds_zh.jsonl", _CHINESE_FILTERS, Jieba()),
    )
}
"""Name -> profile."""


def profile_of(profile: str | Profile) -> Profile:
    """The profile of this name, or the one given. Raises ConfigError for a name that there is not."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        names = ", ".join(map(repr, PROFILES))
        raise ConfigError.of("profile", profile, f"one of {names}, or a Profile", did_you_mean(str(profile), PROFILES))
    return PROFILES[profile]
