"""Training classifiers on pictures: a linear head on a frozen encoder, or both together.

Batches, crops and flips are addressed by (seed, epoch, sample), as in pretraining, so several processes train what
one does. Unlike there the last partial batch of an epoch is trained on too: no statistics hang on its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from mmvicreg.branches.model import Branch
from mmvicreg.branches.norm import synchronise_batchnorm
from mmvicreg.encode import load_rows, unreadable
from mmvicreg.errors import UserError
from mmvicreg.eval.labelled import Integers, Labelled
from mmvicreg.eval.schedules import Schedule
from mmvicreg.inputs.base import Input, Item
from mmvicreg.inputs.image import ImageInput
from mmvicreg.metrics import class_credit
from mmvicreg.progress import progress_bar
from mmvicreg.runs import Run
from mmvicreg.samples import Sample
from mmvicreg.training.addressing import epoch_order, seed_weights, view_rng
from mmvicreg.training.distributed import World, average_gradients, exchange_rows, shares
from mmvicreg.training.loader import Failure, begin_worker, end_workers

Batch = tuple[Item, Tensor, float]
"""Views, class indices, and what the mean over them is to be weighted with for the mean over all processes."""


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    Attributes:
        seed: of the order, the crops and flips, and the head.
        workers: processes that read samples, for each process that trains.
        eval_batch: samples at a time in testing.
    """

    seed: int = 0
    workers: int = 2
    eval_batch: int = 128


@dataclass(frozen=True)
class Tested:
    """Accuracy on the test samples, percent, and the mean training loss of the last epoch."""

    top1: float
    top5: float | None
    loss: float


class Learner:
    """A branch's encoder with a linear head, and the optimiser of what is trained of them.

    Args:
        branch: its encoder is trained in place where the schedule has a rate for it.
        classes: outputs of the head.
        schedule: rates, decay, momentum.
        device: where it is trained.
        seed: of the head's initial weights.
    """

    def __init__(
        self, branch: Branch, classes: int, schedule: Schedule, *, device: torch.device, seed: int
    ) -> None:
        self.frozen = schedule.encoder_lr is None
        # what nobody trains needs no gradient; a branch that was frozen in pretraining is trained all the same
        branch.requires_grad_(False)
        branch.encoder.requires_grad_(not self.frozen)
        if not self.frozen:
            branch.encoder = synchronise_batchnorm(branch.encoder, device_type=device.type)
        self.branch = branch.to(device)
        with torch.random.fork_rng(devices=[]):
            seed_weights(seed)
            self.head = nn.Linear(branch.encoder.out_features, classes)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
        self.head.to(device)
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters()), "lr": schedule.head_lr}]
        if schedule.encoder_lr is not None:
            groups.append({"params": list(branch.encoder.parameters()), "lr": schedule.encoder_lr})
        self.rates = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.SGD(
            groups, lr=schedule.head_lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )

    def begin_epoch(self, factor: float) -> None:
        """Set the rates of an epoch and the mode: a frozen encoder evaluates, and so does every frontend."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.branch.eval()
        if not self.frozen:
            self.branch.encoder.train()

    def step(self, item: Item, labels: Tensor, weight: float) -> Tensor:
        """One step on this process's part of a batch; the weighted loss of that part."""
        with torch.set_grad_enabled(not self.frozen):
            features = self.branch.represent(item)
        loss = weight * functional.cross_entropy(self.head(features).float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.head)
        if not self.frozen:
            average_gradients(self.branch.encoder)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def scores(self, item: Item) -> Tensor:
        """Class scores ``(n, classes)`` float32 on the CPU."""
        self.branch.eval()
        return self.head(self.branch.represent(item)).float().cpu()  # type: ignore[no-any-return]


def train_run(
    world: World,
    run: Run,
    branch: str,
    found: Labelled,
    schedule: Schedule,
    *,
    initial_too: bool,
    tops: tuple[int, ...],
    reading: Reading,
) -> list[Tested]:
    """Train on a branch of a run as it is and, with ``initial_too``, on its initial weights, on the same batches.

    Raises:
        UserError: weights that are not finite; as :func:`train_classifiers`.
    """
    models = [
        run.model(untrained=initial, device=world.device.type) for initial in (False, True)[: 1 + initial_too]
    ]
    # no rate would help, which is what a loss that is not finite is told
    state = models[0].branch(branch).encoder.state_dict()
    if bad := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise UserError(
            f"the encoder of branch '{branch}' of the run {run.path} has NaN or infinity in its weights, first in "
            f"{bad[0]}; they are not usable: take an earlier checkpoint"
        )
    learners = [
        Learner(model.branch(branch), found.classes, schedule, device=world.device, seed=reading.seed)
        for model in models
    ]
    source = models[0].inputs[run.recipe.branches[branch].input]
    return train_classifiers(world, learners, source, found, schedule, tops=tops, reading=reading)


