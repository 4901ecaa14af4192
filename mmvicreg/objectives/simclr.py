"""SimCLR's NT-Xent (Chen, Kornblith, Norouzi, Hinton 2020) and the two-modality InfoNCE of CLIP.

Per edge, with l2-normalised global batches and similarities divided by the temperature:

    nt-xent:  every one of the 2n embeddings picks its partner among the other 2n - 1    SimCLR Eq. 1
    infonce:  every a picks its b among the n of b, and the other way round              CLIP Fig. 3

the mean cross-entropy over all that pick. Edges count alike; mu, nu and lambda are VICReg's and unused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmvicreg.objectives.base import Graph, Objective, ObjectiveOutput, validate_options
from mmvicreg.objectives.gather import gather
from mmvicreg.objectives.precision import exact
from mmvicreg.strict import Strict

Candidates = Literal["nt-xent", "infonce"]
LOWEST_TEMPERATURE = 0.01
"""CLIP keeps a learned temperature from falling below this (a logit scale of 100)."""
HIGHEST_LOG_SCALE = -math.log(LOWEST_TEMPERATURE)


class SimCLRConfig(Strict):
    """SimCLR's options."""

    candidates: Candidates = "nt-xent"
    """``nt-xent``: among both batches; ``infonce``: among the other modality only."""
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE)] = 0.1
    """Fixed, or the start where it is learned. SimCLR: 0.1 on ImageNet, 0.5 on CIFAR-10; CLIP: 0.07."""
    learn_temperature: bool = False


class SimCLR(Objective):
    """SimCLR or InfoNCE over two tensors, or over the edges of a recipe's graph.

    >>> SimCLR(temperature=0.5)(z_a, z_b).loss.backward()     # (n, d) each; local rows under a process group
    >>> clip = SimCLR(candidates="infonce", temperature=0.07, learn_temperature=True)   # train its parameter

    Args:
        candidates: ``nt-xent`` or ``infonce``.
        temperature: what cosine similarities are divided by.
        learn_temperature: train ``log_scale`` (log of 1 / temperature) with the rest; its gradient is the
            whole one on every process, so it needs no averaging and survives DDP's.

    Terms: ``contrast/<a>-<b>``, ``accuracy/<a>-<b>`` (the share that picks its partner), and
    ``temperature/<a>-<b>``.
    """

    Config: ClassVar[type[Strict]] = SimCLRConfig
    directional = True

    def __init__(
        self,
        *,
        candidates: Candidates = "nt-xent",
        temperature: float = 0.1,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        options = {"candidates": candidates, "temperature": temperature}
        validate_options(SimCLR, {**options, "learn_temperature": learn_temperature})
        self.candidates, self.temperature = candidates, temperature
        self.log_scale: nn.Parameter | None = None
        if learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def compute(
        self, embeddings: Mapping[str, Tensor], graph: Graph, sizes: tuple[int, ...]
    ) -> ObjectiveOutput:
        """The sum over the edges; float32, or float64 for float64 embeddings."""
        batch = {
            name: functional.normalize(exact(gather(z, sizes=sizes)), dim=1) for name, z in embeddings.items()
        }
        self._bring_back()
        logits = nt_xent_logits if self.candidates == "nt-xent" else infonce_logits
        terms: dict[str, Tensor] = {}
        losses = []
        for edge in graph.edges:
            scale = self._scale(batch[edge.a])
            scores, partner = logits(batch[edge.a], batch[edge.b], scale)
            losses.append(functional.cross_entropy(scores, partner))
            name = f"{edge.a}-{edge.b}"
            terms[f"contrast/{name}"] = losses[-1].detach()
            terms[f"accuracy/{name}"] = (scores.detach().argmax(dim=1) == partner).to(scores.dtype).mean()
            terms[f"temperature/{name}"] = 1 / scale.detach()
        return ObjectiveOutput(torch.stack(losses).sum(), terms)

    def _scale(self, like: Tensor) -> Tensor:
        if self.log_scale is None:
            return like.new_tensor(1 / self.temperature)
        # in training the parameter itself is kept within the bound; a clamp's gradient on it is already zero
        log_scale = self.log_scale if self.training else self.log_scale.clamp(max=HIGHEST_LOG_SCALE)
        return log_scale.to(like.dtype).exp()

    @torch.no_grad()
    def _bring_back(self) -> None:
        """Put a learned temperature that a step took beyond its bound back on it, as CLIP does.

        Clamped in the forward pass alone it would have a gradient of zero, and stay there for ever.
        """
        if self.log_scale is not None and self.training:
            self.log_scale.clamp_(max=HIGHEST_LOG_SCALE)


def nt_xent_logits(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``(2n, 2n)`` scaled similarities, oneself at minus infinity, and each row's partner ``(2n,)``."""
    both = torch.cat([a, b])
    itself = torch.eye(len(both), dtype=torch.bool, device=a.device)
    # Masked after scaling: infinity times the scale would give the scale a gradient of NaN.
    scores = (both @ both.T * scale).masked_fill(itself, -torch.inf)
    return scores, torch.arange(len(both), device=a.device).roll(len(a))


def infonce_logits(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``(2n, n)``: rows of a against b above rows of b against a, and each row's partner ``(2n,)``."""
    scores = a @ b.T * scale
    return torch.cat([scores, scores.T]), torch.arange(len(a), device=a.device).repeat(2)
