"""Pure functions that measure embeddings: ranks and recall, accuracy, spectrum."""

from __future__ import annotations

from mmvicreg.metrics.accuracy import class_credit, top_k_accuracy
from mmvicreg.metrics.average_precision import (
    average_precision,
    average_precision_11_point,
    interpolated_average_precision,
)
from mmvicreg.metrics.nearest import nearest_blocks, nearest_candidates
from mmvicreg.metrics.neighbours import neighbour_credit
from mmvicreg.metrics.retrieval import (
    RankCounts,
    chance_recall,
    join_counts,
    mean_rank,
    median_rank,
    rank_counts,
    recall_at_k,
    retrieval_ranks,
)
from mmvicreg.metrics.scores import Similarity

__all__ = [
    "RankCounts",
    "Similarity",
    "average_precision",
    "average_precision_11_point",
    "chance_recall",
    "class_credit",
    "interpolated_average_precision",
    "join_counts",
    "mean_rank",
    "median_rank",
    "nearest_blocks",
    "nearest_candidates",
    "neighbour_credit",
    "rank_counts",
    "recall_at_k",
    "retrieval_ranks",
    "top_k_accuracy",
]
