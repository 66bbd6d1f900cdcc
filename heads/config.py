"""The schema of a grid file, and how names, files and ``--set`` become one configuration."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from embedcache.errors import DataNotFoundError, UsageError
from embedcache.view import Captions
from heads.transforms import TRANSFORMS

GRIDS = Path(__file__).parent / "grids"
FeatureName = str | dict[str, Any]
Step = str | dict[str, Any]
Value = TypeVar("Value")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Folds(_Strict):
    """Cross-validation on the training rows: stratified, rows of one group together."""

    folds: int = Field(5, ge=2)
    seed: int = 0


class Selection(_Strict):
    """What of a data set a head looks at; chosen when a head is fitted, never at extraction.

    filter: column of the sample table to the value or values to keep, or to a range of numbers ``{from: 1, to: 20}``
    with both ends in it; in a column of texts a range of whole numbers keeps texts that are whole numbers. limit: that
    many samples with a target, seeded, stratified by class and nested. top_classes: the head knows only the most
    frequent classes of the training rows; rows of others leave training, and count as wrong wherever they are scored.
    """

    target: str | None = None
    captions: Captions = "mean"
    filter: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(None, ge=1)
    top_classes: int | None = Field(None, ge=2)
    seed: int = 0

    @field_validator("filter")
    @classmethod
    def _refuse_odd_ranges(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, wanted in value.items():
            if isinstance(wanted, dict):
                _check_range(name, wanted)
        return value


def _check_range(name: str, wanted: Mapping[str, Any]) -> None:
    odd = [key for key, bound in wanted.items() if key not in ("from", "to") or type(bound) not in (int, float)]
    if odd or not wanted:
        raise ValueError(f"{name}: a range is written {{from: 1, to: 20}}, with numbers; one end may be left out")
    if wanted.get("from", -math.inf) > wanted.get("to", math.inf):
        raise ValueError(f"{name}: no number is from {wanted['from']} to {wanted['to']}")


class Threshold(_Strict):
    """Where a label of a multi-label target begins to be predicted.

    tune: for F1, or for as many false positives as false negatives. per: a threshold per label, or one for all.
    ``modality`` is for a union: one for each feature set. fixed: this one instead, untuned.
    """

    tune: Literal["f1", "balance"] = "f1"
    per: Literal["label", "modality", "all"] = "label"
    fixed: float | None = Field(None, ge=0, le=1)


class Range(_Strict):
    """Numbers from ``low`` to ``high`` that a random search draws from; ``log``: evenly over their logarithms.

    Two whole numbers give whole numbers, both ends among them.
    """

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range is from a number to a greater one, not from {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above zero, not at {self.low}")
        return self


AXES = ("features", "transform")
"""What ``grid`` may hold besides parameters of the head."""


class Fusion(_Strict):
    """How the feature sets of an inner list become one answer; a bare name is its kind.

    concat: side by side. product: number by number, those of another width than ``width`` (default: the smallest)
    projected to it by principal components; with ``l2`` all sets, or the named ones, at unit length before. late: the
    mean of the probabilities of one head per feature set, its weights ``learned`` where nothing was trained, or
    ``equal``. union: of the label sets that these heads predict. baselines: also fit each feature set alone; None is
    yes for all but ``concat``.
    """

    kind: Literal["concat", "product", "late", "union"] = "concat"
    l2: bool | list[str] = False
    width: int | None = Field(None, ge=1)
    weights: Literal["learned", "equal"] = "learned"
    baselines: bool | None = None

    @model_validator(mode="after")
    def _refuse_others(self) -> Fusion:
        own = {"product": {"l2", "width"}, "late": {"weights"}}.get(self.kind, set())
        default = {name: field.default for name, field in type(self).model_fields.items()}
        for name in sorted({"l2", "width", "weights"} - own):
            if getattr(self, name) != default[name]:
                raise ValueError(f"{name!r} is not for the fusion {self.kind!r}")
        if self.kind in ("late", "union") and self.baselines is False:
            raise ValueError(f"the fusion {self.kind!r} is made of a head per feature set: 'baselines' are its parts")
        return self

    @property
    def alone(self) -> bool:
        """Whether each feature set also gets a head of its own."""
        return self.kind != "concat" if self.baselines is None else self.baselines


class HeadConfig(_Strict):
    """One head or one search over heads.

    features: sets to compare, each a list of feature sets to fuse; None is everything that the cache holds, fused.
    transform: steps for the fused matrix, or steps by feature set. splits: ``published``, or ``carve`` to divide all
    selected rows as if none were published. validation, test: what is carved out where none is published, a share
    (0.1) or a count of rows (250; 0 for none). test is 0.2 where no split at all is published; where one is, a test
    split is carved only if ``test`` is stated and no row of the published one has a target.
    score: what the search maximises; None is accuracy, or f1_micro where samples have several labels. Of several scores
    ``refit`` decides, or the first. threshold: for several labels alone; a number is a fixed one, None tunes one per
    label for F1. chain: for those alone too, each label's classifier sees the labels before it, the most frequent
    first. oversample: training rows with rare labels are repeated up to that many times. seeds: that many final fits,
    with ``seed`` and those after it, for mean and deviation of the scores; the head of the first one is kept.
    grid: values to try of each parameter, and of ``features`` and ``transform``, which then stand for those above; a
    list of such mappings is tried one after the other. search: ``grid`` tries all points; ``random`` tries ``n_iter``
    that it draws, from ranges too; ``halving`` gives all points little and goes on with the best one in ``factor``.
    """

    head: str = "logistic"
    dataset: str | None = None
    features: list[list[FeatureName]] | None = None
    fusion: Fusion = Fusion()
    transform: list[Step] | dict[str, list[Step]] = ["standardize"]
    fixed: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any] | Range] | list[dict[str, list[Any] | Range]] = Field(default_factory=dict)
    cv: Folds | None = None
    search: Literal["grid", "random", "halving"] = "grid"
    n_iter: int = Field(10, ge=1)
    factor: int = Field(3, ge=2)
    score: str | list[str] | None = None
    refit: str | None = None
    threshold: Threshold | None = None
    chain: bool = False
    oversample: int = Field(1, ge=1)
    select: Selection = Field(default_factory=Selection)
    splits: Literal["published", "carve"] = "published"
    validation: int | float = 0.1
    test: int | float | None = None
    seed: int = 0
    seeds: int = Field(1, ge=1)
    jobs: int | None = Field(None, ge=1)

    @field_validator("features", mode="before")
    @classmethod
    def _read_features(cls, value: Any) -> Any:
        return None if value is None else feature_sets(value)

    @field_validator("fusion", mode="before")
    @classmethod
    def _read_fusion(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("threshold", mode="before")
    @classmethod
    def _read_threshold(cls, value: Any) -> Any:
        return {"fixed": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("fixed", "cv", "select", mode="before")
    @classmethod
    def _read_empty(cls, value: Any, info: Any) -> Any:
        return {} if value is None and info.field_name != "cv" else value

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _read_part(cls, value: Any) -> Any:
        count = type(value) is int and value >= 0
        share = type(value) is float and 0 < value < 1
        if not (count or share or value is None):
            raise ValueError("expected a count of rows, or a share greater than 0 and less than 1")
        return value

    @field_validator("transform", mode="before")
    @classmethod
    def _read_transform(cls, value: Any) -> Any:
        return _steps(value)

    @field_validator("grid", mode="before")
    @classmethod
    def _read_grid(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [_read_axes(one) for one in value]
        return {} if value is None else _read_axes(value)

    @field_validator("grid")
    @classmethod
    def _refuse_empty(cls, value: Any) -> Any:
        grids = value if isinstance(value, list) else [value]
        if empty := [name for one in grids for name, values in one.items() if values == []]:
            raise ValueError(f"{', '.join(empty)} has no values to try")
        for one in grids:
            for name in set(AXES).intersection(one):
                if isinstance(one[name], Range):
                    raise ValueError(f"{name} is no number: list the choices")
                one[name] = [_fused_axis(item) if name == "features" else _steps(item) for item in one[name]]
        return value

    @field_validator("score")
    @classmethod
    def _refuse_no_score(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("expected names of scores, each once")
        return value

    @model_validator(mode="after")
    def _refuse_overlap(self) -> HeadConfig:
        grids = self.grid if isinstance(self.grid, list) else [self.grid]
        if both := sorted(set(self.fixed).intersection(*[set().union(*grids)])):
            raise ValueError(f"{', '.join(both)} stands under both 'fixed' and 'grid'")
        ranges = sorted({name for one in grids for name, values in one.items() if isinstance(values, Range)})
        if ranges and self.search != "random":
            raise ValueError(
                f"{', '.join(ranges)} is a range: 'search: random' draws from ranges, others need a list of values"
            )
        if self.searches_features and self.features is not None and len(self.features) > 1:
            raise ValueError("features are compared at the top or searched under 'grid', not both")
        if self.searches_features and (self.fusion.kind in ("late", "union") or self.fusion.baselines):
            raise ValueError(
                "'features' under 'grid' chooses among sets that are fused before the head: list each set alone there, "
                "without 'baselines', and state the fusions 'late' and 'union' for features at the top"
            )
        if self.refit is not None and self.refit not in self.scores:
            raise ValueError(f"refit names none of the scores {list(self.scores)}: {self.refit!r}")
        return self

    @model_validator(mode="after")
    def _refuse_modality(self) -> HeadConfig:
        if self.threshold is not None and self.threshold.per == "modality" and self.fusion.kind != "union":
            raise ValueError("a threshold per modality is for 'fusion: union'")
        return self

    @property
    def searches(self) -> bool:
        """Whether there is more than one candidate to try."""
        return bool(self.grid)

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores of a search as stated, the one that decides first; none where none is stated."""
        stated = [self.score] if isinstance(self.score, str) else list(self.score or ())
        return tuple(sorted(stated, key=lambda name: name != self.refit) if self.refit else stated)

    @property
    def searches_features(self) -> bool:
        """Whether the search chooses among feature sets."""
        return bool(self.axis("features"))

    def axis(self, name: str) -> list[Any]:
        """The different values of an axis of the grid, in order; empty where it is none."""
        grids = self.grid if isinstance(self.grid, list) else [self.grid]
        listed = (values for one in grids if isinstance(values := one.get(name), list))
        return different(item for one in listed for item in one)


