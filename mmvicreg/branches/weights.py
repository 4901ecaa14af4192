"""Loading weights strictly, with a message a person can read when they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmvicreg.errors import UserError


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, what: str, way_out: str) -> None:
    """Load ``state`` into ``module``; every key must be there, in its shape, and no other.

    Args:
        module: what to load into.
        state: parameter and buffer names to tensors.
        what: the weights, in words for the message.
        way_out: what to do when they do not fit.

    Raises:
        UserError: they do not fit; the differing keys are listed, a few of each kind.
    """
    own = module.state_dict()
    problems = [
        f"{len(keys)} {kind}: {_some(keys)}"
        for kind, keys in (
            ("missing", [key for key in own if key not in state]),
            ("unknown", [key for key in state if key not in own]),
            (
                "of another shape",
                [
                    f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
                    for key in own
                    if key in state and state[key].shape != own[key].shape
                ],
            ),
        )
        if keys
    ]
    if problems:
        raise UserError(f"{what} do not fit ({'; '.join(problems)}); {way_out}")
    module.load_state_dict(state)


def _some(keys: Sequence[str], most: int = 4) -> str:
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")
