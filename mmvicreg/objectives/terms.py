"""VICReg's terms and their gradient in one autograd function, exact and divided among the processes.

With Z the centred global batch (n, d), S = Z^T Z and q = diag S, everything comes from q (the variances)
and from the sum of squares of S, which is also that of the Gram matrix K = Z Z^T. So per node there are
two exact forms, and the cheaper one is taken:

* Gram, for n < d: sum_{i != j} S_ij^2 = |K|^2 - |q|^2, gradient 4 (K Z - Z diag q). The batch is gathered
  once; a process computes its own rows of K and with them the gradient of its own rows. Nothing of size
  d x d exists.
* Covariance, for n >= d: S with its diagonal set to zero, gradient 4 Z (S - diag q). S is the sum of the
  processes' own Z^T Z: adding d x d numbers up moves less than gathering the batch, as d <= n.

Centring happens block by block on the way into a product, so no centred copy of the batch is kept. In
forward and backward this spends 6 to 8 n d min(n, d) multiplications and additions for two nodes,
divided by the number of processes, where Algorithm 1 spends 12 n d^2 on each of them.

|K|^2 - |q|^2 cancels where one column dwarfs the rest or n - 1 nears the effective dimension. The
amplification |K|^2 / (|K|^2 - |q|^2) is measured, and beyond ``LARGEST_CANCELLATION`` a float32 Gram form
is replaced: by the covariance form where that costs about the same, else by a Gram form in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmvicreg.objectives.gather import all_rows, rank
from mmvicreg.objectives.precision import exact_arithmetic, exact_dtype

LARGEST_CANCELLATION = 200.0
"""Above this amplification float32 rounding would reach the fourth digit of the covariance term."""


class Terms(NamedTuple):
    """Unweighted scalars, float64; per node, per node, per edge, and per node without a gradient."""

    variance: tuple[Tensor, ...]
    covariance: tuple[Tensor, ...]
    invariance: tuple[Tensor, ...]
    cancellation: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Plan:
    """What does not change between forward and backward."""

    edges: tuple[tuple[int, int], ...]
    gammas: tuple[float, ...]
    epsilon: float
    sizes: tuple[int, ...]

    @property
    def n(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This process's rows in the global batch."""
        if len(self.sizes) == 1:
            return slice(0, self.sizes[0])
        start = sum(self.sizes[: rank()])
        return slice(start, start + self.sizes[rank()])


@dataclass(frozen=True)
class _Moments:
    """One node's second moments; ``mean`` is (2, d): the mean rounded, and what the rounding left.

    ``product`` is this process's rows of K (n_local, n), or all of S without its diagonal (d, d), and
    ``rows`` what the blocks are cut from: the global batch for K, this process's rows for S.
    """

    gram: bool
    rows: Tensor
    mean: Tensor
    product: Tensor
    squares: Tensor
    """q, (d,) float64."""
    off_diagonal: Tensor
    """Sum over i != j of S_ij^2, () float64."""


