"""What each parameter of our torch heads may be: one table, for grid files and for the estimators alike."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, get_args

import numpy as np

from embedcache.errors import UsageError, unknown_name

Activation = Literal["relu", "tanh", "gelu", "identity"]
OPTIMIZERS: Final = ("adam", "adamw", "sgd")
SCHEDULES: Final = ("constant", "cosine", "step", "one-cycle", "adaptive")
FUSIONS: Final = ("concat", "product", "none")
ATTENTIONS: Final = ("none", "words", "image")
INITIAL_STATES: Final = ("zeros", "image")
WITH_WARMUP: Final = ("constant", "cosine", "step")
"""Schedules that ``warmup_epochs`` is for: the others have a course of their own."""


@dataclass(frozen=True)
class Rule:
    """Which values a parameter has. expected: in words, behind "must be". known: the names of a closed choice."""

    expected: str
    accepts: Callable[[Any], bool]
    known: tuple[str, ...] = ()
    hint: str = ""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number: Python's or numpy's, not true or false, and no float."""
    return isinstance(value, Integral) and not _is_flag(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and not true or false."""
    return isinstance(value, Real) and not _is_flag(value) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _whole(low: int) -> Rule:
    expected = "a positive whole number" if low == 1 else f"a whole number, {low} or more"
    return Rule(expected, lambda value: is_whole(value) and value >= low)


def _or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda value: value is None or rule.accepts(value))


def _number(expected: str, within: Callable[[Any], bool]) -> Rule:
    return Rule(expected, lambda value: is_number(value) and within(value))


def _choice(known: tuple[str, ...], hint: str = "") -> Rule:
    return Rule(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known, known, hint)


def _widths(expected: str, least: int) -> Rule:
    """One positive whole number, or a sequence of at least ``least``."""

    def accepts(value: Any) -> bool:
        if isinstance(value, list | tuple | np.ndarray):
            return len(value) >= least and all(map(accepts_one, value))
        return accepts_one(value)

    accepts_one = _whole(1).accepts
    return Rule(expected, accepts)


def _is_class_weight(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(is_number(weight) and weight >= 0 for weight in value.values())
    return value is None or (isinstance(value, str) and value == "balanced")


_FLAG = Rule("true or false", _is_flag)
_POSITIVE = _number("a positive number", lambda value: value > 0)
_NOT_NEGATIVE = _number("a number that is not negative", lambda value: value >= 0)
_BELOW_ONE = _number("in [0, 1)", lambda value: 0 <= value < 1)
_TEXT = Rule("a text", lambda value: isinstance(value, str))

RULES: Final[Mapping[str, Rule]] = {
    "optimizer": _choice(OPTIMIZERS),
    "learning_rate": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "momentum": _BELOW_ONE,
    "schedule": _choice(
        SCHEDULES, f"A linear rise before one of {', '.join(WITH_WARMUP)} is 'warmup_epochs', a number of epochs."
    ),
    "warmup_epochs": _NOT_NEGATIVE,
    "step_size": _whole(1),
    "gamma": _number("greater than 0 and at most 1", lambda value: 0 < value <= 1),
    "batch_size": _whole(1),
    "epochs": _whole(0),
    "early_stopping": _FLAG,
    "patience": _whole(1),
    "validation_fraction": _number("greater than 0 and less than 1", lambda value: 0 < value < 1),
    "label_smoothing": _BELOW_ONE,
    "class_weight": Rule(
        "'balanced', a mapping from class to a weight that is not negative, or null", _is_class_weight
    ),
    "hidden_layer_sizes": _widths("a list of positive whole numbers (widths of layers)", 0),
    "activation": _choice(get_args(Activation)),
    "batch_norm": _FLAG,
    "dropout": _BELOW_ONE,
    "standardize": _FLAG,
    "l2": _FLAG,
    "device": _TEXT,
    "embedding_size": _whole(1),
    "vectors": Rule("the path of a file, or null", lambda value: value is None or isinstance(value, str | os.PathLike)),
    "freeze_embedding": _FLAG,
    "embedding_dropout": _BELOW_ONE,
    "embedding_activation": _choice(get_args(Activation)),
    "max_length": _or_none(_whole(1)),
    "fusion": _choice(FUSIONS),
    "fusion_size": _or_none(_whole(1)),
    "hidden_size": _whole(1),
    "layers": _whole(1),
    "bidirectional": _FLAG,
    "initial_state": _choice(INITIAL_STATES),
    "attention": _choice(ATTENTIONS),
    "filters": _whole(1),
    "filter_widths": _widths("a list of positive whole numbers (words that a filter sees), at least one", 1),
}  # fmt: skip
"""By name: a parameter means the same in every head that has it. ``random_state`` is scikit-learn's to check."""

_SWITCHES: Final = {"yes", "no", "on", "off", "y", "n", "true", "false"}


def check(values: Mapping[str, Any]) -> None:
    """Raise UsageError for the first value that its parameter cannot have; a name without a rule is not looked at."""
    for name, value in values.items():
        rule = RULES.get(name)
        if rule is None or rule.accepts(value):
            continue
        if rule.known and isinstance(value, str):
            raise unknown_name(name, value, rule.known, rule.hint)
        raise UsageError(f"{name} must be {rule.expected}, got {_shown(value)}.")


def check_training(values: Mapping[str, Any]) -> None:
    """Raise UsageError where parameters of a whole training, each right by itself, do not go together."""
    warmup, epochs = values["warmup_epochs"], values["epochs"]
    if values["schedule"] in WITH_WARMUP and warmup > epochs:
        raise UsageError(
            f"warmup_epochs ({warmup:g}) is more than epochs ({epochs}): the learning rate would still be rising when "
            "training ends."
        )


def _shown(value: Any) -> str:
    """The value as it was given; a text that looks like a switch is said to be one."""
    if isinstance(value, str):
        hint = " (write true or false: only these are no texts)" if value.strip().lower() in _SWITCHES else ""
        return f"the text {value!r}{hint}"
    return repr(value)
