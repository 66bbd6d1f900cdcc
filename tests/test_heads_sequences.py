"""The heads of words, ``lstm`` and ``cnn``: what padding must not change, what they learn, the way through a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import embedcache as ec
from embedcache.backbones.base import BackboneSettings
from embedcache.errors import MissingFeaturesError, UsageError
from heads.config import find_grid, read_grid
from heads.fit import FittedRun
from heads.predict import predict_dataset, predict_items
from heads.saved import FittedHead
from heads.sequences import SequenceInputs, Sequences
from heads.torch_text import CNNHead, LSTMHead
from tests.heads_helpers import add_words, described, fitted, prepared

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "lstm": {"embedding_size": 16, "hidden_size": 16, "epochs": 30, "batch_size": 16, "learning_rate": 0.02},
    "cnn": {
        "embedding_size": 16, "filters": 8, "filter_widths": (1, 2, 3), "epochs": 30, "batch_size": 16,
        "learning_rate": 0.02, "dropout": 0.0,
    },
}  # fmt: skip


def head(kind: str, **changes: Any) -> Any:
    chosen = {**SMALL[kind], "random_state": 0, "device": "cpu", **changes}
    return {"lstm": LSTMHead, "cnn": CNNHead}[kind](**chosen)


def drawn(n: int, dim: int = 0, *, shortest: int = 1, longest: int = 9) -> Sequences:
    """Rows of ``shortest`` to ``longest`` words out of 30; the first row has none."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, n)
    lengths[0] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(1, 30, offsets[-1]).astype(np.int32)
    return Sequences.of(tokens, offsets, 30, rng.standard_normal((n, dim)).astype(np.float32))


KINDS = ("lstm", "cnn")
FORMS: list[tuple[str, dict[str, Any], int]] = [
    ("lstm", {}, 0),
    ("lstm", {"layers": 2, "bidirectional": True, "embedding_activation": "tanh"}, 0),
    ("lstm", {"attention": "words"}, 0),
    ("lstm", {"attention": "image", "initial_state": "image", "bidirectional": True, "fusion": "none"}, 4),
    ("lstm", {"fusion": "product", "fusion_size": 8, "l2": True, "hidden_layer_sizes": (12,), "activation": "tanh"}, 4),
    ("cnn", {}, 0),
    ("cnn", {"filter_widths": 12, "hidden_layer_sizes": (12,), "batch_norm": True}, 0),
    ("cnn", {"fusion": "product"}, 4),
    ("cnn", {"fusion": "concat", "fusion_size": 8, "standardize": True}, 4),
]


