"""Colour, blur and solarisation of pictures: the augmentations published with VICReg, a batch at a time.

They follow the random resized crop and the flip (``mmvicreg.inputs.image``), on the device as a part of the
frontend or in the loader's workers. What a view draws is made from the uniforms that travel with it, on the
CPU, so that a view is augmented alike whatever the batch, the device or the number of processes. Values are
floating point in 0..255 and are not rounded between the steps, as PIL's are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from mmvicreg.registry import nearest
from mmvicreg.strict import Strict

Probability = Annotated[float, Field(ge=0, le=1)]
PerView = Annotated[tuple[Probability, ...], Field(min_length=1)]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    # appendix C.1: both views alike
    "paper": {"jitter": 0.8, "grayscale": 0.2, "blur": (0.5,), "solarise": (0.1,)},
    # the authors' code: the first view always blurred, the second hardly, but solarised
    "official": {"jitter": 0.8, "grayscale": 0.2, "blur": (1.0, 0.1), "solarise": (0.0, 0.2)},
}
WEIGHTS = (0.299, 0.587, 0.114)
"""Of red, green and blue in grey (ITU-R 601-2, PIL's)."""
ORDERS = tuple(itertools.permutations(range(4)))
"""The orders in which brightness, contrast, saturation and hue can be adjusted."""
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
"""The factors that leave a picture as it is."""
_CHUNK = 1 << 18  # values at a time on a CPU, about what its second-level cache holds

T = TypeVar("T")


class Augmentation(Strict):
    """How the views of a picture differ beyond their crop and flip; by name, or with options of its own.

    The defaults are those that both publications share: ColorJitter(0.4, 0.4, 0.2, 0.1), sigma 0.1 to 2.
    """

    name: str = "none"
    """``none``, ``paper`` (appendix C.1) or ``official`` (the authors' code): where options not given are from."""
    jitter: Probability = 0.0
    """Probability of adjusting brightness, contrast, saturation and hue, in an order drawn anew."""
    brightness: Probability = 0.4
    """Factor drawn from 1 plus or minus this; contrast and saturation likewise."""
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Turn drawn from plus or minus this, in parts of the colour circle."""
    grayscale: Probability = 0.0
    """Probability of keeping the grey values only."""
    blur: PerView = (0.0,)
    """Probability of a Gaussian blur: one number, or one for each view (the last for any further)."""
    sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=20)]] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, pixels."""
    blur_radius: Annotated[int, Field(ge=1)] | None = None
    """Pixels that the blur reaches at most, k for a kernel of 2 k + 1; null: three standard deviations."""
    solarise: PerView = (0.0,)
    """Probability of inverting the values from 128 up: one number, or one for each view."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            return value
        name = value.get("name", "none")
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"unknown augmentation '{name}'{nearest(str(name), PRESETS)} Known: {known}.")
        plain = {
            option: (given,)
            for option, given in value.items()
            if option in ("blur", "solarise")
            and isinstance(given, int | float)
            and not isinstance(given, bool)
        }
        return {**PRESETS[name], **value, **plain}

    @model_validator(mode="after")
    def _in_order(self) -> Augmentation:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(
                f"sigma: expected [smallest, largest], got [{self.sigma[0]:g}, {self.sigma[1]:g}]"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether any picture is changed at all."""
        return max(self.jitter, self.grayscale, *self.blur, *self.solarise) > 0


class Changes(NamedTuple):
    """What happens to each of n pictures; lists of n.

    Attributes:
        order: which of brightness (0), contrast (1), saturation (2) and hue (3) comes first, second, ...
        factors: those four's; :data:`NEUTRAL` where nothing is adjusted.
        grey: whether colours are dropped.
        sigma: of the blur, pixels; 0 for none.
        solarise: whether bright values are inverted.
        radius: pixels that the blur reaches.
    """

    order: list[tuple[int, ...]]
    factors: list[list[float]]
    grey: list[bool]
    sigma: list[float]
    solarise: list[bool]
    radius: list[int]


def draw_changes(config: Augmentation, draws: Tensor, view: Tensor) -> Changes:
    """What ``config`` does to pictures with these uniforms.

    Args:
        config: the augmentation.
        draws: uniforms in [0, 1), ``(n, 10)`` or more.
        view: which view each picture is, int64 ``(n,)``.
    """
    u, view = draws.cpu().double(), view.cpu()
    spread = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue], dtype=u.dtype)
    neutral = torch.tensor(NEUTRAL, dtype=u.dtype)
    factors = torch.where(u[:, :1] < config.jitter, neutral + spread * (2 * u[:, 2:6] - 1), neutral)
    low, high = config.sigma
    blurred = u[:, 7] < _of_view(config.blur, view)
    sigma = torch.where(blurred, low + (high - low) * u[:, 8], 0.0)
    return Changes(
        order=[ORDERS[i] for i in (u[:, 1] * len(ORDERS)).long().tolist()],
        factors=factors.tolist(),
        grey=(u[:, 6] < config.grayscale).tolist(),
        sigma=sigma.tolist(),
        solarise=(u[:, 9] < _of_view(config.solarise, view)).tolist(),
        radius=[min(reach(each), config.blur_radius or reach(each)) for each in sigma.tolist()],
    )


