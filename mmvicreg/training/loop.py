"""The training loop: embed, differentiate, step; measure, save, stop when told.

One process or one of several; every decision that must be the same on all of them is taken from numbers
they share. Randomness is addressed (see ``addressing``), so a checkpoint is weights, optimiser, counters
and what the inputs learned, and continuing from it gives the same bits as never having stopped: on a CPU, where it is
tested. On a GPU it is not measured; the backward pass of attention may add in any order there.
"""

from __future__ import annotations

import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from mmvicreg.branches.model import Batch, JointModel, ModelOutput, build_inputs
from mmvicreg.branches.norm import synchronise_batchnorm
from mmvicreg.branches.weights import load_strictly
from mmvicreg.config import MonitorConfig
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input
from mmvicreg.objectives.base import NonFiniteError
from mmvicreg.progress import Bar, progress_bar
from mmvicreg.runs import CHECKPOINTS, MISFIT, Run
from mmvicreg.skipped import SKIPPED, Skipped, read_skipped, write_skipped
from mmvicreg.sources import FIRST, part_recipes
from mmvicreg.training.addressing import seed_step
from mmvicreg.training.checkpoint import plain_state, save_checkpoint
from mmvicreg.training.compilation import compile_image_encoders
from mmvicreg.training.distributed import (
    World,
    any_process,
    from_main,
    gather_objects,
    gather_rows,
    share_state,
)
from mmvicreg.training.log import RunLog, memory_mb, say, shorten
from mmvicreg.training.microbatch import check_batchnorm, differentiate
from mmvicreg.training.monitor import CollapseMonitor, agreements, last_words, measure, target_stds
from mmvicreg.training.optim import build_optimizer, clip, gradients, not_finite, rate_factor, set_rate
from mmvicreg.training.setup import build_model, fit_frontends, restore_inputs, warnings_of
from mmvicreg.training.signals import stop_signals
from mmvicreg.training.source_data import SourceData, check_fields, copied_ahead, with_others

