"""The schema of a grid file: what it takes, what it refuses, in which words."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import DataNotFoundError, UsageError
from heads import config
from heads.config import HeadConfig, feature_sets, find_grid, override, parse, plain_yaml, read_grid, to_yaml
from heads.grid import candidates
from heads.sklearn_mlp import SklearnMlp
from heads.table import is_table, parse_table


def grid_file(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_document_is_a_logistic_head_on_everything() -> None:
    found = parse({})
    assert (found.head, found.dataset, found.features, found.cv) == ("logistic", None, None, None)
    assert found.transform == ["standardize"]
    assert not found.searches


@pytest.mark.parametrize(
    ("document", "path", "near"),
    [
        ({"haed": "logistic"}, "haed", "head"),
        ({"cv": {"fold": 3}}, "cv.fold", "folds"),
        ({"select": {"caption": "mean"}}, "select.caption", "captions"),
        ({"gird": {"C": [1]}}, "gird", "grid"),
    ],
)
def test_unknown_keys_are_refused_by_path_with_the_nearest(document: dict[str, Any], path: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key '{path}'. Did you mean '{near}'") as refused:
        parse(document, "mine.yaml")
    assert str(refused.value).startswith("mine.yaml: ")


def test_an_unknown_key_that_is_near_nothing_lists_the_known() -> None:
    with pytest.raises(UsageError, match="unknown key 'cv.zzz'. Known: folds, seed"):
        parse({"cv": {"zzz": 1}})


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(UsageError, match="'haed'.*'sed'"):
        parse({"haed": 1, "sed": 2})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"cv": {"folds": 1}}, "cv.folds: .*greater than or equal to 2, got 1"),
        ({"cv": 5}, "cv: "),
        ({"validation": 1.0}, "validation: .*less than 1, got 1.0"),
        ({"validation": True}, "validation: .*a count of rows, or a share .*, got True"),
        ({"test": -1}, "test: .*a count of rows, .* got -1"),
        ({"test": 0.0}, "test: .*greater than 0 .*got 0.0"),
        ({"splits": "random"}, "splits: .*'published' or 'carve'"),
        ({"select": {"top_classes": 1}}, "select.top_classes: .*greater than or equal to 2"),
        ({"select": {"filter": {"answer": {"from": "1"}}}}, "answer: a range is written"),
        ({"select": {"filter": {"answer": {"above": 1}}}}, "answer: a range is written"),
        ({"select": {"filter": {"answer": {}}}}, "answer: a range is written"),
        ({"select": {"filter": {"answer": {"from": 3, "to": 1}}}}, "no number is from 3 to 1"),
        ({"fusion": "sum"}, "fusion.kind: .*'concat'"),
        ({"search": "best"}, "search: .*'grid'"),
        ({"select": {"captions": "all"}}, "select.captions: .*'mean', 'first' or 'each'"),
        ({"select": {"limit": 0}}, "select.limit: "),
        ({"jobs": 0}, "jobs: "),
        ({"grid": {"C": 1.0}}, r": grid: C: expected a list .* or a range \{low: 1, high: 100\}, got \{'C': 1.0\}\.$"),
        ({"grid": [{"C": [1]}, {"tol": None}]}, r": grid: tol: expected a list of values to try"),
        ({"grid": "C"}, ": grid: expected parameters, each with a list of values to try"),
        ({"grid": {"C": {"low": 3, "high": 1}}}, "grid: C: a range is from a number to a greater one, not from 3 to 1"),
        ({"grid": {"C": {"low": 1, "hig": 3}}}, "grid: C: high: is missing.*unknown key 'hig'. Did you mean 'high'"),
        ({"grid": {"C": {"low": "a", "high": 3}}}, "grid: C: low: expected a whole number or a number, got 'a'"),
        ({"transform": 3}, ": transform: a step is a name or one 'name: argument': standardize, l2, pca, got 3"),
        ({"transform": {"a": [3]}}, ": transform: a step is a name"),
        ({"score": 3}, ": score: expected a text or a list, got 3"),
        ({"fusion": {"l2": 3}}, ": fusion.l2: expected true or false or a list, got 3"),
        ({"fixed": 3}, ": fixed: expected keys with values, got 3"),
        ({"grid": {"C": []}}, "C has no values to try"),
        ({"grid": [{"C": [1]}, {"tol": []}]}, "tol has no values to try"),
        ({"fixed": {"C": 1}, "grid": {"C": [1]}}, "C stands under both 'fixed' and 'grid'"),
        ({"fixed": {"C": 1}, "grid": [{"tol": [1]}, {"C": [1]}]}, "C stands under both"),
        ({"features": []}, "features: expected names"),
        ({"features": 3}, "features: expected names"),
        ({"features": [["a"], []]}, "features: an inner list has no names"),
        ({"features": "a,,b"}, "features: 'a,,b' has an empty name between its commas"),
        ({"features": [None]}, "features: a feature set has no name"),
    ],
)
def test_wrong_values_are_refused_by_path(document: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(document)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("l2", ["l2"]),
        ({"pca": 128}, [{"pca": 128}]),
        (["l2", {"pca": 3}], ["l2", {"pca": 3}]),
        (None, []),
        ("none", []),
        ({"vit": "l2", "bert": None, "clip": {"pca": 3}}, {"vit": ["l2"], "bert": [], "clip": [{"pca": 3}]}),
    ],
)
def test_one_step_of_a_transform_needs_no_list(given: Any, expected: Any) -> None:
    assert parse({"transform": given}).transform == expected
    assert parse({"grid": {"transform": [given]}}).axis("transform") == [expected]


def test_empty_sections_mean_nothing_stated() -> None:
    document = plain_yaml("fixed:\ngrid:\nselect:\ncv:\n")
    assert parse(document) == parse({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", [["a"]]),
        ("a,b", [["a", "b"]]),
        ("a, b", [["a", "b"]]),
        (["a", "b"], [["a", "b"]]),
        (["a,b", "c"], [["a", "b", "c"]]),
        ([["a"], ["b"], ["a", "b"]], [["a"], ["b"], ["a", "b"]]),
        ([["a,b"], "c"], [["a", "b"], ["c"]]),
        ({"backbone": "r", "lowercase": True}, [[{"backbone": "r", "lowercase": True}]]),
        (["a", {"backbone": "r"}], [["a", {"backbone": "r"}]]),
        ([["a"], [{"backbone": "r"}]], [["a"], [{"backbone": "r"}]]),
    ],
)
def test_inner_lists_fuse_and_outer_lists_compare(given: Any, expected: Any) -> None:
    assert feature_sets(given) == expected
    assert parse({"features": given}).features == expected


def test_set_puts_values_over_the_document() -> None:
    document = {"head": "logistic", "fixed": {"C": 1.0, "tol": 0.1}}
    found = override(
        document,
        [
            "features=a,b",
            "fixed.C=10",
            "cv.folds=3",
            "select.filter.colour=red",
            "grid={alpha: [1, 2]}",
            "select.limit=",
        ],
    )
    assert found == {
        "head": "logistic",
        "features": "a,b",
        "fixed": {"C": 10, "tol": 0.1},
        "cv": {"folds": 3},
        "select": {"filter": {"colour": "red"}, "limit": None},
        "grid": {"alpha": [1, 2]},
    }
    assert document == {"head": "logistic", "fixed": {"C": 1.0, "tol": 0.1}}
    assert parse(found).features == [["a", "b"]]


def test_set_takes_lists_and_the_value_may_hold_an_equals_sign() -> None:
    assert override({}, ["features=[[a], [a, b]]"]) == {"features": [["a"], ["a", "b"]]}
    assert override({}, ["dataset=a=b"]) == {"dataset": "a=b"}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("features", "takes key=value, got 'features'"),
        ("=3", "takes key=value"),
        ("head.name=x", "'head' holds a value, not keys"),
        ("seed=[1", "the value is not plain YAML"),
        ("seed=!!python/name:os.system x", "the value is not plain YAML"),
        ("seed=2024-13-45", "the value is not plain YAML"),
    ],
)
def test_set_refuses_what_it_cannot_read(assignment: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        override({"head": "logistic"}, [assignment])


def test_a_grid_file_of_the_working_folder_comes_before_a_ready_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_grid("mlp.yaml") == config.GRIDS / "mlp.yaml"
    assert find_grid("mlp") == config.GRIDS / "mlp.yaml"
    (tmp_path / "mlp.yaml").write_text("head: logistic\n")
    assert find_grid("mlp.yaml").read_text() == "head: logistic\n"
    with pytest.raises(DataNotFoundError, match=r"no grid file nothing\.yaml.*logistic\.yaml, .*mlp\.yaml"):
        find_grid("nothing.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "head: !!python/object/apply:os.system ['touch canary']",
        "head: !mine x",
        "a: [1",
        "when: 2024-13-45",
        "n: !!int abc",
        "a: *nowhere",
        "{[1]: 2}",
        "[" * 5000,
    ],
)
def test_only_plain_yaml_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"grid\.yaml is not plain YAML"):
        read_grid(grid_file(tmp_path, text))
    assert not (tmp_path / "canary").exists()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(b"head: \xff\xfe")
    with pytest.raises(UsageError, match="is not plain YAML"):
        read_grid(path)


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "list"), ("hello", "str"), ("3", "int")])
def test_a_grid_file_is_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"holds a {kind}; a grid file is a mapping"):
        read_grid(grid_file(tmp_path, text))


def test_an_empty_grid_file_states_nothing(tmp_path: Path) -> None:
    assert read_grid(grid_file(tmp_path, "# only a comment\n")) == {}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "1.e-3", "+1e-3", "0.001"])
def test_exponents_are_numbers(text: str) -> None:
    assert plain_yaml(text) == 0.001


def test_names_that_resemble_numbers_stay_names() -> None:
    assert plain_yaml("[e5, 1e, '1e3', vit-1e3, 3f9c2ab41d07]") == ["e5", "1e", "1e3", "vit-1e3", "3f9c2ab41d07"]


def test_the_ready_mlp_grid_holds_the_best_point_of_the_cub_report() -> None:
    found = parse(read_grid(config.GRIDS / "mlp.yaml"))
    points = candidates(SklearnMlp(), found.fixed, found.grid).points
    best = {
        "activation": "tanh",
        "alpha": 0.05,
        "hidden_layer_sizes": (1000, 500),
        "learning_rate": "adaptive",
        "solver": "adam",
        "max_iter": 20,
    }
    stated = [{**found.fixed, **point} for point in points]
    tuples = [{**one, "hidden_layer_sizes": tuple(one["hidden_layer_sizes"])} for one in stated]
    assert best in tuples
    assert found.head == "sklearn-mlp"
    assert found.features is None


@pytest.mark.parametrize("path", sorted(config.GRIDS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_ready_grid_is_in_the_schema(path: Path) -> None:
    document = read_grid(path)
    if is_table(document):
        assert parse_table(document, where=path.name).configs
    else:
        found = parse(document)
        assert found.searches or found.fixed


def test_only_true_and_false_are_booleans() -> None:
    found = plain_yaml("[yes, No, on, OFF, y, n, true, False, TRUE]")
    assert found == ["yes", "No", "on", "OFF", "y", "n", True, False, True]
    assert parse(override({}, ["select.filter.answer=[yes, no]"])).select.filter == {"answer": ["yes", "no"]}
    assert plain_yaml(to_yaml(parse({"fixed": {"a": ["yes", "true", True]}})))["fixed"] == {"a": ["yes", "true", True]}


def test_a_part_is_a_share_or_a_count() -> None:
    found = parse({"validation": 250, "test": 0.25})
    assert (found.validation, type(found.validation), found.test) == (250, int, 0.25)
    assert (parse({"validation": 0, "test": 0}).validation, parse({}).test) == (0, None)


def test_a_configuration_is_written_as_it_is_read() -> None:
    found = parse({
        "dataset": "1e3",
        "features": [["a", {"backbone": "r", "lowercase": True}]],
        "fixed": {"class_weight": None, "hidden_layer_sizes": (10, 5), "tol": np.float64(1e-5), "n": np.int64(7)},
        "grid": [{"C": [float("inf"), 1e-7]}, {"penalty": [None, "l2"]}],
        "select": {"filter": {"split": None, "taken": [datetime.date(2024, 1, 2)], "name": ["1e3", "yes", "ü"]}},
    })  # fmt: skip
    again = parse(plain_yaml(to_yaml(found)))
    assert again.fixed.pop("hidden_layer_sizes") == list(found.fixed.pop("hidden_layer_sizes"))
    assert again == found


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=12)
"""Without the line ends that PyYAML folds into blanks when it writes them (yaml/pyyaml, emitter.analyze_scalar)."""
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates() | st.binary(max_size=4)
known = st.sampled_from([*HeadConfig.model_fields, "folds", "captions", "filter", "limit", "a", 3, None])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(known | texts, inner, max_size=4),
    max_leaves=12,
)


def parsed_or_none(document: Any) -> HeadConfig | None:
    try:
        return parse(document)
    except UsageError:
        return None


@given(st.dictionaries(known | texts, values, max_size=5))
@settings(deadline=None)
def test_any_document_parses_or_is_wrong_use(document: dict[Any, Any]) -> None:
    found = parsed_or_none(document)
    assert found is None or found.features is None or all(found.features)


@given(st.dictionaries(texts, values, max_size=5))
@settings(deadline=None, max_examples=50)
def test_any_plain_values_are_written_as_they_are_read(document: dict[Any, Any]) -> None:
    found = parse({"fixed": document})
    assert repr(parse(plain_yaml(to_yaml(found)))) == repr(found)


@given(st.text(max_size=60) | st.text("{}[]:,-&*!?|>'\"%@` \n#0123456789ae.", max_size=40))
@settings(deadline=None)
def test_any_text_is_read_or_is_a_value_error(text: str) -> None:
    try:
        found = plain_yaml(text)
    except ValueError:
        return
    parsed_or_none(found if isinstance(found, dict) else {"fixed": found})


@given(st.lists(st.text(max_size=12), max_size=3))
@settings(deadline=None)
def test_any_assignment_is_put_in_or_is_wrong_use(assignments: list[str]) -> None:
    before = {"select": {"limit": 3}, "head": "logistic"}
    try:
        found = override(before, assignments)
    except UsageError:
        return
    assert set(found) >= {"select", "head"}
    assert before == {"select": {"limit": 3}, "head": "logistic"}