def different(values: Iterable[Value]) -> list[Value]:
    """The values without repetitions, in order; they need no hash."""
    found: list[Value] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def feature_sets(value: Any) -> list[list[FeatureName]]:
    """Inner lists fuse, outer lists compare: a flat list is one set, ``"a,b"`` is ``a`` fused with ``b``."""
    if isinstance(value, str | Mapping):
        return [_fused(value)]
    if not isinstance(value, Sequence) or not value:
        raise ValueError("expected names of feature sets")
    if not any(isinstance(item, list | tuple) for item in value):
        return [[name for item in value for name in _fused(item)]]
    sets = [[name for part in _listed(item) for name in _fused(part)] for item in value]
    if not all(sets):
        raise ValueError("an inner list has no names")
    return sets


def _fused_axis(item: Any) -> list[FeatureName]:
    """One choice of the axis ``features``: names that are fused."""
    return [name for part in _listed(item) for name in _fused(part)]


def _read_axes(grid: Any) -> dict[str, Any]:
    """One grid: lists of values, and ranges. Raises ValueError that names the parameter."""
    if not isinstance(grid, Mapping):
        raise ValueError("expected parameters, each with a list of values to try: {C: [0.1, 1]}")
    return {name: _read_values(name, values) for name, values in grid.items()}


