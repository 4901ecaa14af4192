"""A global batch larger than memory, trained exactly: embed, differentiate, replay.

An objective over batch statistics or negatives is no mean over samples, so the gradients of small batches
do not add up to that of the large one: accumulating them trains on the small batches. The chain rule
needs less than the whole graph, though (GradCache: Gao, Zhang, Han, Callan 2021, arXiv 2101.06983):

1. embed the local batch in micro-batches, without a graph;
2. compute the loss of the global batch from those embeddings Z, and its gradient with respect to Z (and
   to the objective's own parameters);
3. embed each micro-batch again, with a graph, and back-propagate its rows of dL/dZ.

Activations of one micro-batch are held at a time, for one forward more than a whole batch takes.

**Randomness.** Augmentation is a function of the ``draws`` that travel with each sample, the same in any
micro-batch. What dropout draws from torch's generators is drawn again in step 3 from the state it was
drawn from in step 1. A branch that gives another embedding the second time is refused.

**BatchNorm.** A layer in a branch normalises by the statistics of a micro-batch (of all processes where it
is synchronised), in both passes alike. The gradient is exact for that network, which is not quite the one
that a whole batch trains: for that, freeze it (``branches.NAME.freeze: batchnorm``) or leave it out
(``expander.norm: none``). Running statistics move in step 1 alone, once for each sample and micro-batch,
so with momentum 0.1 they average over the last ten micro-batches or so. Layers of the objective
(predictors) see the whole batch.

**Processes.** Nothing of a branch is communicated before the last micro-batch is done; then gradients are
averaged once, as DistributedDataParallel would. It is left out here: it synchronises in its own
forward, which cannot be called in parts, and hiding the one exchange behind the backward pass of
the last of many micro-batches would gain little. Processes may have local batches of different sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvicreg.branches.model import Batch, JointModel, ModelOutput
from mmvicreg.branches.norm import GlobalBatchNorm
from mmvicreg.errors import UserError
from mmvicreg.objectives.gather import local_sizes
from mmvicreg.training.distributed import average_gradients


def differentiate(model: JointModel, batch: Batch, micro_batch: int) -> ModelOutput:
    """Add the gradients of the global batch's loss to the model's, averaged over the processes.

    Args:
        model: in training mode, not wrapped in DistributedDataParallel, the same on every process.
        batch: this process's samples. They are cut into the fewest micro-batches there can be, of equal
            sizes or sizes one apart, so that none is much smaller than the others.
        micro_batch: the most samples in one of them.

    Returns:
        What the model returns for the whole batch; the loss is detached.

    Raises:
        UserError: ``micro_batch`` below 1; a process without a sample for each micro-batch, where
            BatchNorm is synchronised; a branch whose embedding is another one the second time.
        NonFiniteError: NaN or infinity in an embedding; no gradient was touched.
    """
    device = batch.index.device
    parts = {source: _embed(model, rows, source, micro_batch) for source, rows in batch.by_source().items()}
    output = model.join(
        {
            source: model.judge(part.embeddings, part.representations, part.targets, source=source)
            for source, part in parts.items()
        }
    )
    output.loss.backward()  # type: ignore[no-untyped-call]

    forked = [device] if device.type == "cuda" else []
    with _buffers_kept(model), torch.random.fork_rng(forked):
        for source, part in parts.items():
            _replay(model, part, source)
    for part in parts.values():
        _check_replay(part.apart, part.embeddings)
    average_gradients(model)
    return replace(output, loss=output.loss.detach())


@dataclass
class _Part:
    """A source's local batch, embedded without a graph; the embeddings are leaves.

    Attributes:
        batch: the samples.
        pieces: the rows of each micro-batch.
        states: torch's generators before each.
        embeddings: node -> ``(n_local, width)``.
        representations: node -> ``(n_local, features)``.
        targets: node -> ``(n_local, width)``, where the method has them.
        apart: node -> the squared distance between its embeddings and those of the replay.
    """

    batch: Batch
    pieces: list[slice]
    states: list[list[Tensor]]
    embeddings: dict[str, Tensor]
    representations: dict[str, Tensor]
    targets: dict[str, Tensor]
    apart: dict[str, Tensor]


def _embed(model: JointModel, batch: Batch, source: str, micro_batch: int) -> _Part:
    device = batch.index.device
    pieces = cut(model.branches, local_sizes(len(batch.index), device), len(batch.index), micro_batch)
    states: list[list[Tensor]] = []
    embedded: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    with torch.no_grad():
        for piece in pieces:
            states.append(_generators(device))
            rows = batch.rows(piece)
            embedded.append((*model.embed(rows, source), model.embed_targets(rows, source)))
    whole, representations, targets = (
        {node: torch.cat([part[node] for part in parts]) for node in parts[0]}
        for parts in zip(*embedded, strict=True)
    )
    embeddings = {node: z.requires_grad_() for node, z in whole.items()}
    apart = {node: torch.zeros((), device=device) for node in embeddings}
    return _Part(batch, pieces, states, embeddings, representations, targets, apart)


def _replay(model: JointModel, part: _Part, source: str) -> None:
    """Embed each micro-batch once more, with a graph, and back-propagate its rows of dL/dZ."""
    for piece, state in zip(part.pieces, part.states, strict=True):
        _set_generators(state, part.batch.index.device)
        again, _ = model.embed(part.batch.rows(piece), source)
        _backward(again, {node: z.grad for node, z in part.embeddings.items()}, piece)
        for node, z in again.items():
            part.apart[node] += (z.detach() - part.embeddings[node].detach()[piece]).float().square().sum()


def cut(branches: nn.Module, sizes: tuple[int, ...], n: int, micro_batch: int) -> list[slice]:
    """The rows of every micro-batch of a local batch of ``n``; ``sizes`` are those of all processes.

    Every process has as many as the largest local batch needs, because a synchronised BatchNorm waits for
    all of them in each; without such layers a smaller local batch may have fewer.
    """
    if micro_batch < 1:
        raise UserError(f"a micro-batch has at least 1 sample, not {micro_batch}")
    if min(sizes) == 0:
        raise UserError("a process has no samples of the batch; give every process some")
    count = -(-max(sizes) // micro_batch)
    if min(sizes) < count and any(_is_synchronised(module) for module in branches.modules()):
        raise UserError(
            f"a process with {max(sizes)} samples needs {count} micro-batches of {micro_batch}, and one with "
            f"{min(sizes)} cannot take part in each, as synchronised BatchNorm asks; share the samples out evenly, "
            "or use a larger micro-batch"
        )
    count = min(count, n)
    ends = [n * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def check_batchnorm(model: JointModel, batch_size: int, micro_batch: int, processes: int) -> str | None:
    """What is to be said of the model's BatchNorm layers when it is trained in micro-batches; often nothing.

    Raises:
        UserError: micro-batches so small that there is no variance to normalise by.
    """
    layers = {name: count for name in model.branches if (count := _batchnorm_layers(model, name))}
    if not layers:
        return None
    local = batch_size // processes
    smallest = local // -(-local // micro_batch) * processes
    way_out = (
        "branches.NAME.freeze=batchnorm and branches.NAME.expander.norm=none train the whole batch's network"
    )
    shown = " and ".join(f"{count} in branch {name}" for name, count in layers.items())
    if smallest < 2:
        raise UserError(
            f"training.micro_batch {micro_batch} leaves BatchNorm ({shown}) with a single sample, which has no "
            f"variance; use at least 2, or none of it: {way_out}"
        )
    return (
        f"BatchNorm ({shown}) sees micro-batches of {smallest} or more samples, not the batch of {batch_size}: this "
        f"trains another network than the whole batch would, though its gradient is exact; {way_out}"
    )


def _batchnorm_layers(model: JointModel, name: str) -> int:
    """How many layers of a branch ever normalise by a batch's statistics: not those frozen for good."""
    branch = model.branch(name)
    for_good = branch.config.freeze != "none" and branch.config.freeze_epochs is None
    part = branch.expander if for_good else branch
    return sum(isinstance(module, _BatchNorm) for module in part.modules())


