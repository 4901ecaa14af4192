"""Augmentation against torchvision, PIL and colorsys on the same parameters; draws as often as published."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare, kstest
from torch import Tensor
from torchvision.transforms import functional as pil
from torchvision.transforms.v2 import functional as v2

from mmvicreg.branches.frontends import ImageFrontend
from mmvicreg.errors import UserError
from mmvicreg.inputs import augment
from mmvicreg.inputs.augment import NEUTRAL, ORDERS, Augmentation, Changes, augment_, draw_changes
from mmvicreg.inputs.base import DRAWS
from mmvicreg.inputs.image import ImageInput

FACTORS = [0.6, 0.83, 1.0, 1.4]
TURNS = [-0.1, -0.03, 0.07, 0.5]


def pictures(n: int = 4, size: int = 24) -> Tensor:
    """Random pictures from dark to bright, float64 0..255, whole numbers; some pixels grey, black and white."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 3, size, size)) * np.linspace(0.3, 1, n)[:, None, None, None]
    x[:, :, 0] = x[:, :1, 0]
    x[:, :, 1, :2] = [0, 255]
    return torch.from_numpy(x.round())


def unchanged(n: int, **changes: list[object]) -> Changes:
    whole = Changes([ORDERS[0]] * n, [list(NEUTRAL)] * n, [False] * n, [0.0] * n, [False] * n, [0] * n)
    return whole._replace(**changes)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (augment.brightness_, v2.adjust_brightness, FACTORS),
        (augment.contrast_, v2.adjust_contrast, FACTORS),
        (augment.saturation_, v2.adjust_saturation, FACTORS),
        (augment.hue_, v2.adjust_hue, TURNS),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_colours_are_torchvisions(
    ours: Callable[[Tensor, list[float]], Tensor], theirs: Callable[..., Tensor], values: list[float]
) -> None:
    x = pictures()
    expected = torch.stack([theirs(one / 255, value) for one, value in zip(x, values, strict=True)])
    # torchvision has 0.2989 where the standard says 0.299, and turns hues in float32: 1e-4 of full scale
    torch.testing.assert_close(ours(x.clone(), values) / 255, expected.double(), atol=1e-4, rtol=0)


def test_a_turned_hue_keeps_value_and_chroma() -> None:
    x = pictures(2, 8)
    turned = augment.hue_(x.clone(), [0.1, -0.25])
    for before, after, turn in zip(x, turned, (0.1, -0.25), strict=True):
        for pixel, found in zip(before.flatten(1).T, after.flatten(1).T, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(pixel / 255).tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v), dtype=torch.float64)
            torch.testing.assert_close(found / 255, expected, atol=1e-9, rtol=0)


def test_grey_and_solarised_are_torchvisions() -> None:
    x = pictures()
    grey = v2.rgb_to_grayscale(x / 255, num_output_channels=3)
    torch.testing.assert_close(augment.grey_(x.clone()) / 255, grey, atol=1e-4, rtol=0)
    bright = v2.solarize(x.to(torch.uint8), threshold=128)
    assert torch.equal(augment.solarise_(x.clone()), bright.double())


