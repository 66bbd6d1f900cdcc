"""The command line: read options, make one library call, print what came back.

Nothing heavy is imported here: each command imports what it needs.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.table import Table

    from embedcache.backbones.listing import Listed
    from embedcache.cache import FileSummary
    from embedcache.extraction import Extraction
    from embedcache.housekeeping import LeftOver
    from embedcache.verification import FileReport
    from heads.config import HeadConfig
    from heads.fit import FittedRun
    from heads.item_files import ItemFile
    from heads.lacking import Lacking
    from heads.predict import Empty, ItemPredictor, Predictions
    from heads.preview import Preview
    from heads.run_text import Part
    from heads.table import Source
    from heads.table import Table as HeadTable
    from heads.table_run import FittedTable
    from heads.task import Task

INTERRUPTED = 130
MANY_COLUMNS = 8
"""Of a table: more are set with less room between them."""


class _Commands(TyperGroup):
    """Turns an error into one paragraph on stderr and an exit code; ``--debug`` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            _say(" ".join(["Interrupted.", *map(str, interrupt.args)]))
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if _is_typers(error) or ctx.params.get("debug"):
                raise
            raise typer.Exit(_explained(error)) from None


def _is_typers(error: Exception) -> bool:
    """Whether typer itself knows what to do with an exception: its own words on wrong use, an exit, an abort."""
    return isinstance(error, typer.Exit | typer.Abort | BrokenPipeError) or hasattr(error, "format_message")


def _explained(error: Exception) -> int:
    """Print one paragraph; the exit code."""
    from embedcache.errors import EmbedCacheError

    if isinstance(error, EmbedCacheError):
        _say(f"Error: {error}")
        return error.exit_code
    if isinstance(error, OSError):
        _say(f"Error: {error}")
        return 1
    _say(f"Error: {type(error).__name__}: {error}. This is a defect: 'python cli.py --debug …' shows where.")
    return 1


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run frozen backbones once, keep every vector, train light heads in seconds.",
)

CacheOption = Annotated[Path, typer.Option("--cache", envvar="EMBEDCACHE_CACHE", help="Folder of the cache.")]
OutOption = Annotated[Path, typer.Option("--out", envvar="EMBEDCACHE_OUT", help="Folder of the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Name in the cache; default: the only one.")]
CheckpointOption = Annotated[
    list[str] | None, typer.Option("--checkpoint", help="BACKBONE=PATH of a folder or weight file; may be repeated.")
]


@app.callback()
def _main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False) -> None:
    """Run frozen backbones once, keep every vector, train light heads in seconds."""
    level = logging.DEBUG if debug else logging.ERROR
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _interrupted(said: str) -> Iterator[None]:
    """What an interrupt of the block leaves behind, for the one line that is said of it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(*(interrupt.args or (said,))) from None


COMMITTED = "What was committed is kept: the same command goes on from there."


def _left_of(searches: bool) -> str:
    """What an interrupt leaves of heads that are being fitted."""
    if searches:
        return "Finished fits of the search are kept: the same command goes on from there."
    return "Nothing of this fit is kept: the same command begins again."


def _say(message: str) -> None:
    """A message for people, on stderr."""
    typer.echo(message, err=True)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _table(*columns: str, right: Sequence[str] = (), tight: bool = False) -> Table:
    from rich import box
    from rich.table import Table

    padding = (0, 1, 0, 0) if tight else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=padding)
    for column in columns:
        number = column in right
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def _show(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False).print(table)


def _numbers(text: str | None, kind: type[int] | type[float], option: str) -> tuple[Any, ...] | None:
    """``0,65535`` as numbers."""
    from embedcache.errors import UsageError

    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers with commas between them, got {text!r}.") from error


@app.command()
@_interrupted(COMMITTED)
def extract(
    backbone: Annotated[list[str], typer.Option("--backbone", help="Alias or family:checkpoint; may be repeated.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="An adapter ('datasets' lists them) or a name in the cache; default: all found in --data."),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(envvar="EMBEDCACHE_DATA", help="Data folder or files (default: data/).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set in the cache.")] = None,
    cache: CacheOption = Path("cache"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the forward pass: auto, float32, float16, bfloat16.")] = "auto",
    stored: Annotated[str, typer.Option(help="On disk: auto, float16, float32.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Items in a forward pass; default: found out.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode; default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Encode the items of that many samples only.")] = None,
    seed: Annotated[int, typer.Option(help="Of --limit.")] = 0,
    check: Annotated[str, typer.Option(help="Notice changes by stat (size and time) or by content.")] = "stat",
    on_error: Annotated[str, typer.Option(help="At a bad item: skip or stop.")] = "skip",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed items again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait where another process writes the same file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    weights: Annotated[str | None, typer.Option(help="A weight file in place of the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    layer: Annotated[str, typer.Option(help="last, a layer such as -2, or several: -4,-3,-2,-1.")] = "last",
    pooling: Annotated[str, typer.Option(help="auto, cls, mean, cls+mean, max, last, pooler, pre-logits.")] = "auto",
    image_size: Annotated[int | None, typer.Option(help="Side of the model's square input, pixels.")] = None,
    value_range: Annotated[str | None, typer.Option(help="LOW,HIGH of pixels that are not 8-bit.")] = None,
    channels: Annotated[str | None, typer.Option(help="One or three channel numbers, such as 3,2,1.")] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Lower-case texts first.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Put before every text; '' for none (aliases can have one).")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens.")] = None,
    min_count: Annotated[int, typer.Option(help="words: how often a word must occur to have an id.")] = 1,
    max_words: Annotated[int | None, typer.Option(help="words: how many have an id at most.")] = None,
    captions: Annotated[str | None, typer.Option(help="cub: where the captions are.")] = None,
    label: Annotated[str | None, typer.Option(help="folder: parent, none or regex; table, hf-dataset: column.")] = None,
    group: Annotated[str | None, typer.Option(help="folder: a regex; table, hf-dataset: a column.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="table, hf-dataset: column of texts; may be repeated.")] = None,
    image: Annotated[str | None, typer.Option(help="table: column of image paths; hf-dataset: of images.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder of images (comp5329, coco, table, hf-dataset).")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="table, hf-dataset: column of ids.")] = None,
    split: Annotated[str | None, typer.Option(help="table, hf-dataset: column of splits.")] = None,
    weight: Annotated[str | None, typer.Option(help="table, hf-dataset: column of sample weights.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the data set's adapter; 'datasets' lists them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every item of a data set once; what the cache holds already is not encoded again."""
    import embedcache as ec

    own = {
        "captions": captions,
        "label": label,
        "group": group,
        "text": text,
        "image": image,
        "images": images,
        "id": id_column,
        "split": split,
        "weight": weight,
    }
    results = ec.extract(
        dataset,
        list(data) if data else None,
        backbones=backbone,
        name=name,
        cache=cache,
        limit=limit,
        seed=seed,
        dry_run=dry_run,
        settings=ec.BackboneSettings(
            weights=weights,
            revision=revision,
            layer=layer,
            pooling=pooling,
            image_size=image_size,
            value_range=_pair(_numbers(value_range, float, "--value-range")),
            channels=_numbers(channels, int, "--channels"),
            lowercase=lowercase,
            prompt=prompt,
            max_length=max_length,
            min_count=min_count,
            max_words=max_words,
        ),
        options=ec.Options(
            device=device,
            precision=_one_of(precision, "--precision", ("auto", "float32", "float16", "bfloat16")),
            stored=_one_of(stored, "--stored", ("auto", "float16", "float32")),
            batch_size=batch_size,
            workers=workers,
            check=_one_of(check, "--check", ("stat", "content")),
            on_error=_one_of(on_error, "--on-error", ("skip", "stop")),
            retry_failed=retry_failed,
            wait=wait,
            progress=not as_json,
        ),
        **{**own, **_assignments(option or [])},
    )
    if as_json:
        from dataclasses import asdict

        _print_json([asdict(one) for one in results])
        return
    for one in results:
        _print_extraction(one, dry_run)


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    """``language=spanish`` as keyword arguments; values are read as YAML."""
    from embedcache.errors import UsageError
    from heads.config import plain_yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--option takes NAME=VALUE, got {text!r}.")
        found[name] = plain_yaml(value)
    return found