def train_classifiers(
    world: World,
    learners: Sequence[Learner],
    source: Input,
    found: Labelled,
    schedule: Schedule,
    *,
    tops: tuple[int, ...],
    reading: Reading,
) -> list[Tested]:
    """Train classifiers side by side on the same batches, and test each once, at the end.

    Args:
        world: this process among those that share every batch.
        learners: what is trained.
        source: the input of their branches.
        found: samples with their classes.
        schedule: length, batch, rates, crops.
        tops: which top-k accuracies.
        reading: seed and workers.

    Raises:
        UserError: batches too small for the processes, a sample that cannot be read, a loss that is
            not finite.
    """
    if not isinstance(source, ImageInput):
        raise UserError(f"classifiers are trained on pictures, not on what {type(source).__name__} reads")
    batches = _Batches(world, _training_input(source, schedule), found, schedule, reading)
    if not found.left_out:  # else all of them have been read
        _check_test(world, source, found, reading)
    losses = torch.zeros(len(learners), dtype=torch.float64)
    try:
        with progress_bar(schedule.epochs * len(batches), "training", "step", visible=world.is_main) as bar:
            for epoch in range(schedule.epochs):
                for learner in learners:
                    learner.begin_epoch(schedule.factor(epoch))
                losses = _train_epoch(world, learners, batches.epoch(epoch), bar.advance)
                bar.say(f"epoch {epoch + 1}, loss {losses[0]:.3f}")
                if not torch.isfinite(losses).all():
                    flags = "rate (--lr)" if schedule.encoder_lr is None else "rates (--lr, --encoder-lr)"
                    raise UserError(
                        f"the loss is not finite in epoch {epoch + 1} of the classifier: lower the {flags}"
                    )
    finally:
        batches.close()
    credits = _test(world, learners, source, found, tops=tops, reading=reading)
    return [
        Tested(
            float(100 * credit[:, 0].mean()),
            float(100 * credit[:, 1].mean()) if len(tops) > 1 else None,
            float(loss),
        )
        for credit, loss in zip(credits, losses, strict=True)
    ]


def _check_test(world: World, source: Input, found: Labelled, reading: Reading) -> None:
    """Refuse test samples that cannot be read now, and not after all the training, whose outcome would be lost.

    Training samples are read in the first epoch.
    """
    faults = unreadable(
        source, found.test, batch_size=reading.eval_batch, workers=reading.workers, world=world
    )
    if faults:
        raise UserError(
            f"{len(faults):,} of the {len(found.test):,} samples of '{found.split}' to test on cannot be read, "
            f"the first: {faults[min(faults)]} (or go on without what cannot be read: --on-bad-sample skip)"
        )


def _train_epoch(world: World, learners: Sequence[Learner], batches: Iterator[Batch], advance: Any) -> Tensor:
    """The learners' mean losses over one epoch, over all processes, ``(learners,)`` float64."""
    total, steps = torch.zeros(len(learners), dtype=torch.float64, device=world.device), 0
    for item, labels, weight in batches:
        item = {name: value.to(world.device, non_blocking=True) for name, value in item.items()}
        labels = labels.to(world.device, non_blocking=True)
        total += torch.stack([learner.step(item, labels, weight) for learner in learners]).double()
        steps += 1
        advance()
    if dist.is_initialized():
        dist.all_reduce(total)
    return (total / (steps * world.size)).cpu()


