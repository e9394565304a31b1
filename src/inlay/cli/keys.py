"""Where commands find the key of an API: in a variable of the environment, never on the command line."""

from __future__ import annotations

import os

from inlay.errors import ConfigError

OPENAI = "openai"
"""In place of an endpoint's URL: OpenAI's own."""


def key_in(variable: str | None) -> str | None:
    """The key in this variable, which has to be set; without one, that in OPENAI_API_KEY if there is one."""
    if variable is None:
        return os.environ.get("OPENAI_API_KEY") or None
    if not os.environ.get(variable):  # what was given is not repeated: it may be the key itself
        raise ConfigError(
            "The variable that --key-env names is not set: export it, and give its name here, never the key itself."
        )
    return os.environ[variable]


def url_of(endpoint: str) -> str | None:
    """The URL, or None for OpenAI's own."""
    return None if endpoint == OPENAI else endpoint