def _pair(numbers: tuple[Any, ...] | None) -> tuple[float, float] | None:
    from embedcache.errors import UsageError

    if numbers is not None and len(numbers) != 2:
        raise UsageError(f"--value-range takes LOW,HIGH, got {len(numbers)} numbers.")
    return (numbers[0], numbers[1]) if numbers is not None else None


def _one_of(value: str, option: str, known: tuple[str, ...]) -> Any:
    from embedcache.errors import unknown_name

    if value not in known:
        raise unknown_name(f"value of {option}:", value, known)
    return value


def _print_extraction(one: Extraction, dry_run: bool) -> None:
    """A few lines on what was reused, resumed, encoded and failed."""
    head = f"{one.dataset} · {one.backbone}"
    if one.action == "skip":
        typer.echo(f"{head}: skipped, {one.reason}.")
        return
    verb = {"reuse": "reused", "resume": "resumed", "grow": "grown", "extract": "extracted"}[one.action]
    if dry_run:
        verb = f"would be {verb}"
    size = f" × {one.dim}" if one.dim else ""
    typer.echo(f"{head}: {verb} ({one.reason}); {one.n_items:,} {one.modality}s{size} of {one.n_samples:,} samples")
    typer.echo(
        f"  {one.n_kept:,} there already, {one.n_encoded:,} {'to encode' if dry_run else 'encoded'}{_speed(one)}"
    )
    if one.n_failed:
        typer.echo(f"  {one.n_failed:,} failed: " + "; ".join(f"{name}: {why}" for name, why in one.failures.items()))
    if one.n_truncated:
        typer.echo(f"  {one.n_truncated:,} texts were longer than the model reads, and cut")
    for note in one.notes:
        typer.echo(f"  note: {note}")
    if one.estimate is not None and one.estimate.nbytes:
        typer.echo(f"  about {_duration(one.estimate.seconds or 0)} and {_size(one.estimate.nbytes)}")
    if one.path is not None:
        typer.echo(f"  {one.path}")


def _speed(one: Extraction) -> str:
    rate = one.items_per_second
    return f" in {_duration(one.seconds)}, {rate:,.0f} {one.modality}s/s" if rate else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:,.0f} {unit}" if nbytes >= 10 or unit == "B" else f"{nbytes:.1f} {unit}"


