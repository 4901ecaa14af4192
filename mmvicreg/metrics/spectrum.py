"""How many dimensions a batch of vectors really uses: the numbers that show a collapse.

All functions take vectors ``(n, d)`` of any floating dtype on any device, compute in float64 (the square
root of a float32 Gram matrix's round-off, summed over a few thousand dimensions, looks like rank), carry
no gradient, and give NaN when the input holds NaN or infinity. A column that varies by no more than its
own round-off, ``max |x - mean| <= eps(dtype) * max |x|``, counts as constant.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred ``z`` (RankMe, Garrido et al. 2023).

    ``sigma_k / sum(sigma)`` is read as a distribution over directions; the result lies in
    ``[1, min(n - 1, d)]``, or is 0 when all rows are the same point. The singular values are the square
    roots of the eigenvalues of the smaller of the two Gram matrices.

    Args:
        z: ``(n, d)``, ``n >= 2``.

    Returns:
        Scalar float64.

    Raises:
        ValueError: not a matrix of two rows or more.
    """
    centred, _ = _centred(z)
    if not bool(torch.isfinite(centred).all()):
        return centred.new_full((), torch.nan)
    largest = centred.abs().max()
    if largest == 0:
        return centred.new_zeros(())
    eigenvalues = torch.linalg.eigvalsh(_smaller_gram(centred / largest))
    # What eigvalsh leaves of an eigenvalue that is really zero; its square root is not negligible.
    noise = eigenvalues[-1] * max(centred.shape) * torch.finfo(torch.float64).eps
    singular = eigenvalues.where(eigenvalues > noise, 0).sqrt()
    entropy: Tensor = torch.special.entr(singular / singular.sum()).sum()
    return entropy.exp()


@torch.no_grad()
def mean_correlation(y: Tensor) -> Tensor:
    """Mean over ``i != j`` of the squared correlation of dimensions i and j: one branch's half of Eq. 9.

    Eq. 9 is the average of this over the two branches. It is computed in the cheaper of two exact forms:
    with ``x`` the columns of ``y`` centred and scaled to length one, ``||x^T x||_F = ||x x^T||_F``, and the
    diagonal of ``x^T x`` is one. Constant columns have no correlation and are left out of the mean.

    Args:
        y: ``(n, d)``, ``n >= 2``.

    Returns:
        Scalar float64 in ``[0, 1]``; 0 when fewer than two columns vary.

    Raises:
        ValueError: not a matrix of two rows or more.
    """
    centred, constant = _centred(y)
    if not bool(torch.isfinite(centred).all()):
        return centred.new_full((), torch.nan)
    varying = centred[:, ~constant]
    k = varying.shape[1]
    if k < 2:
        return centred.new_zeros(())
    varying = varying / varying.abs().amax(0)
    unit = varying / varying.square().sum(0).sqrt()
    off_diagonal = _smaller_gram(unit).square().sum() - k
    return (off_diagonal / (k * (k - 1))).clamp(0, 1)


@torch.no_grad()
def standard_deviations(z: Tensor) -> Tensor:
    """Unbiased standard deviation of each dimension over the batch: ``S`` of Eq. 2 without its epsilon.

    Args:
        z: ``(n, d)``, ``n >= 2``.

    Returns:
        ``(d,)`` float64; exactly 0 for a constant column.

    Raises:
        ValueError: not a matrix of two rows or more.
    """
    centred, _ = _centred(z)
    return (centred.square().sum(0) / (len(centred) - 1)).sqrt()


def dead_fraction(z: Tensor, threshold: float) -> Tensor:
    """Share of dimensions whose standard deviation over the batch is below ``threshold``.

    Args:
        z: ``(n, d)``, ``n >= 2``.
        threshold: in the units of ``z``.

    Returns:
        Scalar float64 in ``[0, 1]``.

    Raises:
        ValueError: not a matrix of two rows or more.
    """
    deviations = standard_deviations(z)
    if not bool(torch.isfinite(deviations).all()):
        return deviations.new_full((), torch.nan)
    return (deviations < threshold).double().mean()


@torch.no_grad()
def agreement(a: Tensor, b: Tensor) -> Tensor:
    """How much two embeddings of one sample have in common: the correlation of their entries about their means.

    ``sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b|)`` with means over samples, dimension by dimension,
    and sums over everything: 1 for embeddings that are equal but for their length, 0 for those that are no more
    alike than the embeddings of two different samples. Of a batch without relation it is about
    ``1 / sqrt(n * effective rank)`` away from 0.

    Args:
        a: ``(n, d)``, ``n >= 2``; row i of either is of sample i.
        b: ``(n, d)``.

    Returns:
        Scalar float64 in ``[-1, 1]``; 0 when either is constant.

    Raises:
        ValueError: not two matrices of one shape, and of two rows or more.
    """
    if a.shape != b.shape:
        raise ValueError(f"expected vectors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = (z / largest if (largest := z.abs().max()) > 0 else z for z in (_centred(a)[0], _centred(b)[0]))
    scale = x.square().sum().sqrt() * y.square().sum().sqrt()
    return (x * y).sum() / scale if scale != 0 else scale.new_zeros(())


def _centred(z: Tensor) -> tuple[Tensor, Tensor]:
    """``z`` in float64 with column means removed, constant columns exactly zero; which those are ``(d,)``."""
    if z.ndim != 2 or z.shape[0] < 2 or z.shape[1] < 1:
        raise ValueError(f"expected vectors (n, d) with n >= 2 and d >= 1, got shape {tuple(z.shape)}")
    round_off = torch.finfo(z.dtype).eps if z.is_floating_point() else 0.0
    wide = (z.cpu() if z.device.type == "mps" else z).detach().to(torch.float64)
    shifted = wide - wide[0]  # before the mean, whose own round-off would make a constant column vary
    centred = shifted - shifted.mean(0)
    constant = centred.abs().amax(0) <= round_off * wide.abs().amax(0)
    return centred.masked_fill(constant, 0.0), constant


def _smaller_gram(x: Tensor) -> Tensor:
    """``x x^T`` or ``x^T x``, whichever is smaller; both have the same nonzero eigenvalues."""
    return x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
