"""The gather without other processes; tests/distributed has the rest."""

from __future__ import annotations

import torch

from mmvicreg.objectives import gather


def test_one_process_gets_its_own_tensor_back() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
