"""shapes and tones: the same for the same seed, whole or absent, and varied enough."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmvicreg.data import shapes, tones
from mmvicreg.data.coco import Coco
from mmvicreg.data.esc50 import Esc50
from mmvicreg.data.shapes import COUNTS, Shapes, captions, draw_scenes
from mmvicreg.data.shapes_captions import BACKGROUNDS, COLOURS, KINDS, PLACES
from mmvicreg.data.tones import NAMES, Tones
from mmvicreg.data.tones_synthesis import LENGTH, RATE
from mmvicreg.errors import UserError

SMALL = {"train": 12, "val": 4, "test": 6}


def make_shapes(root: Path, **changes: int) -> Path:
    Shapes.make(root, progress=False, counts=SMALL, **changes)
    return root


def make_tones(root: Path, **changes: int) -> Path:
    Tones.make(root, progress=False, **{"classes": 3, "sources": 1, **changes})
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("make", [make_shapes, make_tones])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, make: object) -> None:
    assert callable(make)
    np.random.seed(1)
    one = digests(make(tmp_path / "one"))
    np.random.seed(2)  # the global generator plays no part
    two = digests(make(tmp_path / "two"))
    other = digests(make(tmp_path / "other", seed=1))
    assert one == two
    media = [name for name in one if name.endswith((".jpg", ".wav"))]
    assert len(media) > 20
    assert not {one[name] for name in media} & {other[name] for name in media if name in other}


def test_a_picture_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    few = digests(make_shapes(tmp_path / "few"))
    Shapes.make(tmp_path / "more", progress=False, counts={**SMALL, "test": 9})
    more = digests(tmp_path / "more")
    pictures = [name for name in few if name.endswith(".jpg")]
    assert [few[name] for name in pictures] == [more[name] for name in pictures]


def test_shapes_is_read_through_pycocotools(tmp_path: Path) -> None:
    data = Shapes(make_shapes(tmp_path / "shapes"))
    assert issubclass(Shapes, Coco)
    assert {split: len(data.samples(split)) for split in data.splits()} == SMALL
    for sample in data.samples("all"):
        assert len(set(sample.captions)) == 5
        assert sample.image is not None
        with Image.open(sample.image) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_every_scene_occurs_once() -> None:
    scenes = [scene for split in draw_scenes(0, COUNTS).values() for scene in split]
    assert len(scenes) == 5_500
    assert len(set(scenes)) == len(scenes)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    for table, field in ((KINDS, "kind"), (COLOURS, "colour"), (PLACES, "place")):
        seen = Counter(getattr(thing, field) for scene in scenes for thing in scene.things)
        assert set(seen) == set(range(len(table)))
        assert max(seen.values()) < 1.2 * min(seen.values())


def test_test_captions_tell_pictures_apart() -> None:
    """A caption fits few other pictures: of 1 000, at least 95 % have captions nobody else has."""
    scenes = draw_scenes(0, COUNTS)["test"]
    texts = [captions(scene, np.random.default_rng(number)) for number, scene in enumerate(scenes)]
    counted = Counter(caption for five in texts for caption in set(five))
    alone = sum(all(counted[caption] == 1 for caption in five) for five in texts)
    assert alone >= 950
    assert sum(n for n in counted.values() if n == 1) >= 0.98 * sum(counted.values())


def test_captions_say_what_is_there() -> None:
    """The first caption names the colour of every object; no caption names a colour that is not there."""
    for number, scene in enumerate(draw_scenes(3, {"test": 200})["test"]):
        there = {COLOURS[thing.colour] for thing in scene.things}
        five = captions(scene, np.random.default_rng(number))
        words = [set(caption.replace(",", "").split()) for caption in five]
        assert there <= words[0]
        for said in words:
            assert said & set(COLOURS) <= there
            assert said & set(BACKGROUNDS) <= {BACKGROUNDS[scene.background]}
        assert len(there) == 1 or all(said & there for said in words)


def test_an_object_is_where_its_caption_says(tmp_path: Path) -> None:
    """Rendered pixels of the named colour lie in the named cell, for scenes of one object."""
    found = 0
    for number, scene in enumerate(draw_scenes(5, {"test": 400})["test"]):
        if len(scene.things) != 1:
            continue
        path = tmp_path / "x.jpg"
        path.write_bytes(shapes.render(scene, np.random.default_rng(number)))
        pixels = np.asarray(Image.open(path), dtype=np.float64)
        thing = scene.things[0]
        colour = np.array(shapes.RGB[COLOURS[thing.colour]])
        ground = np.array(shapes.RGB[BACKGROUNDS[scene.background]])
        ours = ((pixels - colour) ** 2).sum(-1) < ((pixels - ground) ** 2).sum(-1)
        rows, columns = np.nonzero(ours)
        row, column = divmod(thing.place, 3)
        assert abs(rows.mean() / 64 * 3 - row - 0.5) < 0.35
        assert abs(columns.mean() / 64 * 3 - column - 0.5) < 0.35
        found += 1
    assert found > 20


def test_tones_is_read_as_esc50_is(tmp_path: Path) -> None:
    data = Tones(make_tones(tmp_path / "tones", sources=2))
    assert issubclass(Tones, Esc50)
    assert data.classes == NAMES[:3]
    assert [len(data.samples(split)) for split in data.splits()] == [12] * 5
    sources = Counter(sample.group for sample in data.samples("all"))
    assert set(sources.values()) == {2}
    for sample in data.samples("fold2"):
        assert sample.audio is not None
        clip, rate = soundfile.read(sample.audio, dtype="int16")
        assert (clip.shape, rate) == ((LENGTH,), RATE)
        assert np.abs(clip.astype(int)).max() > 1_000
        fold, source, take, target = sample.audio.stem.split("-")
        assert (fold, source, target) == ("2", sample.group, str(sample.label))
        assert take in "AB"


def test_tones_are_fifty_classes_of_forty() -> None:
    assert len(set(NAMES)) == 50
    assert tones.SOURCES * len(tones.TAKES) * tones.FOLDS == 40


def test_takes_of_a_source_differ(tmp_path: Path) -> None:
    root = make_tones(tmp_path / "tones")
    clips = {path.name: soundfile.read(path)[0] for path in (root / "audio").iterdir()}
    for name, clip in clips.items():
        if "-A-" in name:
            other = clips[name.replace("-A-", "-B-")]
            assert abs(np.corrcoef(clip, other)[0, 1]) < 0.9


@pytest.mark.parametrize("make", [make_shapes, make_tones])
def test_making_again_changes_nothing_and_another_make_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    root = make(tmp_path / "here")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(UserError, match=r"another make .* nothing was overwritten"):
        make(root, seed=1)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="nothing was overwritten"):
        make_shapes(tmp_path)
    with pytest.raises(UserError, match="nothing was overwritten"):
        make_shapes(tmp_path / "diary.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert len(Shapes(make_shapes(tmp_path)).samples("all")) == 22


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make shapes at .*--data-root"):
        make_shapes(tmp_path / "file" / "below")


def test_makers_that_start_together(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "shapes"
    context = multiprocessing.get_context("spawn")
    makers = [context.Process(target=make_shapes, args=(root,)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert digests(root) == digests(make_shapes(tmp_path / "alone"))
    assert [path.name for path in root.parent.iterdir()] == ["shapes"]


def test_a_killed_maker_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    program = (
        "from pathlib import Path; from mmvicreg.data.shapes import Shapes; "
        f"Shapes.make(Path({str(root)!r}), progress=False)"
    )
    maker = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".shapes.making-*/train2017/*.jpg")):
        assert maker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    assert not root.exists()
    assert len(Shapes(make_shapes(root)).samples("all")) == 22
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]  # its leavings are swept up


def test_readers_tell_made_from_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looks like tones.*mmvicreg data make shapes --data-root"):
        Shapes(make_tones(tmp_path / "tones"))
    with pytest.raises(UserError, match="looks like tones"):
        Esc50(tmp_path / "tones")
    with pytest.raises(UserError, match="looks like shapes"):
        Tones(make_shapes(tmp_path / "shapes"))
    facts = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert facts == {"maker": "shapes", "version": shapes.VERSION, "seed": 0, "counts": SMALL}
