"""Tiny data sets with several labels a sample, in the layouts in which they are published.

Images are not images: their bytes are their names, which is what the fake backbones read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcache.samples import SampleTable

TRAIN_ROWS = (
    "0.jpg,1,Woman in swim suit holding parasol on sunny day.",
    "1.jpg,1 19,A couple of men riding horses on top of a green field.",
    '2.jpg,3 1 10,"A red bus, a car and a "stop" sign."',
    "3.jpg,8,Two cats",
)
TEST_ROWS = (
    "30000.jpg,A little girl waring a white dress standing in tall grass.",
    '30001.jpg,"A dog, asleep"',
)


def write_comp5329(
    folder: Path,
    train: Sequence[str] | None = TRAIN_ROWS,
    test: Sequence[str] | None = TEST_ROWS,
    *,
    end: str = "\n",
    column: str = "",
    images: str | None = "data",
) -> Path:
    """``train.csv`` and ``test.csv``. end: of each line. column: what stands after every row, and after the header."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, header, rows in (("train", "ImageID,Labels,Caption", train), ("test", "ImageID,Caption", test)):
        if rows is not None:
            text = "".join(f"{line}{column}{end}" for line in (header, *rows))
            (folder / f"{name}.csv").write_bytes(text.encode())
    if images is not None:
        write_images(folder / images, [row.partition(",")[0] for row in (*(train or ()), *(test or ()))])
    return folder


CATEGORIES = {1: ("person", "person"), 17: ("cat", "animal"), 18: ("dog", "animal"), 25: ("giraffe", "animal")}
CAPTIONED = {7: ["A cat. ", "One cat\nasleep"], 9: ["A dog"], 2: ["Nobody"]}
"""Captions by image id."""
OBJECTS = {7: [17, 1, 17], 9: [18]}
"""Categories of the objects by image id."""


def coco_images(ids: Sequence[int]) -> list[dict[str, Any]]:
    """The list of images, as COCO has it."""
    return [{"id": image, "file_name": f"{image:012d}.jpg", "license": 1, "height": 4, "width": 4} for image in ids]


def captions_document(captions: Mapping[int, Sequence[str]] = CAPTIONED) -> dict[str, Any]:
    """What ``captions_*.json`` holds; annotations lie in the file in falling order of their ids."""
    flat = [(image, text) for image, texts in captions.items() for text in texts]
    annotations = [{"image_id": image, "id": number, "caption": text} for number, (image, text) in enumerate(flat, 1)]
    return {"info": {"year": 2017}, "images": coco_images(list(captions)), "annotations": annotations[::-1]}


def instances_document(
    objects: Mapping[int, Sequence[int]] = OBJECTS, ids: Sequence[int] = tuple(CAPTIONED)
) -> dict[str, Any]:
    """What ``instances_*.json`` holds; each image's last object is a crowd."""
    annotations = [
        {"id": 100 * image + number, "image_id": image, "category_id": category, "bbox": [0.5, 1, 2, 2],
         "segmentation": [[1, 2, 3, 4]], "iscrowd": int(number == len(found) - 1)}
        for image, found in objects.items()
        for number, category in enumerate(found)
    ]  # fmt: skip
    categories = [{"id": key, "name": name, "supercategory": above} for key, (name, above) in CATEGORIES.items()]
    return {"images": coco_images(ids), "annotations": annotations, "categories": categories}


def write_json(path: Path, document: Any) -> Path:
    """One JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_coco(root: Path) -> Path:
    """COCO 2017 as it unpacks: two splits with captions and objects, a test set with a list of images only."""
    for split, captions, objects in (("train2017", CAPTIONED, OBJECTS), ("val2017", {3: ["A giraffe"]}, {3: [25]})):
        write_json(root / "annotations" / f"captions_{split}.json", captions_document(captions))
        write_json(root / "annotations" / f"instances_{split}.json", instances_document(objects, tuple(captions)))
        write_images(root / split, [f"{image:012d}.jpg" for image in captions])
    write_json(root / "annotations" / "image_info_test2017.json", {"images": coco_images([1]), "categories": []})
    write_images(root / "test2017", [f"{1:012d}.jpg"])
    return root


def write_images(folder: Path, names: Sequence[str]) -> None:
    """A file per name, with the name for its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


def texts_of(table: SampleTable) -> list[list[str]]:
    """Each sample's texts."""
    known = dict(zip(table.items["text"]["id"].to_pylist(), table.items["text"]["text"].to_pylist(), strict=True))
    return [[known[item] for item in items or ()] for items in table.samples["texts"].to_pylist()]


HF_FEATURES = {
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["red", "green", "blue"], "_type": "ClassLabel"}, "length": -1, "_type": "Sequence"},
}
HF_ROWS = {
    "train": [
        (b"one", "A cat", ["c1", "c2"], 0, [2, 0]),
        (b"two", "A dog", [], 1, []),
        (b"three", "", ["c1"], 0, None),
    ],
    "test": [(b"four", "Another", ["c3"], -1, [1])],
}


def hf_table(rows: Sequence[tuple[Any, ...]], features: Mapping[str, Any] = HF_FEATURES) -> pa.Table:
    """Rows as ``datasets`` stores them: images as bytes and path, classes as numbers, features in the schema."""
    types = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "caption": pa.string(),
        "captions": pa.list_(pa.string()),
        "label": pa.int64(),
        "tags": pa.list_(pa.int64()),
    }
    columns = list(zip(*rows, strict=True)) if rows else [[]] * len(types)
    images = [None if content is None else {"bytes": content, "path": f"{content!r}.jpg"} for content in columns[0]]
    table = pa.table(dict(zip(types, [images, *columns[1:]], strict=True)), pa.schema(types))
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_stream(path: Path, table: pa.Table, batch: int | None = None) -> None:
    """A table as an Arrow stream."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def save_to_disk(
    folder: Path, rows: Sequence[tuple[Any, ...]], split: str | None = None, shards: int = 1, batch: int = 2
) -> Path:
    """What ``Dataset.save_to_disk`` writes: Arrow streams, and two JSON files about them."""
    folder.mkdir(parents=True)
    table = hf_table(rows)
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    bounds = [len(rows) * number // shards for number in range(shards + 1)]
    for name, start, end in zip(names, bounds, bounds[1:], strict=False):
        write_stream(folder / name, table.slice(start, end - start), batch)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_format_columns": None}
    write_json(folder / "state.json", state)
    write_json(folder / "dataset_info.json", {"features": HF_FEATURES})
    return folder


def save_dict_to_disk(folder: Path, shards: int = 1) -> Path:
    """What ``DatasetDict.save_to_disk`` writes."""
    for name, rows in HF_ROWS.items():
        save_to_disk(folder / name, rows, name, shards if len(rows) > 1 else 1)
    write_json(folder / "dataset_dict.json", {"splits": list(HF_ROWS)})
    return folder


def write_hub(folder: Path, shards: int = 1, name: str = "{split}-{number:05d}-of-{shards:05d}.parquet") -> Path:
    """Parquet files as in a data set's repository on the hub."""
    for split, rows in HF_ROWS.items():
        total = shards if len(rows) > 1 else 1
        for number in range(total):
            path = folder / name.format(split=split, number=number, shards=total)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = rows[len(rows) * number // total : len(rows) * (number + 1) // total]
            pq.write_table(hf_table(part), path, row_group_size=1)
    return folder
