"""The verbs of ``toolkit data``: looking at data, checking it, putting it together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli.verbs import console, verb
from toolkit.errors import ExitCode

data = typer.Typer(
    help="Look into data, check it, draw from it, count it, merge it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

WHAT = "A prefix (without .bin), a .bin or .idx file, or the folder of a dataset or its stage."
DatasetPath = Annotated[Path, typer.Argument(metavar="PREFIX", help=WHAT, show_default=False)]
DatasetPaths = Annotated[list[Path], typer.Argument(metavar="PREFIX", help=WHAT)]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or its stage's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TokenizerPath = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="A tokenizer's folder; by default the dataset's own."),
]


@data.command(
    epilog="Examples: toolkit data inspect runs/mini/corpus  |  "
    "toolkit data inspect data/text_document --tokenizer runs/mini/vocabulary"
)
@verb
def inspect(
    prefix: DatasetPath,
    documents: Annotated[int, typer.Option(min=0, help="How many of the first to show.")] = 3,
    tokenizer: TokenizerPath = None,
    as_json: Json = False,
) -> None:
    """Show what is in a dataset: counts, lengths, how documents end, the first ones as text."""
    from toolkit.data.examine.inspection import inspect as look
    from toolkit.data.examine.locate import locate
    from toolkit.data.examine.show import show_inspection

    found = look(locate(prefix), documents=documents, tokenizer=tokenizer)
    _print(found.plain() if as_json else show_inspection(found), as_json)


@data.command(
    epilog="Examples: toolkit data doctor runs/mini/corpus  |  toolkit data doctor shards/*.idx"
    "\n\nExit codes: 0 sound, 1 damaged, 2 nothing there to examine. Tokens changed to others of "
    "the vocabulary are found by the manifest's checksums alone."
)
@verb
def doctor(
    prefixes: DatasetPaths,
    tokenizer: TokenizerPath = None,
    subset: Annotated[
        bool,
        typer.Option("--subset", help="The index may name parts of the .bin: no gap is an error."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every byte of a dataset, and say where the first bad one is."""
    from dataclasses import asdict

    from toolkit.data.examine.doctor import examine, sizes
    from toolkit.data.examine.locate import locate
    from toolkit.data.examine.show import show_examinations

    datasets = [dataset for prefix in prefixes for dataset in locate(prefix)]
    with _reading(sizes(datasets)) as advance:
        found = examine(datasets, advance, tokenizer=tokenizer, subset=subset)
    _print([asdict(one) for one in found] if as_json else show_examinations(found), as_json)
    _exit_if(any(one.failure for one in found))


@data.command(epilog="Example: toolkit data merge shards/a shards/b --output data/text_document")
@verb
def merge(
    prefixes: DatasetPaths,
    output: Annotated[Path, typer.Option(metavar="PREFIX", help="Of the dataset to write.")],
    as_json: Json = False,
) -> None:
    """Write several datasets as one, in their order; the tokens are copied within the kernel."""
    from dataclasses import asdict

    from toolkit.data.examine.locate import locate
    from toolkit.data.examine.merging import merge as put_together
    from toolkit.data.examine.show import show_merged

    found = put_together([dataset for prefix in prefixes for dataset in locate(prefix)], output)
    _print(asdict(found) if as_json else show_merged(found), as_json)


@data.command(epilog="Example: toolkit data verify runs/mini/corpus")
@verb
def verify(artifact: ArtifactPath, as_json: Json = False) -> None:
    """Compare the size and SHA-256 of every file of an artifact, of any type, with its manifest."""
    from dataclasses import asdict

    from toolkit.data.examine.locate import read_recorded
    from toolkit.data.examine.show import show_verification
    from toolkit.data.examine.verification import verify as compare

    found = read_recorded(artifact)
    with _reading(sum(file.size for file in found.files)) as advance:
        checked = compare(found, advance)
    plain = {"artifact": str(found.folder), "files": [asdict(one) for one in checked]}
    _print(plain if as_json else show_verification(found, checked), as_json)
    _exit_if(any(one.problem for one in checked))


@data.command(
    epilog="Examples: toolkit data sample corpus/*.jsonl.zst -n 3 --seed 7  |  "
    "toolkit data sample runs/mini/corpus  |  toolkit data sample sample:python-docs --json"
)
@verb
def sample(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Files, folders, globs, sample: names, documents, or datasets.",
        ),
    ],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many.")] = 5,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same; by default another each time.")
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text in a record of a file.")] = "text",
    sample_by: Annotated[
        str, typer.Option(help="What a document of a .txt file is: document, paragraph or line.")
    ] = "document",
    tokenizer: TokenizerPath = None,
    as_json: Json = False,
) -> None:
    """Show documents drawn at random, each with the same chance."""
    import secrets

    from toolkit.data.examine.sampling import (
        checked_sample_by,
        datasets_of,
        sample_datasets,
        sample_files,
        sources_of,
    )
    from toolkit.data.examine.show import show_sample

    seed = secrets.randbelow(100_000) if seed is None else seed
    if datasets := datasets_of(sources):
        found = sample_datasets(datasets, number, seed, tokenizer=tokenizer)
    else:
        files, by = sources_of(sources), checked_sample_by(sample_by)
        with _reading(sum(file.size for file in files)) as advance:
            found = sample_files(files, number, seed, advance, text_key=text_key, sample_by=by)
    if as_json:
        typer.echo(f"seed {seed}", err=True)
        for document in found.lines():
            typer.echo(document)
    else:
        _print(show_sample(found, seed), as_json)


@data.command(epilog="Example: toolkit data stats runs/mini/corpus")
@verb
def stats(artifact: ArtifactPath, as_json: Json = False) -> None:
    """Tell what a stage counted: tokens per source, drops by reason, languages, duplicates."""
    from toolkit.data.examine.locate import read_recorded
    from toolkit.data.examine.show_stats import show_statistics
    from toolkit.data.examine.statistics import statistics

    found = statistics(read_recorded(artifact))
    _print(found.plain() if as_json else show_statistics(found), as_json)


@data.command(epilog="Example: toolkit data index configs/mini.yaml base")
@verb
def index(
    file: Annotated[Path, typer.Argument(metavar="PIPELINE.yaml", show_default=False)],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A pretrain stage.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/NAME.")
    ] = None,
) -> None:
    """Build the index of a pretrain stage ahead of its run, on this machine's CPU."""
    from toolkit.launch.prebuild import prebuild_index
    from toolkit.plan.stages import load_checked

    loaded = load_checked(file, overrides or ())
    folder = run_dir or Path("runs") / loaded.pipeline.name
    parts = prebuild_index(loaded, folder, stage)
    counted = ", ".join(f"{part} {tokens:,} tokens" for part, tokens in parts["tokens"].items())
    typer.echo(f"{folder / stage}: split by {parts['split_by']}: {counted}")


def _print(found: Any, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2, ensure_ascii=False, default=str))
    else:
        console().print(found)


@contextmanager
def _reading(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes, on a terminal's error output; it is gone when the work is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    terminal = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    hidden = not terminal.is_terminal
    with Progress(*columns, console=terminal, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _exit_if(wrong: bool) -> None:
    if wrong:
        raise typer.Exit(ExitCode.STAGE_FAILED)