def _of_view(probabilities: Sequence[float], view: Tensor) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64)[view.clamp(max=len(probabilities) - 1)]


def augment_(x: Tensor, changes: Changes) -> Tensor:
    """Change pictures in place: jitter, grayscale, blur, solarisation, in the published order.

    Args:
        x: ``(n, 3, h, w)`` of any floating dtype, values in 0..255.
        changes: what happens to each.

    Returns:
        ``x``.
    """
    on_cpu = x.device.type == "cpu"
    size = max(1, _CHUNK // x[0].numel()) if on_cpu else len(x)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        _augment_(x[part], Changes._make(change[part] for change in changes))
    return x


def _augment_(x: Tensor, changes: Changes) -> None:
    for position in range(4):
        for kind, adjust_ in enumerate((brightness_, contrast_, saturation_, hue_)):
            factors = [
                factor[kind] if order[position] == kind else NEUTRAL[kind]
                for order, factor in zip(changes.order, changes.factors, strict=True)
            ]
            _change_rows(x, adjust_, factors, NEUTRAL[kind])
    _change_rows(x, lambda rows, _: grey_(rows), changes.grey, False)
    blurs = list(zip(changes.sigma, changes.radius, strict=True))
    _change_rows(x, blur_, blurs, (0.0, 0))
    _change_rows(x, lambda rows, _: solarise_(rows), changes.solarise, False)


def _change_rows(x: Tensor, change_: Callable[[Tensor, list[T]], object], values: list[T], idle: T) -> None:
    """Let ``change_`` work on the pictures whose value is not ``idle``."""
    rows = [row for row, value in enumerate(values) if value != idle]
    if len(rows) == len(x):
        change_(x, values)
    elif rows:
        index = torch.tensor(rows).to(x.device, non_blocking=True)
        some = x[index]
        change_(some, [values[row] for row in rows])
        x.index_copy_(0, index, some)


def brightness_(x: Tensor, factors: list[float]) -> Tensor:
    """Multiply the values of each picture of ``(n, 3, h, w)``, in place, within 0..255."""
    return x.mul_(_column(factors, x)).clamp_(0, 255)


def contrast_(x: Tensor, factors: list[float]) -> Tensor:
    """Spread the values of each picture about its mean grey, in place, within 0..255."""
    factor = _column(factors, x)
    # in float64: the order of summation must not show, whatever the number of processes
    grey = (
        x.mean(dim=(2, 3), keepdim=True, dtype=torch.float64).to(x.dtype)
        * _column(WEIGHTS, x).view(1, 3, 1, 1)
    ).sum(1, keepdim=True)
    return x.mul_(factor).add_((1 - factor) * grey).clamp_(0, 255)


def saturation_(x: Tensor, factors: list[float]) -> Tensor:
    """Spread the colours of each pixel about its grey, in place, within 0..255."""
    factor = _column(factors, x)
    grey = luminance(x).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 255)


