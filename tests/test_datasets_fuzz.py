"""Any bytes in the files of a data set: a table, or an error of ours; never another error, never a hang."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache.datasets import open_dataset
from embedcache.errors import EmbedCacheError

LINES = st.lists(
    st.lists(
        st.sampled_from(["1", "2", "a.jpg", "a/b.jpg", "../x.jpg", "/etc/passwd", "0", "", "é", "\ufeff"]), max_size=4
    ),
    max_size=4,
).map(lambda rows: "\n".join(" ".join(row) for row in rows).encode())
CSV = st.lists(
    st.lists(st.sampled_from(["text", "label", "a", '"', '""', 'b"c', "", "\r", "\n", "é", "1e9"]), max_size=4),
    max_size=5,
).map(lambda rows: "\n".join(",".join(row) for row in rows).encode())
JSON = st.lists(
    st.sampled_from(
        ["{", "}", '"text"', ":", ",", "[", "]", "null", "1", '"label"', "\n", '{"text": "a", "label": "b"}\n']
    )
).map(lambda parts: "".join(parts).encode())
FILES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cub": (
        "cub",
        dict.fromkeys(("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"), LINES)
        | {"text_c10/a.txt": LINES, "text_c10/a/b.txt": LINES},
        {},
    ),
    "csv": ("table", {"train.csv": CSV}, {"text": "text", "label": "label"}),
    "tsv": ("table", {"any.tsv": CSV}, {"text": ["text", "label"], "image": "text"}),
    "jsonl": ("table", {"train.jsonl": JSON, "test.jsonl": JSON}, {"text": "text", "label": "label"}),
    "parquet": ("table", {"any.parquet": st.just(b"PAR1")}, {"text": "text"}),
    "csv.gz": ("table", {"train.csv.gz": CSV}, {"text": "text"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_bytes_are_a_table_or_an_error_of_ours(kind: str) -> None:
    adapter, files, options = FILES[kind]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.fixed_dictionaries({name: content | st.binary(max_size=60) for name, content in files.items()}))
    def read(contents: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in contents.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            with suppress(EmbedCacheError):
                table = open_dataset(adapter, [Path(folder)], options).read()
                assert table.samples.num_rows == len(table.samples["id"].unique())

    read()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_names_of_folders_and_images_are_a_table_or_an_error_of_ours(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            with suppress(OSError):
                (Path(folder) / name).mkdir()
                (Path(folder) / name / f"{name[:9]}.jpg").write_bytes(b"x")
        with suppress(EmbedCacheError):
            assert open_dataset("folder", [Path(folder)], {}).read().samples.num_rows <= len(names)
