"""LARS against the authors' loop, written anew from its definition; the rate rule; saved and resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmvicreg.config import OptimizerConfig, Recipe, ScheduleConfig
from mmvicreg.errors import UserError
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.training.checkpoint import load_checkpoint, save_checkpoint
from mmvicreg.training.lars import LARS
from mmvicreg.training.optim import rate_factor

SHAPES = ((7, 5), (3, 4, 3, 3), (11,), (1, 6), ())


def tensors(seed: int, dtype: torch.dtype, *, scale: float = 1.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).mul(scale).to(dtype) for shape in SHAPES]


def reference_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    decay: float = 1e-6,
    momentum: float = 0.9,
    eta: float = 0.001,
) -> None:
    """One step of the definition, tensor by tensor, out of place where the published loop is."""
    for w, g, m in zip(weights, gradients, momenta, strict=True):
        update = g
        if w.ndim > 1:
            update = update + decay * w
            w_norm, u_norm = torch.linalg.vector_norm(w), torch.linalg.vector_norm(update)
            ratio = eta * w_norm / u_norm if w_norm > 0 and u_norm > 0 else torch.ones_like(w_norm)
            update = update * ratio
        m.copy_(momentum * m + update)
        w.sub_(lr * m)


def parameters(values: list[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(value.clone()) for value in values]


def groups(weights: list[nn.Parameter], decay: float = 1e-6) -> list[dict[str, object]]:
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def give(weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_equal_to_the_loop_over_many_steps(dtype: torch.dtype, rtol: float) -> None:
    start = tensors(0, dtype)
    ours, theirs = parameters(start), [value.clone() for value in start]
    momenta = [torch.zeros_like(value) for value in start]
    optimizer = LARS(groups(ours, decay=0.05), 0.2)
    for step in range(12):
        gradients = tensors(step + 1, dtype, scale=10.0 ** (step % 5 - 2))
        rate = 0.2 * (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        give(ours, gradients)
        optimizer.step()
        reference_step(theirs, gradients, momenta, lr=rate, decay=0.05)
        for shape, a, b in zip(SHAPES, ours, theirs, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=rtol, atol=rtol, msg=f"step {step}, {shape}")
    assert all((a - b).abs().max() > 0.01 for a, b in zip(ours, start, strict=True)), "the weights moved"


def test_one_step_by_hand() -> None:
    """|w| = 5, |g| = 2: the step is 0.1 * 0.001 * 5 / 2 * g; a bias takes 0.1 * g."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad, bias.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([0.0, 2.0])
    LARS([weight, bias], 0.1).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0 - 0.1 * 0.001 * 2.5 * 2.0]]))
    torch.testing.assert_close(bias.detach(), torch.tensor([3.0, 4.0 - 0.2]))


def test_weights_or_gradients_of_zero_take_the_plain_step() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    LARS([zero, still], 0.1, weight_decay=0.0).step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.05))
    assert torch.equal(still.detach(), torch.ones(2, 2))


def test_without_a_gradient_nothing_moves() -> None:
    weight, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    optimizer = LARS([weight, frozen], 0.1, weight_decay=1.0)
    optimizer.step()
    assert torch.equal(frozen.detach(), torch.ones(2, 2))
    assert frozen not in optimizer.state


def test_nothing_is_allocated_after_the_first_step() -> None:
    """In place: gradients, momenta and weights keep their memory, and none of their size is taken."""
    weights = parameters(
        [torch.randn(256, 256), torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)]
    )
    optimizer = LARS(weights, 0.1, weight_decay=0.1)
    give(weights, [torch.randn_like(w) for w in weights])
    optimizer.step()
    places = [(w.data_ptr(), optimizer.state[w]["momentum"].data_ptr()) for w in weights]
    gradients = [w.grad for w in weights]
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
        torch.ones(2000)  # the profiler sees what is taken
    taken = [event.cpu_memory_usage for event in profile.function_events]
    assert sum(size for size in taken if size > 0) >= 8000
    assert max(taken) < 20_000, "bytes; the smaller tensor has 73 728"
    assert [(w.data_ptr(), optimizer.state[w]["momentum"].data_ptr()) for w in weights] == places
    assert all(w.grad is gradient for w, gradient in zip(weights, gradients, strict=True))


