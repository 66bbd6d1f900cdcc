"""A fitted head: what it predicts, what it was fitted on, and how it is kept without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from embedcache.errors import DamagedFileError, EmbedCacheError, UsageError, unknown_name
from embedcache.files import replacing, write_json
from embedcache.provenance import FloatType, StoredType
from embedcache.view import Features, FeatureSet
from heads import HEADS, head_named
from heads.base import TEXTS, VECTORS, reads
from heads.fusion import Late, Union, from_document
from heads.kinds import KindName
from heads.probabilities import of_all
from heads.sequences import Sequences
from heads.thresholds import Flags, decide

FORMAT: Final = 1
_ESTIMATOR, _HEAD, _NETWORK, _WEIGHTS = "estimator.skops", "head.json", "network.json", "network.safetensors"
_FUSION, _MEMBER = "fusion.json", "member_{}"


@dataclass(frozen=True)
class FeatureBinding:
    """A feature set that a head was fitted on.

    dim: 0 for word ids. fingerprint: what its numbers mean. backbone, settings, compute, stored: how to make more of
    them.
    """

    name: str
    modality: str
    dim: int
    fingerprint: str
    backbone: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    compute: FloatType = "float32"
    stored: StoredType = "float16"

    @property
    def words(self) -> bool:
        """Whether it has word ids, not vectors."""
        return self.dim == 0


def check_names(checkpoints: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise UnknownNameError for a checkpoint of a feature set that is not among ``names``."""
    for name in checkpoints:
        if name not in names:
            raise unknown_name("feature set in --checkpoint:", name, names)


@dataclass(frozen=True)
class FittedHead:
    """A fitted pipeline of transforms and estimator, or a fusion of several, and what it is bound to.

    classes: labels by code. estimator: a scikit-learn pipeline fitted on codes, or for the kind ``multi`` on
    indicators. thresholds: for that kind, by label. mean: of the training rows' vectors, (sum of dims,). prior: share
    of the training samples that have each class. Heads of earlier releases have neither mean nor prior.
    """

    head: str
    dataset: str
    target: str
    classes: tuple[Any, ...]
    features: tuple[FeatureBinding, ...]
    captions: str
    estimator: Any
    kind: KindName = "single"
    thresholds: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    prior: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected = {"single": 0, "multi": len(self.classes)}
        if len(self.thresholds) != expected.get(self.kind, -1):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.classes)} classes of kind {self.kind!r}")
        if len(self.prior) not in (0, len(self.classes)):
            raise ValueError(f"{len(self.prior)} prior probabilities for {len(self.classes)} classes")
        if len(self.mean) not in (0, sum(one.dim for one in self.features)):
            raise ValueError(f"a mean of {len(self.mean)} numbers for {sum(one.dim for one in self.features)}")

    def predict_proba(self, x: Any) -> npt.NDArray[np.float64]:
        """Probabilities (n, classes) of features (n, sum of dims), or of texts (n,) for a head that reads them.

        x: what ``sequences.rows_of`` gives where word ids are among the features. A class that training lacked gets
        zero.
        """
        given = x
        if not isinstance(x, Sequences):
            given = np.asarray(x) if self.reads == TEXTS else np.asarray(x, np.float32)
        return of_all(self.estimator, given, len(self.classes), several=self.kind == "multi")

    @property
    def reads(self) -> str:
        """``vectors``, ``texts`` or ``tokens``."""
        return reads(HEADS[self.head]) if self.head in HEADS else VECTORS

    @property
    def modalities(self) -> frozenset[str]:
        """What it needs of each item: an image, a text, or both."""
        return frozenset({"text"} if self.reads == TEXTS else {one.modality for one in self.features})

    @property
    def last(self) -> Any:
        """The fitted estimator behind its transforms; None where the answers of several heads are fused."""
        steps = getattr(self.estimator, "steps", None)
        return steps[-1][1] if steps else None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words whose ids it reads, if it does."""
        return tuple(getattr(self.last, "vocabulary_", ()))

    def predict(self, x: Any) -> npt.NDArray[np.object_]:
        """Labels (n,) of features (n, sum of dims); of the kind ``multi``, lists of them."""
        if self.kind == "multi":
            return label_sets(self.classes, decide(self.predict_proba(x), self.thresholds))
        labels = np.empty(len(self.classes), object)
        labels[:] = self.classes
        return np.asarray(labels[self.predict_proba(x).argmax(1)])

    def check(self, features: Features) -> None:
        """Raise UsageError unless these are the features that the head was fitted on, by fingerprint."""
        own = [(one.name, one.fingerprint) for one in self.features]
        given = [(one.name, one.file.fingerprint) for one in features.sets]
        if [mark for _, mark in own] != [mark for _, mark in given]:
            raise UsageError(
                f"The head was fitted on {_listed(own)} and is given {_listed(given)}: those are other numbers. "
                "Extract with the same settings, or fit a head on these."
            )

    def save(self, folder: Path) -> None:
        """Write the head. Raises EmbedCacheError where it holds a type that is not safe to load."""
        folder.mkdir(parents=True, exist_ok=True)
        _save_estimator(self.estimator, self.head, folder)
        document = {
            "format": FORMAT,
            **{key: value for key, value in asdict_shallow(self).items() if key != "estimator"},
        }
        write_json(folder / _HEAD, document)

    @classmethod
    def load(cls, folder: Path) -> FittedHead:
        """Read what ``save`` wrote; no type outside skops' own trusted ones is ever made."""
        from safetensors import SafetensorError
        from skops.io.exceptions import UntrustedTypesFoundException

        damage = (OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile, SafetensorError, UsageError)
        try:
            document = json.loads((folder / _HEAD).read_text(encoding="utf-8"))
            if document.pop("format") != FORMAT:
                raise DamagedFileError(f"{folder} holds a head of another format; this release reads {FORMAT}.")
            estimator = _load_estimator(document["head"], folder)
            document["features"] = tuple(FeatureBinding(**one) for one in document["features"])
            for name in ("classes", "thresholds", "mean", "prior"):
                document[name] = tuple(document.get(name, ()))
            return cls(**document, estimator=estimator)
        except UntrustedTypesFoundException as error:
            raise DamagedFileError(f"{folder} holds types that are not safe to load; it is refused. {error}") from error
        except damage as error:
            raise DamagedFileError(f"{folder} holds no head that can be read: {error}") from error


