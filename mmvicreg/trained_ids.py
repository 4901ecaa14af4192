"""Which samples a run was trained on, by their ids: kept with its checkpoint, eight bytes a sample.

A fingerprint says whether a training split is the same one; the ids also say whether samples of another split, or of
another layout of the same data set, were among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmvicreg.samples import Sample


def hash_ids(samples: Iterable[Sample]) -> Tensor:
    """The first 64 bits of a hash of every sample's id: ``(n,)`` int64, sorted, each once.

    Of a million samples and a hundred thousand others, two share a hash by chance once in 10^8 such pairs of lists.
    """
    hashes = b"".join(hashlib.blake2b(sample.id.encode(), digest_size=8).digest() for sample in samples)
    return torch.from_numpy(np.unique(np.frombuffer(hashes, dtype="<i8").astype(np.int64)))


def count_among(samples: Sequence[Sample], hashes: Tensor) -> int:
    """How many of the samples' ids are among those that ``hashes`` (:func:`hash_ids`) was made of."""
    return int(np.isin(hash_ids(samples).numpy(), hashes.numpy(), assume_unique=True).sum())