def _read_values(name: Any, values: Any) -> Any:
    if isinstance(values, list | tuple | Range):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: expected a list of values to try, or a range {{low: 1, high: 100}}")
    try:
        return Range.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(f"{name}: {reasons_of(error, lambda _: list(Range.model_fields))}") from error


def _steps(item: Any) -> Any:
    """A transform: steps, or steps by feature set; a name alone, or one ``name: argument``, is one step."""
    if isinstance(item, Mapping) and not (len(item) == 1 and set(item) <= set(TRANSFORMS)):
        return {name: _own_steps(steps) for name, steps in item.items()}
    return _own_steps(item)


def _own_steps(item: Any) -> list[Any]:
    """Steps of one matrix. Raises ValueError for what is no step."""
    steps = [] if item is None or item == "none" else _listed(item)
    for step in steps:
        if not isinstance(step, str | Mapping):
            raise ValueError(f"a step is a name or one 'name: argument': {', '.join(TRANSFORMS)}")
    return steps


def _listed(item: Any) -> list[Any]:
    return list(item) if isinstance(item, list | tuple) else [item]


def _fused(item: Any) -> list[FeatureName]:
    if isinstance(item, Mapping):
        return [dict(item)]
    if item is None:
        raise ValueError("a feature set has no name")
    names = [name.strip() for name in str(item).split(",")]
    if not all(names):
        raise ValueError(f"{item!r} has an empty name between its commas")
    return list(names)


