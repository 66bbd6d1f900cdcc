"""Word ids of a data set's texts: a counting pass over the training texts, then all texts as ids, written whole.

A sealed file with the same settings keeps its vocabulary when texts are added, so that what was fitted on its ids
goes on working; words that it does not know become the unknown one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from embedcache import ragged, store
from embedcache.backbones import slug
from embedcache.backbones.base import Backbone
from embedcache.backbones.words_family import WordIds
from embedcache.container import DONE, TOKENS, read_header
from embedcache.datasets.base import PublishedTokens
from embedcache.errors import AllItemsFailedError, DamagedFileError, EmbedCacheError, ItemError, UsageError
from embedcache.failures import append_failures, keep_failures
from embedcache.items import fixed_length, positions
from embedcache.jobs import Job, Wanted
from embedcache.planning import ENCODE, Plan, plan
from embedcache.provenance import fingerprint
from embedcache.ragged import TokenFile, TokenRows, take_rows
from embedcache.samples import SampleTable, combined
from embedcache.words import UNKNOWN_ID, Tokenized, Vocabulary, build_vocabulary, tokenize
from embedcache.words.vocabulary import vocabulary_digest
from embedcache.writing import versions

TRAIN: Final = "train"
_PROBE: Final = 2048
Advance = Callable[[int], object]


@dataclass(frozen=True)
class FoundTokens:
    """The sealed token file of these settings, if there is one; what was damaged is said."""

    sealed: TokenFile | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class WordOutcome:
    """What a run left. seconds: of splitting, counting and writing."""

    file: TokenFile
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ids:
    """Ids of the rows to encode, ragged, and the words that they count in. about: for the record."""

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    words: npt.NDArray[np.bytes_]
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def identity(backbone: Backbone) -> dict[str, Any]:
    """The provenance of a backbone's word ids, short of the vocabulary, as JSON."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(backbone.identity)))
    return {**found, "compute": "none", "stored": "int32"}


def provenance(backbone: Backbone, words: Sequence[str]) -> dict[str, Any]:
    """The provenance of word ids that count in ``words``."""
    return {**identity(backbone), "architecture": {"vocabulary": vocabulary_digest(words), "words": len(words)}}


def existing(job: Job) -> FoundTokens:
    """The sealed token file whose provenance is the job's, whatever its vocabulary; the one with the most rows."""
    notes: list[str] = []
    found: list[TokenFile] = []
    wanted = identity(job.backbone)
    for path in job.opened.folder.feature_paths(job.modality):
        if (header := read_header(path)) is None or header.kind != TOKENS:
            continue
        try:
            file = TokenFile(path)
        except DamagedFileError as error:
            notes.append(str(error))
            continue
        if {**file.provenance, "architecture": wanted["architecture"]} == wanted:
            found.append(file)
    best = max(found, key=lambda file: file.n_items, default=None)
    return FoundTokens(_if_same(job, best), tuple(notes))


def _if_same(job: Job, file: TokenFile | None) -> TokenFile | None:
    """A file of published ids is gone on with only where the data set still publishes the same words and ids."""
    if file is None or not _is_published(job):
        return file
    own = _published(job)
    if file.provenance["architecture"].get("vocabulary") != vocabulary_digest(own.vocabulary.to_pylist()):
        return None
    rows = positions(fixed_length(job.opened.table.items["text"]["id"]), file.ids)
    there = np.flatnonzero(rows >= 0)
    old_tokens, old_offsets = take_rows(file.tokens, file.offsets, rows[there])
    new_tokens, new_offsets = take_rows(own.tokens, own.offsets, there)
    same = np.array_equal(old_offsets, new_offsets) and np.array_equal(old_tokens, new_tokens)
    return file if same else None


def _is_published(job: Job) -> bool:
    return isinstance(job.backbone, WordIds) and job.backbone.published


def decide(job: Job, wanted: Wanted, found: FoundTokens) -> Plan:
    """What to do: reuse, grow or extract. Texts are their own digests: nothing is doubtful."""
    if _is_published(job):
        _published(job)
    decided = plan(wanted.states, found.sealed, None, retry_failed=job.options.retry_failed)
    reasons = {"reuse": "all word ids are there", "extract": "no word ids of these settings are there"}
    return replace(decided, reason=reasons.get(decided.action, decided.reason))


def seconds_for(job: Job, decided: Plan) -> float:
    """About how long the texts to encode take, by splitting a few."""
    texts = combined(job.opened.table.items["text"]["text"])
    some = texts.slice(0, _PROBE)
    began = time.perf_counter()
    tokenize(some, lowercase=job.backbone.settings.lowercase)
    return (time.perf_counter() - began) / max(1, len(some)) * decided.n_encode


