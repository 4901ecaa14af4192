"""Pure functions that measure embeddings: ranks and recall, accuracy, spectrum."""

from __future__ import annotations

from mmvicreg.metrics.accuracy import top_k_accuracy
from mmvicreg.metrics.retrieval import (
    RankCounts,
    Similarity,
    chance_recall,
    mean_rank,
    median_rank,
    rank_counts,
    recall_at_k,
    retrieval_ranks,
)

__all__ = [
    "RankCounts",
    "Similarity",
    "chance_recall",
    "mean_rank",
    "median_rank",
    "rank_counts",
    "recall_at_k",
    "retrieval_ranks",
    "top_k_accuracy",
]
