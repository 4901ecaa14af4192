"""Tiny data sets in their publishers' layouts, for the tests of this folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image


def picture(path: Path, value: int = 0, *, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def recording(path: Path, value: int = 0, *, length: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = np.random.default_rng(value).integers(-9_000, 9_000, length).astype(np.int16)
    soundfile.write(path, clip, 8_000, subtype="PCM_16")
    return path


def coco(
    root: Path,
    *,
    year: int = 2017,
    splits: Sequence[str] = ("train", "val"),
    images: int = 3,
    captions: int = 5,
    first: int = 1,
) -> Path:
    """COCO's own layout; captions of different images are interleaved, as COCO's are."""
    number = first
    for split in splits:
        ids = list(range(number, number + images))
        number += images
        for image_id in ids:
            picture(root / f"{split}{year}" / f"{image_id:012d}.jpg", image_id)
        tree = {
            "info": {},
            "licenses": [],
            "images": [
                {"id": i, "file_name": f"{i:012d}.jpg", "height": 8, "width": 8} for i in reversed(ids)
            ],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "caption": f"caption {k} of {i}\n"}
                for k in range(captions)
                for i in ids
            ],
        }
        write_json(root / "annotations" / f"captions_{split}{year}.json", tree)
    return root


def karpathy(
    root: Path,
    name: str,
    *,
    pictures: str = "images",
    splits: Sequence[str] = ("test", "train", "val"),
    per_split: int = 2,
) -> Path:
    """Karpathy's layout; coco's entries carry a ``filepath`` and a ``cocoid``."""
    entries: list[dict[str, Any]] = []
    for number in range(len(splits) * per_split):
        split = splits[number % len(splits)]
        entry: dict[str, Any] = {
            "filename": f"p{number}.jpg",
            "imgid": number,
            "split": split,
            "sentences": [{"raw": f"sentence {k} of {number}", "tokens": ["sentence"]} for k in range(6)],
        }
        place = root / pictures if pictures else root
        if name == "coco":
            entry |= {"filepath": "train2014" if split == "train" else "val2014", "cocoid": 900 + number}
            place = place / entry["filepath"]
        picture(place / entry["filename"], number)
        entries.append(entry)
    write_json(root / f"dataset_{name}.json", {"dataset": name, "images": entries})
    return root


ESC_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


def esc_rows(
    classes: Sequence[tuple[int, str]] = ((0, "dog"), (7, "rain"), (41, "chainsaw")), folds: int = 5
) -> list[dict[str, object]]:
    """Two takes of one source for every class and fold; only rain is ESC-10's."""
    rows = []
    for fold in range(1, folds + 1):
        for target, category in classes:
            for take in "AB":
                source = 1_000 * fold + target
                name = f"{fold}-{source}-{take}-{target}.wav"
                values = (name, fold, target, category, category == "rain", source, take)
                rows.append(dict(zip(ESC_COLUMNS, values, strict=True)))
    return rows


def esc(root: Path, rows: Sequence[dict[str, object]] | None = None, *, audio: bool = True) -> Path:
    rows = esc_rows() if rows is None else rows
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "audio").mkdir(exist_ok=True)
    write_csv(root / "meta" / "esc50.csv", rows)
    for number, row in enumerate(rows if audio else ()):
        recording(root / "audio" / str(row["filename"]), number)
    return root


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_json(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path
