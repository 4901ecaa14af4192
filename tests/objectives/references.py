"""The methods written down once more, literally and in float64, to hold the library against."""

from __future__ import annotations

import torch
from torch import Tensor


def vicreg_parts(z: Tensor, *, gamma: float = 1.0, epsilon: float = 1e-4) -> tuple[Tensor, Tensor]:
    """v and c of Algorithm 1, entry by entry."""
    z = z.double()
    n, d = z.shape
    centred = z - z.sum(dim=0) / n
    covariance = torch.einsum("ni,nj->ij", centred, centred) / (n - 1)
    deviation = torch.sqrt(torch.einsum("ni,ni->i", centred, centred) / (n - 1) + epsilon)
    variance_term = torch.maximum(gamma - deviation, torch.zeros_like(deviation)).sum() / d
    off_diagonal = covariance * (1 - torch.eye(d, dtype=torch.float64))
    return variance_term, (off_diagonal**2).sum() / d


def vicreg(
    a: Tensor,
    b: Tensor,
    *,
    invariance: float = 25.0,
    variance: tuple[float, float] = (25.0, 25.0),
    covariance: tuple[float, float] = (1.0, 1.0),
    gamma: float = 1.0,
    epsilon: float = 1e-4,
) -> Tensor:
    """Eq. 6 with Algorithm 1's mean squared error, summed over the branches."""
    loss = invariance * ((a.double() - b.double()) ** 2).sum() / a.numel()
    for z, mu, nu in zip((a, b), variance, covariance, strict=True):
        v, c = vicreg_parts(z, gamma=gamma, epsilon=epsilon)
        loss = loss + mu * v + nu * c
    return loss


def vicreg_authors(x: Tensor, y: Tensor) -> Tensor:
    """The formula of the authors' main_vicreg.py with its 25/25/1, written from its description."""
    n, d = x.shape
    representation = torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    std_x, std_y = (x.var(dim=0) + 0.0001) ** 0.5, (y.var(dim=0) + 0.0001) ** 0.5
    std_loss = torch.mean(torch.relu(1 - std_x)) / 2 + torch.mean(torch.relu(1 - std_y)) / 2
    cov_loss = x.new_zeros(())
    for z in (x, y):
        cov = (z.T @ z) / (n - 1)
        cov_loss = cov_loss + (cov.pow(2).sum() - cov.diagonal().pow(2).sum()) / d
    return 25.0 * representation + 25.0 * std_loss + 1.0 * cov_loss