@pytest.mark.parametrize("size", [8, 24])
def test_blur_is_torchvisions_beyond_whose_edge_the_picture_goes_on(size: int) -> None:
    x, sigmas = pictures(4, size), [0.1, 0.5, 1.3, 2.0]
    ours = augment.blur_(x.clone(), [(sigma, augment.reach(sigma)) for sigma in sigmas])
    for one, found, sigma in zip(x, ours, sigmas, strict=True):
        radius = int(np.ceil(3 * sigma))
        padded = v2.pad(one, [radius] * 4, padding_mode="edge")
        blurred = v2.gaussian_blur(padded, [2 * radius + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(found, blurred[:, radius:-radius, radius:-radius], atol=1e-9, rtol=0)


def test_a_blur_of_a_kernel_of_its_own_is_torchvisions_with_that_kernel() -> None:
    config = Augmentation(blur=(1.0,), blur_radius=1)
    changes = draw_changes(config, torch.rand(5, 16, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    assert changes.radius == [1] * 5
    assert max(changes.sigma) > 0.5, "whose three standard deviations reach further"
    x = pictures(5, 12)
    for one, found, sigma in zip(x, augment_(x.clone(), changes), changes.sigma, strict=True):
        blurred = v2.gaussian_blur(v2.pad(one, [1] * 4, padding_mode="edge"), [3, 3], [sigma] * 2)
        torch.testing.assert_close(found, blurred[:, 1:-1, 1:-1], atol=1e-9, rtol=0)
    free = draw_changes(
        Augmentation(blur=(1.0,)), torch.full((1, 16), 0.5), torch.zeros(1, dtype=torch.int64)
    )
    assert free.radius == [math.ceil(3 * 1.05)]


def test_all_together_are_pils_steps_in_order() -> None:
    """PIL rounds to whole values after every step: one level on average, a few where steps add up."""
    # PIL blurs by three boxes: alike where there is no single-pixel noise
    smooth = augment.blur_(pictures(24, 32), [(2.0, 6)] * 24).round()
    rng = np.random.default_rng(1)
    factors = [[*rng.uniform(0.7, 1.3, 3).tolist(), float(rng.uniform(-0.1, 0.1))] for _ in ORDERS]
    sigma = [float(s) if i % 2 else 0.0 for i, s in enumerate(rng.uniform(0.8, 2, 24))]
    grey, solarise = [i % 5 == 0 for i in range(24)], [i % 4 == 0 for i in range(24)]
    ours = augment_(
        smooth.clone(),
        Changes(list(ORDERS), factors, grey, sigma, solarise, [augment.reach(s) for s in sigma]),
    )
    adjust = (pil.adjust_brightness, pil.adjust_contrast, pil.adjust_saturation, pil.adjust_hue)
    apart = []
    for i, order in enumerate(ORDERS):
        picture = Image.fromarray(smooth[i].permute(1, 2, 0).to(torch.uint8).numpy())
        for kind in order:
            picture = adjust[kind](picture, factors[i][kind])
        if grey[i]:
            picture = picture.convert("L").convert("RGB")
        if sigma[i]:
            picture = picture.filter(ImageFilter.GaussianBlur(sigma[i]))
        if solarise[i]:
            picture = ImageOps.solarize(picture)
        apart.append((ours[i].permute(1, 2, 0) - torch.from_numpy(np.array(picture)).double()).abs())
    assert float(torch.stack(apart).mean()) < 1.5
    assert float(torch.stack(apart).quantile(0.999)) < 8


@pytest.mark.parametrize("chunk", [1, 1 << 14, 1 << 30])
def test_a_picture_is_augmented_alike_in_any_batch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Augmentation.model_validate("official")
    draws, view = torch.rand(40, DRAWS), torch.arange(40) % 2
    x = pictures(40).float()
    alone = [
        augment_(x[i : i + 1].clone(), draw_changes(config, draws[i : i + 1], view[i : i + 1]))
        for i in range(40)
    ]
    monkeypatch.setattr(augment, "_CHUNK", chunk)
    together = augment_(x.clone(), draw_changes(config, draws, view))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-3, rtol=0)
    assert not torch.equal(together, x)


@pytest.mark.gpu
def test_a_picture_is_augmented_alike_on_a_gpu() -> None:
    config = Augmentation.model_validate("official")
    draws, view = torch.rand(64, DRAWS), torch.arange(64) % 2
    x = pictures(64).float()
    changes = draw_changes(config, draws.cuda(), view.cuda())
    assert changes == draw_changes(config, draws, view)
    on_gpu = augment_(x.cuda(), changes).cpu()
    torch.testing.assert_close(on_gpu, augment_(x.clone(), changes), atol=1e-3, rtol=0)


def test_what_is_not_asked_for_is_left_alone() -> None:
    x = pictures(3)
    assert torch.equal(augment_(x.clone(), unchanged(3)), x)
    some = augment_(x.clone(), unchanged(3, solarise=[False, True, False]))
    assert [torch.equal(a, b) for a, b in zip(some, x, strict=True)] == [True, False, True]
    brightness = Augmentation(jitter=1, contrast=0, saturation=0, hue=0)
    drawn = draw_changes(brightness, torch.rand(3, DRAWS), torch.zeros(3, dtype=torch.int64))
    assert all(factors[0] != 1.0 and factors[1:] == [1.0, 1.0, 0.0] for factors in drawn.factors)


@pytest.mark.parametrize(
    ("name", "view", "blur", "solarise"),
    [
        ("paper", 0, 0.5, 0.1),
        ("paper", 1, 0.5, 0.1),
        ("official", 0, 1.0, 0.0),
        ("official", 1, 0.1, 0.2),
        ("official", 2, 0.1, 0.2),
        ("none", 0, 0.0, 0.0),
    ],
)
def test_draws_are_as_frequent_and_as_wide_as_published(
    name: str, view: int, blur: float, solarise: float
) -> None:
    n, config = 20_000, Augmentation.model_validate(name)
    draws = torch.from_numpy(np.random.default_rng(view).random((n, DRAWS), dtype=np.float32))
    found = draw_changes(config, draws, torch.full((n,), view))
    jitter, grey = (0.0, 0.0) if name == "none" else (0.8, 0.2)
    factors = np.array(found.factors)
    jittered = (factors != NEUTRAL).any(1)
    for share, expected in (
        (jittered.mean(), jitter),
        (np.mean(found.grey), grey),
        (np.mean(np.array(found.sigma) > 0), blur),
        (np.mean(found.solarise), solarise),
    ):
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))
    if name == "none":
        return
    for kind, spread in enumerate((0.4, 0.4, 0.2, 0.1)):
        low = NEUTRAL[kind] - spread
        assert kstest(factors[jittered, kind], "uniform", (low, 2 * spread)).pvalue > 1e-3
    assert kstest([s for s in found.sigma if s], "uniform", (0.1, 1.9)).pvalue > 1e-3
    counts = np.bincount([ORDERS.index(order) for order in found.order], minlength=24)
    assert chisquare(counts).pvalue > 1e-3
    # one choice tells nothing of another
    choices = np.stack([jittered, found.grey, np.array(found.sigma) > 0, found.solarise, factors[:, 0] > 1])
    choices = choices[choices.std(1) > 0]
    related = np.corrcoef(choices) - np.eye(len(choices))
    assert np.abs(related[:-1, :-1]).max() < 4 / np.sqrt(n)


def test_options_beside_a_name_beat_it() -> None:
    paper, mine = (Augmentation.model_validate(v) for v in ("paper", {"name": "paper", "blur": [0.9, 0]}))
    assert mine == paper.model_copy(update={"blur": (0.9, 0.0)})
    assert Augmentation.model_validate(mine.model_dump(mode="json")) == mine
    one = Augmentation.model_validate({"name": "official", "blur": 0.5, "solarise": 0})
    assert (one.blur, one.solarise) == ((0.5,), (0.0,))  # for both views alike
    assert not Augmentation().active
    assert Augmentation(blur=(0.0, 0.1)).active


def test_the_frontend_augments_in_training_and_by_view() -> None:
    config = ImageFrontend.Config.model_validate({"augmentation": {"blur": [1.0, 0.0]}})
    spec = ImageInput(ImageInput.Config()).spec()
    frontend = ImageFrontend(config, spec).train()
    pixels = pictures(2).to(torch.uint8)
    item = {"pixels": pixels, "draws": torch.rand(2, DRAWS), "view": torch.tensor([1, 0])}
    plain = ImageFrontend(ImageFrontend.Config(), spec).train()(item)
    seen = frontend(item)
    assert torch.equal(seen[0], plain[0])
    assert not torch.equal(seen[1], plain[1])
    assert torch.equal(frontend.eval()(item), plain)
    assert torch.equal(pixels, pictures(2).to(torch.uint8))  # what the loader gave is not written to


def test_workers_and_device_augment_alike() -> None:
    """The worker rounds to uint8 once; apart from that the two are one computation."""
    picture = pictures(1, 60)[0].to(torch.uint8)
    options = {"size": 32, "interpolation": "bicubic"}
    plain = ImageInput(ImageInput.Config.model_validate(options))
    worker = ImageInput(ImageInput.Config.model_validate({**options, "worker_augmentation": "official"}))
    frontend = ImageFrontend(ImageFrontend.Config.model_validate({"augmentation": "official"}), plain.spec())
    for seed in range(20):
        for view in (0, 1):
            a, b = (s._view(picture, np.random.default_rng(seed), view) for s in (plain, worker))
            item = {"pixels": a["pixels"][None], "draws": a["draws"][None], "view": torch.tensor([view])}
            seen = frontend.train()(item) * frontend.std + frontend.mean
            assert (seen[0] - b["pixels"]).abs().max() <= 0.501
    with pytest.raises(UserError, match="augmented twice"):
        ImageFrontend(ImageFrontend.Config.model_validate({"augmentation": "paper"}), worker.spec())
