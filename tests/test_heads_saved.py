"""A fitted head on disk: the same numbers in another process, no pickle, and no code of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import skops.io
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline

from embedcache.errors import DamagedFileError, EmbedCacheError, UsageError
from heads.fit import FittedRun
from heads.saved import FittedHead
from tests.heads_helpers import add_features, captioned, fitted, image_name, prepared, separable

MLP = {"head": "sklearn-mlp", "fixed": {"max_iter": 5, "hidden_layer_sizes": [6, 4]}}
CASES: dict[str, dict[str, Any]] = {
    "logistic": {},
    "balanced": {"fixed": {"class_weight": "balanced"}},
    "mlp": MLP,
    "mlp that stops early": {"head": "sklearn-mlp", "fixed": {"max_iter": 5, "early_stopping": True}},
    "mlp by sgd": {"head": "sklearn-mlp", "fixed": {"max_iter": 5, "solver": "sgd", "learning_rate": "adaptive"}},
    "mlp by lbfgs": {"head": "sklearn-mlp", "fixed": {"max_iter": 5, "solver": "lbfgs"}},
    "no transform": {"transform": []},
    "all transforms": {"transform": ["standardize", {"pca": 2}, "l2"]},
    "by feature set": {"transform": {"my-image": ["standardize", {"pca": 1}]}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_head_read_back_gives_the_same_probabilities_and_holds_no_pickle(tmp_path: Path, case: str) -> None:
    captioned(tmp_path)
    document = {"features": "my-image,my-text", **CASES[case]}
    (run,) = fitted(tmp_path, **document)
    run.head.save(tmp_path / "head")
    again = FittedHead.load(tmp_path / "head")
    x = run.features.matrix(np.float32)
    assert (again.predict_proba(x) == run.head.predict_proba(x)).all()
    assert (again.predict(x) == run.head.predict(x)).all()
    assert vars(again).keys() == vars(run.head).keys()
    assert all(vars(again)[name] == vars(run.head)[name] for name in vars(again) if name != "estimator")
    assert_no_pickle(tmp_path / "head")


def assert_no_pickle(folder: Path) -> None:
    """Only JSON and arrays of plain numbers; numpy itself refuses to unpickle what is not."""
    assert sorted(path.name for path in folder.iterdir()) == ["estimator.skops", "head.json"]
    with zipfile.ZipFile(folder / "estimator.skops") as archive:
        names = archive.namelist()
        assert "schema.json" in names
        assert {Path(name).suffix for name in names} <= {".json", ".npy"}
        for name in names:
            data = archive.read(name)
            if name.endswith(".npy"):
                np.load(io.BytesIO(data), allow_pickle=False)
            else:
                json.loads(data)
                assert b"pickle" not in data


PROBE = """
import sys
from pathlib import Path
import numpy as np
from heads.saved import FittedHead
head = FittedHead.load(Path(sys.argv[1]))
np.save(sys.argv[3], head.predict_proba(np.load(sys.argv[2])))
heavy = {"timm", "transformers", "sentence_transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_fresh_interpreter_gives_the_same_probabilities_without_a_backbone_library(tmp_path: Path) -> None:
    separable(tmp_path, noise=2.0)
    (run,) = fitted(tmp_path, **MLP)
    run.head.save(tmp_path / "head")
    x = run.features.matrix(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("head", "x.npy", "p.npy")]
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", PROBE, *arguments], check=True, cwd=root)
    assert np.load(tmp_path / "p.npy") == pytest.approx(run.head.predict_proba(x), abs=1e-6)


class Canary(ClassifierMixin, BaseEstimator):
    """An estimator from elsewhere. Whatever would wake it up sings."""

    sung: ClassVar[list[str]] = []

    def fit(self, x: Any, y: Any) -> Canary:
        self.classes_ = np.unique(y)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        Canary.sung.append("setstate")
        super().__setstate__(state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        Canary.sung.append("reduce")
        return super().__reduce_ex__(protocol)


def saved_run(cache: Path) -> FittedRun:
    separable(cache)
    (run,) = fitted(cache)
    run.head.save(cache / "head")
    return run


def with_canary(head: FittedHead) -> FittedHead:
    estimator = Pipeline([("head", Canary().fit(np.zeros((2, 1)), [0, 1]))])
    return FittedHead(**{**vars(head), "estimator": estimator})


def test_an_estimator_from_elsewhere_is_refused_at_save(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    with pytest.raises(EmbedCacheError, match=r"types that are not safe to load: .*Canary"):
        with_canary(run.head).save(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_an_estimator_from_elsewhere_is_refused_at_load_before_it_is_made(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    skops.io.dump(with_canary(run.head).estimator, tmp_path / "head" / "estimator.skops")
    Canary.sung.clear()
    with pytest.raises(DamagedFileError, match="types that are not safe to load; it is refused.*Canary"):
        FittedHead.load(tmp_path / "head")
    assert Canary.sung == []
    skops.io.load(tmp_path / "head" / "estimator.skops", trusted=[f"{Canary.__module__}.Canary"])
    assert Canary.sung != []


def test_a_schema_that_names_a_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "head" / "estimator.skops"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts["schema.json"])
    hostile = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "__id__": 999999,
        "content": {"module_path": "os", "function": "system"},
    }
    schema["content"]["content"]["steps"] = hostile
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, json.dumps(schema) if name == "schema.json" else data)
    with pytest.raises(DamagedFileError, match="os.system"):
        FittedHead.load(tmp_path / "head")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("estimator.skops", lambda data: data[: len(data) // 2]),
        ("estimator.skops", lambda data: b""),
        ("estimator.skops", lambda data: b"no zip at all"),
        ("estimator.skops", lambda data: data.replace(b'"__loader__"', b'"__laoder__"')),
        ("head.json", lambda data: data[:20]),
        ("head.json", lambda data: b"[]"),
        ("head.json", lambda data: b"3"),
        ("head.json", lambda data: data.replace(b'"classes"', b'"klasses"')),
        ("head.json", lambda data: data.replace(b'"fingerprint"', b'"f"')),
        ("head.json", lambda data: data.replace(b'"format": 1', b'"format": 99')),
        ("head.json", lambda data: None),
        ("estimator.skops", lambda data: None),
    ],
)
def test_a_damaged_head_is_refused_in_words(tmp_path: Path, file: str, damage: Any) -> None:
    saved_run(tmp_path)
    path = tmp_path / "head" / file
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=r"head holds|holds no head|head of another format"):
        FittedHead.load(tmp_path / "head")


def test_other_fingerprints_are_refused_by_name(tmp_path: Path) -> None:
    folder = separable(tmp_path)
    (run,) = fitted(tmp_path)
    run.head.check(run.features)
    vectors = {image_name(row): [float(row)] * 4 for row in range(60)}
    add_features(folder, "image", vectors, weights="b", settings={"image_size": 96})
    other = prepared(tmp_path, features={"backbone": "my-image", "image_size": 96}).sets[0]
    own, given = run.head.features[0].fingerprint, other.sets[0].file.fingerprint
    assert own != given
    with pytest.raises(UsageError, match=f"fitted on my-image@{own} and is given my-image@{given}"):
        run.head.check(other)


def test_the_order_of_feature_sets_is_part_of_what_a_head_is_bound_to(tmp_path: Path) -> None:
    captioned(tmp_path)
    (run,) = fitted(tmp_path, features="my-image,my-text")
    turned = prepared(tmp_path, features="my-text,my-image").sets[0]
    with pytest.raises(UsageError, match=r"fitted on my-image@\w+ \+ my-text@\w+ and is given my-text@"):
        run.head.check(turned)


def test_two_encoders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = separable(tmp_path)
    add_features(folder, "image", {image_name(row): [float(row)] for row in range(60)}, weights="b")
    (run,) = fitted(tmp_path)
    assert [one.name for one in run.head.features] == [f"my-image@{one.fingerprint}" for one in run.head.features]
    run.head.check(run.features)
    alone = prepared(tmp_path, features=run.head.features[0].name).sets[0]
    with pytest.raises(UsageError, match=r"fitted on my-image@\w+ \+ my-image@\w+ and is given my-image@\w+:"):
        run.head.check(alone)


def test_what_only_training_needed_is_not_kept(tmp_path: Path) -> None:
    separable(tmp_path)
    (run,) = fitted(tmp_path, **MLP)
    assert not {"_optimizer", "_random_state"} & set(vars(run.head.estimator[-1]))
