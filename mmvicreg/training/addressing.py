"""Randomness that is addressed, not consumed.

Every random choice comes from a generator keyed by where it is made: a view's augmentation by (seed,
epoch, sample, view), an epoch's order by (seed, epoch), a step's dropout by (seed, step, process). So any
step can be recomputed alone, and resuming anywhere, with any number of loader workers, draws the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch

_VIEW, _ORDER, _STEP, _WEIGHTS, _SUBSTITUTE = 1, 2, 3, 4, 5


def view_rng(seed: int, epoch: int, sample: int, view: int, again: int = 0) -> np.random.Generator:
    """The generator of one view of one sample in one epoch; ``again``: of those drawn anew, from 1."""
    return np.random.default_rng([_VIEW, seed, epoch, sample, view] + [again] * bool(again))


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of ``n`` samples, int64."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(n)


def substitute(seed: int, epoch: int, row: int, attempt: int, n: int) -> int:
    """The row, of ``n``, that takes the place of one that cannot be read; ``attempt`` of those tried, from 0."""
    return int(np.random.default_rng([_SUBSTITUTE, seed, epoch, row, attempt]).integers(n))


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed torch's default generators for what one process draws during one step (dropout)."""
    torch.manual_seed(_word(_STEP, seed, step, process))


def seed_weights(seed: int) -> None:
    """Seed torch's default generator of the CPU for the initial weights, which are drawn there on any machine."""
    torch.default_generator.manual_seed(_word(_WEIGHTS, seed))


def _word(*key: int) -> int:
    return int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