def to_yaml(config: HeadConfig) -> str:
    """A grid file that ``parse`` reads as the same configuration."""
    return dump(config.model_dump())


def dump(document: Mapping[str, Any]) -> str:
    """A mapping of plain values as a grid file."""
    return yaml.dump(plain(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """The value in YAML's and JSON's own types: lists for tuples, Python's numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def find_grid(name: str) -> Path:
    """A grid file by path, or by name among the ready ones. Raises DataNotFoundError with the ready names."""
    for candidate in (Path(name), GRIDS / name, GRIDS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    ready = ", ".join(sorted(path.name for path in GRIDS.glob("*.yaml")))
    raise DataNotFoundError(f"There is no grid file {name} here, nor among the ready ones ({ready}).")


def read_grid(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; tags and anything but plain data are refused."""
    try:
        document = plain_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{path} holds a {type(document).__name__}; a grid file is a mapping of keys.")
    return {str(key): value for key, value in document.items()}


class _Loader(yaml.SafeLoader):
    """Plain data only; ``1e-3`` is a number, ``yes`` and ``no`` are texts, as in YAML 1.2 and everywhere else."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads as the same."""


_BOOL = "tag:yaml.org,2002:bool"
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), "-+0123456789"
    )


def plain_yaml(text: str) -> Any:
    """The value that a YAML text holds. Raises ValueError for tags, impossible dates and endless nesting too."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def override(document: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The document with ``key.inner=value`` assignments put in; values are read as YAML."""
    result = dict(document)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise UsageError(f"--set takes key=value, got {assignment!r}.")
        try:
            value = plain_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {assignment!r}: the value is not plain YAML.") from error
        _put(result, path.strip().split("."), value, assignment)
    return result


def _put(target: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    for key in path[:-1]:
        inner = target.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise UsageError(f"--set {assignment!r}: {key!r} holds a value, not keys.")
        target[key] = dict(inner or {})
        target = target[key]
    target[path[-1]] = value


def parse(document: Mapping[str, Any], where: str = "the configuration") -> HeadConfig:
    """A checked configuration. Raises UsageError that names each wrong key with the nearest known one."""
    try:
        return HeadConfig.model_validate(dict(document))
    except ValidationError as error:
        raise UsageError(f"{where}: {reasons_of(error, _known_keys)}.") from error


def reasons_of(error: ValidationError, known_keys: Callable[[Sequence[Any]], list[str]]) -> str:
    """What is wrong with each key, once. known_keys: the keys that may stand at a path."""
    reasons: dict[str, list[Any]] = {}
    for item in error.errors():
        reasons.setdefault(_path(item["loc"]), []).append(item)
    return "; ".join(_reason(path, items, known_keys) for path, items in reasons.items())


def _path(parts: Sequence[Any]) -> str:
    """Keys with dots between them, without pydantic's names of the types that a value could have had."""
    return ".".join(str(part) for part in parts if not _TYPE.search(str(part)))


def _reason(path: str, items: Sequence[Any], known_keys: Callable[[Sequence[Any]], list[str]]) -> str:
    """items: the errors at one path: of each type that the value could have had."""
    item = items[0]
    if item["type"] != "extra_forbidden":
        messages = dict.fromkeys(_plain_words(str(one["msg"])) for one in items)
        message = " or ".join(messages).replace(" or expected ", " or ")
        return f"{path}: {message}, got {item['input']!r}" if path else message
    known = known_keys(item["loc"][:-1])
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {path!r}.{hint} Known: {', '.join(sorted(known))}"


_TYPE = re.compile(r"[\[(]|^(?:str|bool|int|float)$")
_WORDS = {
    "Value error, ": "",
    "Input should be a valid ": "expected a ",
    "Input should be ": "expected ",
    "expected a integer": "expected a whole number",
    "expected a dictionary": "expected keys with values",
    "expected a string": "expected a text",
    "expected a boolean": "expected true or false",
    "Field required": "is missing",
}


def _plain_words(message: str) -> str:
    """The message of an error without names of types."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return re.sub(r" or instance of \w+|, unable to (?:parse|interpret).*", "", message)


def _known_keys(path: Sequence[Any]) -> list[str]:
    nested: dict[str, type[BaseModel]] = {
        "cv": Folds, "select": Selection, "threshold": Threshold, "fusion": Fusion
    }  # fmt: skip
    model = nested.get(str(path[0]), HeadConfig) if path else HeadConfig
    return list(model.model_fields)
