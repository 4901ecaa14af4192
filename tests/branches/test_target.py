"""The moving average of a network: its formula, its schedule, its modes and its buffers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmvicreg.branches.target import follow, momentum_at, move, moving_copy


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def test_starts_as_a_copy_without_gradients() -> None:
    online = network()
    average = moving_copy(online)
    for mine, theirs in zip(average.parameters(), online.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
        assert not mine.requires_grad
        assert theirs.requires_grad


def test_moves_by_the_formula_and_leaves_its_buffers() -> None:
    online = network()
    average = moving_copy(online)
    expected = [p.detach().clone() for p in average.parameters()]
    for step in range(5):
        for parameter in online.parameters():
            nn.init.normal_(parameter)
        online[1].running_mean.fill_(step)
        momentum = momentum_at(step, steps=5, start=0.6)
        before = [p.detach().clone() for p in online.parameters()]
        move(average, online, momentum=momentum)
        expected = [
            momentum * e + (1 - momentum) * p.detach()
            for e, p in zip(expected, online.parameters(), strict=True)
        ]
        for mine, right in zip(average.parameters(), expected, strict=True):
            torch.testing.assert_close(mine.detach(), right, rtol=1e-14, atol=1e-15)
        assert all(torch.equal(p, b) for p, b in zip(online.parameters(), before, strict=True))
    assert float(average[1].running_mean.abs().sum()) == 0


def test_what_does_not_move_is_followed_to_the_bit() -> None:
    online = network().float()
    average = moving_copy(online)
    for _ in range(3):
        move(average, online, momentum=0.7)
    for mine, theirs in zip(average.parameters(), online.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_momentum_rises_along_half_a_cosine() -> None:
    assert momentum_at(0, steps=100, start=0.99) == pytest.approx(0.99)
    assert momentum_at(50, steps=100, start=0.99) == pytest.approx(0.995)
    assert momentum_at(100, steps=100, start=0.99) == pytest.approx(1.0)
    assert momentum_at(25, steps=100, start=0.9) == pytest.approx(1 - 0.1 * (1 + math.sqrt(0.5)) / 2)
    values = [momentum_at(step, steps=30, start=0.99) for step in range(31)]
    assert values == sorted(values)


def test_normalises_by_the_batch_and_keeps_statistics_of_its_own() -> None:
    online = network()
    average = moving_copy(online)
    x = torch.randn(16, 3, dtype=torch.float64) + 5
    online.train()
    average.eval()
    follow(average, online, x)
    assert average[1].training
    assert float(average[1].running_mean.abs().sum()) > 0
    assert float(online[1].running_mean.abs().sum()) == 0
    online[1].eval()
    online[2].eval()
    z = follow(average, online, x)
    assert not z.requires_grad
    assert not average[1].training
    frozen = average[3](average[1](average[0](x)))
    torch.testing.assert_close(z, frozen)
