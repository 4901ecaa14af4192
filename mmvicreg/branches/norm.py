"""BatchNorm over the global batch: torch's SyncBatchNorm on CUDA, and one that also runs on a CPU.

SyncBatchNorm refuses CPU tensors in training, so several processes under gloo could not be compared with
one. :class:`GlobalBatchNorm` closes that gap; :func:`synchronise_batchnorm` picks between the two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mmvicreg.errors import UserError
from mmvicreg.objectives.gather import gather_equal, world_size


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm of ``(n, c)``, ``(n, c, l)`` or ``(n, c, h, w)`` with training statistics over all processes.

    Parameters, buffers, their names and the arguments are those of :class:`torch.nn.BatchNorm2d`. With one
    process, or in evaluation, it is that layer. Local batches may differ in size and may be empty.
    Statistics are float32 (float64 for float64 input) whatever the input is; the output has the input's
    dtype. Gradients are local, with the statistics' part reduced over the processes, so that those of
    the parameters are one process's on the whole batch once DistributedDataParallel has averaged them
    (given gradients scaled for that averaging, as :func:`mmvicreg.objectives.gather` gives them).

    Raises:
        UserError: one value per channel in the whole batch, of which there is no variance.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``; the shape and the dtype stay."""
        self._check_input_dim(input)
        if not self.training or world_size() == 1:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance, int(count))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Exponential average, or the cumulative one for momentum None; unbiased variance, as torch's."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.running_mean is None or self.running_var is None:
            return
        if self.momentum is None:
            assert self.num_batches_tracked is not None
            factor = 1.0 / float(self.num_batches_tracked)
        else:
            factor = self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.mul_(1 - factor).add_(mean.to(self.running_mean.dtype), alpha=factor)
        self.running_var.mul_(1 - factor).add_(unbiased.to(self.running_var.dtype), alpha=factor)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"expected (n, {self.num_features}, ...), got {tuple(input.shape)}")


def synchronise_batchnorm(module: nn.Module, *, device_type: str) -> nn.Module:
    """Give every BatchNorm in ``module`` the statistics of the global batch.

    Args:
        module: changed in place where BatchNorm is inside it; parameters and buffers stay the same objects.
        device_type: ``"cuda"``: torch's SyncBatchNorm; anything else: :class:`GlobalBatchNorm`.

    Returns:
        ``module``, or its replacement where it is itself a BatchNorm. With one process nothing changes.
    """
    if world_size() == 1:
        return module
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    return _replace(module, {})


def _replace(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:  # one layer used in two places stays one layer
        return done[module]
    replacement = module
    if isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
        replacement = GlobalBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            device="meta",
        )
        for name, parameter in module.named_parameters(recurse=False):
            replacement.register_parameter(name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            replacement.register_buffer(name, buffer)
        replacement.train(module.training)
    done[module] = replacement
    for name, child in list(module.named_children()):
        changed = _replace(child, done)
        if changed is not child:
            setattr(module, name, changed)
    return replacement


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with mean and biased var over all processes.

    Returns ``(output, mean (c,), var (c,), count ())``; only the output has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = _exact(x)
        mean, variance, count = _global_moments(exact)
        if float(count) < 2:
            raise UserError(
                "BatchNorm in training needs more than one value per channel in the whole batch; "
                "raise the batch size"
            )
        mean, variance = mean.to(exact.dtype), variance.to(exact.dtype)
        inverse = torch.rsqrt(variance + eps)
        output = (exact - _wide(mean, x)) * _wide(inverse, x)
        if weight is not None and bias is not None:
            output = output * _wide(weight.to(exact.dtype), x) + _wide(bias.to(exact.dtype), x)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = _exact(gradient)
        normalised = (_exact(x) - _wide(mean, x)) * _wide(inverse, x)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        sums = torch.stack([gradient.sum(dims), (gradient * normalised).sum(dims)])
        local_bias, local_weight = sums.unbind()
        grad_x = None
        if ctx.needs_input_grad[0]:
            means = sums.clone()
            dist.all_reduce(means)
            means /= count.to(means.dtype)
            grad_x = gradient - _wide(means[0], x) - normalised * _wide(means[1], x)
            grad_x *= _wide(inverse if weight is None else inverse * weight.to(inverse.dtype), x)
            grad_x = grad_x.to(x.dtype)
        if weight is None:
            return grad_x, None, None, None
        return grad_x, local_weight.to(weight.dtype), local_bias.to(weight.dtype), None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (c,) and count () over all processes, in float64.

    Each process's own mean and sum of squared deviations are merged (Chan et al. 1979): a sum of squares
    would lose everything where the mean is large beside the deviation.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    local = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count:
        variance, mean = torch.var_mean(x, [dim for dim in range(x.ndim) if dim != 1], correction=0)
        local[:channels], local[channels : 2 * channels], local[-1] = mean, variance.double() * count, count
    parts = gather_equal(local[None])
    means, deviations, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (deviations + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    """``(c,)`` shaped to broadcast over ``(n, c, ...)``."""
    return channels.view(1, -1, *(1 for _ in like.shape[2:]))
