"""The methods written down once more, literally and in float64, to hold the library against."""

from __future__ import annotations

from collections.abc import Mapping

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


def barlow_twins(a: Tensor, b: Tensor, *, redundancy: float = 5e-3, epsilon: float = 1e-5) -> Tensor:
    """Eq. 1 and 2 entry by entry, standardised by a BatchNorm without parameters."""
    n, d = a.shape
    norm = torch.nn.BatchNorm1d(d, affine=False, eps=epsilon, dtype=torch.float64)
    correlation = torch.einsum("ni,nj->ij", norm(a.double()), norm(b.double())) / n
    identity = torch.eye(d, dtype=torch.float64)
    weights = identity + redundancy * (1 - identity)
    return (weights * (identity - correlation) ** 2).sum()


def _unit(z: Tensor) -> Tensor:
    return z.double() / z.double().norm(dim=1, keepdim=True)


def vse(a: Tensor, b: Tensor, *, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Eq. 5 or 6 by loops over the pairs."""
    similarity = _unit(a) @ _unit(b).T
    n = len(similarity)
    loss = similarity.new_zeros(())
    for i in range(n):
        for row in (similarity[i], similarity[:, i]):
            negatives = torch.stack([row[j] for j in range(n) if j != i])
            hinges = torch.relu(margin + negatives - similarity[i, i])
            loss = loss + (hinges.max(dim=0).values if hardest else hinges.sum())
    return loss


def nt_xent(a: Tensor, b: Tensor, *, temperature: float = 0.1) -> Tensor:
    """SimCLR's Eq. 1 by loops over the 2n embeddings."""
    z = _unit(torch.cat([a, b]))
    n = len(a)
    losses = []
    for i in range(2 * n):
        scores = torch.exp(z @ z[i] / temperature)
        others = sum(scores[k] for k in range(2 * n) if k != i)
        losses.append(-torch.log(scores[(i + n) % (2 * n)] / others))
    return torch.stack(losses).mean()


def infonce(a: Tensor, b: Tensor, *, temperature: float = 0.1) -> Tensor:
    """CLIP's symmetric cross-entropy by loops."""
    scores = torch.exp(_unit(a) @ _unit(b).T / temperature)
    losses = [-torch.log(scores[i, i] / scores[i].sum()) for i in range(len(a))]
    losses += [-torch.log(scores[i, i] / scores[:, i].sum()) for i in range(len(a))]
    return torch.stack(losses).mean()


def predictor(
    z: Tensor, weights: Mapping[str, Tensor], *, norm: bool = True, epsilon: float = 1e-5
) -> Tensor:
    """Linear-BN-ReLU-Linear (without BN: Linear-ReLU-Linear) from its state dict, the batch's own statistics."""
    state = {name: value.double() for name, value in weights.items()}
    hidden = torch.einsum("ni,oi->no", z.double(), state["0.weight"]) + state["0.bias"]
    if norm:
        centred = hidden - hidden.mean(dim=0)
        hidden = centred / torch.sqrt((centred**2).mean(dim=0) + epsilon)
        hidden = hidden * state["1.weight"] + state["1.bias"]
    last = "3" if norm else "2"
    hidden = torch.maximum(hidden, torch.zeros_like(hidden))
    return torch.einsum("ni,oi->no", hidden, state[f"{last}.weight"]) + state[f"{last}.bias"]


def eq_8(p_a: Tensor, p_b: Tensor, t_a: Tensor, t_b: Tensor, *, distance: str) -> Tensor:
    """Eq. 8 of the VICReg paper by loops over the samples."""

    def one(p: Tensor, t: Tensor) -> Tensor:
        if distance == "mse":
            return ((p - t) ** 2).sum() / len(p)
        cosine = (p * t).sum() / (p.norm() * t.norm())
        return -cosine if distance == "cosine" else 2 - 2 * cosine

    n = len(p_a)
    rows = zip(p_a.double(), p_b.double(), t_a.double(), t_b.double(), strict=True)
    return sum((one(p, t_) + one(p_, t)) / (2 * n) for p, p_, t, t_ in rows)  # type: ignore[return-value]


def standardised(z: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """A BatchNorm without parameters, which is what D.5 calls standardising."""
    norm = torch.nn.BatchNorm1d(z.shape[1], affine=False, eps=epsilon, dtype=torch.float64)
    return norm(z.double())  # type: ignore[no-any-return]


def whitened(z: Tensor, *, shrinkage: float = 0.0) -> Tensor:
    """Cholesky whitening of one sub-batch: the inverse factor, written out, times every centred sample."""
    z = z.double()
    m, d = z.shape
    centred = z - z.sum(dim=0) / m
    covariance = torch.einsum("ni,nj->ij", centred, centred) / (m - 1)
    covariance = (1 - shrinkage) * covariance + shrinkage * torch.eye(d, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return torch.stack([inverse @ sample for sample in centred])


def wmse(
    a: Tensor,
    b: Tensor,
    *,
    partitions: list[list[list[int]]] | None = None,
    cosine: bool = True,
    shrinkage: float = 0.0,
) -> Tensor:
    """W-MSE by loops over partitions, sub-batches and samples; ``partitions`` lists positions."""
    losses = []
    for partition in partitions or [[list(range(len(a)))]]:
        distances = []
        for rows in partition:
            x, y = (whitened(z[rows], shrinkage=shrinkage) for z in (a, b))
            for u, v in zip(x, y, strict=True):
                if cosine:
                    distances.append(2 - 2 * (u @ v) / (u.norm() * v.norm()))
                else:
                    distances.append(((u - v) ** 2).sum() / len(u))
        losses.append(torch.stack(distances).mean())
    return torch.stack(losses).mean()


def assignments(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp as SwAV's Eq. 5 and its pseudo-code: on exp(scores / epsilon), row and column in turn."""
    plan = torch.exp(scores.double().T / epsilon)
    prototypes, samples = plan.shape
    plan = plan / plan.sum()
    for _ in range(iterations):
        plan = plan / (prototypes * plan.sum(dim=1, keepdim=True))
        plan = plan / (samples * plan.sum(dim=0, keepdim=True))
    return (plan * samples).T


def swav(
    a: Tensor,
    b: Tensor,
    *,
    prototypes: Tensor,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queues: tuple[Tensor, Tensor] | None = None,
    directions: str = "both",
) -> Tensor:
    """SwAV's Algorithm 1 by loops; ``queues`` are earlier unit embeddings of a and of b."""
    prototypes, a, b = _unit(prototypes), _unit(a), _unit(b)
    losses = [a.new_zeros(())]
    for i, (coded, other) in enumerate(((a, b), (b, a))):
        if directions not in ("both", "ab"[i]):
            continue
        with torch.no_grad():
            earlier = coded[:0] if queues is None else queues[i].double()
            scores = torch.cat([coded, earlier]) @ prototypes.T
            codes = assignments(scores, epsilon=epsilon, iterations=iterations)
        for code, z in zip(codes[: len(coded)], other, strict=True):
            scores = torch.exp(prototypes @ z / temperature)
            losses.append(-(code * torch.log(scores / scores.sum())).sum() / len(coded))
    return torch.stack(losses).sum() / 2
