"""`inlay gorilla retrieve`, `rows`, `ask` and `score`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from inlay.cli.asking import Device, Source, device_of
from inlay.cli.keys import OPENAI, key_in, url_of
from inlay.errors import ConfigError, did_you_mean

command = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Models that call APIs: find records, make training rows, ask, score.",
)

_FOUND = "how records are found: by BM25, or by embeddings"
_Apis = Annotated[Path, typer.Option(metavar="FILE", help="The API database: a record a line (JSONL).")]
_Needed = Annotated[
    Path | None, typer.Option("--apis", metavar="FILE", help="The API database, for the kinds retrieved and raft.")
]
_Embedding = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A sentence-transformers model, or its name there.", rich_help_panel=_FOUND),
]
_Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"An OpenAI-compatible API that embeds; {OPENAI!r} for OpenAI's own.",
        rich_help_panel=_FOUND,
    ),
]
_KeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The variable that its key is in; by default OPENAI_API_KEY.", rich_help_panel=_FOUND
    ),
]
_Cache = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the records' embeddings here (.npz).", rich_help_panel=_FOUND),
]


@command.command()
def retrieve(
    apis: _Apis,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION...", help="What is asked; or give --questions.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE", help="Questions, as Gorilla's files have them (JSONL)."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="Records a question.")] = 5,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Print what a model is asked, with the records in it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="An object a question, on a line: records, scores and prompt.")
    ] = False,
    embedding: _Embedding = None,
    endpoint: _Endpoint = None,
    key_env: _KeyEnv = None,
    cache: _Cache = None,
) -> None:
    """Find the API records that belong to a question.

    Example: inlay gorilla retrieve "Find the tumours in X-ray images." --apis api/torchhub_api.jsonl -k 3
    """
    from inlay.data.templates import GORILLA
    from inlay.gorilla import Question, read_apis, read_questions
    from inlay.gorilla.prompt import filled, with_reference

    if bool(questions) == (file is not None):
        raise ConfigError("Give questions, or a file of them with --questions: one of both.")
    asked = read_questions(file) if file else [Question(i, text) for i, text in enumerate(questions or (), 1)]
    retriever = _retriever(read_apis(apis), embedding, endpoint, key_env, cache)
    for question, hits in zip(asked, retriever.search([q.text for q in asked], k), strict=True):
        text = filled(GORILLA, with_reference(question.text, [hit.record for hit in hits]))
        if as_json:
            records = [{"place": hit.index + 1, "score": hit.score, "record": hit.record} for hit in hits]
            found = {"question_id": question.id, "text": question.text, "prompt": text, "found": records}
            print(json.dumps(found, ensure_ascii=False))
        elif prompt:
            print(text)
        else:
            cells = [[f"{h.score:.3f}", h.index + 1, h.record["domain"], h.record["api_call"]] for h in hits]
            _table(
                question.text.strip(), {"score": "right", "record": "right", "domain": "left", "call": "left"}, cells
            )
        if embedding is None and not hits[0].score:
            print(f"No word of {question.text!r} is in the database, as it is written there.", file=sys.stderr)


@command.command()
def rows(
    examples: Annotated[Path, typer.Argument(metavar="EXAMPLES", help="An APIBench file, e.g. torchhub_train.json.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file of the rows (JSONL); it is replaced.")],
    kind: Annotated[
        str, typer.Option(metavar="NAME", help="What the model sees: zero-shot, oracle, retrieved, raft.")
    ] = "zero-shot",
    apis: _Needed = None,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="retrieved: records a row.")] = 1,
    distractors: Annotated[int, typer.Option(metavar="N", help="raft: wrong records a row.")] = 3,
    p: Annotated[float, typer.Option("--p", metavar="SHARE", help="raft: rows that have the right record.")] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="raft: which records, in which order.")] = 0,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="As prompt and completion, in the prompt of Gorilla's own models.")
    ] = False,
    embedding: _Embedding = None,
    endpoint: _Endpoint = None,
    key_env: _KeyEnv = None,
    cache: _Cache = None,
) -> None:
    """Make training rows of APIBench: questions alone, or with documentation, found or right.

    zero-shot: the question. oracle: with the right record. retrieved: with those that are found, right or wrong.
    raft: with the right one among others, shuffled.

    Example: inlay gorilla rows torchhub_train.json --kind retrieved --apis torchhub_api.jsonl --out rows.jsonl
    """
    from inlay import gorilla
    from inlay.io.plain import write_lines

    def records() -> Any:
        if apis is None:
            raise ConfigError(f"--kind {kind} needs the API database: give --apis FILE.")
        return gorilla.read_apis(apis)

    kinds: dict[str, Callable[[Any], Any]] = {
        "zero-shot": gorilla.zero_shot,
        "oracle": gorilla.oracle,
        "retrieved": lambda found: gorilla.retrieved(
            found, _retriever(records(), embedding, endpoint, key_env, cache), k
        ),
        "raft": lambda found: gorilla.raft(found, records(), distractors, p, seed),
    }
    if kind not in kinds:
        raise ConfigError.of("--kind", kind, f"one of {', '.join(kinds)}", did_you_mean(kind, kinds).strip())
    made = kinds[kind](gorilla.read_examples(examples))
    write_lines(out, gorilla.as_prompts(made) if prompts else made)
    print(f"{len(made)} rows ({kind}) are in {out}. To train on them:")
    print(f"    inlay train --model MODEL --data {shlex.quote(str(out))}")


@command.command()
def ask(
    source: Source,
    examples: Annotated[
        Path, typer.Option(metavar="FILE", help="An APIBench file, whose questions are asked, e.g. torchhub_eval.json.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file of the answers (JSONL); it is replaced.")],
    apis: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The API database: what is found in it is shown. Default: none.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="With --apis: records a question.")] = 1,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="In the prompt of Gorilla's own models, as `rows --prompts` makes rows.")
    ] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first so many questions.")] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Length of the longest answer, in tokens.")] = 256,
    batch: Annotated[int, typer.Option(metavar="N", help="Questions at a time.")] = 8,
    device: Device = "auto",
    embedding: _Embedding = None,
    endpoint: _Endpoint = None,
    key_env: _KeyEnv = None,
    cache: _Cache = None,
) -> None:
    """Let a run, an adapter or a model answer questions, for `score`: alone, or with documentation that is found.

    Example: inlay gorilla ask runs/mine --examples torchhub_eval.json --apis torchhub_api.jsonl --out answers.jsonl
    """
    from inlay import gorilla
    from inlay.comparison import Decoding
    from inlay.data.templates import GORILLA
    from inlay.gorilla.prompt import filled
    from inlay.io.plain import write_lines
    from inlay.runs.together import compare_sources

    asked = [example.question for example in gorilla.read_examples(examples)[:limit]]
    if apis is not None:
        retriever = _retriever(gorilla.read_apis(apis), embedding, endpoint, key_env, cache)
        asked = retriever.instructions(asked, k)
    if prompts:
        asked = [filled(GORILLA, text) for text in asked]
    decoding, format = Decoding(max_new_tokens), "plain" if prompts else None
    found = compare_sources(
        source, asked, (), format=format, decoding=decoding, batch_size=batch, device=device_of(device)
    )
    answers = [row.answers[0].text for row in found.rows]
    write_lines(out, [{"question_id": i, "text": text, "model_id": source} for i, text in enumerate(answers, 1)])
    print(f"{len(answers)} answers are in {out}. To score them, with the hub's rules:")
    print(
        f"    inlay gorilla score {shlex.quote(str(out))} --apis {shlex.quote(str(apis or 'FILE'))} "
        f"--examples {shlex.quote(str(examples))} --hub HUB"
    )


@command.command()
def score(
    responses: Annotated[
        list[Path],
        typer.Argument(metavar="RESPONSES...", help="Files of a model's answers: question_id, text (JSONL)."),
    ],
    apis: _Apis,
    examples: Annotated[
        Path, typer.Option(metavar="FILE", help="The APIBench file that was asked, e.g. torchhub_eval.json.")
    ],
    hub: Annotated[
        str, typer.Option(metavar="NAME", help="Whose rules: huggingface (or your own APIs), tensorflowhub, torchhub.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Only a call of a record's name is one. Published figures are without.")
    ] = False,
    verdicts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what became of each answer, and why (JSONL).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, an object a file.")] = False,
) -> None:
    """Score answers by the API that they call: accuracy and hallucination, as Gorilla does.

    Example: inlay gorilla score answers.jsonl --apis torchhub_api.jsonl --examples torchhub_eval.json --hub torchhub
    """
    from inlay import gorilla
    from inlay.io.plain import write_lines

    database, answered = gorilla.read_apis(apis), gorilla.read_examples(examples)
    reports = {
        str(file): gorilla.score(gorilla.read_responses(file), database, answered, hub, strict) for file in responses
    }
    if verdicts is not None:
        write_lines(verdicts, [{"file": file, **vars(v)} for file, report in reports.items() for v in report.verdicts])
    if as_json:
        print(json.dumps([{"file": file, **report.to_dict()} for file, report in reports.items()], indent=2))
    elif len(reports) == 1:
        print(*reports.values())
    else:
        columns = {"answers of": "left", "accuracy": "right", "hallucination": "right", "responses": "right"}
        cells = [[f, f"{r.accuracy:.2%}", f"{r.hallucination:.2%}", len(r.verdicts)] for f, r in reports.items()]
        _table(f"{hub}, {'strict' if strict else 'as Gorilla scores'}", columns, cells)


def _retriever(
    records: Any, embedding: str | None, endpoint: str | None, key_env: str | None, cache: Path | None
) -> Any:
    """BM25, or embeddings where a model is named."""
    from inlay.gorilla import BM25Retriever, EmbeddingRetriever, openai_endpoint, sentence_transformer

    if embedding is None:
        if endpoint is not None or cache is not None:
            raise ConfigError(f"{'--endpoint' if endpoint else '--cache'} needs --embedding MODEL.")
        return BM25Retriever(records)
    if endpoint is None:
        embed = sentence_transformer(embedding)
    else:
        embed = openai_endpoint(embedding, url_of(endpoint), key_in(key_env))
    return EmbeddingRetriever(records, embed, cache, embedding)


def _table(title: str, columns: dict[str, Any], cells: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, side in columns.items():
        table.add_column(name, justify=side, overflow="fold")
    for row in cells:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(Text(title, style="bold"))
    console.print(table, Text())
