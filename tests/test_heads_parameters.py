"""Values that a parameter of our torch heads cannot have are refused by name, before anything is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from embedcache.errors import UsageError
from heads import HEADS
from heads.config import parse
from heads.parameters import RULES, Activation
from heads.task import prepare
from heads.torch_mlp import MLPHead
from heads.torch_text import CNNHead, LSTMHead
from heads.training import ACTIVATIONS, TrainingOptions

X, Y = np.random.default_rng(0).normal(size=(20, 3)).astype("f4"), np.arange(20) % 2

WRONG = [
    ({"batch_norm": "no"}, "batch_norm must be true or false, got the text 'no' (write true or false"),
    ({"early_stopping": "perhaps"}, "early_stopping must be true or false, got the text 'perhaps'."),
    ({"standardize": 1}, "standardize must be true or false, got 1"),
    ({"batch_size": 2.5}, "batch_size must be a positive whole number, got 2.5"),
    ({"batch_size": True}, "batch_size must be a positive whole number, got True"),
    ({"epochs": "many"}, "epochs must be a whole number, 0 or more, got the text 'many'"),
    ({"learning_rate": "fast"}, "learning_rate must be a positive number, got the text 'fast'"),
    ({"learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
    ({"gamma": -3}, "gamma must be greater than 0 and at most 1, got -3"),
    ({"momentum": 7}, "momentum must be in [0, 1), got 7"),
    ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
    ({"validation_fraction": 1.0}, "validation_fraction must be greater than 0 and less than 1, got 1.0"),
    ({"hidden_layer_sizes": [8, 0]}, "hidden_layer_sizes must be a list of positive whole numbers (widths of layers)"),
    ({"class_weight": "balance"}, "class_weight must be 'balanced', a mapping"),
    ({"optimizer": "adamx"}, "Unknown optimizer 'adamx'. Did you mean 'adam"),
    (
        {"schedule": "warm-up"},
        "Unknown schedule 'warm-up'. Known: adaptive, constant, cosine, one-cycle, step. A linear rise before one of "
        "constant, cosine, step is 'warmup_epochs'",
    ),
    ({"schedule": "linear"}, "Unknown schedule 'linear'. Known: "),
    ({"device": 0}, "device must be a text, got 0"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_a_wrong_value_is_named_in_a_grid_file_and_in_python(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    """Of a grid file without looking at the cache, which is not even there, and in a search as well."""
    told = re.escape(f"The head 'mlp' cannot be fitted: {words}")
    (name, value), = wrong.items()  # fmt: skip
    for document in ({"fixed": wrong}, {"grid": {name: [value]}}):
        with pytest.raises(UsageError, match=told):
            prepare(parse({"head": "mlp", **document}), tmp_path / "nothing")
    with pytest.raises(UsageError, match=f"^{re.escape(words)}"):
        MLPHead(**wrong).fit(X, Y)


@pytest.mark.parametrize(
    ("head", "wrong", "words"),
    [
        ("lstm", {"freeze_embedding": "no"}, "freeze_embedding must be true or false"),
        ("lstm", {"bidirectional": "yes"}, "bidirectional must be true or false"),
        ("lstm", {"attention": "word"}, "Unknown attention 'word'. Did you mean 'words'"),
        ("lstm", {"hidden_size": 1.5}, "hidden_size must be a positive whole number"),
        ("cnn", {"filter_widths": []}, "filter_widths must be a list of positive whole numbers"),
        ("cnn", {"max_length": 0}, "max_length must be a positive whole number, or null, got 0"),
        ("mlp", {"epochs": 5, "warmup_epochs": 6}, "warmup_epochs (6) is more than epochs (5)"),
    ],
)
def test_the_heads_of_words_and_whole_trainings_too(
    tmp_path: Path, head: str, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        prepare(parse({"head": head, "fixed": wrong}), tmp_path / "nothing")


@pytest.mark.parametrize("kind", [MLPHead, LSTMHead, CNNHead])
def test_every_parameter_has_a_rule_that_its_default_keeps(kind: Any) -> None:
    values = kind().get_params()
    assert set(values) - set(RULES) == {"random_state"}
    assert all(RULES[name].accepts(value) for name, value in values.items() if name != "random_state")


def test_numbers_of_numpy_are_numbers() -> None:
    options = {"epochs": np.int64(1), "learning_rate": np.float32(0.1), "early_stopping": np.False_}
    assert MLPHead(np.array([4, 2]), batch_size=np.int32(4), device="cpu", **options).fit(X, Y).n_iter_ == 1


def test_options_are_held_to_the_same_rules() -> None:
    with pytest.raises(UsageError, match="patience must be a positive whole number, got 0"):
        TrainingOptions(patience=0)


def test_activations_are_those_that_there_are() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation))


def test_heads_without_rules_are_left_to_scikit_learn() -> None:
    assert {name for name, head in HEADS.items() if hasattr(head, "check")} == {"mlp", "lstm", "cnn"}


def test_the_table_of_the_documentation_has_every_parameter_of_mlp_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "heads.md").read_text(encoding="utf-8")
    rows = page.partition("## The perceptron: `mlp`")[2].partition("| `schedule` | learning rate |")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| `")]
    stated = {row[0].strip("`"): yaml.safe_load(row[3].strip("`")) for row in cells}
    defaults = {name: value for name, value in MLPHead().get_params().items() if name != "random_state"}
    assert stated == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    for row in cells:
        for known in RULES[row[0].strip("`")].known:
            assert known in row[2]