def test_saved_and_resumed_with_a_checkpoint_it_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    start = tensors(3, torch.float32)

    def run(weights: list[nn.Parameter], optimizer: LARS, steps: range) -> None:
        for step in steps:
            give(weights, tensors(50 + step, torch.float32))
            optimizer.step()

    whole, stopped = parameters(start), parameters(start)
    run(whole, LARS(groups(whole), 0.3), range(6))
    optimizer = LARS(groups(stopped), 0.3)
    run(stopped, optimizer, range(3))
    content = {"weights": [w.detach() for w in stopped], "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path, 3, content, keep=1)
    loaded = load_checkpoint(next(tmp_path.glob("*")))
    resumed = parameters(loaded["weights"])
    again = LARS(groups(resumed), 123.0)
    again.load_state_dict(loaded["optimizer"])
    run(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))
    fresh = parameters(loaded["weights"])
    run(fresh, LARS(groups(fresh), 0.3), range(3, 6))
    assert not torch.equal(fresh[0], whole[0]), "the momentum matters"


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], 0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert (weight < 1).all()


def test_it_trains() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(64, 6)
    y = x[:, :1] - x[:, 1:2]
    optimizer = LARS(network.parameters(), 0.05, weight_decay=1e-6, eta=0.1)
    first = None
    for _ in range(150):
        loss = functional.mse_loss(network(x), y)
        first = float(loss.detach()) if first is None else first
        network.zero_grad()
        loss.backward()
        optimizer.step()
    assert first is not None
    assert float(loss.detach()) < 0.2 * first


def shapes(*settings: str) -> Recipe:
    return load_recipe(recipe_path("image-image", "shapes", None), {}, settings)


