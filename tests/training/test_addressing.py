"""Addressed randomness and the loader that uses it: same views whatever the workers or the processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_recipe
from torch import Tensor

from mmvicreg.branches.model import Batch, build_inputs
from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset, training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import DRAWS
from mmvicreg.inputs.image import decode_pixels
from mmvicreg.training.addressing import epoch_order, seed_step, view_rng
from mmvicreg.training.loader import TrainingLoader
from mmvicreg.training.source_data import copied_ahead


def loader(recipe: Recipe, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> TrainingLoader:
    dataset = open_dataset(recipe.dataset.name, root=Path(str(recipe.dataset.root)))
    samples = training_samples(dataset, split="train", fold=1)
    inputs = build_inputs(recipe)
    for source in inputs.values():
        source.fit(samples)
    return TrainingLoader(recipe, inputs, samples, rank=rank, world_size=world_size, workers=workers)


def flat(batch: Batch) -> dict[str, torch.Tensor]:
    tensors = {f"{view}.{name}": value for view, item in batch.views.items() for name, value in item.items()}
    return {"index": batch.index, **tensors}


def test_generators_are_keyed_by_their_address() -> None:
    def first(*key: int) -> float:
        return float(view_rng(*key).random())

    assert first(0, 1, 2, 3) == first(0, 1, 2, 3)
    assert len({first(*key) for key in np.ndindex(3, 3, 3, 2)}) == 54
    order = epoch_order(0, 0, 100)
    assert sorted(order) == list(range(100))
    assert (order != epoch_order(0, 1, 100)).any()
    assert (order == epoch_order(0, 0, 100)).all()
    drawn = set()
    for step, process in np.ndindex(3, 2):
        seed_step(7, step, process)
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 6


def test_processes_split_exactly_the_batch_of_one(tiny_shapes: Path) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes)
    whole = [flat(b) for b in loader(recipe).epoch(1)]
    halves = [[flat(b) for b in loader(recipe, rank=rank, world_size=2).epoch(1)] for rank in (0, 1)]
    assert len(whole) == 5
    for one, first, second in zip(whole, *halves, strict=True):
        for key in ("index", "image/0.pixels", "image/0.draws", "text/0.length"):
            assert torch.equal(one[key], torch.cat([first[key], second[key]])), key


def test_workers_and_the_starting_batch_change_nothing(tiny_tones: Path) -> None:
    recipe = tiny_recipe("wave-mel", tiny_tones)
    alone = [flat(b) for b in loader(recipe).epoch(3)]
    helped = loader(recipe, workers=2)
    for start in (0, 2):
        again = [flat(b) for b in helped.epoch(3, start=start)]
        for a, b in zip(alone[start:], again, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_views_are_numbered_and_their_picture_is_decoded_once(
    tiny_shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def decode(path: Path) -> Tensor:
        decoded.append(path)
        return decode_pixels(path)

    monkeypatch.setattr("mmvicreg.inputs.image.decode_pixels", decode)
    batch = next(iter(loader(tiny_recipe("image-image", tiny_shapes)).epoch(0)))
    assert len(decoded) == len(set(decoded)) == 16
    assert not torch.equal(batch.views["image/0"]["pixels"], batch.views["image/1"]["pixels"])
    for number in (0, 1):
        assert batch.views[f"image/{number}"]["view"].tolist() == [number] * 16


def test_an_epoch_sees_each_sample_at_most_once_and_drops_the_rest(tiny_tones: Path) -> None:
    recipe = tiny_recipe("wave-mel", tiny_tones, "training.batch_size=24")
    seen = torch.cat([b.index for b in loader(recipe).epoch(0)])
    assert len(seen) == len(set(seen.tolist())) == 48  # 64 clips outside fold 1, whole batches of 24


def test_every_caption_once_an_epoch_by_name(tiny_shapes: Path) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "dataset.captions=all", "training.batch_size=40")
    batches = loader(recipe)
    assert len(batches) == 10
    assert torch.cat([b.index for b in batches.epoch(0)]).bincount().tolist() == [5] * 80


def test_one_caption_is_drawn_anew_each_epoch(tiny_shapes: Path) -> None:
    batches = loader(tiny_recipe("image-text", tiny_shapes))

    def lengths(epoch: int) -> dict[int, int]:
        return {
            int(i): int(n)
            for b in batches.epoch(epoch)
            for i, n in zip(b.index, b.views["text/0"]["ids"].sum(1), strict=True)
        }

    first, second = lengths(0), lengths(1)
    assert first.keys() == second.keys()
    changed = sum(first[i] != second[i] for i in first)
    assert 0.6 < changed / len(first) < 1  # four of five times another of five captions


def test_a_batch_larger_than_the_data_is_refused(tiny_shapes: Path) -> None:
    with pytest.raises(
        UserError, match=r"batch of 81 is larger than the training data \(80 samples of shapes\)"
    ):
        loader(tiny_recipe("image-text", tiny_shapes, "training.batch_size=81"))


def test_a_batch_that_does_not_divide_is_refused(tiny_shapes: Path) -> None:
    with pytest.raises(UserError, match="batch of 15 does not divide among 2 processes"):
        loader(tiny_recipe("image-text", tiny_shapes, "training.batch_size=15"), world_size=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named(tiny_shapes: Path, tmp_path: Path, workers: int) -> None:
    import shutil

    root = tmp_path / "shapes"
    shutil.copytree(tiny_shapes, root)
    victim = sorted((root / "train2017").iterdir())[7]
    victim.write_bytes(victim.read_bytes()[:200])
    batches = loader(tiny_recipe("image-text", root), workers=workers)
    with pytest.raises(UserError, match=f"cannot decode the picture .*{victim.name}"):
        list(batches.epoch(0))


def test_what_is_decided_on_the_cpu_stays_there() -> None:
    """Brought back from a GPU it would have every view wait for what the GPU is at."""
    item = {name: torch.zeros(2, 3) for name in ("pixels", "draws", "view", "length")}
    batch = Batch(torch.zeros(2), {"image/0": item}, {"other": Batch(torch.zeros(2), {"image/0": item})})
    for moved in batch.to(torch.device("meta")).by_source().values():
        assert moved.index.is_meta
        assert {name for name, value in moved.views["image/0"].items() if value.is_meta} == {"pixels"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_arrive_in_order_and_whole_each_copied_before_the_one_in_front_is_used(device: str) -> None:
    read: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(4):
            read.append(number)
            item = {"pixels": torch.full((2, 3), float(number)), "length": torch.tensor([number, number])}
            item |= {"draws": torch.rand(2, DRAWS), "view": torch.zeros(2, dtype=torch.int64)}
            batch = Batch(torch.tensor([number, 9]), {"text/0": item})
            yield batch if device == "cpu" else batch.pin_memory()

    used = []
    for batch in copied_ahead(batches(), torch.device(device)):
        used.append(int(batch.index[0]))
        assert read == list(range(min(4, used[-1] + 2)))
        assert batch.index.device.type == device
        assert float(batch.views["text/0"]["pixels"].sum()) == 6 * used[-1]
        for kept in ("length", "draws", "view"):  # where packing wants it, and where changes are decided
            assert batch.views["text/0"][kept].device.type == "cpu"
    assert used == [0, 1, 2, 3]
    assert list(copied_ahead(iter(()), torch.device(device))) == []
