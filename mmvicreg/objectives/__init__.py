"""Objectives: from the embeddings of one batch to a loss, alike for one process and for many."""

from __future__ import annotations

from mmvicreg.objectives.barlow_twins import BarlowTwins
from mmvicreg.objectives.base import Edge, Graph, Node, NonFiniteError, Objective, ObjectiveOutput
from mmvicreg.objectives.byol import BYOL
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.simclr import SimCLR
from mmvicreg.objectives.simsiam import SimSiam
from mmvicreg.objectives.vicreg import VICReg
from mmvicreg.objectives.vse import VSE

__all__ = [
    "BYOL",
    "VSE",
    "BarlowTwins",
    "Edge",
    "Graph",
    "Node",
    "NonFiniteError",
    "Objective",
    "ObjectiveOutput",
    "SimCLR",
    "SimSiam",
    "VICReg",
    "gather",
]