def test_the_rate_grows_with_the_batch() -> None:
    config = OptimizerConfig(name="lars", base_lr=0.2)
    assert [config.rate(batch) for batch in (128, 256, 2048)] == pytest.approx([0.1, 0.2, 1.6])
    assert OptimizerConfig(lr=0.3).rate(2048) == 0.3
    recipe = shapes("optimizer.lr=null", "optimizer.base_lr=0.4", "training.batch_size=64")
    assert recipe.rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("optimizer.base_lr=0.2",), "lr and base_lr are two ways to say the rate"),
        (("optimizer.lr=null",), "missing key 'lr', or 'base_lr'"),
        (("optimizer.lr=null", "optimizer.base_lr=0"), r"optimizer\.base_lr.*greater than 0"),
        (("optimizer.lr=null", "optimizer.base_lr={many: 0.1}"), r"optimizer\.base_lr"),
        (("optimizer.lr=null", "optimizer.base_lr={256: 0.1}"), "no rate for a batch of 64: add it"),
        (("optimizer.name=lasr",), "optimizer.name"),
        (("optimizer.eta=0.01",), "eta is an option of lars, and name is adamw"),
        (("optimizer.momentum=0.5",), "momentum is an option of sgd and lars, and name is adamw"),
        (("optimizer.name=lars", "optimizer.betas=[0.5, 0.9]"), "betas is an option of adamw and adam"),
        (("schedule.final_lr=0.1", "schedule.final_lr_factor=0.1"), "two ways to say the last rate"),
        (("schedule.final_lr=0.1",), "schedule.final_lr is 0.1, above the rate of 0.001"),
        (("schedule.final_lr=0.1",), "at a batch of 64: lower schedule.final_lr, or raise optimizer.lr"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shapes(*settings)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_paper_s_schedule_value_by_value(absolute: bool) -> None:
    """10 warm-up epochs of 1000 at batch 2048, from 0 to 1.6, cosine to 0.002 (or the code's 0.001 of the rate)."""
    steps, epochs, batch = 5, 100, 2048
    optimizer = OptimizerConfig(name="lars", base_lr=0.2)
    rate = optimizer.rate(batch)
    low = 0.002 if absolute else 0.001 * rate
    schedule = ScheduleConfig(
        warmup_epochs=10,
        final_lr=0.002 if absolute else None,
        final_lr_factor=0.0 if absolute else 0.001,
    )
    for step in range(steps * epochs):
        factor = rate_factor(step, steps_per_epoch=steps, epochs=epochs, schedule=schedule, rate=rate)
        if step < 50:
            expected = 1.6 * (step + 1) / 51
        else:
            q = 0.5 * (1 + math.cos(math.pi * (step - 50) / 450))
            expected = 1.6 * q + low * (1 - q)
        assert factor * rate == pytest.approx(expected, rel=1e-12)
    assert factor * rate == pytest.approx(low, rel=0.02)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_every_optimiser_is_torch_s_or_ours_with_the_recipe_s_options(name: str) -> None:
    from mmvicreg.training.optim import build_optimizer
    from mmvicreg.training.setup import build_model, restore_inputs

    option, value = {"sgd": ("momentum", 0.7), "lars": ("eta", 0.02)}.get(name, ("betas", (0.8, 0.9)))
    recipe = shapes(
        f"optimizer.name={name}",
        f"optimizer.{option}={list(value) if isinstance(value, tuple) else value}",
        "optimizer.lr=null",
        "optimizer.base_lr=0.4",
        "optimizer.weight_decay=0.03",
        "training.batch_size=64",
        "branches.image.expander.widths=[4]",
    )
    model = build_model(recipe, restore_inputs(recipe, {"image": {}}))
    optimizer = build_optimizer(model, recipe.optimizer)
    expected = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD, "lars": LARS}
    assert type(optimizer) is expected[name]
    for group in optimizer.param_groups:
        assert group["lr"] == group["base_lr"] == pytest.approx(0.1)
        assert group[option] == value
        assert group["weight_decay"] == (0.03 if str(group["name"]).endswith("weights") else 0.0)
        assert all((p.ndim > 1) == str(group["name"]).endswith("weights") for p in group["params"])
    before = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = [
        key for key, _ in model.named_parameters() if not torch.equal(before[key], model.state_dict()[key])
    ]
    assert len(moved) == len(list(model.parameters()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "mixed"])
def test_in_blocks_it_is_the_same_whatever_the_memory_layout(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what it is in one piece; tensors of several blocks, the last of them cut short."""
    rng = torch.Generator().manual_seed(5)
    w, g = (torch.randn(6, 10, 3, 3, generator=rng) for _ in range(2))
    if layout == "channels_last":
        w, g = (t.to(memory_format=torch.channels_last) for t in (w, g))
    elif layout == "transposed":
        w, g = (t.transpose(0, 1) for t in (w, g))
    elif layout == "mixed":
        g = g.to(memory_format=torch.channels_last)
    results = []
    for block in (1 << 16, 64):
        monkeypatch.setattr("mmvicreg.training.lars.BLOCK", block)
        weight = nn.Parameter(w.clone(memory_format=torch.preserve_format))
        optimizer = LARS([weight], 0.3, weight_decay=0.1)
        for step in range(3):
            weight.grad = (g * (step + 1)).clone(memory_format=torch.preserve_format)
            optimizer.step()
        results.append((weight.detach(), optimizer.state[weight]["momentum"]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    expected, momentum = w.clone(), torch.zeros_like(w)
    for step in range(3):
        reference_step([expected], [g * (step + 1)], [momentum], lr=0.3, decay=0.1)
    torch.testing.assert_close(results[1][0], expected, rtol=2e-6, atol=2e-6)
