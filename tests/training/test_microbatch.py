"""Micro-batches train the whole batch: the same gradients, masks and statistics, in a part of the memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import assert_close, gradients, piecewise, toy_batch, toy_model, toy_recipe

from mmvicreg.branches.model import JointModel
from mmvicreg.branches.norm import GlobalBatchNorm
from mmvicreg.errors import UserError
from mmvicreg.objectives import NonFiniteError
from mmvicreg.registry import OBJECTIVES
from mmvicreg.training.microbatch import check_batchnorm, cut, differentiate

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
BATCHNORM = {
    "wave": {"freeze": "none", "expander": {"widths": [12, 6]}},
    "last": {"expander": {"widths": [9, 6]}},
}
DROPOUT = {"last": {"encoder": {"name": "gru", "word_features": 5, "hidden": 7, "dropout": 0.4}}}


@pytest.mark.parametrize("method", sorted(OBJECTIVES.builtin))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("micro_batch", [1, 4, 12, 99])
def test_gradients_are_those_of_the_whole_batch(method: str, dtype: torch.dtype, micro_batch: int) -> None:
    whole = toy_model(toy_recipe(method), dtype)
    parts = copy.deepcopy(whole)
    batch = toy_batch(13)
    expected = whole(batch)
    expected.loss.backward()
    found = differentiate(parts, batch, micro_batch)
    assert not found.loss.requires_grad
    # whitening divides by the batch's smallest eigenvalues, which multiplies round-off in the embeddings
    tolerance = TOLERANCE[dtype] * (2 if method == "wmse" and dtype == torch.float32 else 1)
    assert_close(gradients(parts), gradients(whole), tolerance)
    bound = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(found.loss, expected.loss.detach(), **bound)
    for kind in ("embeddings", "representations"):  # what the monitor measures
        ours, theirs = getattr(found, kind), getattr(expected, kind)
        assert ours.keys() == theirs.keys()
        for node in theirs:
            assert not ours[node].requires_grad
            torch.testing.assert_close(ours[node], theirs[node], **bound)
    assert found.terms.keys() == expected.terms.keys()


@pytest.mark.parametrize("method", sorted(OBJECTIVES.builtin))
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_several_steps_end_in_the_same_weights(method: str, dtype: torch.dtype) -> None:
    whole = toy_model(toy_recipe(method), dtype)
    parts = copy.deepcopy(whole)
    start = copy.deepcopy(whole.state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for model in (whole, parts)]
    for step in range(5):
        batch = toy_batch(13, seed=step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        whole(batch).loss.backward()
        differentiate(parts, batch, 5)
        for model, optimizer in zip((whole, parts), optimizers, strict=True):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    moved = {name: value - start[name] for name, value in whole.named_parameters()}
    assert_close(
        {name: value - start[name] for name, value in parts.named_parameters()}, moved, 10 * TOLERANCE[dtype]
    )


def test_temperature_and_shared_branches_and_frozen_ones() -> None:
    learned = toy_recipe(
        objective={"name": "simclr", "candidates": "infonce", "learn_temperature": True},
        edges=[{"a": "wave", "b": "wave"}, {"a": "wave", "b": "last"}, {"a": "mean", "b": "last"}],
        branches={"mean": {"freeze": "encoder"}},
    )
    whole = toy_model(learned)
    parts = copy.deepcopy(whole)
    batch = toy_batch(11)
    whole(batch).loss.backward()
    output = differentiate(parts, batch, 4)
    assert set(output.embeddings) == {"wave/0", "wave/1", "last", "mean"}
    assert_close(gradients(parts), gradients(whole), 1e-10)
    assert "objective.log_scale" in gradients(parts)
    assert not any(name.startswith("branches.mean.encoder") for name in gradients(parts))
    assert any(name.startswith("branches.mean.expander") for name in gradients(parts))


def test_bfloat16_is_as_near_as_the_whole_batch_is() -> None:
    model = toy_model(toy_recipe(), torch.float32)
    exact = copy.deepcopy(model)
    exact(toy_batch(13)).loss.backward()
    norm = torch.cat([g.flatten() for g in gradients(exact).values()]).norm()
    errors = []
    for micro_batch in (13, 4):
        rounded = copy.deepcopy(model)
        rounded.autocast = torch.bfloat16
        output = differentiate(rounded, toy_batch(13), micro_batch)
        assert output.embeddings["wave"].dtype == torch.bfloat16
        pairs = zip(gradients(rounded).values(), gradients(exact).values(), strict=True)
        errors.append(float(torch.cat([(a - b).flatten() for a, b in pairs]).norm() / norm))
    assert 1e-4 < errors[0] < 0.1
    assert errors[1] < 2 * errors[0]


@contextmanager
def seen(model: JointModel, kind: type[nn.Module]) -> Iterator[list[Tensor]]:
    """What the layers of a kind give, call by call."""
    calls: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, y: calls.append(y.detach().clone()))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def draw(*_: object) -> None:
    torch.rand(3)


def test_dropout_and_augmentation_are_the_same_in_the_replay() -> None:
    model = toy_model(toy_recipe(branches={**DROPOUT, "mean": {}}))
    model.objective.register_forward_pre_hook(draw)
    batch = toy_batch(12)
    torch.manual_seed(5)
    frontend = type(model.branch("wave").frontend)
    with seen(model, nn.Dropout) as masks, seen(model, frontend) as augmented:
        differentiate(model, batch, 4)
        after = torch.get_rng_state()
    first, again = masks[:6], masks[6:]  # two branches have the layer, one of them switched on
    assert len(again) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    real = batch.views["text/0"]["ids"][:4] > 0
    assert (first[0][real] == 0).double().mean() == pytest.approx(0.4, abs=0.15)
    assert not torch.equal(first[0] == 0, first[2] == 0)  # every micro-batch has draws of its own
    assert len(augmented) == 6
    assert all(torch.equal(a, b) for a, b in zip(augmented[:3], augmented[3:], strict=True))
    with seen(model, frontend) as whole, torch.no_grad():
        model.embed(batch)
    assert torch.equal(torch.cat(augmented[:3]), whole[0])
    torch.manual_seed(5)
    with torch.no_grad():
        for piece in cut(model.branches, (12,), 12, 4):
            model.embed(batch.rows(piece))
    draw()
    assert torch.equal(after, torch.get_rng_state())  # the next step draws on as if there were no replay


@pytest.mark.parametrize("branches", [DROPOUT, BATCHNORM], ids=["dropout", "batchnorm"])
def test_gradient_is_exact_for_what_the_micro_batches_saw(branches: dict[str, Any]) -> None:
    """One graph through all pieces is the reference: with dropout or BatchNorm, micro-batches are another network."""
    parts = toy_model(toy_recipe(branches=branches))
    joined, whole = copy.deepcopy(parts), copy.deepcopy(parts)
    batch = toy_batch(13)
    pieces = cut(parts.branches, (13,), 13, 5)
    assert [piece.stop - piece.start for piece in pieces] == [4, 4, 5]
    torch.manual_seed(7)
    expected = piecewise(joined, batch, pieces)
    torch.manual_seed(7)
    output = differentiate(parts, batch, 5)
    assert_close(gradients(parts), gradients(joined), 1e-10)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    whole(batch).loss.backward()
    with pytest.raises(AssertionError):
        assert_close(gradients(parts), gradients(whole), 1e-3)


def test_running_statistics_move_once_for_each_sample() -> None:
    model = toy_model(
        toy_recipe(branches=BATCHNORM, edges=[{"a": "wave", "b": "wave"}, {"a": "last", "b": "mean"}])
    )
    expected = copy.deepcopy(model)
    batch = toy_batch(13)
    pieces = cut(model.branches, (13,), 13, 4)
    with torch.no_grad():
        for piece in pieces:
            expected.embed(batch.rows(piece))
    before = {name: value.clone() for name, value in model.named_buffers()}
    differentiate(model, batch, 4)
    counted = 0
    for name, value in model.named_buffers():
        assert torch.equal(value, dict(expected.named_buffers())[name]), name
        if name.endswith("num_batches_tracked"):
            counted += 1
            assert value == len(pieces) * (2 if name.startswith("branches.wave") else 1)
        elif name.endswith(("running_mean", "running_var")):
            assert not torch.equal(value, before[name]), name
    assert counted > 20
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm1d))


def test_a_frozen_branch_keeps_its_statistics() -> None:
    model = toy_model(toy_recipe())
    before = {name: value.clone() for name, value in model.named_buffers()}
    differentiate(model, toy_batch(12), 4)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


class Held:
    """Activations that autograd holds for the backward pass, in bytes: now, and at most."""

    def __init__(self, model: nn.Module) -> None:
        self.now = self.most = 0
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(self, tensor: Tensor) -> Any:
        box = [tensor]
        if tensor.untyped_storage().data_ptr() not in self._weights:
            holder = _Holder(tensor)
            self.now += tensor.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(holder, self._free, tensor.nbytes)
            return holder
        return box

    def unpack(self, packed: Any) -> Tensor:
        return packed.tensor if isinstance(packed, _Holder) else packed[0]

    def _free(self, size: int) -> None:
        self.now -= size


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_activations_of_one_micro_batch_are_held_at_a_time() -> None:
    model = toy_model(toy_recipe())
    batch = toy_batch(64)
    most = {}
    for micro_batch in (64, 16, 4):
        held = Held(model)
        with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
            if micro_batch == 64:
                model(batch).loss.backward()
            else:
                differentiate(model, batch, micro_batch)
        assert held.now == 0
        most[micro_batch] = held.most
    assert most[16] < 0.3 * most[64]
    assert most[4] < 0.1 * most[64]


def test_a_branch_that_changes_its_mind_is_refused() -> None:
    model = toy_model(toy_recipe())
    own = torch.Generator().manual_seed(0)
    model.branch("last").encoder.dropout.register_forward_hook(
        lambda _m, _x, y: y * (torch.rand(y.shape, generator=own, dtype=y.dtype) > 0.2)
    )
    with pytest.raises(
        UserError, match=r"branch of 'last' embeds the same samples differently.*--micro-batch"
    ):
        differentiate(model, toy_batch(12), 4)


def test_what_is_not_finite_is_found_in_the_whole_batch() -> None:
    model = toy_model(toy_recipe())
    embed = model.embed

    def poisoned(batch: Any, *source: str) -> Any:
        embeddings, representations = embed(batch, *source)
        embeddings["mean"][(batch.index == 3) | (batch.index == 9)] = torch.nan
        return embeddings, representations

    model.embed = poisoned
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"branch 'mean', rows 3, 9 of the batch of 13") as caught:
        differentiate(model, toy_batch(13), 4)
    assert caught.value.rows == (3, 9)
    assert gradients(model) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pieces_cover_the_batch_in_equal_sizes() -> None:
    model = nn.Identity()
    for n in range(1, 20):
        for micro_batch in range(1, 22):
            pieces = cut(model, (n,), n, micro_batch)
            sizes = [piece.stop - piece.start for piece in pieces]
            assert [row for piece in pieces for row in range(n)[piece]] == list(range(n))
            assert len(pieces) == -(-n // micro_batch)
            assert max(sizes) <= micro_batch
            assert max(sizes) - min(sizes) <= 1
    assert len(cut(model, (12, 2), 2, 4)) == 2  # a smaller part of the batch may have fewer


def test_micro_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 sample, not 0"):
        cut(nn.Identity(), (4,), 4, 0)
    with pytest.raises(UserError, match="no samples"):
        cut(nn.Identity(), (4, 0), 4, 2)
    with pytest.raises(UserError, match=r"12 samples needs 3 micro-batches of 4, and one with 2 cannot"):
        cut(GlobalBatchNorm(3), (12, 2), 2, 4)
    assert len(cut(GlobalBatchNorm(3).eval(), (12, 2), 2, 4)) == 2
    assert len(cut(GlobalBatchNorm(3), (12, 3), 3, 4)) == 3


def test_batchnorm_is_spoken_of_where_it_sees_micro_batches() -> None:
    frozen = toy_model(toy_recipe())
    assert check_batchnorm(frozen, 12, 1, 1) is None
    thawing = toy_model(toy_recipe(branches={"wave": {"freeze_epochs": 2}}))
    note = check_batchnorm(thawing, 12, 5, 1)
    assert note is not None
    assert "20 in branch wave) sees micro-batches of 4 or more samples, not the batch of 12" in note
    live = toy_model(toy_recipe(branches=BATCHNORM))
    assert "in branch wave and 1 in branch last" in str(check_batchnorm(live, 12, 5, 1))
    for batch_size, micro_batch in ((12, 1), (3, 2)):
        with pytest.raises(UserError, match=f"micro_batch {micro_batch} leaves BatchNorm .* a single sample"):
            check_batchnorm(live, batch_size, micro_batch, 1)
    assert "micro-batches of 2 or more" in str(check_batchnorm(live, 12, 1, 2))  # one on each process