def _save_estimator(pipeline: Any, head: str, folder: Path) -> None:
    """scikit-learn's own types by skops; a torch head as JSON and safetensors, its transforms by skops.

    A fusion of answers is JSON and a folder for each member; of a product the pipeline is kept without it.
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    from heads.product import without_product

    if isinstance(pipeline, Late | Union):
        write_json(folder / _FUSION, pipeline.document())
        for number, member in enumerate(pipeline.members):
            (folder / _MEMBER.format(number)).mkdir(exist_ok=True)
            _save_estimator(member, head, folder / _MEMBER.format(number))
        return
    pipeline, fusion = without_product(pipeline)
    if fusion is not None:
        write_json(folder / _FUSION, fusion)
    network = pipeline[-1] if hasattr(pipeline[-1], "state") else None
    if network is not None:
        from safetensors.torch import save_file

        document, tensors = network.state()
        write_json(folder / _NETWORK, document)
        with replacing(folder / _WEIGHTS) as beside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    kept = pipeline if network is None else Pipeline(pipeline.steps[:-1] or [("0_nothing", "passthrough")])
    with replacing(folder / _ESTIMATOR) as beside:
        skops.io.dump(kept, beside)
        if unsafe := skops.io.get_untrusted_types(file=beside):
            raise EmbedCacheError(f"The head {head!r} holds types that are not safe to load: {unsafe}.")


def _load_estimator(head: str, folder: Path) -> Any:
    """What ``_save_estimator`` wrote."""
    if not (folder / _FUSION).exists():
        return _load_pipeline(head, folder)
    from heads.product import with_product

    fusion = json.loads((folder / _FUSION).read_text(encoding="utf-8"))
    if fusion["kind"] == "product":
        return with_product(_load_pipeline(head, folder), fusion)
    members = [_load_estimator(head, folder / _MEMBER.format(number)) for number in range(len(fusion["widths"]))]
    return from_document(fusion, members)


def _load_pipeline(head: str, folder: Path) -> Any:
    import skops.io
    from sklearn.pipeline import Pipeline

    kept = skops.io.load(folder / _ESTIMATOR, trusted=[])
    if not (folder / _NETWORK).exists():
        return kept
    from safetensors.torch import load_file

    restore = getattr(head_named(head), "restore", None)
    if restore is None:
        raise ValueError(f"a head {head!r} has no network")
    network = restore(json.loads((folder / _NETWORK).read_text(encoding="utf-8")), load_file(folder / _WEIGHTS))
    return Pipeline([*kept.steps, ("head", network)])


def label_sets(classes: Sequence[Any], flags: Flags) -> npt.NDArray[np.object_]:
    """The labels of each row of (n, labels), as lists, (n,)."""
    rows = ([classes[int(code)] for code in np.flatnonzero(row)] for row in flags)
    return np.fromiter(rows, object, len(flags))


def asdict_shallow(head: FittedHead) -> dict[str, Any]:
    """The head's fields, its bindings as plain mappings."""
    return {**vars(head), "features": [asdict(one) for one in head.features], "classes": list(head.classes)}


def bindings(features: Features) -> tuple[FeatureBinding, ...]:
    """What a head that is fitted on ``features`` is bound to."""
    return tuple(_binding(one) for one in features.sets)


def _binding(one: FeatureSet) -> FeatureBinding:
    file, record, provenance = one.file, one.file.record, one.file.provenance
    return FeatureBinding(
        one.name,
        file.modality,
        one.dim,
        file.fingerprint,
        # the name alone cannot say where a local folder lies; what does is never part of a cache
        str(record.get("backbone", "")),
        dict(record.get("settings", {})),
        provenance.get("compute", "float32"),
        cast(Any, getattr(file.layout, "stored", "int32")),
    )


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return " + ".join(f"{name.partition('@')[0]}@{mark}" for name, mark in pairs) or "nothing"
