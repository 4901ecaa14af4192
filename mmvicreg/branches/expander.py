"""The expander h: the MLP whose output the objective sees, thrown away after pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvicreg.config import ExpanderConfig


def expander(in_features: int, config: ExpanderConfig) -> nn.Sequential:
    """Linear-BN-ReLU for every width but the last, then Linear (section 4.2; the code's last has no bias).

    Args:
        in_features: width of the representation.
        config: widths and normalisation; ``norm="none"`` is Table 8's expander without BN.
    """
    layers: list[nn.Module] = []
    width = in_features
    for out in config.widths[:-1]:
        layers.append(nn.Linear(width, out))
        if config.norm == "batchnorm":
            layers.append(nn.BatchNorm1d(out))
        layers.append(nn.ReLU(inplace=True))
        width = out
    layers.append(nn.Linear(width, config.widths[-1], bias=config.last_bias))
    return nn.Sequential(*layers)


def expand(layers: nn.Sequential, views: Sequence[Tensor]) -> list[Tensor]:
    """What :func:`expander`'s layers make of several views, each as if it had been alone.

    A linear layer takes the rows of all views at once: a weight of 8192 x 8192 is then read, and its gradient
    written, once instead of once a view, which is most of a step with small batches. Only BatchNorm, whose
    statistics are a view's own, is given one view after the other.

    Args:
        layers: the branch's expander.
        views: representations ``(n_i, features)`` of nodes that share it.

    Returns:
        The embeddings ``(n_i, width)``, in the same order.
    """
    if len(views) == 1:
        return [layers(views[0])]
    sizes = [len(view) for view in views]
    x = torch.cat(list(views))
    for layer in layers:
        apart = isinstance(layer, _BatchNorm)
        x = torch.cat([layer(view) for view in torch.split(x, sizes)]) if apart else layer(x)
    return list(torch.split(x, sizes))
