"""Tables of several heads: a grid file with ``rows``, each a configuration of its own, shown side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedcache.errors import UsageError, unknown_name
from heads import head_named
from heads.base import TEXTS, reads
from heads.config import HeadConfig, different, override, parse, reasons_of

ROWS: Final = "rows"
"""The key that makes a grid file a table."""
HEADLINE: Final = "headline"
"""What comparisons are sorted by, whatever that is; the figure of a table that states none."""

Cell = str | bool | int | float | None
Draft = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A column of numbers: a score of each row on a split, or the mean of other columns, or what a row takes.

    score: a metric's name, or ``headline``. split: None is test, or validation where there is no test. takes: seconds
    of ``training``, seconds to ``predict`` the test split from its images and texts on, or bytes on disk (``size``) of
    the head with its backbones and tokenizers. set: keys of the configuration that hold for this column alone, such as
    another selection of the data set: the column then has fits of its own. shares: show 0.5, not 50 %.
    """

    score: str | None = None
    split: Literal["train", "validation", "test"] | None = None
    mean: list[str] | None = None
    takes: Literal["training", "predict", "size"] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    shares: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> Figure:
        if sum(one is not None for one in (self.score, self.mean, self.takes)) != 1:
            raise ValueError("expected one of 'score', 'mean' and 'takes'")
        if self.mean is not None and self.set:
            raise ValueError("a mean of other columns has nothing of its own to set")
        return self


class Source(_Strict):
    """How the data set is read where the cache lacks it: an adapter with its options."""

    adapter: str
    options: dict[str, Any] = Field(default_factory=dict)


class TableConfig(_Strict):
    """What a table shows.

    columns: the texts of each row, in order; the first one names it. figures: the numbers, in order. source: who
    reported the numbers that stand in the rows' ``cells``; with it they are shown beside ours as they are written, a
    dash where there is none. data: how the data set is read. set: assignments, as ``--set`` makes them. notes: what is
    to be said below the table.
    """

    title: str | None = None
    source: str | None = None
    columns: list[str] = Field(default_factory=lambda: ["head"], min_length=1)
    figures: dict[str, Figure] = Field(default_factory=lambda: {HEADLINE: Figure(score=HEADLINE)}, min_length=1)
    data: Source | None = None
    set: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _refuse_doubles(self) -> TableConfig:
        if both := sorted(set(self.columns).intersection(self.figures)):
            raise ValueError(f"{', '.join(both)} stands under both 'columns' and 'figures'")
        for name, figure in self.figures.items():
            others = [other for other, one in self.figures.items() if one.score is not None]
            if unknown := [other for other in figure.mean or () if other not in others]:
                raise ValueError(f"{name} is a mean of {', '.join(unknown)}, which is no column with a score")
        return self


class _Stated(_Strict):
    """A row as it is stated, without the keys of its configuration."""

    cells: dict[str, Cell]
    encoders: str | None = None
    fit: bool = True
    note: str | None = None


OWN: Final = tuple(_Stated.model_fields)
"""Keys of a row that are not of its configuration."""


