"""`inlay generate-instructions`."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from inlay.cli.keys import OPENAI, key_in, url_of
from inlay.cli.recipes import assignments
from inlay.errors import ConfigError
from inlay.selfinstruct import Report, Retry, Sampling

_SAMPLING, _RETRY = Sampling(), Retry()
_ASKED, _LIMITS, _KEPT = "the model that is asked", "limits", "what is kept"


def _option(help: str, panel: str | None = None, metavar: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def command(
    out: Annotated[Path, _option("The file of the rows (JSONL).", None, "FILE")],
    model: Annotated[
        str,
        _option("Its name at the endpoint; without --endpoint a model or run here, or an id on the Hub.", None, "NAME"),
    ],
    endpoint: Annotated[
        str | None, _option(f"The URL of an OpenAI-compatible API; {OPENAI!r} for OpenAI's own.", None, "URL")
    ] = None,
    count: Annotated[int, _option("Rows to have in the end, those of earlier runs included.", None, "N")] = 100,
    seeds: Annotated[
        Path | None, _option("Seed tasks, laid out as Alpaca's seed_tasks.jsonl; by default our own.", None, "FILE")
    ] = None,
    to_json: Annotated[
        Path | None, _option("Write the rows to this file, too, as one JSON list, as Alpaca has them.", None, "FILE")
    ] = None,
    seed: Annotated[int, _option("Which seed tasks a prompt shows, and how a local model samples.", None, "N")] = 42,
    as_json: Annotated[bool, _option("Print the report as JSON.", None, None, "--json")] = False,
    key_env: Annotated[
        str | None, _option("The variable that the key is in; by default OPENAI_API_KEY.", _ASKED, "NAME")
    ] = None,
    api: Annotated[str | None, _option("chat, or completions as Alpaca asked. Default: chat.", _ASKED, "NAME")] = None,
    batch: Annotated[
        int | None, _option("Prompts a call. Default: 1 for chat, 5 for completions.", _ASKED, "N")
    ] = None,
    concurrency: Annotated[int | None, _option("Calls at a time. Default: 5.", _ASKED, "N")] = None,
    timeout: Annotated[
        float | None, _option("Seconds until a call has failed. Default: 120.", _ASKED, "NUMBER")
    ] = None,
    token_field: Annotated[
        str | None,
        _option("The request's field for --max-tokens. Default: max_tokens.", _ASKED, "NAME"),
    ] = None,
    extra: Annotated[list[str] | None, _option("A further field of the request (YAML).", _ASKED, "NAME=VALUE")] = None,
    attempts: Annotated[int, _option("Times that a call is made before the run ends.", _ASKED, "N")] = _RETRY.attempts,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask a local model in its chat template. Default: if it has one.",
            rich_help_panel=_ASKED,
            metavar=" ",
        ),
    ] = None,
    temperature: Annotated[
        float, _option("How freely it writes; 0: not at all.", _ASKED, "NUMBER")
    ] = _SAMPLING.temperature,
    top_p: Annotated[float, _option("The share of likely tokens it draws from.", _ASKED, "NUMBER")] = _SAMPLING.top_p,
    max_tokens: Annotated[
        int, _option("The longest answer to a prompt, in tokens.", _ASKED, "N")
    ] = _SAMPLING.max_tokens,
    budget_tokens: Annotated[
        int | None, _option("Tokens read and written, all runs at this file together.", _LIMITS, "N")
    ] = None,
    budget_money: Annotated[
        float | None, _option("Money, in the currency of the prices; likewise.", _LIMITS, "NUMBER")
    ] = None,
    prompt_price: Annotated[float, _option("Price of a million tokens read.", _LIMITS, "NUMBER")] = 0.0,
    completion_price: Annotated[float, _option("Price of a million tokens written.", _LIMITS, "NUMBER")] = 0.0,
    patience: Annotated[int, _option("Calls in a row without a new row, to give up after.", _LIMITS, "N")] = 20,
    profile: Annotated[
        str, _option("alpaca (exactly its filters), any (language), zh, zh-jieba.", _KEPT, "NAME")
    ] = "alpaca",
    prompt: Annotated[
        Path | None, _option("The text above the tasks of a prompt; by default our own.", _KEPT, "FILE")
    ] = None,
    shots: Annotated[int, _option("Seed tasks that a prompt shows.", _KEPT, "N")] = 3,
    threshold: Annotated[
        float, _option("The most a row may resemble another: ROUGE-L, 0 to 1.", _KEPT, "NUMBER")
    ] = 0.7,
) -> None:
    """Write instruction data with a model from seed tasks, as Alpaca did.

    Rows are written as they come. The same command goes on where it stopped, by whatever, and asks for nothing twice.

    Example: inlay generate-instructions --out rows.jsonl --endpoint openai --model gpt-4o-mini --count 1000
    """
    from inlay.selfinstruct import Budget, generate_instructions
    from inlay.selfinstruct import to_json as write_list

    about: dict[str, Any] = {"key_env": key_env, "api": api, "batch": batch, "concurrency": concurrency}
    about |= {"timeout": timeout, "token_field": token_field, "extra": extra or None}
    given = {name: value for name, value in about.items() if value is not None}
    sampling = Sampling(max_tokens, temperature, top_p, extra=assignments(given.get("extra", ()), "--extra"))
    budget = Budget(budget_tokens, budget_money, prompt_price, completion_price)
    with _Progress(count) as progress, _asked(model, endpoint, chat, given) as asked:
        try:
            report = generate_instructions(
                out,
                asked,
                count,
                seeds=seeds,
                profile=profile,
                prompt=prompt,
                shots=shots,
                threshold=threshold,
                sampling=sampling,
                budget=budget,
                retry=Retry(attempts),
                patience=patience,
                seed=seed,
                progress=progress.update,
                waiting=progress.wait,
            )
        except KeyboardInterrupt:
            progress.close()
            print(f"\nStopped; what was answered is kept. To go on:\n    {_again()}", file=sys.stderr)
            raise SystemExit(130) from None
    if to_json is not None:
        write_list(out, to_json)
    if as_json:
        print(json.dumps({**asdict(report), "output": str(out)}))
    else:
        _show(report, to_json)
    if report.stopped == "barren":
        raise SystemExit(1)


@contextlib.contextmanager
def _asked(model: str, endpoint: str | None, chat: bool | None, given: dict[str, Any]) -> Iterator[Any]:
    """The model at the endpoint, or the one of this name in this process."""
    from inlay.selfinstruct import Endpoint, TransformersModel

    if endpoint is None:
        if given:
            flag = "--" + next(iter(given)).replace("_", "-")
            raise ConfigError(f"{flag} is about an endpoint, and there is none: give --endpoint URL, or leave it out.")
        from inlay.runs.opened import open_source

        opened = open_source(model)
        chat = opened.tokenizer.chat_template is not None if chat is None else chat
        yield TransformersModel(opened.model, opened.tokenizer, chat, name=model)
        return
    if chat is not None:
        raise ConfigError("--chat is about a model in this process: with --endpoint, give --api chat or completions.")
    options = {name: value for name, value in given.items() if name not in ("key_env", "extra")}
    key = key_in(given.get("key_env"))
    with Endpoint(model, base_url=url_of(endpoint), api_key=key, **options) as asked:
        yield asked


class _Progress:
    """How far it is: a bar on a terminal, else a line every `EVERY` seconds. Calls that wait are said at once."""

    EVERY = 10.0

    def __init__(self, count: int):
        self._count, self._began, self._told = count, time.monotonic(), -math.inf
        self._numbers, self._waits, self._until = "", "", 0.0
        self._live: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            console = Console(stderr=True)
            columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, speed_estimate_period=300)
            self._task = self._bar.add_task("", total=self._count)
            self._live = Live(get_renderable=self._shown, console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, report: Report) -> None:
        """At the start and after each call."""
        self._numbers = _numbers(report)
        if self._live is not None:
            self._bar.update(self._task, completed=report.rows)
        elif (now := time.monotonic()) - self._told >= self.EVERY:
            self._told = now
            left = max(0, self._count - report.rows) * (now - self._began) / max(1, report.accepted)
            ends = f"  about {_span(left)} left" if report.accepted else ""
            _say(f"{report.rows}/{self._count} rows  {self._numbers}{ends}")

    def wait(self, reason: str, seconds: float) -> None:
        """Before a call is made again; from several threads."""
        self._waits = f"asking again in {seconds:.0f} s, as the model answered: {reason}"
        self._until = time.monotonic() + seconds
        if self._live is None:
            _say(self._waits)

    def _shown(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        waits = self._waits if time.monotonic() < self._until else ""
        return Group(self._bar, *(Text(text, style="dim") for text in (self._numbers, waits) if text))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # print writes the end of the line by itself
    sys.stderr.flush()


def _numbers(report: Report) -> str:
    """Calls, what was dropped, tokens and money."""
    text = f"{report.calls} call{'s' * (report.calls != 1)}"
    if dropped := report.dropped.total():
        reasons = ", ".join(f"{n} {name}" for name, n in report.dropped.most_common())
        text += f"  {dropped} dropped ({reasons})"
    text += f"  {report.prompt_tokens:,} + {report.completion_tokens:,} tokens"
    return text + f"  {report.cost:.4f} spent" * bool(report.cost)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _again() -> str:
    """This command, which goes on."""
    return f"inlay {shlex.join(sys.argv[1:])}"


def _show(report: Report, to_json: Path | None) -> None:
    print(f"{report}\nThey are in {report.output}{f' and {to_json}' if to_json else ''}.")
    if report.stopped == "budget":
        print(f"To go on, give the same command with a larger budget:\n    {_again()}")
    if report.rows:
        print(f"To train on them:\n    inlay train --model MODEL --data {shlex.quote(str(report.output))}")
