"""The one place that keeps an objective's arithmetic exact: no autocast, no TF32, no bfloat16 products.

VICReg's gradient is computed in it as well. The other methods' is autograd's, after the guard has gone: it has no
autocast either (that is of the forward), but takes TF32 where the process allows it, which this package never does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an embedding of ``dtype`` is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(z: Tensor) -> Tensor:
    """``z`` in :func:`exact_dtype`; differentiable, and no copy where it already is."""
    return z.to(exact_dtype(z.dtype))


@contextmanager
def exact_arithmetic(device_type: str) -> Iterator[None]:
    """Autocast off and float32 products in float32, whatever the process has switched on; restored after."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision
    with torch.autocast(device_type, enabled=False):
        try:
            cuda.fp32_precision = cpu.fp32_precision = "ieee"
            yield
        finally:
            cuda.fp32_precision, cpu.fp32_precision = before