@app.command("fit-head")
def fit_head(
    grid: Annotated[str | None, typer.Option(help="Grid file, here or among the ready ones.")] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="Kind of head; default: logistic. Repeating it compares.")
    ] = None,
    dataset: DatasetOption = None,
    features: Annotated[
        list[str] | None, typer.Option(help="Feature sets: commas fuse, repeating the option compares.")
    ] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="key=value over the grid file.")] = None,
    rows: Annotated[
        list[str] | None, typer.Option("--row", help="Of a grid file with rows, fit this one; may be repeated.")
    ] = None,
    cache: CacheOption = Path("cache"),
    out: OutOption = Path("runs"),
    extract_missing: Annotated[bool, typer.Option("--extract", help="Extract features that are missing.")] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(envvar="EMBEDCACHE_DATA", help="Where --extract finds a data set that the cache lacks."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many fits and how long, and fit nothing.")
    ] = False,
    learning_curve: Annotated[
        str | None, typer.Option(help="Rows to train on instead of all, e.g. 100,1000,5000: a curve of the scores.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Refuse heads that take more with their backbones and tokenizers: 100MB.")
    ] = None,
    checkpoint: CheckpointOption = None,
    continued: Annotated[
        Path | None, typer.Option("--continue", help="Go on training the head of that run; needs --epochs.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs more, with --continue.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a head, a search over heads, or one head on several choices of features, from the cache."""
    from embedcache.errors import UsageError
    from heads import config as configs
    from heads import curves, table

    if continued is not None or epochs is not None:
        others = (grid, head, dataset, features, assignments, rows, dry_run, extract_missing, max_size, learning_curve)
        _go_on(continued, epochs, cache, out, as_json, alone=not any(others))
        return
    limit, where = _limit(max_size), dict(_assignment(one) for one in checkpoint or [])
    sizes = curves.read_sizes(learning_curve) if learning_curve else ()
    wants = _Wants(cache, out, data, extract_missing, dry_run, as_json, limit, where, sizes)
    document: dict[str, Any] = configs.read_grid(configs.find_grid(grid)) if grid else {}
    where_from = grid or "the options"
    if len(head or ()) > 1 or table.is_table(document):
        made = _table_of(document, where_from, head or [], features or [], dataset, assignments or [], rows or [])
        _fit_table(made, Path(grid).stem if grid else "heads", wants)
        return
    if rows:
        raise UsageError(f"--row is for a grid file that has rows; {where_from} has none.")
    document |= {key: value for key, value in (("head", head and head[0]), ("dataset", dataset)) if value}
    if features:
        document["features"] = features[0] if len(features) == 1 else [[one] for one in features]
    _fit_one(configs.parse(configs.override(document, assignments or []), where_from), wants)


@dataclass(frozen=True)
class _Wants:
    """What the options of ``fit-head`` say besides which heads."""

    cache: Path
    out: Path
    data: list[Path] | None
    extract: bool
    dry_run: bool
    as_json: bool
    limit: int | None
    checkpoints: Mapping[str, str]
    sizes: tuple[int, ...]


def _fit_one(parsed: HeadConfig, wants: _Wants) -> None:
    """Fit one kind of head on each choice of features; record and print it."""
    from heads import curves
    from heads.task import prepare

    if wants.extract and not wants.dry_run:
        _extract_lacking([parsed], wants.cache, wants.data, None)
    task = prepare(parsed, wants.cache)
    if wants.sizes:
        curves.check(task, wants.sizes)
    if wants.limit is not None:
        _hold_to(wants.limit, [task], wants.checkpoints)
    with _interrupted(_left_of(parsed.searches)):
        _fit_task(task, wants)


def _fit_task(task: Task, wants: _Wants) -> None:
    """Say what is about to be done; fit, record and print."""
    from heads import curves, fit, searching
    from heads.preview import preview

    previews = preview(task)
    if not wants.as_json or wants.dry_run:
        _print_previews(previews, wants.as_json)
    if wants.dry_run:
        return
    progress = not wants.as_json
    runs = fit.fit(task, progress=progress, searches=wants.out / searching.FOLDER)
    if wants.sizes:
        runs = [curves.learning_curve(task, run, wants.sizes, progress=progress) for run in runs]
    folder = _recorded(task, runs, wants.out, wants.as_json)
    if wants.limit is not None:
        _measured(folder, wants.limit, wants.checkpoints)


def _table_of(
    document: dict[str, Any],
    where: str,
    heads: list[str],
    features: list[str],
    dataset: str | None,
    assignments: list[str],
    rows: list[str],
) -> HeadTable:
    """The table that a grid file with rows, or several ``--head``, mean."""
    from embedcache.errors import UsageError
    from heads import table

    for option, given in (("--head", heads), ("--features", features)):
        if twice := [one for place, one in enumerate(given) if one in given[:place]]:
            raise UsageError(f"{option} {twice[0]} is given twice: leave one out.")
    if heads:
        document = table.of_choices(document, heads, features, where)
    elif features:
        if len(features) > 1 or any("features" in one for one in (document, *table.rows_of(document, where))):
            raise UsageError(
                f"{where} has a row per head: --features is one choice for all of them, where no row names its own."
            )
        document = {**document, "features": features[0]}
    return table.parse_table(document, assignments, where, rows=rows, dataset=dataset)


def _fit_table(table: HeadTable, name: str, wants: _Wants) -> None:
    """Fit and record every row; print the table."""
    from dataclasses import asdict

    from embedcache.errors import UsageError
    from heads import lacking, searching, table_run, table_text
    from heads.preview import preview

    if wants.sizes:
        raise UsageError("--learning-curve is for one head, not for a table of several.")
    if wants.extract and not wants.dry_run:
        _extract_for_rows(table, wants)
    lacking.check(table.configs, wants.cache, table.config.data, "" if wants.extract else ", add --extract, or")
    prepared = table_run.prepare_table(table, wants.cache)
    if wants.limit is not None:
        _hold_to(wants.limit, prepared.tasks, wants.checkpoints)
    if wants.dry_run:
        previews = {table_run.label(table, config): preview(task) for config, task in prepared.items()}
        _print_row_previews(previews, wants.as_json)
        return
    with _interrupted(
        f"Heads that were done stay recorded below {wants.out}; the same command fits all of them again."
    ):
        folder, fitted = table_run.fit_table(
            prepared,
            wants.out,
            name=name,
            progress=not wants.as_json,
            searches=wants.out / searching.FOLDER,
            checkpoints=wants.checkpoints,
            said=(lambda _: None) if wants.as_json else _say,
        )
    page = table_text.write(folder, fitted)
    if wants.as_json:
        _print_json({"run": folder, **asdict(fitted)})
    else:
        _print_table(fitted)
        typer.echo(f"\n{folder}  ({page.name}, {table_text.MARKDOWN}, a run per head)")
    if wants.limit is not None:
        _measured(folder, wants.limit, wants.checkpoints)
    if fitted.failed:
        raise typer.Exit(1)


def _extract_for_rows(table: HeadTable, wants: _Wants) -> None:
    """Extract what rows lack; where that fails, say which rows have all that they need."""
    from embedcache.errors import EmbedCacheError, UsageError
    from heads import lacking

    try:
        _extract_lacking(table.configs, wants.cache, wants.data, table.config.data)
    except EmbedCacheError as error:
        ready = [row.name for row in table.rows if not lacking.lacking(list(row.configs.values()), wants.cache)]
        rows = " ".join(f"--row {shlex.quote(name)}" for name in ready)
        raise UsageError(f"{error} Rows that have all they need: {rows}" if ready else str(error)) from error


def _print_row_previews(previews: Mapping[str, Sequence[Preview]], as_json: bool) -> None:
    """What each row is going to cost."""
    if as_json:
        from dataclasses import asdict

        _print_json({name: [asdict(one) for one in found] for name, found in previews.items()})
        return
    splits = ("train", "validation", "test")
    table = _table("head", *splits, "numbers", "fits", "at most", right=(*splits, "numbers", "fits", "at most"))
    for name, (*_, one) in previews.items():
        counts = (f"{one.samples[split]:,}" for split in splits)
        fits, seconds = (sum(getattr(part, what) for part in previews[name]) for what in ("fits", "seconds"))
        table.add_row(name, *counts, f"{sum(one.dims):,}", f"{fits:,}", _duration(seconds))
    _show(table)
    every = [one for found in previews.values() for one in found]
    for note in dict.fromkeys(note for one in every for note in one.notes):
        _echo(note, "note: ")
    heads = "1 head" if len(previews) == 1 else f"{len(previews)} heads"
    _echo(f"{heads}, at most about {_duration(sum(one.seconds for one in every))}")


def _print_table(found: FittedTable) -> None:
    """A table of several heads, with what is to be said below it."""
    from rich.console import Console

    from heads import table_text

    lines = table_text.for_width(found, Console().width)
    if found.title:
        _echo(found.title)
    headings = table_text.headings(lines)
    numbers = [heading for heading, one in zip(headings, lines.columns, strict=True) if one.number]
    table = _table(*headings, right=numbers, tight=len(headings) > MANY_COLUMNS)
    for row in lines.rows:
        table.add_row(*row)
    _show(table)
    for note in lines.notes:
        _echo(note, "note: ")


@_interrupted(COMMITTED)
def _extract_lacking(
    configs: Sequence[HeadConfig], cache: Path, data: list[Path] | None, source: Source | None
) -> None:
    """Extract what these heads need and the cache lacks. source: how a data set that it does not know is read.

    A backbone that cannot be had keeps none of the others back: its error is raised when they are done.
    """
    from embedcache.errors import EmbedCacheError
    from heads.lacking import lacking

    errors: dict[tuple[str, ...], EmbedCacheError] = {}
    while missing := [one for one in lacking(configs, cache) if one.backbones not in errors]:
        one = missing[0]
        for backbones in [one.backbones] if len(one.backbones) == 1 else [one.backbones, *zip(one.backbones)]:
            try:
                _extract_together(one, backbones, cache, data, source)
                break
            except EmbedCacheError as error:
                errors[backbones] = error
    if still := lacking(configs, cache):
        raise errors[still[0].backbones]


def _extract_together(
    one: Lacking, backbones: Sequence[str], cache: Path, data: list[Path] | None, source: Source | None
) -> None:
    """Some backbones with the same settings, which share the decoding of photos."""
    import embedcache as ec

    of_new = source is not None and not one.known
    ec.extract(
        source.adapter if source is not None and of_new else one.dataset,
        data,
        backbones=backbones,
        name=one.dataset if of_new else None,
        cache=cache,
        settings=ec.BackboneSettings(**one.settings),
        options=ec.Options(progress=True),
        **(source.options if source is not None and of_new else {}),
    )


def _recorded(task: Any, runs: Sequence[FittedRun], out: Path, as_json: bool) -> Path:
    """Write fitted runs, print them, and return their folder."""
    from heads import record, report, run_text

    folder, comparison = record.write(task, runs, out)
    report.write(folder, task, runs, comparison)
    if as_json:
        documents = [record.metrics_document(task, run) for run in runs]
        _print_json({"run": folder, "results": documents})
        return folder
    _print_parts(run_text.of_folder(folder, said=task.splits.notes))
    typer.echo(f"\n{folder}  ({report.PAGE}, {record.METRICS_FILE}, {record.PREDICTIONS}, {record.HEAD}/)")
    return folder


def _go_on(run: Path | None, epochs: int | None, cache: Path, out: Path, as_json: bool, *, alone: bool) -> None:
    """``--continue RUN --epochs N``, which takes all else from the run."""
    from embedcache.errors import UsageError
    from heads import continuing
    from heads.record import resolve_run

    if run is None or epochs is None:
        raise UsageError("--continue RUN and --epochs N belong together: whose training goes on, and for how long?")
    if not alone:
        raise UsageError("--continue takes everything from the run but --epochs, --cache and --out.")
    with _interrupted(_left_of(searches=False)):
        task, fitted = continuing.go_on(resolve_run(run, out), epochs, cache, progress=not as_json)
    _recorded(task, [fitted], out, as_json)


def _limit(text: str | None) -> int | None:
    """Bytes; what measures backbones is imported only where a limit is stated."""
    if text is None:
        return None
    from heads.sizes import parse_size

    return parse_size(text)


def _hold_to(limit: int, tasks: Sequence[Task], where: Mapping[str, str]) -> None:
    """Refuse, before anything is fitted, what is larger than ``--max-size``."""
    from heads import sizes
    from heads.saved import check_names

    check_names(where, [one.name for task in tasks for features in task.sets for one in features.sets])
    for task, features in ((one, features) for one in tasks for features in one.sets):
        parts = sizes.before_fitting(task, features, where)
        name = " on ".join(part for part in (task.head.name, " + ".join(features.names)) if part)
        sizes.check(name, parts, limit)
        _say(f"{name}: about {sizes.readable(sizes.total(parts))} of {sizes.readable(limit)}")


def _measured(folder: Path, limit: int, where: Mapping[str, str]) -> None:
    """The same of the heads as they were saved: some kinds are as large as their training made them."""
    from heads import sizes
    from heads.record import HEAD

    for head in sorted([*folder.glob(HEAD), *folder.glob(f"*/{HEAD}")]):
        sizes.check(str(head.parent), sizes.of_run(head.parent, where), limit)


def _print_previews(previews: Sequence[Preview], as_json: bool) -> None:
    """What is about to be done, on stderr; as JSON on stdout."""
    if as_json:
        from dataclasses import asdict

        _print_json([asdict(one) for one in previews])
        return
    first = previews[0]
    samples = ", ".join(f"{count:,} {split}" for split, count in first.samples.items() if count)
    _say(f"{samples} samples")
    for reason, count in first.left_out.items():
        _say(f"  {count:,} samples left out: {reason}")
    for note in first.notes:
        _say(f"  note: {note}")
    for one in previews:
        numbers = " + ".join(str(dim) for dim in one.dims if dim)
        read = " and ".join([*(["word ids"] if 0 in one.dims else []), *([f"{numbers} numbers"] if numbers else [])])
        time = f", at most about {_duration(one.seconds)}" if one.fits else ""
        _say(f"{one.label}{f' ({read})' if read else ''}: {_fits(one)}{time}")


def _fits(one: Preview) -> str:
    if not one.fits:
        return "of the heads above, no fit of its own"
    if one.points == 1:
        return "1 fit" if one.fits == 1 else f"{one.fits} fits"
    return f"{one.points} candidates, {one.fits} fits"


def _print_parts(parts: Sequence[Part]) -> None:
    """Lines and tables of recorded runs."""
    from heads.run_text import Line

    for part in parts:
        if isinstance(part, Line):
            _echo(part.text, part.start)
            continue
        table = _table(*part.columns, right=part.columns[part.texts :])
        for row in part.rows:
            table.add_row(*row)
        _show(table)


@app.command()
def predict(
    run: Annotated[Path, typer.Option(help="A run's folder, or its name in --out.")] = Path("latest"),
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    items: Annotated[
        Path | None, typer.Option("--csv", help="A file of images and texts, a row each: .csv, .tsv or .jsonl.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Its column of image paths; default: image.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Its column of texts; default: text.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Its column of ids; default: id, else row numbers.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths are relative to; default: the file's own.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Predict samples of a data set of the cache instead.")] = None,
    split: Annotated[str | None, typer.Option(help="Of that data set; default: all of it.")] = None,
    changed_since: Annotated[
        Path | None, typer.Option(help="Only samples that are new, or have changed, since that run.")
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            help="Write a row per id as the data set's publishers ask for it (.csv or .json); none is missing."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write labels and probabilities to this CSV file, or JSON lines (.jsonl).")
    ] = None,
    empty: Annotated[
        str, typer.Option(help="What reaches no threshold gets its most probable label (top), or none (keep).")
    ] = "top",
    checkpoint: CheckpointOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    cache: CacheOption = Path("cache"),
    out: OutOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Label new images and texts, or a data set's samples, with a fitted head.

    A submission has a row for every sample: where features are missing, the mean vector of the training rows stands in
    for them, and where all are missing, the shares of the labels in training; such rows are named.
    """
    from dataclasses import replace

    import embedcache as ec
    from embedcache.errors import UsageError
    from heads import predict as predicting
    from heads.record import head_folder, read_seen, resolve_run
    from heads.saved import FittedHead
    from heads.submission import write_submission, write_table

    rule = _one_of(empty, "--empty", ("top", "keep"))
    _check_outputs(submission, table, listed=not (image or text))
    head = FittedHead.load(head_folder(run, out))
    if sum((dataset is not None, bool(image or text), items is not None)) != 1:
        raise UsageError("Give --dataset, or --csv, or --image and --text: what is to be labelled?")
    if items is None and any((image_column, text_column, id_column, images)):
        raise UsageError("--image-column, --text-column, --id-column and --images are of a file: --csv FILE.")
    where = dict(_assignment(one) for one in checkpoint or [])
    options = ec.Options(device=device)
    if items is not None:
        from heads.item_files import ItemColumns, ItemFile

        listed = ItemFile(items, ItemColumns(image_column, text_column, id_column), images)
        listed.check(head.modalities)
        predictor = predicting.ItemPredictor(head, checkpoints=where, options=options)
        if table is not None and submission is None and not as_json:
            _predict_to(table, predictor, listed, rule)
            return
    if dataset is not None:
        seen = read_seen(resolve_run(changed_since, out)) if changed_since else None
        whole = submission is not None
        opened = ec.open(cache)[dataset]
        found = predicting.predict_dataset(head, opened, split, seen, fill=whole, progress=not as_json)
    elif items is not None:
        found = _merged(predictor, listed, progress=not as_json)
    else:
        found = predicting.predict_items(head, image or [], text or [], checkpoints=where, options=options)
    found = replace(found, empty=rule)
    if submission is not None:
        write_submission(submission, found, ec.open(cache)[dataset].record.adapter if dataset is not None else None)
        _say(_rows_in(len(found.ids), submission))
    if table is not None:
        write_table(table, found)
        _say(_rows_in(len(found.ids), table))
    if as_json:
        _print_json({"predictions": found.rows(), "failures": dict(found.failures)})
    elif submission is None and table is None:
        _print_predictions(found)
    _say_exceptions(found)


def _check_outputs(submission: Path | None, table: Path | None, *, listed: bool) -> None:
    """Refuse, before anything is loaded, what could not be written."""
    from embedcache.errors import UsageError
    from heads.submission import check_submission, check_table

    if submission is not None and not listed:
        raise UsageError("--submission is of a list of samples, --dataset or --csv; --image and --text are none.")
    if submission is not None:
        check_submission(submission)
    if table is not None:
        check_table(table)


def _batches(predictor: ItemPredictor, listed: ItemFile, *, progress: bool) -> Iterator[Predictions]:
    """Labels of a file's rows, batch by batch."""
    from heads.item_files import predict_rows

    total = listed.count() if progress else None
    return predict_rows(predictor, listed.rows(predictor.head.modalities), total=total, progress=progress)


def _merged(predictor: ItemPredictor, listed: ItemFile, *, progress: bool) -> Predictions:
    """All of a file's rows at once, for the screen and for submissions."""
    from embedcache.errors import UsageError
    from heads.predict import merged

    parts = list(_batches(predictor, listed, progress=progress))
    if not parts:
        raise UsageError(f"{listed.path} has no rows.")
    return merged(parts)


def _predict_to(path: Path, predictor: ItemPredictor, listed: ItemFile, rule: Empty) -> None:
    """A file's rows to a table, no more than a batch of them in memory."""
    from dataclasses import replace

    from heads.submission import table_of

    rows = failed = 0
    with table_of(path) as add:
        for found in _batches(predictor, listed, progress=True):
            add(replace(found, empty=rule))
            rows += len(found.ids)
            for name, reason in list(found.failures.items())[: max(0, 5 - failed)]:
                _say(f"not predicted: {name}: {reason}")
            failed += len(found.failures)
    more = f"; {failed:,} could not be predicted" if failed else ""
    _say(f"{_rows_in(rows, path)}{more}")


def _rows_in(rows: int, path: Path) -> str:
    return f"{rows:,} {'row' if rows == 1 else 'rows'} in {path}"


def _say_exceptions(found: Predictions) -> None:
    """What was not predicted as the rest was, on stderr."""
    for name, reason in list(found.failures.items())[:5]:
        _say(f"not predicted: {name}: {reason}")
    if len(found.failures) > 5:
        _say(f"not predicted: {len(found.failures) - 5:,} more")
    if found.filled:
        named = [f"{name} ({reason})" for name, reason in list(found.filled.items())[:5]]
        more = f", and {len(found.filled) - 5:,} more" if len(found.filled) > 5 else ""
        _say(f"{len(found.filled):,} rows lack features, and something stood in for them: {', '.join(named)}{more}")
    if bare := int(found.bare.sum()):
        given = {"top": "given their most probable one", "keep": "left without one"}[found.empty]
        _say(f"{bare:,} rows reach no label's threshold: {given} (--empty top|keep)")


def _assignment(text: str) -> tuple[str, str]:
    from embedcache.errors import UsageError

    name, equals, path = text.partition("=")
    if not equals:
        raise UsageError(f"--checkpoint takes BACKBONE=PATH, got {text!r}.")
    return name, path


def _print_predictions(found: Predictions) -> None:
    if found.kind == "multi":
        _print_label_sets(found)
        return
    table = _table("item", "label", "probability", "then", right=("probability",))
    for name, best in zip(found.ids, found.top(3), strict=True):
        (label, probability), *others = best
        then = ", ".join(f"{other} {100 * share:.0f} %" for other, share in others)
        table.add_row(name, str(label), f"{100 * probability:.1f} %", then)
    _show(table)


def _print_label_sets(found: Predictions) -> None:
    table = _table("item", "labels", "then")
    for name, own, best in zip(found.ids, found.labels(), found.top(len(found.classes)), strict=True):
        shown = {label: f"{label} {100 * share:.0f} %" for label, share in best}
        labels = ", ".join(shown.pop(label) for label in own)
        table.add_row(name, labels or "-", ", ".join(list(shown.values())[:2]))
    _show(table)


@app.command("ls")
def list_cache(cache: CacheOption = Path("cache"), as_json: JsonOption = False) -> None:
    """List data sets and feature files of a cache; damaged ones are named among them."""
    from dataclasses import asdict

    import embedcache as ec

    opened = ec.open(cache)
    lines = {name: opened[name].summaries() for name in opened}
    if as_json:
        _print_json([asdict(one) for listed in lines.values() for one in listed])
        return
    if not any(lines.values()):
        typer.echo(f"{cache}: {', '.join(opened) or 'empty'}, no features yet")
        return
    for name, listed in lines.items():
        _print_listed(opened[name], listed)


def _print_listed(dataset: Any, listed: Sequence[FileSummary]) -> None:
    """A data set with its feature files; what cannot be read of either is said below."""
    from embedcache.errors import DamagedFileError

    damages = [f"{one.path.name}: {one.damage}" for one in listed if one.damage is not None]
    try:
        typer.echo(f"{dataset.name}: {_counts(dataset.record.counts)}")
    except DamagedFileError as error:
        typer.echo(f"{dataset.name}:")
        damages.append(str(error))
    numbers = ("dim", "rows", "failed", "size", "age")
    table = _table("backbone", "what", *numbers, "fingerprint", right=numbers)
    for one in listed:
        cells = (one.width, f"{one.rows:,}", f"{one.failed:,}") if one.damage is None else ("", "", "")
        table.add_row(one.name, one.modality, *cells, _size(one.size), _duration(max(0, one.age)), _mark(one))
    _show(table)
    for damage in damages:
        _echo(damage, "  damaged: ")
    typer.echo()


def _mark(one: FileSummary) -> str:
    """The fingerprint of a sealed file; of another, how far it is."""
    if one.damage is not None:
        return "damaged"
    return one.fingerprint if one.sealed else f"{one.fingerprint} {one.done:.0%} done"


def _echo(text: str, start: str = "") -> None:
    """A line on stdout, continued below ``start`` where a terminal of 80 columns ends; no word is broken."""
    import textwrap

    options = {"break_long_words": False, "break_on_hyphens": False}
    indent = " " * len(start)
    typer.echo(textwrap.fill(text, 80, initial_indent=start, subsequent_indent=indent, **options))  # type: ignore[arg-type]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


@app.command()
def info(
    name: Annotated[str | None, typer.Argument(help="A data set of the cache.")] = None,
    features: Annotated[str | None, typer.Option(help="One feature set: everything that is known of it.")] = None,
    diff: Annotated[tuple[str, str] | None, typer.Option(help="Two feature sets: what differs between them.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="List failed items with their reasons.")] = False,
    run: Annotated[Path | None, typer.Option(help="A run instead: what its head takes, with all it needs.")] = None,
    checkpoint: CheckpointOption = None,
    cache: CacheOption = Path("cache"),
    out: OutOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Say what is known of a data set, of one of its feature sets, or of a run's size."""
    import embedcache as ec
    from embedcache.errors import UsageError

    if (run is None) == (name is None):
        raise UsageError("Name a data set, or a run with --run: what is to be told?")
    if run is not None:
        _print_sizes(run, dict(_assignment(one) for one in checkpoint or []), out, as_json)
        return
    dataset = ec.open(cache)[str(name)]
    if diff is not None:
        _print_difference(dataset, diff, as_json)
    elif failed:
        _print_failures(dataset, features, as_json)
    elif features is not None:
        file = dataset.find_any(features)
        _print_json({"path": file.path, "fingerprint": file.fingerprint, "provenance": file.provenance, **file.record})
    elif as_json:
        from dataclasses import asdict

        _print_json(asdict(dataset.record))
    else:
        _print_dataset(dataset)


def _print_sizes(run: Path, where: Mapping[str, str], out: Path, as_json: bool) -> None:
    """Bytes of backbones, tokenizers and head."""
    from dataclasses import asdict

    from heads import sizes
    from heads.record import head_folder, read_metrics
    from heads.saved import check_names

    folder = head_folder(run, out).parent
    check_names(where, [one["name"] for one in read_metrics(folder)["features"]])
    parts = sizes.of_run(folder, where)
    if as_json:
        _print_json({"parts": [asdict(part) for part in parts], "bytes": sizes.total(parts)})
        return
    table = _table("part", "size", right=("size",))
    for part in parts:
        if part.nbytes is None:
            table.add_row(part.what, "not known")
        else:
            table.add_row(f"{part.what} ({part.why})" if part.why else part.what, sizes.readable(part.nbytes))
    table.add_row("all that is known", sizes.readable(sizes.total(parts)))
    _show(table)
    for part in parts:
        if part.nbytes is None:
            _echo(part.why, f"{part.what}: ")


def _print_dataset(dataset: Any) -> None:
    record = dataset.record
    typer.echo(repr(dataset))
    typer.echo(f"  read from {', '.join(record.sources)} by the adapter {record.adapter} on {record.read}")
    splits = dataset.samples["split"].fillna("no split").value_counts(sort=False)
    typer.echo("  " + ", ".join(f"{count:,} {split}" for split, count in splits.items()))
    typer.echo(f"  targets: {', '.join(dataset.table.targets) or 'none'}")
    for note in record.notes:
        typer.echo(f"  note: {note}")


def _print_difference(dataset: Any, pair: tuple[str, str], as_json: bool) -> None:
    from embedcache.cache import difference

    lines = difference(dataset.find_any(pair[0]), dataset.find_any(pair[1]))
    if as_json:
        _print_json(lines)
        return
    for line in lines or ["The two mean the same."]:
        _echo(line)


def _print_failures(dataset: Any, features: str | None, as_json: bool) -> None:
    from embedcache.cache import failures

    found = failures(dataset, features)
    if as_json:
        _print_json(found)
        return
    for feature_set, items in found.items():
        typer.echo(f"{feature_set}: {len(items):,} failed")
        for item, reason in items.items():
            _echo(f"{item}: {reason}", "  ")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="A data set; default: all.")] = None,
    features: Annotated[str | None, typer.Option(help="One feature set of it; default: all.")] = None,
    recompute: Annotated[int | None, typer.Option(min=1, help="Encode that many random items again.")] = None,
    against_data: Annotated[bool, typer.Option("--against-data", help="Compare with the data as they are.")] = False,
    backbone: Annotated[str | None, typer.Option(help="Where --recompute finds the encoder.")] = None,
    weights: Annotated[str | None, typer.Option(help="Its weight file, in place of the checkpoint's.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="EMBEDCACHE_DATA", help="Where the data lie now.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of --recompute.")] = 0,
    cache: CacheOption = Path("cache"),
    as_json: JsonOption = False,
) -> None:
    """Check feature files: bytes, counts, ids, vectors; exit 1 where one is damaged, 0 with warnings only."""
    from dataclasses import asdict

    import embedcache as ec
    from embedcache import verification
    from embedcache.errors import UsageError

    if features is not None and name is None:
        raise UsageError("--features is of one data set: name it, as in 'verify NAME --features vit-large'.")
    opened = ec.open(cache)
    again = verification.again(recompute, backbone, weights, data, device=device, seed=seed)
    found = []
    for dataset in [opened[one] for one in ([name] if name else opened)]:
        now = verification.remembered_data(dataset, data) if against_data else None
        for report in verification.verify(dataset, features, recompute=again, against_data=now):
            found.append(report)
            if not as_json:
                _print_report(report)
    if as_json:
        _print_json([{**asdict(one), "damaged": one.damaged} for one in found])
    if any(one.damaged for one in found):
        raise typer.Exit(1)


def _print_report(report: FileReport) -> None:
    worst = [word for word in ("damage", "warning") if any(one.severity == word for one in report.findings)]
    typer.echo(f"{report.dataset}/{report.path.name}: {worst[0] if worst else 'whole'}")
    if report.rows:
        pending = f", {report.pending:,} pending" if report.pending else ""
        typer.echo(f"  {report.done:,} rows done, {report.failed:,} failed{pending}; {_size(report.nbytes)}")
    for one in report.findings:
        _echo(one.message, f"  {one.severity}: ")


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="A data set of the cache.")],
    features: Annotated[str | None, typer.Option(help="One feature set; default: the whole data set.")] = None,
    unused: Annotated[bool, typer.Option("--unused", help="Only what is left over, and rows no sample uses.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cache: CacheOption = Path("cache"),
) -> None:
    """Remove a feature set, a data set with all its features, or what is unused; says what, and asks."""
    import embedcache as ec
    from embedcache import housekeeping
    from embedcache.errors import UsageError

    if unused and features is not None:
        raise UsageError("--unused is of a whole data set: leave out --features.")
    dataset = ec.open(cache)[name]
    with housekeeping.nobody_writing(dataset):
        found = housekeeping.left_over(dataset) if unused else housekeeping.asked_for(dataset, features)
        _print_removals(found)
        if found.nothing:
            typer.echo("Nothing to remove.")
        elif yes or typer.confirm("Remove?"):
            housekeeping.carry_out(found)
        else:
            typer.echo("Nothing was removed.")


def _print_removals(found: LeftOver) -> None:
    for one in found.removals:
        typer.echo(f"{one.path}{'/' if one.path.is_dir() else ''}")
        typer.echo(f"  {_size(one.size)}; {one.reason}")
    for shrinkage in found.shrinkages:
        typer.echo(f"{shrinkage.path}")
        typer.echo(f"  {shrinkage.n_unused:,} of {shrinkage.n_items:,} rows, which no sample uses")
    for line in found.kept:
        _echo(line)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A data set of the cache.")],
    to: Annotated[Path, typer.Option(help="The file: .npz, .npy, .parquet, .safetensors or .h5.")],
    features: Annotated[
        list[str] | None, typer.Option(help="Feature sets, commas between them; default: all of them.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="One published split; default: all samples.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    cache: CacheOption = Path("cache"),
    as_json: JsonOption = False,
) -> None:
    """Write ids, splits, targets and vectors in sample order to one file; its suffix says the format."""
    from dataclasses import asdict

    import embedcache as ec
    from embedcache import exchange

    named = [one for listed in features or [] for one in listed.split(",")]
    done = exchange.export(ec.open(cache)[name], to, *named, split=split, force=force)
    if as_json:
        _print_json(asdict(done))
        return
    sets = ", ".join(f"{one} ({dim:,} {done.unit})" for one, dim in done.dims.items())
    _echo(f"{done.rows:,} samples: {sets}")
    for reason, count in done.left_out.items():
        _echo(f"{count:,} samples left out: {reason}", "  ")
    for path in done.paths:
        typer.echo(f"{path}")


@app.command("export-head")
def export_head(
    to: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    run: Annotated[Path, typer.Option(help="A run's folder, or its name in --out.")] = Path("latest"),
    out: OutOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write the head of a run as ONNX, its transforms folded in, and check that both give the same numbers.

    For heads of the kind mlp. Needs the package onnx: pip install embedcache[onnx].
    """
    from dataclasses import asdict

    from embedcache.errors import UsageError
    from heads.onnx_export import export
    from heads.record import HEAD, resolve_run
    from heads.saved import FittedHead

    if to.suffix.lower() != ".onnx":
        raise UsageError(f"--to names an ONNX file, with the ending .onnx; got {to}.")
    found = export(FittedHead.load(resolve_run(run, out) / HEAD), to)
    if as_json:
        _print_json(asdict(found))
        return
    checked = f"{found.rows} rows by {found.checked_with}, largest difference {found.difference:.1e}"
    typer.echo(f"{to}: features in, probabilities out; checked on {checked}")


@app.command("import")
def import_features(
    name: Annotated[str, typer.Argument(help="A data set of the cache.")],
    file: Annotated[Path, typer.Argument(help=".npz with ids and features, or .npy with --ids.")],
    as_name: Annotated[str, typer.Option("--as", help="The backbone that it is listed under.")],
    modality: Annotated[str, typer.Option(help="What the vectors are of: image or text.")],
    ids: Annotated[Path | None, typer.Option(help="Ids of a .npy: .parquet, .npy or one a line.")] = None,
    cache: CacheOption = Path("cache"),
    as_json: JsonOption = False,
) -> None:
    """Take vectors from elsewhere into a data set, matched by item id or sample id, marked as imported."""
    import embedcache as ec
    from embedcache import exchange

    kind = _one_of(modality, "--modality", ("image", "text"))
    done = exchange.import_vectors(ec.open(cache)[name], file, as_name, kind, ids)
    counts = {"items": done.n_items, "failed": done.n_failed, "unmatched": done.unmatched, "lacking": done.lacking}
    if as_json:
        _print_json({"path": done.file.path, "matched_by": done.matched_by, **counts})
        return
    typer.echo(f"{name} · {as_name}: {done.n_items:,} {kind}s × {done.file.dim}, matched by {done.matched_by}")
    for count, what in (
        (done.n_failed, "failed: their vectors are not finite"),
        (done.unmatched, "rows of the file belong to no item"),
        (done.lacking, f"{kind}s of the data set have no vector"),
    ):
        if count:
            typer.echo(f"  {count:,} {what}")
    typer.echo(f"  {done.file.path}")


@app.command()
def doctor(cache: CacheOption = Path("cache"), as_json: JsonOption = False) -> None:
    """Try what this machine and the cache's folder can do; exit 1 where something needed does not work."""
    from dataclasses import asdict

    from embedcache import probing

    checks = probing.examine(cache)
    if as_json:
        _print_json([asdict(one) for one in checks])
    else:
        width = max(len(one.name) for one in checks)
        for one in checks:
            _echo(one.detail, f"{one.name:{width}}  {one.state:7}  ")
            if one.fallback and one.state != "works":
                _echo(one.fallback, " " * (width + 11))
    if any(one.state == "broken" for one in checks):
        raise typer.Exit(1)


@app.command()
def backbones(
    names: Annotated[list[str] | None, typer.Argument(help="Aliases to show in full; default: list all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the aliases of backbones: what each is, and whether its files are on this machine."""
    from embedcache.backbones.listing import listed

    found = listed(names or ())
    if as_json:
        _print_json({one.name: one.to_dict() for one in found})
    elif names:
        for one in found:
            _show_backbone(one)
    else:
        _list_backbones(found)


def _list_backbones(found: Sequence[Listed]) -> None:
    """Two lines an alias, in groups of a modality: the figures, then the checkpoint and who used it."""
    from embedcache.backbones.listing import TITLES, parameters_of

    for modality, title in TITLES.items():
        header = f"{title:<21} {'dims':>5} {'M':>5}  {'input':<17} {'licence':<14} here"
        typer.echo(f"{header}\n{'─' * 80}")
        for one in found:
            if one.alias.modality == modality:
                alias, here = one.alias, "yes" if one.folder else "no"
                figures = f"{one.name:<21} {alias.dim:>5} {parameters_of(alias):>5}  {alias.input:<17}"
                notes = [one.checkpoint or "comes with embedcache", alias.used_by, "gated" if alias.gated else ""]
                typer.echo(f"{figures} {alias.licence:<14} {here}")
                _echo(", ".join(note for note in notes if note), "    ")
        typer.echo("")
    _echo(
        "M: millions of parameters. gated: its terms must be accepted on the hub first. Images and texts: NAME means "
        "both towers, NAME.image or NAME.text one. One in full: backbones NAME. "
        "Files that are not here: fetch NAME. Any other checkpoint: timm:NAME, hf:NAME, st:NAME, hf:./FOLDER. "
        "Without a transformer: glove:FILE, word2vec:FILE, words (word ids)."
    )


def _show_backbone(one: Listed) -> None:
    """All that is known of one alias, a line each."""
    from embedcache.backbones.listing import parameters_of

    alias = one.alias
    facts = {
        "checkpoint": one.checkpoint or "comes with embedcache",
        "encodes": {"image": "images", "text": "texts"}.get(alias.modality, "images and texts, in one space"),
        "dims": alias.dim,
        "parameters": f"{parameters_of(alias)} million",
        "licence": alias.licence + (", gated: accept its terms on the hub first" if alias.gated else ""),
        "input": alias.input,
        "prompt": f"{_quoted(alias.settings['prompt'])}, where --prompt says no other"
        if "prompt" in alias.settings
        else "",
        **{f"  for a {purpose}": f"--prompt {_quoted(text)}" for purpose, text in alias.prompts.items()},
        "used by": alias.used_by,
        "files": one.folder or f"not here; where there is a network: python cli.py fetch {one.name}",
    }
    typer.echo(one.name)
    for key, value in facts.items():
        if value:
            typer.echo(f"  {key:<15} {value}")


def _quoted(text: str) -> str:
    """A text as a shell takes it; with a line break, as bash and zsh do."""
    return shlex.quote(text) if "\n" not in text else "$'" + text.replace("'", "\\'").replace("\n", "\\n") + "'"


@app.command()
def datasets(as_json: JsonOption = False) -> None:
    """List the data sets that can be read, and how they must lie on disk."""
    from embedcache.datasets import LAYOUTS, options_of

    if as_json:
        _print_json({name: {"layout": layout, "options": options_of(name)} for name, layout in LAYOUTS.items()})
        return
    for name, layout in LAYOUTS.items():
        _echo(layout, f"{name:<11} ")
        _echo(", ".join(options_of(name)), f"{'':<11} options: ")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Aliases or family:checkpoint.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Bring backbones' files to this machine, for use without a network."""
    from embedcache.backbones import fetch as fetch_files

    for name in names:
        found = fetch_files(name, revision)
        typer.echo(f"{name}: {found.folder}")


@app.command("runs")
def list_runs(out: OutOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List recorded runs, newest first."""
    from heads.record import listed

    rows = listed(out)
    if as_json:
        _print_json(rows)
        return
    table = _table("run", "features", "score on test", right=("score on test",))
    for row in rows:
        table.add_row(row["run"], row["features"], f"{row['metric']} {row['score']}")
    _show(table)


@app.command("report")
def show_report(
    run: Annotated[str, typer.Argument(help="Folder of a run, or its name below --out.")] = "latest",
    by: Annotated[str | None, typer.Option(help="Column of the sample table to score by, e.g. question_type.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Leave groups with fewer samples out.")] = 1,
    exclude: Annotated[
        list[str] | None, typer.Option(help="column=value: leave those samples out; may be repeated.")
    ] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Worst groups first.")] = False,
    most: Annotated[int | None, typer.Option(min=1, help="Show that many groups; default: all.")] = None,
    compare: Annotated[str | None, typer.Option(help="Another run: test both on the same samples.")] = None,
    split: Annotated[str | None, typer.Option(help="Scored split; default: test, else validation.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap of --compare.")] = 0,
    cache: CacheOption = Path("cache"),
    out: OutOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show the scores of a recorded run: all of them, by group, or beside another run's."""
    from embedcache.errors import UsageError
    from heads.record import resolve_run

    folder = resolve_run(run, out)
    if by is None and (exclude or worst or most is not None or min_count > 1):
        raise UsageError("--exclude, --worst, --most and --min-count are for a table by group: say which with --by.")
    if by is not None and compare is not None:
        raise UsageError("--by and --compare are two tables: ask for one at a time.")
    if by is not None:
        pairs = [_column_value(text) for text in exclude or ()]
        options = {"min_count": min_count, "exclude": pairs, "worst": worst}
        _print_groups(folder, cache, split, by, options, most, as_json)
    elif compare is not None:
        _print_compared(folder, resolve_run(compare, out), cache, split, seed, as_json)
    else:
        _print_recorded(folder, as_json)


def _column_value(text: str) -> tuple[str, str]:
    """``answer_type=yes/no`` as a pair."""
    from embedcache.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--exclude takes column=value, got {text!r}.")
    return name.strip(), value.strip()


def _print_recorded(folder: Path, as_json: bool) -> None:
    """What ``metrics.json`` and ``comparison.json`` say, and where the page is."""
    from heads import record, run_text
    from heads.report import PAGE
    from heads.table_run import read_table

    if (rows := read_table(folder)) is not None:
        _print_recorded_table(folder, rows, as_json)
        return
    page = next((path / PAGE for path in (folder, folder.parent) if (path / PAGE).is_file()), None)
    comparison, single = folder / record.COMPARISON, folder / record.METRICS_FILE
    if as_json:
        found = [path for path in (comparison, single) if path.is_file()]
        _print_json({"run": folder, "page": page, **(json.loads(found[0].read_text("utf-8")) if found else {})})
        return
    _print_parts([run_text.heading(folder), *run_text.of_folder(folder)])
    if page is not None:
        _echo(str(page))


def _print_recorded_table(folder: Path, found: FittedTable, as_json: bool) -> None:
    """A table of several heads, as it was printed when they were fitted."""
    from dataclasses import asdict

    from heads.report import PAGE

    page = folder / PAGE if (folder / PAGE).is_file() else None  # an interrupted table has none
    if as_json:
        _print_json({"run": folder, "page": page, **asdict(found)})
        return
    _print_table(found)
    if page is not None:
        _echo(str(page))


GROUP_COLUMNS = {
    "accuracy": ("hits", "top-1"),
    "top_5_accuracy": ("hits top 5", "top-5"),
    "exact_match": ("hits", "all"),
}
"""Columns of the table by group for scores that are shares of hits; the others have their mean alone."""


def _print_groups(
    folder: Path, cache: Path, split: str | None, by: str, options: dict[str, Any], most: int | None, as_json: bool
) -> None:
    """A row per group: how many samples, hits and their share."""
    from dataclasses import asdict

    from heads.groups import grouped, recorded

    run = recorded(folder, cache, split)
    rows = grouped(run, by, **options)
    shown = rows[:most]
    if as_json:
        _print_json({"run": folder, "split": run.split, "by": by, "groups": [asdict(row) for row in shown]})
        return
    columns = [column for score in run.scores for column in GROUP_COLUMNS.get(score, (score,))]
    table = _table(by, "samples", *columns, right=("samples", *columns))
    for row in shown:
        cells = [
            cell
            for score in run.scores
            for cell in ((f"{row.hits[score]:,.0f}",) if score in GROUP_COLUMNS else ())
            + (f"{100 * row.means[score]:.1f} %",)
        ]
        table.add_row(row.group, f"{row.count:,}", *cells)
    _show(table)
    order = "worst" if options["worst"] else "best"
    _echo(f"{len(shown)} of {len(rows)} groups on {run.split}, {order} first")


def _print_compared(one: Path, other: Path, cache: Path, split: str | None, seed: int, as_json: bool) -> None:
    """The paired test of two runs."""
    from dataclasses import asdict

    from heads.groups import compare, recorded
    from heads.report import signed

    first = recorded(one, cache, split)
    found = compare(first, recorded(other, cache, first.split), seed)
    if as_json:
        _print_json(asdict(found))
        return
    _echo(f"first:  {found.one}")
    _echo(f"second: {found.other}")
    table = _table("score", "first", "second", "difference", "p", "test", right=("first", "second", "difference", "p"))
    for name, pair in found.scores.items():
        shares = (f"{100 * value:.1f} %" for value in (pair.one, pair.other))
        table.add_row(
            name, *shares, signed(pair.difference), "<0.001" if pair.p < 0.001 else f"{pair.p:.3f}", pair.test
        )
    _show(table)
    _echo(f"{found.samples:,} samples of {found.split} that both scored; differences in points, 95 % intervals")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("demo"),
    species: Annotated[int, typer.Option(min=2, help="Species to draw.")] = 20,
    images: Annotated[int, typer.Option(min=4, help="Images of each species.")] = 40,
) -> None:
    """Draw a data set of birds, extract it with two small backbones, and compare image, text and both."""
    from embedcache.demo.birds import draw_cub

    data, cache, out = folder / "data", folder / "cache", folder / "runs"
    if not (data / "CUB_200_2011").exists():
        _say(f"Drawing {species * images:,} birds of {species} species in {data} …")
        draw_cub(data, species=species, images_per_species=images)
    for command in (
        f"extract --dataset cub --data {data} --backbone demo-image --backbone demo-text --cache {cache}",
        "fit-head --features demo-image --features demo-text --features demo-image,demo-text"
        f" --cache {cache} --out {out}",
    ):
        typer.echo(f"\n$ python cli.py {command}")
        if code := app(shlex.split(command), standalone_mode=False):
            raise typer.Exit(code)
    typer.echo(f"\nThe report: {out / 'latest' / 'report.html'}")


if __name__ == "__main__":
    app()
