"""Pure functions that measure embeddings: ranks and recall, accuracy, spectrum."""

from __future__ import annotations

from mmvicreg.metrics.accuracy import top_k_accuracy
from mmvicreg.metrics.nearest import nearest_candidates
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
    "chance_recall",
    "join_counts",
    "mean_rank",
    "median_rank",
    "nearest_candidates",
    "rank_counts",
    "recall_at_k",
    "retrieval_ranks",
    "top_k_accuracy",
]
