"""Tables of several heads: a grid file with ``rows``, each a configuration of its own, shown side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from embedcache.errors import UsageError, unknown_name
from heads import HEADS, head_named
from heads.base import TEXTS, reads
from heads.config import HeadConfig, override, parse, reasons_of

ROWS: Final = "rows"
"""The key that makes a grid file a table."""

Cell = str | int | float | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A column of numbers: a score of each row on a split, or the mean of other columns, or what a row takes.

    score: a metric's name, or ``headline``, what comparisons are sorted by. split: None is test, or validation where
    there is no test. takes: seconds of ``training``, seconds to ``predict`` the test split from its images and texts
    on, or bytes on disk (``size``) of the head with its backbones and tokenizers. set: keys of the configuration that
    hold for this column alone, such as another selection of the data set: the column then has fits of its own.
    """

    score: str | None = None
    split: Literal["train", "validation", "test"] | None = None
    mean: list[str] | None = None
    takes: Literal["training", "predict", "size"] | None = None
    set: dict[str, Any] = Field(default_factory=dict)

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

    columns: the texts of each row, in order; the first one names it. figures: the numbers, in order; none is the
    headline score. source: who reported the numbers that stand in the rows' ``cells``; with it they are shown beside
    ours, a dash where there is none. data: how the data set is read. set: assignments, as ``--set`` makes them. notes:
    what is to be said below the table.
    """

    title: str | None = None
    source: str | None = None
    columns: list[str] = Field(default_factory=lambda: ["head"], min_length=1)
    figures: dict[str, Figure] = Field(default_factory=dict)
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


class _Row(_Strict):
    """A row as it is stated, without the keys of its configuration."""

    cells: dict[str, Cell]
    encoders: str | None = None
    fit: bool = True
    note: str | None = None


OWN: Final = tuple(_Row.model_fields)
"""Keys of a row that are not of its configuration."""


@dataclass(frozen=True)
class Row:
    """A row of a table. configs: by figure the head that it is a figure of; none where nothing is to be fitted.

    cells: texts by column, and the reported number by figure. encoders: ``frozen`` or ``fine-tuned``, in the report.
    """

    cells: Mapping[str, Cell]
    encoders: str | None
    note: str | None
    configs: Mapping[str, HeadConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table that was checked. document: a grid file that is the same table. where: the grid file, for messages."""

    config: TableConfig
    rows: tuple[Row, ...]
    document: Mapping[str, Any]
    where: str

    @property
    def configs(self) -> tuple[HeadConfig, ...]:
        """The different heads that are to be fitted, in the order of the rows."""
        found = [config for row in self.rows for config in row.configs.values()]
        return tuple(one for place, one in enumerate(found) if one not in found[:place])

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The columns of numbers, in order."""
        return self.config.figures or {HEADLINE: Figure(score=HEADLINE)}

    @property
    def scores_training(self) -> bool:
        """Whether a column is a score of the training rows."""
        return any(figure.split == "train" for figure in self.figures.values())


HEADLINE: Final = "headline"
"""The figure of a table that states none."""


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
    for head in heads:
        for chosen in features if features and reads(head_named(head)) != TEXTS else [None]:
            cells = {"head": head, "features": " + ".join((chosen or TEXTS).split(","))}
            own = {"features": chosen} if chosen else {}
            rows.append({"cells": {name: cells[name] for name in columns}, "head": head, **own})
    figures = {HEADLINE: {"score": HEADLINE}, "seconds": {"takes": "training"}}
    return {**document, "table": {"columns": columns, "figures": figures}, ROWS: rows}


def parse_table(document: Mapping[str, Any], assignments: Sequence[str] = (), where: str = "the options") -> Table:
    """A checked table. Raises UsageError that names what is wrong, and in which row.

    A row's keys are laid over those of the file; one that states another head takes no ``fixed`` and ``grid`` from it.
    assignments: ``key.inner=value`` of ``--set``. Each is put into the rows that state the key, or into all where none
    does; a parameter of a head only into rows whose head has it.
    """
    common = {key: value for key, value in document.items() if key not in ("table", ROWS)}
    config: TableConfig = _checked(TableConfig, document.get("table") or {}, f"{where}, 'table'")
    assignments = [*config.set, *assignments]
    listed = rows_of(document, where)
    stated = [_checked(_Row, {key: one[key] for key in OWN if key in one}, f"{where}, row {number}")
              for number, one in enumerate(listed, 1)]  # fmt: skip
    figures = config.figures or {HEADLINE: Figure(score=HEADLINE)}
    drafts = {
        (number, name): _merged(_of_row(common, one), figure.set)
        for number, (one, row) in enumerate(zip(listed, stated, strict=True))
        for name, figure in figures.items()
        if row.fit and figure.mean is None
    }
    for assignment in assignments:
        _assign(drafts, assignment)
    rows = []
    for number, row in enumerate(stated):
        _check_cells(row, config, f"{where}, row {number + 1}")
        label = f"{where}, row {name_of(row, config)!r}"
        configs = {name: parse(draft, label) for (own, name), draft in drafts.items() if own == number}
        for one in configs.values():
            _check_features(one, label)
        rows.append(Row(row.cells, row.encoders, row.note, configs))
    stated_table = {**(document.get("table") or {}), **({"set": assignments} if assignments else {})}
    return Table(config, tuple(rows), {**document, "table": stated_table}, where)


def rows_of(document: Mapping[str, Any], where: str = "the table") -> list[dict[str, Any]]:
    """The rows as they are stated. Raises UsageError where they are no list of mappings."""
    listed = document[ROWS]
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"{where}: 'rows' is a list of rows, each a mapping with 'cells' and keys of a grid file.")
    return listed


def chosen_rows(table: Table, names: Sequence[str]) -> Table:
    """The table with the rows of these names alone. Raises UnknownNameError."""
    if not names:
        return table
    known = [name_of(row, table.config) for row in table.rows]
    for name in names:
        if name not in known:
            raise unknown_name("row", name, known)
    kept = [place for place, name in enumerate(known) if name in names]
    document = {**table.document, ROWS: [table.document[ROWS][place] for place in kept]}
    return replace(table, rows=tuple(table.rows[place] for place in kept), document=document)


def name_of(row: Row | _Row, config: TableConfig) -> str:
    """The text of its first column."""
    return str(row.cells[config.columns[0]])


def _checked(model: Any, value: Any, where: str) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{where}: {reasons_of(error, lambda path: _keys(model, path))}.") from error


def _keys(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    nested: dict[str, type[BaseModel]] = {"figures": Figure, "data": Source}
    return list((nested.get(str(path[0]), model) if path else model).model_fields)


def _check_cells(row: _Row, config: TableConfig, where: str) -> None:
    for column in config.columns:
        if row.cells.get(column) is None:
            raise UsageError(f"{where}: 'cells' lacks the column {column!r}.")
    for name, value in row.cells.items():
        if name not in config.columns and name not in config.figures:
            raise unknown_name(f"column in {where}:", name, [*config.columns, *config.figures])
        if name in config.figures and isinstance(value, str):
            raise UsageError(f"{where}: {name} is a reported number, or null where there is none; got {value!r}.")


def _check_features(config: HeadConfig, where: str) -> None:
    if config.features is not None and len(config.features) > 1:
        raise UsageError(f"{where}: a row is one choice of features; put each into a row of its own.")


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``under``: mappings key by key, but a filter, a grid or a feature set as a whole."""
    found = dict(under)
    for key, value in over.items():
        inner = found.get(key)
        whole = key in ("filter", "grid") or not (isinstance(inner, dict) and isinstance(value, dict))
        found[key] = value if whole else _merged(inner or {}, value)
    return found


def _of_row(common: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys with the row's laid over them."""
    other = "head" in row and row["head"] != common.get("head")
    under = {key: value for key, value in common.items() if not (other and key in ("fixed", "grid"))}
    return _merged(under, {key: value for key, value in row.items() if key not in OWN})


def _assign(drafts: dict[tuple[int, str], dict[str, Any]], assignment: str) -> None:
    path = [part.strip() for part in assignment.partition("=")[0].split(".")]
    stating = [key for key, draft in drafts.items() if _states(draft, path)]
    if not stating and path[0] == "fixed" and len(path) > 1:
        stating = [key for key, draft in drafts.items() if path[1] in _parameters(draft)]
        if not stating:
            known = {name for draft in drafts.values() for name in _parameters(draft)}
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


def _parameters(draft: Mapping[str, Any]) -> set[str]:
    name = str(draft.get("head", HeadConfig().head))
    return HEADS[name].parameters() if name in HEADS else set()
