"""BYOL: predict what a slower copy of the network gives for the other view (Grill et al. 2020)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from mmvicreg.objectives.prediction import Distance, PredictionConfig, PredictionMethod, Widths
from mmvicreg.strict import Strict


class BYOLConfig(PredictionConfig):
    """BYOL's own setting of the switches."""

    momentum: Annotated[float, Field(ge=0, le=1)] | None = 0.99
    """C.4 of the VICReg paper, for 100 epochs; BYOL's 1000 epochs start from 0.996."""
    predictor: Widths | None = (4096,)
    """BYOL's hidden width, beside embeddings of 256."""
    distance: Distance = "normalised-mse"


class BYOL(PredictionMethod):
    """BYOL: momentum, stopped gradient, predictor; see :class:`~.prediction.PredictionMethod`.

    >>> BYOL(width=256)(z_a, z_b, targets=(t_a, t_b)).loss.backward()
    """

    Config: ClassVar[type[Strict]] = BYOLConfig