def run(job: Job, decided: Plan, wanted: Wanted, found: FoundTokens) -> WordOutcome:
    """Give ids to what has none yet, put them beside those that are there, write. The caller holds the lock.

    Raises AllItemsFailedError where no text has a word, DamagedFileError where what is there cannot be copied.
    """
    started, began = store.now(), time.perf_counter()
    old = found.sealed.rows() if found.sealed is not None else None
    encode = np.flatnonzero(decided.donor == ENCODE)
    items = wanted.rows[decided.state[encode]]
    if _is_published(job):
        ids = _published_ids(_published(job), items)
    else:
        with _progress(job, items) as bar:
            ids = _new_ids(job, items, old, bar.update)
    failures = _failures(job, decided.ids[encode], items, ids)
    rows = _together(decided, wanted, encode, ids, old)
    document = provenance(job.backbone, [word.decode() for word in ids.words.tolist()])
    path = job.opened.folder.feature_path(job.modality, slug(job.backbone.name), fingerprint(document))
    append_failures(path, failures)
    seconds = time.perf_counter() - began
    file = ragged.write(path, rows, document, _record(job, started, seconds, len(encode), ids))
    keep_failures(file)
    return WordOutcome(file, time.perf_counter() - began, ids.notes)


def _record(job: Job, started: str, seconds: float, encoded: int, ids: _Ids) -> dict[str, Any]:
    backbone = job.backbone
    return {
        "backbone": backbone.name,
        **backbone.record,
        "settings": backbone.settings.stated(),
        "dataset": job.opened.folder.name,
        "started": started,
        "finished": store.now(),
        "seconds": round(seconds, 3),
        "encoded": encoded,
        "versions": versions(),
        **ids.about,
    }


def _progress(job: Job, items: npt.NDArray[np.int64]) -> tqdm[Any]:
    name = f"{job.opened.folder.name} · {job.backbone.name}"
    return tqdm(total=len(items), unit=" texts", desc=name, disable=not job.options.progress, dynamic_ncols=True)


# ------------------------------------------------------------------------------------------------ a vocabulary of ours


def _new_ids(job: Job, items: npt.NDArray[np.int64], old: TokenRows | None, advance: Advance) -> _Ids:
    """Ids by the vocabulary that is there, or by one that is built on the training texts."""
    texts = combined(job.opened.table.items["text"]["text"])
    lowercase = job.backbone.settings.lowercase
    if old is not None:
        split = tokenize(texts.take(pa.array(items)), lowercase=lowercase, advance=advance)
        vocabulary = Vocabulary(tuple(word.decode() for word in old.vocabulary.tolist()))
        tokens = vocabulary.of(split.words)[split.numbers]
        return _Ids(tokens, split.offsets, old.vocabulary, (_kept_note(job, vocabulary, tokens),))
    counted, samples = training_counts(job.opened.table)
    needed = counted > 0
    needed[items] = True
    both = np.flatnonzero(needed)
    whole = len(both) == len(texts)
    split = tokenize(texts if whole else texts.take(pa.array(both)), lowercase=lowercase, advance=advance)
    settings = job.backbone.settings
    vocabulary = build_vocabulary(
        split.words, occurrences(split, counted[both]), min_count=settings.min_count, max_words=settings.max_words
    )
    ids = vocabulary.of(split.words)
    tokens, offsets = take_rows(ids[split.numbers], split.offsets, np.searchsorted(both, items))
    words = np.array([word.encode() for word in vocabulary.words])
    note = f"a vocabulary of {len(vocabulary):,} words, built on {samples}"
    return _Ids(tokens, offsets, words, (note,), {"vocabulary": samples})


def _kept_note(job: Job, vocabulary: Vocabulary, tokens: npt.NDArray[np.int32]) -> str:
    unknown = int((tokens == UNKNOWN_ID).sum())
    return (
        f"the vocabulary of {len(vocabulary):,} words that is there is kept, so that heads go on working: "
        f"{unknown:,} of {len(tokens):,} words in the new texts are unknown to it. For a fresh one: "
        f"python cli.py rm {job.opened.folder.name} --features {job.backbone.name}"
    )


def training_counts(table: SampleTable) -> tuple[npt.NDArray[np.int64], str]:
    """How often each text item occurs in training samples, int64 (text items,), and which those are, in words.

    Training samples are those whose published split is ``train``; all of them, where no split is published at all.
    Raises UsageError where splits are published and none of them is ``train``.
    """
    split = combined(table.samples["split"])
    train = np.asarray(pc.fill_null(pc.equal(split, TRAIN), False))
    said = f"the {int(train.sum()):,} samples of the split {TRAIN!r}"
    if split.null_count == len(split):
        train[:] = True
        said = f"all {len(train):,} samples: no split is published"
    if not train.any():
        names = ", ".join(sorted(map(str, pc.unique(split.drop_null()).to_pylist())))
        raise UsageError(
            f"A vocabulary is built on training texts only, and no sample is of the split {TRAIN!r} (splits: {names}). "
            "Name one 'train', or use vectors that need no vocabulary."
        )
    rows = None if train.all() else np.flatnonzero(train)
    references, _ = table.references("text", rows)
    return np.bincount(references, minlength=table.items["text"].num_rows), said