# every process computes the same buffers; torch 2.14 renamed the flag that keeps them from being sent
NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the signal that stopped it, if any, and where it was."""

    step: int
    epoch: int
    stopped_by: int | None = None


class Trainer:
    """One process's part of a run."""

    def __init__(self, run: Run, world: World, *, resume: bool, workers: int) -> None:
        self.run, self.world = run, world
        content = run.content if resume else None
        self.recipe = recipe = run.resumed_recipe if resume else run.recipe
        self.data = SourceData(part_recipes(recipe), world, new=not resume)
        self.samples = self.data.samples[FIRST]
        inputs = self._prepare_inputs(content)
        self.data.load(inputs, workers=workers)
        self.loader = self.data.loaders[FIRST]
        self.inputs = inputs
        asked, local = recipe.training.micro_batch, max(self.data.batch_sizes) // world.size
        self._micro_batch = asked if asked is not None and asked < local else None
        self.model = self._build(inputs, content)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.monitor = CollapseMonitor(recipe.monitor, advice=self.model.objective.advice)
        self.step, self.epoch = 0, 0
        if content is not None:
            self.optimizer.load_state_dict(content["optimizer"])
            if self._same_monitor(content):
                self.monitor.load_state(content["monitor"])
            self.step, self.epoch = content["position"]["step"], content["position"]["epoch"]
            self.data.check_same(content["data"], run.path)
        self.log: RunLog | None = None
        self._last: dict[str, Any] = {}
        self._network: DistributedDataParallel | None = None
        self._frozen: list[str] = []
        self._skipped = len(read_skipped(run.path / SKIPPED)) if resume else 0
        self._seconds = float(content["position"]["seconds"]) if content is not None else 0.0
        self._others: dict[str, Iterator[Batch]] | None = None
        run.let_go()

    def train(self) -> Outcome:
        """Train to the recipe's last epoch, or until a signal asks to stop; writes into the run folder."""
        try:
            return self._train()
        except BaseException:
            self.data.close()  # else Python would wait for their workers for ever
            raise

    def _train(self) -> Outcome:
        training = self.recipe.training
        if self.epoch >= training.epochs and self.world.is_main:
            say(
                f"the run {self.run.path} has finished its {training.epochs} epochs; nothing is left to train"
            )
        self._on_main(self._open_log)
        steps = len(self.loader)
        with stop_signals() as stop, self._bar(steps) as bar:
            for epoch in range(self.epoch, training.epochs):
                self.epoch = epoch
                network = self._wrap(epoch)
                started = time.perf_counter()
                for batch in self._batches(epoch, start=self.step - epoch * steps):
                    output = self._step(network, batch, steps)
                    bar.advance()
                    if self.step % training.log_every == 0 or self.step == steps * training.epochs:
                        now = time.perf_counter()
                        self._measure(output, bar, now - started)
                    if any_process(stop.signal is not None, self.world.device):
                        self._seconds += time.perf_counter() - started
                        self._save()
                        self._say_skipped()
                        return Outcome(self.step, epoch, stop.signal or signal.SIGTERM)
                self._seconds += time.perf_counter() - started
                self.epoch = epoch + 1
                self._save()
                self._report(epoch)
        if self.log is not None:
            self.log.close()
        for messages in last_words(
            self._last, self.recipe.monitor, advice=self.model.objective.advice
        ).values():
            for message in messages:
                say(f"warning: {message}")
        self._say_skipped()
        return Outcome(self.step, self.epoch)

    def _say_skipped(self) -> None:
        """How many samples were never trained on, at the end."""
        if self.world.is_main and self._skipped:
            total = sum(len(samples) for samples in self.data.samples.values())
            say(
                f"{self._skipped:,} of {total:,} samples could not be read, and others took their place: "
                f"{self.run.path / SKIPPED} lists them"
            )

    def _step(self, network: torch.nn.Module, batch: Batch, steps: int) -> ModelOutput:
        recipe = self.recipe
        seed_step(recipe.seed, self.step, self.world.rank)
        factor = rate_factor(
            self.step,
            steps_per_epoch=steps,
            epochs=recipe.training.epochs,
            schedule=recipe.schedule,
            rate=recipe.rate,
        )
        set_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            if self._micro_batch is not None:
                output = differentiate(self.model, batch, self._micro_batch)
            else:
                output = network(batch)
                output.loss.backward()
        except NonFiniteError as error:
            raise self._explain(error, batch) from error
        if not clip(self.model, recipe.optimizer.clip_norm):
            spoilt = ", ".join(not_finite(gradients(self.model))) or "all branches together"
            raise UserError(
                f"step {self.step + 1}: the gradient of {spoilt} is not finite, although the loss is, and no step was "
                "taken with it. Checkpoints up to the last epoch are kept; lower optimizer.lr, or use --precision fp32"
            )
        self.optimizer.step()
        self.model.move_targets(self.step, steps=steps * recipe.training.epochs)
        self.step += 1
        return output

    def _measure(self, output: ModelOutput, bar: Bar, seconds: float) -> None:
        """Write one line of metrics and judge whether a branch has collapsed."""
        directional, dead_std = self.model.objective.directional, self.recipe.monitor.dead_std
        z = {node: gather_rows(rows) for node, rows in output.embeddings.items()}
        health = {
            node: measure(z[node], gather_rows(y), dead_std=dead_std, directional=directional)
            for node, y in output.representations.items()
        }
        message, stop = self.monitor.look(self.step, health)
        if self.log is not None:
            terms = {name: float(value) for name, value in output.terms.items()}
            done = self.step - self.epoch * len(self.loader) - self._first_of_epoch
            line: dict[str, Any] = {
                "step": self.step,
                "epoch": self.epoch,
                "loss": float(output.loss.detach()),
                "lr": self.optimizer.param_groups[0]["lr"],
                "terms": terms,
                "branches": {node: asdict(figures) for node, figures in health.items()},
                "target_std": target_stds(
                    self.model.graphs, {name: self.model.objective_of(name) for name in self.model.graphs}
                ),
                "agreement": agreements(z, self.model.graphs, directional=directional),
                "samples_per_second": done * sum(self.data.batch_sizes) / max(seconds, 1e-9),
                "seconds": self._seconds + seconds,
                "memory_mb": memory_mb(self.world.device),
            }
            self.log.write(line)
            self._last = line
            bar.say(f"loss {line['loss']:.3f}  {shorten(terms)}")
            if message is not None and not stop:
                say(f"warning: {message}")
        if stop:
            self._save()
            raise UserError(f"training stopped: {message}")

    def _report(self, epoch: int) -> None:
        """A line an epoch where no progress bar is shown: in a log file, under SLURM."""
        if self.log is None or sys.stderr.isatty() or not self._last:
            return
        epochs, line = self.recipe.training.epochs, self._last
        left = self._seconds / (epoch + 1) * (epochs - epoch - 1)
        say(
            f"epoch {epoch + 1} of {epochs}: loss {line['loss']:.3f}  {shorten(line['terms'])}  "
            f"{line['samples_per_second']:.0f} samples/s  {left:.0f} s left"
        )

    def _save(self) -> None:
        """Write a checkpoint; every process waits, so that none runs ahead of what is on the disk."""
        if self.data.may_skip():
            found = gather_objects(self.data.skipped())
            self._on_main(lambda: self._write_skipped([one for part in found for one in part]))
        self._on_main(self._write_checkpoint)

    def _write_skipped(self, found: Sequence[Skipped]) -> None:
        """Add to the run's list what any process could not read; what an earlier part of the run met stays."""
        path = self.run.path / SKIPPED
        if found:
            self._skipped = write_skipped(path, [*read_skipped(path), *found])

    def _open_log(self) -> None:
        self.log = RunLog(self.run.path, step=self.step)

    def _on_main(self, action: Callable[[], None]) -> None:
        """Let the main process write; every process waits, and learns of a user's mistake."""
        problem: str | None = None
        if self.world.is_main:
            try:
                action()
            except UserError as error:
                problem = str(error)
        problem = from_main(problem)
        if problem is not None:
            raise UserError(problem)

    def _write_checkpoint(self) -> None:
        weights = plain_state(self.model)
        if spoilt := not_finite(weights):
            raise UserError(
                f"step {self.step}: weights of {', '.join(spoilt)} are not finite, and no checkpoint is made of them. "
                "Those up to the last epoch are kept; set optimizer.clip_norm, lower optimizer.lr, or use "
                "--precision fp32"
            )
        content = {
            "model": weights,
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state(),
            "inputs": {name: source.state() for name, source in self.inputs.items()},
            "data": self.data.fingerprint(),
            "trained_on": self.data.trained_on,
            "recipe": self.recipe.model_dump(mode="json"),
            "position": {"step": self.step, "epoch": self.epoch, "seconds": self._seconds},
        }
        training = self.recipe.training
        every = None if training.keep_every is None else training.keep_every * len(self.loader)
        save_checkpoint(
            self.run.path / CHECKPOINTS, self.step, content, keep=training.keep_checkpoints, every=every
        )

    def _batches(self, epoch: int, *, start: int) -> Iterator[Batch]:
        """Batches on the device; the next one is copied while this one computes."""
        self._first_of_epoch = start
        if self._others is None:  # they go on from epoch to epoch
            self._others = self.data.streams(epoch * len(self.loader) + start)
        others = self._others
        batches = (with_others(batch, others) for batch in self.loader.epoch(epoch, start=start))
        return copied_ahead(batches, self.world.device)

    def _wrap(self, epoch: int) -> torch.nn.Module:
        """The model as this epoch trains it: frozen parts set, gradients averaged over processes."""
        frozen: list[str] = []
        for name in self.model.branches:
            branch = self.model.branch(name)
            thawed = branch.config.freeze_epochs is not None and epoch >= branch.config.freeze_epochs
            branch.freeze(branch.config.thaw_to if thawed else branch.config.freeze)
            frozen.append(branch.frozen)
        self.model.train()
        if self.world.size == 1 or self._micro_batch is not None:
            return self.model
        if self._network is None or frozen != self._frozen:
            # which parameters are averaged is decided when the model is wrapped
            devices = [self.world.device] if self.world.device.type == "cuda" else None
            self._network = DistributedDataParallel(self.model, device_ids=devices, **NO_BUFFER_SYNC)
            self._frozen = frozen
        return self._network

    def _build(self, inputs: dict[str, Input], content: dict[str, Any] | None) -> JointModel:
        training, device = self.recipe.training, self.world.device
        initial = self.run.initial if content is None else None
        model = build_model(self.recipe, inputs, pretrained=content is None, initial=initial)
        for source, part in self.data.parts.items():
            model.objective_of(source).check_batch(model.graphs[source], part.training.batch_size)
        if content is not None:
            if training.precision == "fp64":
                model.double()  # before the weights are copied into it: float32 would round them
            load_strictly(
                model, content["model"], what=f"the weights of the run {self.run.path}", way_out=MISFIT
            )
        else:
            self._fit_frontends(model)
            for warning in warnings_of(self.recipe, model, device) if self.world.is_main else ():
                say(f"warning: {warning}")
        if self.world.size > 1:
            synchronise_batchnorm(model, device_type=device.type)
        if training.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(device)
        if training.precision == "fp64":
            model.double()
        model.autocast = torch.bfloat16 if training.precision == "bf16" else None
        if training.compile:
            compile_image_encoders(model, device)
        if self._micro_batch is not None:
            share_state(model)  # nothing else does it without DistributedDataParallel
            for size in sorted({*self.data.batch_sizes}):
                note = check_batchnorm(model, size, self._micro_batch, self.world.size)
                if note is not None and self.world.is_main:
                    say(f"warning: {note}")
        return model

    def _same_monitor(self, content: dict[str, Any]) -> bool:
        """Whether the monitor judges as it did; told otherwise it counts anew, or old counts would stop it at once."""
        before = content.get("recipe", {}).get("monitor")  # earlier versions do not say
        return before is None or MonitorConfig.model_validate(before) == self.recipe.monitor

    def _fit_frontends(self, model: JointModel) -> None:
        """Each frontend that learns does so from the first source that its branch is trained on."""
        fitted: set[str] = set()
        for source, part in self.data.parts.items():
            names = part.branches.keys() - fitted
            fit_frontends(model, self.data.samples[source], names, main=self.world.is_main)
            fitted |= names

    def _prepare_inputs(self, content: dict[str, Any] | None) -> dict[str, Input]:
        """Inputs as the checkpoint left them, or fitted on the training samples by the main process."""
        if content is not None:
            return restore_inputs(self.recipe, content["inputs"])
        inputs = build_inputs(self.recipe)
        states: dict[str, Any] | str | None = None
        if self.world.is_main:
            try:
                for name, source in inputs.items():
                    source.fit(self.data.of_input(name))
                    self._survey(name, source)
                states = {name: source.state() for name, source in inputs.items()}
            except UserError as error:
                states = str(error)
        states = from_main(states)
        if isinstance(states, str):
            raise UserError(states)
        if not self.world.is_main and states is not None:
            for name, source in inputs.items():
                source.load_state(states[name])
        return inputs

    def _survey(self, name: str, source: Input) -> None:
        for part in self.data.reading(name):
            dataset, samples = self.data.parts[part].dataset, self.data.samples[part]
            check_fields(source, samples, name=name, dataset=dataset, part=part)
            for note in source.survey(samples, skip=dataset.on_bad_sample == "skip"):
                say(note)

    def _explain(self, error: NonFiniteError, batch: Batch) -> UserError:
        index = gather_rows(batch.by_source()[error.source].index)[list(error.rows)[:5]]
        names = [self.data.samples[error.source][int(i)].id for i in index.tolist()]
        where = f"source {error.source}: " if error.source else ""
        return UserError(
            f"step {self.step + 1}: {where}{error}. Samples: {', '.join(names)}. Checkpoints up to the last epoch "
            "are kept"
        )

    @contextmanager
    def _bar(self, steps: int) -> Iterator[Bar]:
        total = steps * self.recipe.training.epochs
        with progress_bar(total, "training", "step", visible=self.world.is_main) as bar:
            bar.advance(self.step)
            yield bar