@dataclass(frozen=True)
class Row:
    """A row of a table. configs: by figure the head that it is a figure of; none where nothing is to be fitted.

    name: its first text, or all of them where another row begins with the same. cells: texts by column, and what was
    reported by figure. encoders: ``frozen`` or ``fine-tuned``, in the report.
    """

    name: str
    cells: Mapping[str, Cell]
    encoders: str | None
    note: str | None
    configs: Mapping[str, HeadConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table that was checked. document: a grid file that is the same table. changed: what ``--set`` put into it."""

    config: TableConfig
    rows: tuple[Row, ...]
    document: Mapping[str, Any]
    changed: tuple[str, ...] = ()

    @cached_property
    def configs(self) -> tuple[HeadConfig, ...]:
        """The different heads that are to be fitted, in the order of the rows."""
        return tuple(different(config for row in self.rows for config in row.configs.values()))

    @property
    def scores_training(self) -> bool:
        """Whether a column is a score of the training rows."""
        return any(figure.split == "train" for figure in self.config.figures.values())


def is_table(document: Mapping[str, Any]) -> bool:
    """Whether a grid file has rows."""
    return ROWS in document


def of_choices(
    document: Mapping[str, Any], heads: Sequence[str], features: Sequence[str], where: str = "the options"
) -> dict[str, Any]:
    """The document of a table that has a row for each of several heads on each choice of features.

    A head that reads texts takes no features, and has one row.
    """
    if is_table(document):
        raise UsageError(f"{where} says itself which heads its rows have: leave --head out.")
    columns = ["head", *(["features"] if features else [])]
    rows = []
    for head in different(heads):
        for chosen in different(features) if features and reads(head_named(head)) != TEXTS else [None]:
            cells = {"head": head, "features": " + ".join((chosen or TEXTS).split(","))}
            own = {"features": chosen} if chosen else {}
            rows.append({"cells": {name: cells[name] for name in columns}, "head": head, **own})
    figures = {HEADLINE: {"score": HEADLINE}, "seconds": {"takes": "training"}}
    return {**document, "table": {"columns": columns, "figures": figures}, ROWS: rows}


def parse_table(
    document: Mapping[str, Any],
    assignments: Sequence[str] = (),
    where: str = "the options",
    *,
    rows: Sequence[str] = (),
    dataset: str | None = None,
) -> Table:
    """A checked table. Raises UsageError that names what is wrong, and in which row.

    A row's keys are laid over those of the file; one with another head takes no ``fixed`` and ``grid`` from it.
    assignments: ``key.inner=value`` of ``--set``. Each is put into the rows that state the key, or into all where none
    does; a parameter of a head only into rows whose head has it. rows: names of those that are meant; all by default.
    dataset: in place of what the file says.
    """
    config = _checked(TableConfig, document.get("table") or {}, f"{where}, 'table'")
    listed = rows_of(document, where)
    if dataset is not None:
        document = {**document, "dataset": dataset}
        listed = [{key: value for key, value in one.items() if key != "dataset"} for one in listed]
    stated = [
        _checked(_Stated, {key: one[key] for key in OWN if key in one}, f"{where}, row {number}")
        for number, one in enumerate(listed, 1)
    ]
    for number, row in enumerate(stated, 1):
        _check_cells(row.cells, config, f"{where}, row {number}")
    names = _names([row.cells for row in stated], config.columns, where)
    kept = _chosen(names, rows)
    common = {key: value for key, value in document.items() if key not in ("table", ROWS)}
    if config.data is not None and common.get("dataset") is None:
        raise UsageError(f"{where}: 'table.data' says how a data set is read, and 'dataset' must name it.")
    drafts = {
        (place, name): _laid_over(_laid_over(common, listed[place]), figure.set)
        for place in kept
        for name, figure in config.figures.items()
        if stated[place].fit and figure.mean is None
    }
    changed = [*config.set, *assignments]
    for assignment in changed:
        _assign(drafts, assignment)
    parsed: dict[int, dict[str, HeadConfig]] = {place: {} for place in kept}
    for (place, name), draft in drafts.items():
        parsed[place][name] = _config(draft, f"{where}, row {names[place]!r}")
    made = tuple(
        Row(names[place], stated[place].cells, stated[place].encoders, stated[place].note, parsed[place])
        for place in kept
    )
    table = {**(document.get("table") or {}), **({"set": changed} if changed else {})}
    return Table(config, made, {**document, "table": table, ROWS: [listed[place] for place in kept]}, tuple(changed))


def rows_of(document: Mapping[str, Any], where: str = "the table") -> list[Draft]:
    """The rows as they are stated. Raises UsageError where they are no list of mappings."""
    listed = document[ROWS]
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"{where}: 'rows' is a list of rows, each a mapping with 'cells' and keys of a grid file.")
    return listed


Model = TypeVar("Model", bound=BaseModel)


def _checked(model: type[Model], value: Any, where: str) -> Model:
    nested: dict[str, type[BaseModel]] = {"figures": Figure, "data": Source}

    def known(path: Sequence[Any]) -> list[str]:
        return list((nested.get(str(path[0]), model) if path else model).model_fields)

    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{where}: {reasons_of(error, known)}.") from error


def _check_cells(cells: Mapping[str, Cell], config: TableConfig, where: str) -> None:
    for column in config.columns:
        if cells.get(column) is None:
            raise UsageError(f"{where}: 'cells' lacks the column {column!r}.")
    for name, value in cells.items():
        if name not in config.columns and name not in config.figures:
            raise unknown_name(f"column in {where}:", name, [*config.columns, *config.figures])
        if not str(value).isprintable():
            raise UsageError(f"{where}: {name} has letters that cannot be shown, such as the end of a line: {value!r}.")


def _names(cells: Sequence[Mapping[str, Cell]], columns: Sequence[str], where: str) -> list[str]:
    """What each row is called: its first text, or all of them where several begin with the same."""
    first = [str(own[columns[0]]) for own in cells]
    names = [
        name if first.count(name) == 1 else ", ".join(str(own[column]) for column in columns)
        for name, own in zip(first, cells, strict=True)
    ]
    if twice := [name for name in different(names) if names.count(name) > 1]:
        raise UsageError(f"{where}: two rows are called {twice[0]!r}: their texts must tell them apart.")
    return names


def _chosen(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The places of the rows that are wanted, in their order. Raises UnknownNameError."""
    for name in wanted:
        if name not in names:
            raise unknown_name("row", name, names)
    return [place for place, name in enumerate(names) if not wanted or name in wanted]


def _config(draft: Draft, where: str) -> HeadConfig:
    """One head of a row, without the heads of single feature sets that a product would have beside it."""
    config = parse(draft, where)
    if config.features is not None and len(config.features) > 1:
        raise UsageError(f"{where}: a row is one choice of features; put each into a row of its own.")
    if config.fusion.kind == "product" and config.fusion.baselines is None:
        return config.model_copy(update={"fusion": config.fusion.model_copy(update={"baselines": False})})
    return config


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> Draft:
    """Keys of a row over those of the file: of ``fixed`` and ``select`` key by key, of all else as a whole."""
    head = under.get("head", HeadConfig().head)
    other = over.get("head", head) != head
    found = {key: value for key, value in under.items() if not (other and key in ("fixed", "grid"))}
    for key, value in over.items():
        if key in ("fixed", "select") and isinstance(value, dict):
            found[key] = {**(found.get(key) or {}), **value}
        elif key not in OWN:
            found[key] = value
    return found


def _assign(drafts: dict[tuple[int, str], Draft], assignment: str) -> None:
    name, equals, _ = assignment.partition("=")
    path = [part.strip() for part in name.split(".")]
    if path == ["head"]:
        raise UsageError("--set head: the rows of a table say which heads they have; repeat --head to compare others.")
    stating = [key for key, draft in drafts.items() if _states(draft, path)]
    if not stating and equals and path[0] == "fixed" and len(path) > 1:
        parameters = {key: _parameters(draft) for key, draft in drafts.items()}
        stating = [key for key, known in parameters.items() if path[1] in known]
        if not stating:
            known = set().union(*parameters.values())
            raise unknown_name("parameter of the heads in this table:", path[1], known)
    for key in stating or list(drafts):
        drafts[key] = override(drafts[key], [assignment])


def _states(draft: Mapping[str, Any], path: Sequence[str]) -> bool:
    value: Any = draft
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _parameters(draft: Draft) -> set[str]:
    """Those of a draft's head. Raises UnknownNameError for a head that there is not."""
    return head_named(str(draft.get("head", HeadConfig().head))).parameters()