def hue_(x: Tensor, turns: list[float]) -> Tensor:
    """Turn the colours of each picture round the circle, in place, by parts of it in -0.5..0.5.

    Value and chroma stay, so the channels come straight from the turned hue h, in sixths of the circle:
    red is low + chroma * clamp(|h - 3| - 1, 0, 1), green and blue low + chroma * clamp(2 - |h - 2 or 4|, 0, 1).
    """
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(red, green).maximum(blue), torch.minimum(red, green).minimum(blue)
    chroma = high - low
    scale = chroma.clamp_min(1e-6).reciprocal_()  # a grey pixel has no hue, and 0 chroma below
    # 0 where the channel is the highest, else 1; torch.where costs a CPU as much as all the rest
    not_red, not_green = (((high - channel) * 1e30).clamp_(0, 1) for channel in (red, green))
    h = torch.lerp((blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4), not_green)
    h = torch.lerp((green - blue).mul_(scale), h, not_red).add_(6 * _column(turns, x)[:, 0])
    h.sub_((h * (1 / 6)).floor_(), alpha=6)
    shares = ((h - 3).abs_().sub_(1), 2 - (h - 2).abs_(), 2 - (h - 4).abs_())
    for channel, share in zip((red, green, blue), shares, strict=True):
        torch.addcmul(low, share.clamp_(0, 1), chroma, out=channel)
    return x


def grey_(x: Tensor) -> Tensor:
    """Give all channels of ``(n, 3, h, w)`` the grey value, in place."""
    return x.copy_(luminance(x))


def reach(sigma: float) -> int:
    """The radius, pixels, at which a Gaussian is cut where nothing else is said: three standard deviations."""
    return math.ceil(3 * sigma)


def blur_(x: Tensor, blurs: list[tuple[float, int]]) -> Tensor:
    """Blur each picture by a Gaussian of (sigma, radius), in place; the picture's edge goes on beyond it.

    As shifted sums of rows, then of columns: several times faster on a CPU than a convolution.
    """
    sigma, radii = torch.tensor(blurs, dtype=torch.float64)[:, :, None].unbind(1)
    radius = max(each for _, each in blurs)
    offset = torch.arange(radius + 1)
    # cut at its own radius, not at the widest of the batch: a picture must not depend on its neighbours
    weights = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset <= radii)
    weights /= 2 * weights.sum(dim=1, keepdim=True) - weights[:, :1]
    taps = [_Tap(column, x) for column in weights.unbind(1)]
    for dim in (2, 3):
        size = x.shape[dim]
        beyond = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded = functional.pad(x, beyond, mode="replicate")
        x.zero_()
        for k in range(-radius, radius + 1):
            taps[abs(k)].add_(x, padded.narrow(dim, radius + k, size))
    return x


class _Tap:
    """One weight of a blur, for each of n pictures."""

    def __init__(self, weights: Tensor, like: Tensor) -> None:
        self.alone = float(weights) if len(weights) == 1 else None
        self.weights = _column(weights.tolist(), like)

    def add_(self, total: Tensor, x: Tensor) -> None:
        """``total += weights * x``, in one pass."""
        if self.alone is not None:
            total.add_(x, alpha=self.alone)
        else:
            total.addcmul_(x, self.weights)


def solarise_(x: Tensor) -> Tensor:
    """Invert the upper half of the values, in place: on whole values those from 128 up, as PIL does."""
    return torch.minimum(x, 255 - x, out=x)


def luminance(x: Tensor) -> Tensor:
    """Grey of ``(n, 3, h, w)``, as ``(n, 1, h, w)``."""
    red, green, blue = (x[:, channel : channel + 1] for channel in range(3))
    return (red * WEIGHTS[0]).add_(green, alpha=WEIGHTS[1]).add_(blue, alpha=WEIGHTS[2])


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """``(n, 1, 1, 1)`` on the device of ``like``, copied without waiting for what the device does."""
    return torch.tensor(values, dtype=like.dtype).view(-1, 1, 1, 1).to(like.device, non_blocking=True)