def _is_synchronised(module: nn.Module) -> bool:
    return isinstance(module, GlobalBatchNorm | nn.SyncBatchNorm) and module.training


def _backward(again: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], piece: slice) -> None:
    """Back-propagate the rows of dL/dZ that belong to one micro-batch."""
    roots: list[Tensor] = []
    seeds: list[Tensor] = []
    for node, z in again.items():
        gradient = gradients[node]
        # none where the objective stops it, or where nothing of the branch is trained
        if gradient is not None and z.requires_grad:
            roots.append(z)
            seeds.append(gradient[piece])
    if roots:
        torch.autograd.backward(roots, seeds)


def _check_replay(apart: Mapping[str, Tensor], embeddings: Mapping[str, Tensor]) -> None:
    """Refuse a gradient taken somewhere else than where the objective was differentiated.

    Rounding may differ (a kernel that keeps nothing for backward may sum in another order), hence a bound
    of the root of the precision, which another dropout mask exceeds by far.
    """
    norms = torch.stack([z.detach().float().square().sum() for z in embeddings.values()]).sqrt()
    errors = torch.stack(list(apart.values())).sqrt()
    for (node, z), norm, error in zip(embeddings.items(), norms.tolist(), errors.tolist(), strict=True):
        if error > max(torch.finfo(z.dtype).eps, 1e-7) ** 0.5 * norm:
            raise UserError(
                f"the branch of '{node}' embeds the same samples differently the second time: it draws from a "
                "generator other than torch's default ones, or keeps a state between calls. It cannot be trained in "
                "micro-batches; leave out training.micro_batch (--micro-batch)"
            )


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put every buffer back as it was: running statistics, whatever layer they belong to."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _generators(device: torch.device) -> list[Tensor]:
    """The states of torch's default generators: the CPU's and the device's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
