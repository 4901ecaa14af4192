"""Objectives: from the embeddings of one batch to a loss, alike for one process and for many.

OBoW (Gidaris et al. 2021) is left out: its targets are bags of visual words, counted over the places of a
teacher's feature maps, so it is a method for pictures and convolutions and not for a pair of embeddings.
"""

from __future__ import annotations

from mmvicreg.objectives.barlow_twins import BarlowTwins
from mmvicreg.objectives.base import Edge, Graph, Node, NonFiniteError, Objective, ObjectiveOutput
from mmvicreg.objectives.byol import BYOL
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.simclr import SimCLR
from mmvicreg.objectives.simsiam import SimSiam
from mmvicreg.objectives.swav import SwAV
from mmvicreg.objectives.vicreg import VICReg
from mmvicreg.objectives.vse import VSE
from mmvicreg.objectives.wmse import WMSE

__all__ = [
    "BYOL",
    "VSE",
    "WMSE",
    "BarlowTwins",
    "Edge",
    "Graph",
    "Node",
    "NonFiniteError",
    "Objective",
    "ObjectiveOutput",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
    "gather",
]
