"""Where data is looked for, what is made on first use, and which samples a run may see."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import data_layouts as layouts
import pytest

from mmvicreg.data.manifest import Manifest
from mmvicreg.data.shapes import Shapes
from mmvicreg.data.tones import Tones
from mmvicreg.datasets import (
    cache_folder,
    dataset_root,
    evaluation_split,
    in_folds,
    open_dataset,
    training_samples,
)
from mmvicreg.errors import UserError
from mmvicreg.samples import DataSet


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a cache of this test's own, and no MMVICREG_DATA."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MMVICREG_DATA", raising=False)
    return tmp_path


def test_the_folder_named_beats_the_variable_beats_the_cache(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dataset_root("coco") == places / "cache" / "mmvicreg" / "coco"
    monkeypatch.setenv("MMVICREG_DATA", str(places / "data"))
    assert dataset_root("coco") == places / "data" / "coco"
    assert dataset_root("coco", places / "here") == places / "here"
    assert dataset_root("coco", Path("~/here")) == places / "home" / "here"
    monkeypatch.setenv("MMVICREG_DATA", "~/data")
    assert dataset_root("coco") == places / "home" / "data" / "coco"


def test_without_a_cache_variable_the_home_folder_has_it(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == places / "home" / ".cache" / "mmvicreg"


@pytest.mark.parametrize("variable", [False, True])
def test_toys_are_made_on_first_use_at_their_default_place(
    places: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    small = functools.partial(Tones.make, classes=1, sources=1)
    made: list[Path] = []

    def make(root: Path, *, progress: bool = True) -> None:
        made.append(root)
        small(root, progress=False)

    monkeypatch.setattr(Tones, "make", make)
    home = places / "cache" / "mmvicreg"
    if variable:
        home = places / "not" / "yet"
        monkeypatch.setenv("MMVICREG_DATA", str(home))
    dataset = open_dataset("tones")
    assert dataset.root == home / "tones"
    assert len(dataset.samples("all")) == 10
    open_dataset("tones")
    assert made == [home / "tones"]  # the second time it is there
    with pytest.raises(UserError, match=r"elsewhere.*mmvicreg data make tones"):
        open_dataset("tones", root=places / "elsewhere")  # a place that was named is never written to
    assert not (places / "elsewhere").exists()


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "MMVICREG_DATA"])
@pytest.mark.parametrize("kind", ["file", "not to be made", "not to be written in"])
def test_a_place_where_nothing_can_be_made_is_named(
    places: Path, monkeypatch: pytest.MonkeyPatch, variable: str, kind: str
) -> None:
    """Not even by root: a file, and the kernel's own folder."""
    place = {"file": places / "file", "not to be made": Path("/proc/nope")}.get(kind, Path("/proc/self"))
    (places / "file").touch()
    monkeypatch.setenv(variable, str(place))
    with pytest.raises(UserError) as caught:
        open_dataset("tones")
    for word in ("tones", str(place.parent), "--data-root", "MMVICREG_DATA"):
        assert word in str(caught.value)


def test_esc10_is_found_inside_esc50(places: Path, tiny_tones: Path) -> None:
    home = places / "cache" / "mmvicreg"
    with pytest.raises(UserError, match="mmvicreg data download esc10"):
        open_dataset("esc10")
    shutil.copytree(tiny_tones, home / "esc50")
    (home / "esc50" / "tones.json").unlink()  # what tells tones from ESC-50
    table = home / "esc50" / "meta" / "esc50.csv"
    header, *rows = table.read_text().splitlines()
    place = header.split(",").index("esc10")
    flagged = [
        ",".join("True" if i == place and n % 2 else "False" if i == place else cell for i, cell in cells)
        for n, cells in enumerate(list(enumerate(row.split(","))) for row in rows)
    ]
    table.write_text("\n".join([header, *flagged]) + "\n")
    dataset = open_dataset("esc10")
    assert dataset.root == home / "esc50"
    assert len(dataset.samples("all")) == len(rows) // 2
    shutil.copytree(home / "esc50", home / "esc10")
    assert open_dataset("esc10").root == home / "esc10"  # its own place comes first
    with pytest.raises(UserError, match="elsewhere"):
        open_dataset("esc10", root=places / "elsewhere")