def _test(
    world: World,
    learners: Sequence[Learner],
    source: Input,
    found: Labelled,
    *,
    tops: tuple[int, ...],
    reading: Reading,
) -> list[npt.NDArray[np.float64]]:
    """For every learner, whether each test sample is right ``(n, len(tops))``."""
    rows: list[tuple[int, int | None]] = [(i, None) for i in range(len(found.test))]
    credits = [np.zeros((len(rows), len(tops))) for _ in learners]
    bounds = shares(len(rows), world.size, unit=reading.eval_batch)
    place, last = bounds[world.rank], bounds[world.rank + 1]
    with progress_bar(last - place, "testing", "sample", visible=world.is_main) as bar:
        for item in load_rows(
            source, found.test, rows[place:last], batch_size=reading.eval_batch, workers=reading.workers
        ):
            item = {name: value.to(world.device) for name, value in item.items()}
            n = len(next(iter(item.values())))
            for learner, credit in zip(learners, credits, strict=True):
                scores, labels = learner.scores(item).numpy(), found.test_labels[place : place + n]
                for j, top in enumerate(tops):
                    credit[place : place + n, j] = class_credit(scores, labels, k=top)
            place += n
            bar.advance(n)
    for credit in credits:
        exchange_rows(torch.from_numpy(credit), bounds, world.device)
    return credits


def _training_input(source: ImageInput, schedule: Schedule) -> ImageInput:
    """The branch's own input with the crops and flips of the schedule, and no other augmentation."""
    options = source.config.model_dump()
    options |= {"crop_area": (schedule.smallest_crop, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}
    options["worker_augmentation"] = "none"
    return ImageInput(ImageInput.Config.model_validate(options))


class _Crops(Dataset["tuple[Item, int] | Failure"]):
    """Training crops, addressed by (epoch, row)."""

    def __init__(self, source: Input, samples: Sequence[Sample], labels: Integers, seed: int) -> None:
        self.source, self.samples, self.labels, self.seed = source, samples, labels, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Item, int] | Failure:
        epoch, row = address
        try:
            item = self.source.load(self.samples[row], view_rng(self.seed, epoch, row, 0))
        except UserError as error:
            return Failure(str(error))
        return item, int(self.labels[row])

    def collate(self, rows: Sequence[tuple[Item, int] | Failure]) -> tuple[Item, Tensor] | Failure:
        whole: list[tuple[Item, int]] = []
        for row in rows:
            if isinstance(row, Failure):
                return row
            whole.append(row)
        return self.source.collate([item for item, _ in whole]), torch.tensor([label for _, label in whole])


class Order(Sampler["list[tuple[int, int]]"]):
    """This process's part of every batch of an epoch, as (epoch, row).

    Args:
        rows: training samples.
        batch_size: of all processes together; the last batch of an epoch is what is left, and is left out only
            where it has not a sample for each process, or just one.
        seed: of the order.
        world: this process among all.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, world: World) -> None:
        self.rows, self.batch_size, self.seed, self.world = rows, batch_size, seed, world
        self.current = 0
        self.sizes = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
        if self.sizes and self.sizes[-1] < max(2, world.size):
            del self.sizes[-1]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = epoch_order(self.seed, self.current, self.rows)
        for batch, size in enumerate(self.sizes):
            bounds = shares(size, self.world.size)
            first = batch * self.batch_size
            mine = order[first + bounds[self.world.rank] : first + bounds[self.world.rank + 1]]
            yield [(self.current, int(row)) for row in mine]


class _Batches:
    """This process's part of every batch, epoch by epoch."""

    def __init__(
        self, world: World, source: Input, found: Labelled, schedule: Schedule, reading: Reading
    ) -> None:
        self._world = world
        self._order = Order(len(found.train), schedule.batch_size, seed=reading.seed, world=world)
        if not len(self._order) or schedule.batch_size < max(2, world.size):
            raise UserError(
                f"batches of {schedule.batch_size} from {len(found.train)} training samples have not two samples, or "
                f"not one for each of {world.size} processes; raise --batch-size, or give fewer --devices"
            )
        crops = _Crops(source, found.train, found.train_labels, reading.seed)
        self._loader = DataLoader(
            crops,
            batch_sampler=self._order,
            collate_fn=crops.collate,
            num_workers=reading.workers,
            persistent_workers=reading.workers > 0,
            pin_memory=world.device.type == "cuda",
            worker_init_fn=begin_worker,
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch.

        Raises:
            UserError: a sample could not be read.
        """
        self._order.current = epoch
        for size, batch in zip(self._order.sizes, self._loader, strict=True):
            if isinstance(batch, Failure):
                raise UserError(
                    f"{batch.message} (or go on without what cannot be read: --on-bad-sample skip)"
                )
            item, labels = batch
            yield item, labels, len(labels) * self._world.size / size

    def close(self) -> None:
        """End the worker processes."""
        end_workers(self._loader)
