"""VQA accuracy (Antol et al., ICCV 2015), as the official evaluation computes it.

Behaviour: ``PythonEvaluationTools/vqaEvaluation/vqaEval.py`` of GT-Vision-Lab/VQA, commit c4e6a0e. A prediction is
right as far as humans gave it: min(how many of them / 3, 1), averaged over the sets that leave one human out. Its
quirks are kept, because published numbers have them; ``docs/datasets/vqa.md`` lists them, and how later copies differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcache.samples import META_PREFIX, TARGET_PREFIX, combined
from embedcache.view import Features
from heads.metrics import Codes, Probabilities, rank_of_truth

METRIC: Final = "vqa_accuracy"
TARGET: Final = "answer"
TYPES: Final = ("answer_type", "question_type")
ENOUGH: Final = 3
"""Humans that make an answer fully right."""

PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS: Final = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES: Final = frozenset({"a", "an", "the"})
_PERIODS: Final = 32
"""Periods that are dropped at most: the official code hands ``re.UNICODE``, which is 32, to ``sub`` as its count."""
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")

_SINGLE: Final = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm
    I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
    shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
    there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
"""Contractions that are known without their apostrophe (``aint``)."""
_DOUBLE: Final = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
"""Contractions that are known where one of their apostrophes is missing (``couldnt've``), not where both are."""
_ODD: Final = {
    "let's": "let's", "she's": "she's", "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}  # fmt: skip


def _contractions() -> dict[str, str]:
    found = {whole.replace("'", ""): whole for whole in _SINGLE.split()}
    for whole in _DOUBLE.split():
        stem, first, second = whole.split("'")
        found |= {f"{stem}{first}'{second}": whole, f"{stem}'{first}{second}": whole}
    return found | _ODD


CONTRACTIONS: Final[Mapping[str, str]] = _contractions()
"""How a word is spelt out. ``im``, ``ive``, ``id've`` are not among them: those keys are written with a capital, and
words are lower-cased before they are looked up."""


def without_punctuation(text: str) -> str:
    """What is done to human answers that differ, and first to every prediction.

    A mark beside a blank is deleted, and so is every mark where digits stand around a comma; any other mark becomes a
    blank. Blanks at the ends stay. Periods go unless a digit follows.
    """
    found = text
    number = _NUMBER_WITH_COMMA.search(text) is not None
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or number else " ")
    return _PERIOD.sub("", found, count=_PERIODS)


def normalized(prediction: str) -> str:
    """A prediction as it is compared: no punctuation, lower case, digits for number words, no articles, apostrophes."""
    words = without_punctuation(prediction.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    numbered = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def leave_one_out(matches: npt.ArrayLike, humans: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Accuracy of predictions that ``matches`` of ``humans`` gave: the mean of min(m / 3, 1) with each human left out.

    Of ten humans 0, 1, 2, 3, 4 and more give 0, 0.3, 0.6, 0.9, 1.
    """
    m, n = np.asarray(matches, np.float64), np.asarray(humans, np.float64)
    return np.asarray(
        (m * np.minimum(np.maximum(m - 1, 0) / ENOUGH, 1) + (n - m) * np.minimum(m / ENOUGH, 1)) / n, np.float64
    )


@dataclass(frozen=True)
class HumanAnswers:
    """The answers that humans gave to each row, as they are compared.

    texts: distinct ones. codes: of every answer, row after row, (sum of n,). lengths: how many each row has, (rows,).
    """

    texts: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, answers: pa.Array) -> HumanAnswers:
        """From a list of texts per row; punctuation is dropped where a row's answers differ among themselves."""
        flat = combined(answers.flatten()).dictionary_encode()
        lengths = np.asarray(pc.list_value_length(answers)).astype(np.int64)
        codes = np.asarray(flat.indices).astype(np.int64)
        raw = flat.dictionary.to_pylist()
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        differ = np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)
        return cls((*raw, *map(without_punctuation, raw)), codes + len(raw) * np.repeat(differ, lengths), lengths)

    def accuracy(self, labels: Sequence[Any], predicted: Codes) -> npt.NDArray[np.float64]:
        """VQA accuracy of each row, (rows,). labels: answers by class; predicted: the class of each row."""
        known = {text: number for number, text in enumerate(dict.fromkeys(self.texts))}
        human = np.array([known[text] for text in self.texts], np.int64)[self.codes]
        of_class = np.array([known.get(normalized(str(label)), -1) for label in labels], np.int64)
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        matches = np.bincount(rows[human == of_class[predicted][rows]], minlength=len(self.lengths))
        return leave_one_out(matches, self.lengths)


def human_answers(samples: Features, target: str) -> HumanAnswers | None:
    """The human answers of some samples; None where the data set has none, or ``target`` is not the answer."""
    name = f"{META_PREFIX}answers"
    table = samples.table.samples
    if target != TARGET or name not in table.column_names or f"{TARGET_PREFIX}{TARGET}" not in table.column_names:
        return None
    column = combined(table[name]).take(pa.array(samples.sample_rows))
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not len(column):
        return None
    if pc.any(pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0)).as_py():
        return None
    return HumanAnswers.of(column)


def row_scores(samples: Features, target: str, labels: Sequence[Any], predicted: Codes) -> dict[str, Any]:
    """``vqa_accuracy`` of each sample, (samples,); nothing where there are no human answers to compare with."""
    found = human_answers(samples, target)
    return {METRIC: found.accuracy(labels, predicted)} if found is not None else {}


def by_type(
    samples: Features, truth: Codes, probabilities: Probabilities, own: npt.NDArray[np.float64]
) -> dict[str, list[dict[str, Any]]]:
    """Scores by answer type and by question type, the most frequent first: number of samples, mean of each score.

    own: VQA accuracy of each sample. ``accuracy`` and ``top_5_accuracy`` are those of the most frequent answer.
    """
    rank = rank_of_truth(truth, probabilities)
    scores = {METRIC: own, "accuracy": rank == 1, "top_5_accuracy": rank <= 5}
    found = {}
    for name in TYPES:
        column = f"{META_PREFIX}{name}"
        if column in samples.table.samples.column_names:
            names, codes = np.unique([str(value) for value in samples.column(column)], return_inverse=True)
            counts = np.bincount(codes)
            means = {score: np.bincount(codes, values) / counts for score, values in scores.items()}
            found[name] = [
                {"type": str(names[code]), "count": int(counts[code])}
                | {score: float(values[code]) for score, values in means.items()}
                for code in np.argsort(-counts, kind="stable")
            ]
    return found
