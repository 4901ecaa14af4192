"""Objectives: from the embeddings of one batch to a loss, alike for one process and for many."""

from __future__ import annotations

from mmvicreg.objectives.base import Edge, Graph, Node, NonFiniteError, Objective, ObjectiveOutput
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.vicreg import VICReg

__all__ = ["Edge", "Graph", "Node", "NonFiniteError", "Objective", "ObjectiveOutput", "VICReg", "gather"]
