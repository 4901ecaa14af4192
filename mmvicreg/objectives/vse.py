"""VSE++: triplet hinges with the hardest negative (Faghri, Fleet, Kiros, Fidler 2018), and VSE0's sum.

Per edge, with l2-normalised global batches and similarities S = A B^T, for every true pair i:

    hardest:  max_{j != i} [margin + S_ij - S_ii]_+  +  max_{j != i} [margin + S_ji - S_ii]_+    Eq. 6
    all:      sum_{j != i} of both                                                              Eq. 5

summed over the pairs of the batch, as the authors' code does (``reduction: mean`` divides by n, so that the
learning rate need not follow the batch size). Samples that share a positive (two captions of one picture
in one batch) count as negatives of each other, as in the paper. Edges count alike; mu, nu and lambda are
VICReg's and unused.

From scratch the hardest negatives draw all embeddings into one point before they tell anything apart (VSE++ starts
from ImageNet's weights). ``warmup_steps`` lets all negatives count first, as VSE-infinity trains its first epoch
(Chen, Hu, Wu, Jiang, Wang 2021; ``vse_mean_warmup_epochs`` of its code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmvicreg.objectives.base import Graph, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact
from mmvicreg.strict import Strict

Negatives = Literal["hardest", "all"]
Reduction = Literal["sum", "mean"]


class VSEConfig(Strict):
    """VSE++'s options."""

    margin: Annotated[float, Field(gt=0)] = 0.2
    negatives: Negatives = "hardest"
    """``hardest``: VSE++, the nearest negative each way; ``all``: VSE0, the sum over every negative."""
    reduction: Reduction = "sum"
    """Over the pairs of the batch; ``sum`` is the authors' code."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which all negatives count, before the hardest alone do."""


class VSE(Objective):
    """VSE++ over two tensors, or over the edges of a recipe's graph.

    >>> VSE(margin=0.2)(images, captions).loss.backward()   # (n, d) each; local rows under a process group

    Args:
        margin: how much nearer the true pair has to be, in cosine similarity.
        negatives: ``hardest`` (VSE++) or ``all`` (VSE0).
        reduction: ``sum`` or ``mean`` over the pairs.
        warmup_steps: training steps in which all negatives count, before the hardest alone do; how many were made
            is kept with the weights.

    Terms: ``hinge/<a>-<b>`` (a's sample against negatives in b) and ``hinge/<b>-<a>``, and
    ``violations/<a>-<b>``, the share of samples of both sides whose hardest negative is inside the margin.
    """

    Config: ClassVar[type[Strict]] = VSEConfig
    advice: ClassVar[str] = (
        "Let all negatives count for the first epochs (objective.warmup_steps), or always (objective.negatives=all)"
    )
    directional = True
    step: Tensor | None

    def __init__(
        self,
        *,
        margin: float = 0.2,
        negatives: Negatives = "hardest",
        reduction: Reduction = "sum",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        options = {"margin": margin, "negatives": negatives, "reduction": reduction}
        validate_options(VSE, {**options, "warmup_steps": warmup_steps})
        self.margin, self.negatives, self.reduction = margin, negatives, reduction
        self.warmup_steps = warmup_steps
        # Without a warm-up there is nothing to count, and nothing more in a checkpoint.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if warmup_steps else None)

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The sum over the edges; float32, or float64 for float64 embeddings."""
        batch = {
            name: functional.normalize(exact(gather(z, sizes=sizes)), dim=1) for name, z in embeddings.items()
        }
        scale = 1.0 / sum(sizes) if self.reduction == "mean" else 1.0
        warming = self.step is not None and int(self.step) < self.warmup_steps
        every = warming or self.negatives == "all"
        terms: dict[str, Tensor] = {}
        losses = []
        for edge in graph.edges:
            hinges = violations(batch[edge.a] @ batch[edge.b].T, margin=self.margin)
            hardest = [hinge.max(dim=1).values for hinge in hinges]
            counted = hinges if every else hardest
            values = [scale * hinge.sum() for hinge in counted]
            terms[f"hinge/{edge.a}-{edge.b}"] = values[0].detach()
            terms[f"hinge/{edge.b}-{edge.a}"] = values[1].detach()
            terms[f"violations/{edge.a}-{edge.b}"] = (
                (torch.cat(hardest).detach() > 0).to(values[0].dtype).mean()
            )
            losses += values
        loss = torch.stack(losses).sum()
        if warming and self.step is not None and self.training and bool(torch.isfinite(loss.detach())):
            self.step += 1
        return ObjectiveOutput(loss, terms)


def violations(similarities: Tensor, *, margin: float) -> tuple[Tensor, Tensor]:
    """Hinges ``(n, n)`` of every sample against every negative, rows of a against b and of b against a."""
    true = similarities.diagonal()
    itself = torch.eye(len(true), dtype=torch.bool, device=true.device)
    forward = (margin + similarities - true[:, None]).clamp(min=0).masked_fill(itself, 0)
    backward = (margin + similarities.T - true[:, None]).clamp(min=0).masked_fill(itself, 0)
    return forward, backward