def test_a_place_that_the_system_refuses_is_named() -> None:
    with pytest.raises(UserError, match=r"coco cannot be read at /a+: File name too long"):
        open_dataset("coco", root=Path("/" + "a" * 300))


def test_unknown_names_and_a_manifest_without_a_file() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'flickr8'; did you mean 'flickr8k'\?"):
        open_dataset("flickr8")
    with pytest.raises(UserError, match="--data-root"):
        open_dataset("manifest")


def test_the_held_out_fold_is_neither_seen_nor_looked_at(tmp_path: Path, tiny_tones: Path) -> None:
    root = tmp_path / "tones"
    shutil.copytree(tiny_tones, root)
    held = {sample.id for sample in Tones(root).samples("fold2")}
    for name in held:
        (root / "audio" / name).unlink()
    dataset = Tones(root)
    assert in_folds(dataset)
    seen = training_samples(dataset, split="ignored", fold=2)
    assert {s.fold for s in seen} == {1, 3, 4, 5}
    assert not held & {s.id for s in seen}
    groups = {s.group for s in Tones(tiny_tones).samples("fold2")}
    assert not groups & {s.group for s in seen}
    with pytest.raises(UserError, match="audio"):
        training_samples(dataset, split="ignored", fold=1)


def test_no_fold_held_out_is_everything_and_an_absent_one_an_error(tiny_tones: Path) -> None:
    dataset = Tones(tiny_tones)
    everything = training_samples(dataset, split="train", fold="none")
    assert sorted(s.id for s in everything) == sorted(s.id for s in dataset.samples("all"))
    for fold in (0, 6):
        with pytest.raises(UserError, match=rf"no fold {fold} in tones .*fold1, .*fold5"):
            training_samples(dataset, split="train", fold=fold)


def test_holding_out_the_only_fold_is_refused(tmp_path: Path) -> None:
    clip = layouts.recording(tmp_path / "a.wav")
    table = layouts.write_csv(tmp_path / "m.csv", [{"audio": clip.name, "label": "dog", "fold": 1}])
    dataset = Manifest(table)
    with pytest.raises(UserError, match=r"manifest at .*m\.csv has fold 1 alone.*--fold none"):
        training_samples(dataset, split="train", fold=1)
    assert len(training_samples(dataset, split="train", fold="none")) == 1


def test_data_in_splits_ignores_the_fold(tiny_shapes: Path) -> None:
    dataset = Shapes(tiny_shapes)
    assert not in_folds(dataset)
    assert training_samples(dataset, split="train", fold=3) == dataset.samples("train")
    assert len(training_samples(dataset, split="train+val", fold=1)) == 100
    with pytest.raises(UserError, match=r"no split 'trian'; did you mean 'train'\?"):
        training_samples(dataset, split="trian", fold=1)


class Splits:
    """As much of a data set as choosing a split looks at."""

    name, root = "mine", Path("there")

    def __init__(self, *names: str) -> None:
        self.names = names

    def splits(self) -> tuple[str, ...]:
        return self.names


@pytest.mark.parametrize(
    ("splits", "asked", "fold", "chosen"),
    [
        (("train", "val", "test"), None, "none", "test"),
        (("train", "val"), None, "none", "val"),
        (("train", "val", "test"), "val", "none", "val"),
        (("train", "test"), "train+test", 1, "train+test"),
        (("train", "val", "testing"), None, "none", "testing"),
        (("train", "Dev", "Testing"), None, "none", "Testing"),
        (("training", "validation"), None, "none", "validation"),
        (("fold1", "fold2"), None, 2, "fold2"),
        (("fold1", "fold2"), None, "none", "fold1"),
        (("fold1", "fold2"), "fold1", 2, "fold1"),
    ],
)
def test_which_split_is_judged_on(
    splits: tuple[str, ...], asked: str | None, fold: int | str, chosen: str
) -> None:
    dataset: DataSet = Splits(*splits)  # type: ignore[assignment]
    assert evaluation_split(dataset, asked, fold=fold) == chosen


def test_neither_test_nor_val_asks_for_a_name() -> None:
    dataset: DataSet = Splits("train", "extra")  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"mine at there .*train, extra.*--split"):
        evaluation_split(dataset, None)