@pytest.mark.parametrize(("kind", "changes", "dim"), FORMS)
def test_padding_and_neighbours_change_nothing(kind: str, changes: dict[str, Any], dim: int) -> None:
    x = drawn(40, dim)
    fitted_head = head(kind, **changes, epochs=2).fit(x, np.arange(40) % 3)
    together = fitted_head.predict_proba(x)
    alone = np.concatenate([fitted_head.predict_proba(x[row : row + 1]) for row in range(40)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    backwards = np.arange(40)[::-1]
    np.testing.assert_allclose(fitted_head.predict_proba(x[backwards]), together[backwards], atol=1e-5)
    assert np.isfinite(together).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_rows_are_learnt_by_heart(kind: str) -> None:
    x, y = drawn(50, shortest=4), np.random.default_rng(1).integers(0, 5, 50)
    fitted_head = head(kind, epochs=60).fit(x, y)
    assert fitted_head.score(x, y) == 1.0
    np.testing.assert_array_equal(fitted_head.predict_proba(x), head(kind, epochs=60).fit(x, y).predict_proba(x))


def test_last_states_are_those_of_the_last_word() -> None:
    x = drawn(12)
    network = head("lstm", layers=2, epochs=0).fit(x, np.arange(12) % 2).module_
    batch = SequenceInputs(x, CPU).batch(torch.arange(12))
    with torch.inference_mode():
        found = network.channel(network.words(batch.tokens), batch, batch.numbers)
        for row in range(1, 12):
            words = torch.from_numpy(x.tokens[x.offsets[row] : x.offsets[row + 1]])
            _, (hidden, cell) = network.channel.lstm(network.words(words[None]))
            assert torch.allclose(found[row], torch.cat([*hidden[:, 0], *cell[:, 0]]), atol=1e-6)


def test_filters_answer_to_windows_within_the_text() -> None:
    x = drawn(12)
    network = head("cnn", filter_widths=(3,), epochs=0).fit(x, np.arange(12) % 2).module_
    [convolution] = network.channel.convolutions
    batch = SequenceInputs(x, CPU).batch(torch.arange(12))
    with torch.inference_mode():
        found = network.channel(network.words(batch.tokens), batch, batch.numbers)
        for row in range(12):
            words = x.tokens[x.offsets[row] : x.offsets[row + 1]]
            vectors = network.words(torch.from_numpy(np.pad(words, (0, max(0, 3 - len(words))))))
            answers = [
                (convolution.weight * part.T).sum((1, 2)) + convolution.bias for part in vectors.unfold(0, 3, 1).mT
            ]
            assert torch.allclose(found[row], torch.stack(answers).amax(0).relu(), atol=1e-6)


@pytest.mark.parametrize("attention", ["words", "image"])
def test_attention_is_shared_among_real_words(attention: str) -> None:
    x = drawn(30, 4)
    fitted_head = head("lstm", attention=attention, epochs=1).fit(x, np.arange(30) % 3)
    weights = fitted_head.attention_weights(x)
    lengths = np.maximum(x.lengths, 1)
    assert weights.shape == (30, lengths.max())
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    outside = np.arange(weights.shape[1]) >= lengths[:, None]
    assert (weights[outside] == 0).all()
    assert (weights[~outside] > 0).all()
    with pytest.raises(UsageError, match="no attention"):
        head("lstm", epochs=1).fit(x, np.arange(30) % 3).attention_weights(x)


def test_an_epoch_has_every_row_once_in_batches_of_like_length() -> None:
    x = drawn(1000, longest=40)
    inputs = SequenceInputs(x, CPU)
    rows = torch.arange(0, 1000, 2)
    batches = list(inputs.epoch(rows, 32, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches].count(32) == len(batches) - 1 == 15
    assert torch.equal(torch.cat(batches).sort().values, rows)
    padded = sum(inputs.batch(batch).tokens.numel() for batch in batches)
    assert padded < 1.15 * x.lengths[::2].sum()
    again = list(inputs.epoch(rows, 32, torch.Generator().manual_seed(1)))
    assert not torch.equal(torch.cat(batches), torch.cat(again))
    firsts = [int(inputs.batch(batch).host_lengths[0]) for batch in batches]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_rows_are_chosen_as_an_arrays_are_and_share_its_memory() -> None:
    x = drawn(10, 3, shortest=3)
    some = x[np.array([4, 1, 7])][1:]
    assert some.tokens is x.tokens
    assert some.matrix is x.matrix
    np.testing.assert_array_equal(some.rows, [1, 7])
    np.testing.assert_array_equal(some.numbers(), x.matrix[[1, 7]])
    np.testing.assert_array_equal(x[x.lengths > 3].lengths, x.lengths[x.lengths > 3])
    batch = SequenceInputs(some, CPU, max_length=2).batch(torch.tensor([1, 0]))
    np.testing.assert_array_equal(batch.numbers, x.matrix[[7, 1]])
    np.testing.assert_array_equal(batch.tokens[0], x.tokens[x.offsets[7] :][:2])


def test_padded_ids_are_rows_too_and_scikit_learn_searches_both() -> None:
    x = drawn(60)
    inputs = SequenceInputs(x, CPU).batch(torch.arange(60)).tokens.numpy().astype(np.int64)
    padded = np.pad(inputs, ((0, 0), (0, 3)))
    y = np.array(["a", "b", "c"])[np.arange(60) % 3]
    own = head("cnn", epochs=3)
    np.testing.assert_allclose(clone(own).fit(padded, y).predict_proba(padded), clone(own).fit(x, y).predict_proba(x))
    assert len(cross_val_score(own, padded, y, cv=2)) == 2
    found = GridSearchCV(head("lstm", epochs=1), {"layers": [1, 2]}, cv=2).fit(x, y)
    assert set(found.predict(x)) <= set("abc")
    with pytest.raises(UsageError, match="whole numbers"):
        own.fit(padded.astype(float), y)


@pytest.mark.parametrize("kind", KINDS)
def test_several_labels_weights_and_early_stopping(kind: str) -> None:
    x = drawn(80, 3)
    lists = [x.tokens[x.offsets[row] : x.offsets[row + 1]] for row in range(80)]
    y = np.array([[(row < 10).any(), (row > 20).any()] for row in lists], int)
    fitted_head = head(kind, standardize=True, class_weight="balanced").fit(x, y, sample_weight=np.ones(80))
    assert (fitted_head.predict(x) == y).mean() > 0.95
    chance = np.random.default_rng(0).integers(0, 2, 80)
    stopped = head(kind, early_stopping=True, epochs=200, patience=2).fit(x, chance)
    assert stopped.n_iter_ < 200
    assert "validation_loss" in stopped.history_[0]
    longer = head(kind, epochs=2).fit(x, y).continue_fit(x, y, 1)
    assert [line["epoch"] for line in longer.history_] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "wrong", "match"),
    [
        ("lstm", {"attention": "word"}, "words"), ("lstm", {"initial_state": "image"}, "none"),
        ("lstm", {"hidden_size": 0}, "hidden_size"), ("lstm", {"fusion": "sum"}, "fusion"),
        ("cnn", {"filter_widths": ()}, "at least one"), ("cnn", {"filter_widths": (0,)}, "width"),
        ("cnn", {"freeze_embedding": True}, "vectors"), ("cnn", {"vectors": "no.txt"}, "words behind"),
        ("cnn", {"embedding_dropout": 1.0}, "embedding_dropout"), ("lstm", {"max_length": 0}, "max_length"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(kind: str, wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        head(kind, **wrong).fit(drawn(9), np.arange(9) % 2)


def test_other_rows_than_those_of_fit_are_refused() -> None:
    fitted_head = head("cnn", epochs=1).fit(drawn(20, 2), np.arange(20) % 2)
    with pytest.raises(UsageError, match="2 numbers beside"):
        fitted_head.predict(drawn(5))
    with pytest.raises(UsageError, match="knows 30 words"):
        fitted_head.predict(Sequences.from_padded([[40, 1]], np.zeros((1, 2))))


# ---------------------------------------------------------------------------------------------- through a cache


def run_of(cache: Path, kind: str, features: Sequence[str] | None = None, **changes: Any) -> FittedRun:
    fixed = {**SMALL[kind], "device": "cpu", **changes.pop("fixed", {})}
    [run] = fitted(cache, head=kind, features=features, fixed=fixed, validation=0, **changes)
    return run


def accuracy(run: FittedRun) -> float:
    return run.scored["test"].scores["accuracy"].value


@pytest.mark.parametrize("kind", KINDS)
def test_words_tell_a_half_and_words_with_images_all(tmp_path: Path, kind: str) -> None:
    described(tmp_path)
    alone = run_of(tmp_path, kind)
    assert alone.label == "words"
    assert 0.3 < accuracy(alone) < 0.7
    both = run_of(tmp_path, kind, ["my-image", "words"], fixed={"hidden_layer_sizes": [16]})
    assert accuracy(both) > max(0.8, accuracy(alone) + 0.2)
    assert both.parameters["standardize"] is True
    assert both.features.dims == (3, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ready_settings_are_of_these_heads(tmp_path: Path, kind: str) -> None:
    described(tmp_path)
    document = read_grid(find_grid(kind))
    [run] = fitted(tmp_path, **{**document, "fixed": {**document["fixed"], "batch_size": 8}}, validation=0)
    assert accuracy(run) == pytest.approx(0.5, abs=0.1)  # the other half is in the image


def test_a_product_with_a_search_and_folds(tmp_path: Path) -> None:
    described(tmp_path)
    run = run_of(
        tmp_path, "lstm", ["words", "my-image"], transform=["l2"], cv={"folds": 2},
        fixed={"fusion": "product", "fusion_size": 16, "epochs": 20},
        grid={"attention": ["none", "image"], "momentum": [0.5, 0.9]},
    )  # fmt: skip
    assert run.search is not None
    assert sum(row["same_fit_as"] == "" for row in run.search.rows) == 2
    assert run.parameters["l2"] is True
    assert accuracy(run) > 0.9


def test_saved_heads_are_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    described(tmp_path / "cache")
    runs = [run_of(tmp_path / "cache", "cnn"), run_of(tmp_path / "cache", "lstm", ["words", "my-image"])]
    for run in runs:
        run.head.save(tmp_path / run.head.head)
    code = f"""
import json
from pathlib import Path
import embedcache as ec
from heads.predict import predict_dataset
from heads.saved import FittedHead
data = ec.open({str(tmp_path / "cache")!r})["tiny"]
heads = [FittedHead.load(Path({str(tmp_path)!r}) / name) for name in ("cnn", "lstm")]
found = [predict_dataset(head, data, "test") for head in heads]
print(json.dumps([[list(one.ids), one.probabilities.tolist()] for one in found]))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for run, (ids, probabilities) in zip(runs, json.loads(done.stdout), strict=True):
        assert ids == list(run.scored["test"].ids)
        np.testing.assert_array_equal(probabilities, run.scored["test"].probabilities)


@pytest.mark.parametrize("kind", KINDS)
def test_new_texts_get_the_ids_of_the_same_vocabulary(tmp_path: Path, kind: str) -> None:
    described(tmp_path)
    run = run_of(tmp_path, kind)
    run.head.save(tmp_path / "head")
    loaded = FittedHead.load(tmp_path / "head")
    found = predict_items(loaded, texts=["so so red 1", "never seen words blue", "  "])
    assert found.ids == ("so so red 1", "never seen words blue")
    assert found.failures == {"text 3": "the text is empty"}
    data = ec.open(tmp_path)["tiny"]
    split = predict_dataset(loaded, data, "test")
    np.testing.assert_allclose(split.probabilities, run.scored["test"].probabilities, atol=1e-6)
    assert {"<pad>", "<unk>", "red", "blue"} < set(loaded.vocabulary)
    texts = data.table.items["text"]["text"].to_pylist()
    own = [texts[int(name[1:])] for name in split.ids]
    np.testing.assert_allclose(predict_items(loaded, texts=own).probabilities, split.probabilities, atol=1e-6)


def test_a_sample_without_words_is_filled_for_a_submission(tmp_path: Path) -> None:
    described(tmp_path, blank=11)
    run = run_of(tmp_path, "lstm", ["words", "my-image"])
    data = ec.open(tmp_path)["tiny"]
    assert predict_dataset(run.head, data, "test").failures == {"s011": "it lacks features"}
    found = predict_dataset(run.head, data, "test", fill=True)
    assert found.filled == {"s011": "no words"}
    assert list(found.ids) == [f"s{row:03d}" for row in range(72) if row % 12 >= 8]
    without = np.delete(found.probabilities, found.ids.index("s011"), 0)
    np.testing.assert_allclose(without, run.scored["test"].probabilities, atol=1e-5)
    image = data.features("my-image")
    vector = image.take(image.ids == "s011").matrix()
    alone = Sequences.of(np.zeros(0, np.int32), np.zeros(2, np.int64), 1, vector)
    expected = run.head.predict_proba(alone)[0]
    np.testing.assert_allclose(found.probabilities[found.ids.index("s011")], expected, atol=1e-5)


def test_words_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    folder = described(tmp_path)
    with pytest.raises(UsageError, match="reads one set of word ids"):
        prepared(tmp_path, head="cnn", features=["my-image"])
    with pytest.raises(UsageError, match="standardize, l2"):
        prepared(tmp_path, head="cnn", transform=["pca"])
    with pytest.raises(UsageError, match="not vectors"):
        prepared(tmp_path, head="logistic", features=["words"])
    add_words(folder, ["RED BLUE"], lowercase=True)
    with pytest.raises(UsageError, match="several sets of word ids"):
        prepared(tmp_path, head="lstm")
    for path in folder.path.glob("text.words.*.h5"):
        path.unlink()
    with pytest.raises(MissingFeaturesError, match="--backbone words"):
        prepared(tmp_path, head="lstm")


def test_several_texts_are_taken_first_or_each(tmp_path: Path) -> None:
    texts = [[f"red {row}", "so red"] if row % 2 else [f"blue {row}", "so blue"] for row in range(48)]
    labels = {"label": ["jay" if row % 2 else "owl" for row in range(48)]}
    folder = described(tmp_path, n=48, texts=texts, targets=labels)
    (folder.path / "text.words.0.h5").unlink()
    add_words(folder, sorted({text for row in texts for text in row}))
    with pytest.raises(UsageError, match="cannot be averaged"):
        prepared(tmp_path, head="cnn")
    for captions in ("first", "each"):
        run = run_of(tmp_path, "cnn", select={"captions": captions})
        assert accuracy(run) == 1.0
        assert len(run.scored["test"].ids) == 16


# ------------------------------------------------------------------------------------------------- pretrained vectors


def test_embeddings_begin_with_pretrained_vectors(tmp_path: Path) -> None:
    described(tmp_path)
    glove = tmp_path / "glove.txt"
    glove.write_text("red 1 0 0\nblue 0 1 0\nso 0 0 1\n")
    frozen = run_of(tmp_path, "cnn", fixed={"vectors": str(glove), "freeze_embedding": True, "epochs": 3})
    trained = run_of(tmp_path, "cnn", fixed={"vectors": str(glove), "epochs": 3})
    at = frozen.head.vocabulary.index("red")
    weights = [run.head.estimator[-1].module_.words.embedding.weight[at].tolist() for run in (frozen, trained)]
    assert weights[0] == [1, 0, 0]
    assert weights[1] != [1, 0, 0]
    frozen.head.save(tmp_path / "head")
    glove.unlink()
    again = FittedHead.load(tmp_path / "head")
    assert predict_items(again, texts=["red"]).probabilities.shape == (1, 4)


def test_real_questions_with_and_without_glove(tmp_path: Path, shared_data: Path) -> None:
    """Few epochs on ten of 77 classes; rows of the others count as wrong: about 0.13 at best, 0.013 by a guess."""
    columns = {"text": "text", "label": "category"}
    rows = (shared_data / "banking77" / "train.csv", shared_data / "banking77" / "test.csv")
    folder = tmp_path / "data"
    folder.mkdir()
    for path in rows:
        (folder / path.name).write_bytes(path.read_bytes())
    settings = BackboneSettings(lowercase=True, min_count=2)
    ec.extract("table", folder, backbones=["words"], cache=tmp_path / "c", settings=settings, name="bank", **columns)
    for fixed in ({}, {"vectors": str(next((shared_data / "glove").glob("*.txt")))}):
        run = run_of(
            tmp_path / "c", "cnn", select={"limit": 1500, "top_classes": 10},
            fixed={"epochs": 6, "filters": 24, "learning_rate": 0.005, **fixed},
        )  # fmt: skip
        assert accuracy(run) > 0.05