def vicreg_terms(
    embeddings: Sequence[Tensor],
    edges: Sequence[tuple[int, int]],
    *,
    gamma: float | Sequence[float],
    epsilon: float,
    sizes: tuple[int, ...],
) -> Terms:
    """Variance and covariance of every node, invariance of every edge, over the global batch.

    Args:
        embeddings: this process's ``(n_local, d)`` of every node, any floating dtype; d may differ.
        edges: pairs of positions in ``embeddings`` with equal d.
        gamma: target standard deviation, one for all nodes or one each.
        epsilon: added to the variance under the root.
        sizes: n_local of every process.

    Returns:
        The same numbers on every process. Gradients are with respect to this process's rows, times the
        number of processes (see :mod:`mmvicreg.objectives.gather`), and need no communication.
    """
    gammas = (gamma,) * len(embeddings) if isinstance(gamma, (int, float)) else tuple(gamma)
    plan = _Plan(tuple(edges), gammas, epsilon, sizes)
    flat = iter(_Terms.apply(plan, *embeddings))
    return Terms(
        tuple(next(flat) for _ in embeddings),
        tuple(next(flat) for _ in embeddings),
        tuple(next(flat) for _ in edges),
        tuple(next(flat) for _ in embeddings),
    )


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *embeddings: Tensor) -> tuple[Tensor, ...]:
        with exact_arithmetic(embeddings[0].device.type):
            moments = _moments(embeddings, plan)
            distances = [_squared_distance(embeddings[a], embeddings[b]) for a, b in plan.edges]
            if distances:
                _sum_over_processes(distances, plan)
        variance, covariance, cancellation = [], [], []
        for gamma, m in zip(plan.gammas, moments, strict=True):
            deviation = (m.squares / (plan.n - 1) + plan.epsilon).sqrt()
            variance.append((gamma - deviation).clamp(min=0).mean())
            covariance.append(m.off_diagonal / (m.squares.numel() * (plan.n - 1) ** 2))
            cancellation.append(_cancellation(m))
        invariance = [
            distance / (plan.n * embeddings[a].shape[1])
            for distance, (a, _) in zip(distances, plan.edges, strict=True)
        ]
        ctx.plan = plan
        ctx.grams = [m.gram for m in moments]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*cancellation)
        ctx.save_for_backward(
            *embeddings, *(t for m in moments for t in (m.rows, m.mean, m.product, m.squares, m.off_diagonal))
        )
        return (*variance, *covariance, *invariance, *cancellation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        nodes = len(ctx.grams)
        embeddings, saved = ctx.saved_tensors[:nodes], ctx.saved_tensors[nodes:]
        gradients: list[Tensor | None] = [None] * nodes
        with exact_arithmetic(embeddings[0].device.type):
            for i, z in enumerate(embeddings):
                if ctx.needs_input_grad[1 + i]:
                    m = _Moments(ctx.grams[i], *saved[5 * i : 5 * i + 5])
                    weights = upstream[i], upstream[nodes + i]
                    gradients[i] = _node_gradient(z, m, plan, plan.gammas[i], *weights)
            for (a, b), weight in zip(plan.edges, upstream[2 * nodes :], strict=False):
                if weight is not None:
                    scale = weight * (2.0 * len(plan.sizes) / (plan.n * embeddings[a].shape[1]))
                    _add_distance_gradient(embeddings[a], embeddings[b], gradients[a], gradients[b], scale)
        return (
            None,
            *(None if g is None else g.to(z.dtype) for g, z in zip(gradients, embeddings, strict=True)),
        )


def _moments(embeddings: Sequence[Tensor], plan: _Plan) -> list[_Moments]:
    """Every node's moments in the cheaper form that is exact enough."""
    found = [
        _second_moments(z, plan, gram=plan.n < z.shape[1], dtype=exact_dtype(z.dtype)) for z in embeddings
    ]
    # Decided on sums over all processes, so all decide alike. Infinity and NaN are left to the caller.
    hurt = torch.stack([_cancellation(m) > LARGEST_CANCELLATION for m in found]).tolist()
    for i, (z, m) in enumerate(zip(embeddings, found, strict=True)):
        if hurt[i] and m.gram and m.product.dtype == torch.float32:
            near = z.shape[1] <= 2 * plan.n
            found[i] = _second_moments(z, plan, gram=not near, dtype=torch.float32 if near else torch.float64)
    return found


def _cancellation(m: _Moments) -> Tensor:
    """|S|^2 / (|S|^2 - |q|^2): how much rounding grows in the subtraction. 1 where nothing varies."""
    diagonal = m.squares.square().sum()
    total = m.off_diagonal + diagonal
    # Bounded by float64's own resolution, so that the figure stays a number where nothing correlates.
    least = total * torch.finfo(torch.float64).eps
    return torch.where(total > 0, total / torch.maximum(m.off_diagonal, least), 1.0)


def _second_moments(z: Tensor, plan: _Plan, *, gram: bool, dtype: torch.dtype) -> _Moments:
    z = z.detach()
    if gram:
        rows = all_rows(z, plan.sizes)
        mean = torch.empty((2, z.shape[1]), dtype=dtype, device=z.device)
        product = torch.zeros((z.shape[0], plan.n), dtype=dtype, device=z.device)
    else:
        rows = z
        mean = _global_mean(z, plan, dtype)
        product = torch.zeros((z.shape[1], z.shape[1]), dtype=dtype, device=z.device)
    squares = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    symmetric = not gram or len(plan.sizes) == 1
    for part in _parts(rows, gram=gram):
        if gram:
            block = _column_block(rows[:, part], mean[:, part])
            own = block[plan.own]
            squares[part] = own.square().sum(0).double()
            _add_product(product, own, block, symmetric=symmetric)
        else:
            block = _centred(rows[part], mean)
            squares += block.square().sum(0).double()
            _add_product(product, block.T, block.T, symmetric=symmetric)
    if symmetric:
        _mirror(product)
    if gram:
        total = _gram_sum_of_squares(product, plan.own)
        _sum_over_processes([total, squares], plan)
        return _Moments(gram, rows, mean, product, squares, (total - squares.square().sum()).clamp(min=0))
    if len(plan.sizes) > 1:
        dist.all_reduce(product)
    _sum_over_processes([squares], plan)
    product.diagonal().zero_()
    return _Moments(gram, rows, mean, product, squares, _sum_of_squares(product))


def _node_gradient(
    z: Tensor,
    m: _Moments,
    plan: _Plan,
    gamma: float,
    by_variance: Tensor | None,
    by_covariance: Tensor | None,
) -> Tensor:
    """Gradient of by_variance v + by_covariance c for this process's rows, times the number of processes."""
    d, processes, dtype = z.shape[1], len(plan.sizes), m.product.dtype
    gradient = torch.zeros(z.shape, dtype=exact_dtype(z.dtype), device=z.device)
    # What every centred entry of a column is multiplied by: the variance's slope and c's missing diagonal.
    columns = torch.zeros(d, dtype=torch.float64, device=z.device)
    if by_variance is not None:
        deviation = (m.squares / (plan.n - 1) + plan.epsilon).sqrt()
        columns -= (deviation < gamma) / deviation * (by_variance * processes / (d * (plan.n - 1)))
    slope = None
    if by_covariance is not None:
        slope = by_covariance * (4.0 * processes / (d * (plan.n - 1) ** 2))
        if m.gram:
            columns -= m.squares * slope
        slope = slope.to(dtype)
    columns = columns.to(dtype)
    for part in _parts(m.rows, gram=m.gram):
        if m.gram:
            block = _centred(m.rows[:, part], m.mean[:, part])
            target, own, weights = gradient[:, part], block[plan.own], columns[part]
        else:
            block = own = _centred(m.rows[part], m.mean)
            target, weights = gradient[part], columns
        if slope is None:
            target.copy_(own * weights)
            continue
        result = target if target.dtype == dtype else torch.empty_like(target, dtype=dtype)
        torch.mm(m.product, block, out=result) if m.gram else torch.mm(block, m.product, out=result)
        result.mul_(slope).addcmul_(own, weights)
        if result is not target:
            target.copy_(result)
    return gradient


def _global_mean(z: Tensor, plan: _Plan, dtype: torch.dtype) -> Tensor:
    """The mean over all processes as (2, d): rounded to ``dtype``, and the remainder."""
    total = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    if z.shape[0]:
        rough = z.to(dtype).mean(0) if z.dtype != dtype else z.mean(0)
        for part in _parts(z, gram=False):
            total += (z[part] - rough).sum(0).double()
        total += rough.double() * z.shape[0]
    _sum_over_processes([total], plan)
    mean = total / plan.n
    rounded = mean.to(dtype)
    return torch.stack([rounded, (mean - rounded.double()).to(dtype)])


def _column_block(columns: Tensor, mean: Tensor) -> Tensor:
    """Centre ``(n, k)`` columns of the global batch and write their mean into ``mean`` (2, k).

    The second pass catches what rounding left of a large common offset in the first.
    """
    block = columns.to(mean.dtype)
    torch.mean(block, 0, out=mean[0])
    block = block - mean[0]
    torch.mean(block, 0, out=mean[1])
    return block.sub_(mean[1])


def _centred(block: Tensor, mean: Tensor) -> Tensor:
    return block.to(mean.dtype).sub(mean[0]).sub_(mean[1])


def _parts(rows: Tensor, *, gram: bool) -> Iterator[slice]:
    """Ranges of columns (Gram) or of rows (covariance) whose block stays in a core's cache."""
    length, other = (rows.shape[1], rows.shape[0]) if gram else rows.shape
    entries = 2**25 if rows.is_cuda else 2**20
    step = max(128, entries // max(other, 1))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _strips(size: int, *, cuda: bool) -> Iterator[slice]:
    step = 2048 if cuda else max(64, min(256, size // 4))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _add_product(product: Tensor, x: Tensor, y: Tensor, *, symmetric: bool) -> None:
    """``product += x @ y.T``; where x is y only the upper strips, a third less work (see :func:`_mirror`)."""
    if not symmetric:
        product.addmm_(x, y.T)
        return
    for strip in _strips(product.shape[0], cuda=product.is_cuda):
        product[strip, strip.start :].addmm_(x[strip], x[strip.start :].T)


def _mirror(product: Tensor) -> None:
    for strip in _strips(product.shape[0], cuda=product.is_cuda):
        product[strip.stop :, strip] = product[strip, strip.stop :].T


def _sum_of_squares(matrix: Tensor) -> Tensor:
    """Pairwise in the matrix's precision along a row, in float64 over the rows: () float64."""
    total = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for part in _parts(matrix, gram=False):
        total += matrix[part].square().sum(1).double().sum()
    return total


def _gram_sum_of_squares(product: Tensor, own: slice) -> Tensor:
    """Of some rows of K, the diagonal apart: where it dwarfs a row, the row's sum would swallow the rest."""
    diagonal = product[:, own].diagonal()
    aside = diagonal.clone()
    diagonal.zero_()
    total = _sum_of_squares(product) + aside.double().square().sum()
    diagonal.copy_(aside)
    return total


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for part in _parts(a, gram=False):
        total += _difference(a[part], b[part]).square_().sum(1).double().sum()
    return total


def _add_distance_gradient(
    a: Tensor, b: Tensor, grad_a: Tensor | None, grad_b: Tensor | None, scale: Tensor
) -> None:
    for part in _parts(a, gram=False):
        step = _difference(a[part], b[part])
        step.mul_(scale.to(step.dtype))
        if grad_a is not None:
            grad_a[part].add_(step)
        if grad_b is not None:
            grad_b[part].sub_(step)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return a.to(exact_dtype(a.dtype)) - b.to(exact_dtype(b.dtype))


def _sum_over_processes(values: Sequence[Tensor], plan: _Plan) -> None:
    """All-reduce float64 tensors in place, as one message."""
    if len(plan.sizes) == 1:
        return
    packed = torch.cat([value.flatten() for value in values])
    dist.all_reduce(packed)
    parts = torch.split(packed, [value.numel() for value in values])
    for value, part in zip(values, parts, strict=True):
        value.copy_(part.view_as(value))