def occurrences(split: Tokenized, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each word occurs, int64 (words,). weights: how often each text does, (texts,)."""
    n_words = len(split.words)
    if (weights == 1).all():
        return np.bincount(split.numbers, minlength=n_words)
    repeated = np.repeat(weights, np.diff(split.offsets))
    return np.bincount(split.numbers, weights=repeated, minlength=n_words).astype(np.int64)


# ------------------------------------------------------------------------------------------------ the data set's own


def _published(job: Job) -> PublishedTokens:
    """The data set's own ids, checked. Raises UsageError where it has none."""
    opened = job.opened
    found = opened.published
    if found is None:
        raise UsageError(
            f"{opened.folder.name} publishes no word ids of its own: use --backbone words, which builds a vocabulary."
        )
    n = opened.table.items["text"].num_rows
    fits = len(found.offsets) == n + 1 and ragged.rising(found.offsets, len(found.tokens))
    if not fits or found.tokens.min(initial=0) < 0 or found.tokens.max(initial=0) >= len(found.vocabulary):
        raise EmbedCacheError(
            f"The word ids that {opened.folder.name} publishes do not fit: {len(found.offsets) - 1:,} texts for {n:,}, "
            f"ids up to {found.tokens.max(initial=0):,} for {len(found.vocabulary):,} words."
        )
    return found


def _published_ids(found: PublishedTokens, items: npt.NDArray[np.int64]) -> _Ids:
    tokens, offsets = take_rows(found.tokens, found.offsets, items)
    words = np.array([(word or "").encode() for word in found.vocabulary.to_pylist()])
    note = f"the data set's own vocabulary of {len(words):,} words"
    return _Ids(tokens.astype(np.int32, copy=False), offsets, words, (note,), {"vocabulary": "published"})


# ------------------------------------------------------------------------------------------------------- put together


def _failures(job: Job, names: npt.NDArray[np.bytes_], items: npt.NDArray[np.int64], ids: _Ids) -> dict[str, str]:
    """Reasons by item id, of texts without a word. Raises where all are, or at the first with ``on_error=stop``."""
    empty = np.flatnonzero(np.diff(ids.offsets) == 0)
    texts = combined(job.opened.table.items["text"]["text"]).take(pa.array(items[empty])).to_pylist()
    reasons = [
        "no published id is in it" if text.strip() and _is_published(job) else "the text is empty" for text in texts
    ]
    found = {bytes(names[row]).decode(): reason for row, reason in zip(empty, reasons, strict=True)}
    if found and job.options.on_error == "stop":
        name, reason = next(iter(found.items()))
        raise ItemError(f"Stopped at {name}: {reason}. --on-error skip goes on.")
    return found


def _together(
    decided: Plan, wanted: Wanted, encode: npt.NDArray[np.int64], ids: _Ids, old: TokenRows | None
) -> TokenRows:
    """The file to be: rows that are there, then new ones; rows of the old file that were tried again in their place."""
    n = len(decided.ids)
    content = np.zeros((n, 16), np.uint8)
    content[encode] = wanted.states.content[decided.state[encode]]
    if old is None:
        tokens, offsets, status = ids.tokens, ids.offsets, ragged.status_of(ids.offsets)
    else:
        copied = np.flatnonzero(decided.donor == 0)
        content[copied] = old.content[decided.donor_row[copied]]
        source = np.empty(n, np.int64)
        source[copied] = decided.donor_row[copied]
        source[encode] = len(old.ids) + np.arange(len(encode))
        both = np.concatenate([old.tokens, ids.tokens])
        bounds = np.concatenate([old.offsets, old.offsets[-1] + ids.offsets[1:]])
        tokens, offsets = take_rows(both, bounds, source)
        status = np.concatenate([old.status, ragged.status_of(ids.offsets)])[source]
    if not (status == DONE).any():
        raise AllItemsFailedError(f"None of the {n:,} texts has a word. No file of word ids was written.")
    return TokenRows(decided.ids, content, status, tokens, offsets, ids.words)


def split_again(file: TokenFile, texts: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The ids that a file's own rule and vocabulary give to texts now: (tokens, offsets)."""
    split = tokenize(texts, lowercase=bool(file.provenance["preprocessing"].get("lowercase")))
    return Vocabulary(tuple(file.words)).of(split.words)[split.numbers], split.offsets
