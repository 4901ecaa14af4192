"""What retrieval is measured on: the images of a protocol, and those that have captions.

``5k`` is the protocol papers report on COCO: Karpathy's 5 000 test images against the first five captions of each,
25 000. ``1k-5fold`` is the mean over five consecutive folds of 1 000 of the same images. ``all`` takes the whole split,
of any size, as one gallery. Of each image at most the first five captions count, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.samples import DataSet, Sample
from mmvicreg.skipped import Skipped

Protocol: TypeAlias = Literal["5k", "1k-5fold", "all"]
CAPTIONS = 5
"""Captions per picture; COCO has six or seven of some."""
FULL, FOLD = 5000, 1000
"""Images of ``5k``, and of each fold of ``1k-5fold``."""


def check_protocol(protocol: str) -> None:
    """Raise :class:`UserError` naming the nearest protocol unless ``protocol`` is one."""
    known = get_args(Protocol)
    if protocol not in known:
        raise UserError(f"unknown protocol '{protocol}'{nearest(protocol, known)} Known: {', '.join(known)}.")


def check_size(
    protocol: Protocol, data: DataSet, split: str, samples: Sequence[Sample], *, captions: bool
) -> None:
    """Raise :class:`UserError` unless the protocol, of so many images and captions of each, is defined on these."""
    if protocol == "all":
        return
    where = f"the split '{split}' of {data.name} at {data.root}"
    if len(samples) != FULL:
        raise UserError(
            f"--protocol {protocol} is defined on {FULL:,} images, and {where} has {len(samples):,}; "
            "use --protocol all"
        )
    few = [sample for sample in samples if len(sample.captions) < CAPTIONS] if captions else []
    if few:
        raise UserError(
            f"--protocol {protocol} takes the first {CAPTIONS} captions of each image, and {len(few):,} images "
            f"of {where} have fewer, first '{few[0].id}' with {len(few[0].captions)}; use --protocol all"
        )


def with_captions(
    samples: Sequence[Sample], where: str, *, skip: bool
) -> tuple[Sequence[Sample], list[Skipped]]:
    """The samples that have captions, and a list of the others.

    Raises:
        UserError: there are others, without ``skip``, or nothing else.
    """
    bare = [sample for sample in samples if not sample.captions]
    if not bare:
        return samples, []
    if len(bare) == len(samples) or not skip:
        raise UserError(
            f"{len(bare):,} of {len(samples):,} samples of {where} have no caption to be found by, first "
            f"'{bare[0].id}'{f' ({bare[0].fault})' if bare[0].fault else ''}; "
            + (
                "choose another data set (--dataset) or split (--split)"
                if len(bare) == len(samples)
                else "give them captions, or leave them out with --on-bad-sample skip"
            )
        )
    return [sample for sample in samples if sample.captions], [
        Skipped.of(s, s.fault or "it has no caption") for s in bare
    ]
