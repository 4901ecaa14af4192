"""SimSiam: predict the other view's embedding, held constant (Chen and He 2020)."""

from __future__ import annotations

from typing import ClassVar

from mmvicreg.objectives.prediction import PredictionConfig, PredictionMethod, Widths
from mmvicreg.strict import Strict


class SimSiamConfig(PredictionConfig):
    """SimSiam's own setting of the switches."""

    predictor: Widths | None = (512,)
    """SimSiam's hidden width, a bottleneck beside embeddings of 2048."""
    fixed_predictor_rate: bool = True
    """SimSiam section 4.4, and C.4 of the VICReg paper."""


class SimSiam(PredictionMethod):
    """SimSiam: stopped gradient and predictor; see :class:`~.prediction.PredictionMethod`.

    >>> SimSiam(width=2048)(z_a, z_b).loss.backward()     # (n, d) each; local rows under a process group
    """

    Config: ClassVar[type[Strict]] = SimSiamConfig
