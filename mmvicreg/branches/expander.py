"""The expander h: the MLP whose output the objective sees, thrown away after pretraining."""

from __future__ import annotations

from torch import nn

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
