"""Pictures: decode, crop, flip, to a uint8 tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, field_validator
from torch import Tensor

from mmvicreg.config import Strict
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, InputSpec, Item, draws
from mmvicreg.samples import Sample

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageInput(Input):
    """Random resized crop and flip in training; resize and centre crop in evaluation."""

    class Config(Strict):
        """Geometry of the crop, in pixels and fractions."""

        size: Annotated[int, Field(ge=8)] = 224
        """Side of the square crop, pixels."""
        crop_area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
            0.08,
            1.0,
        )
        """Smallest and largest part of the picture's area that a training crop covers."""
        crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
        """Smallest and largest width / height of a training crop."""
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Probability of a horizontal flip."""
        eval_resize: Annotated[int, Field(ge=8)] | None = None
        """Shorter side before the centre crop in evaluation, pixels; null: size * 256 / 224."""
        interpolation: Literal["bilinear", "bicubic"] = "bilinear"

        @field_validator("crop_area", "crop_ratio")
        @classmethod
        def _in_order(cls, bounds: tuple[float, float]) -> tuple[float, float]:
            if bounds[0] > bounds[1]:
                raise ValueError(f"expected [smallest, largest], got [{bounds[0]:g}, {bounds[1]:g}]")
            return bounds

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """``pixels``: uint8 ``(3, size, size)``; ``draws``: float32 for the device."""
        if sample.image is None:
            raise UserError(f"sample '{sample.id}' has no picture")
        size, picture = self.config.size, decode_image(sample.image)
        resample = _FILTERS[self.config.interpolation]
        if rng is None:
            box = _centre_box(picture.width, picture.height, self._eval_fraction())
        else:
            box = _random_box(
                picture.width, picture.height, self.config.crop_area, self.config.crop_ratio, rng
            )
        crop = picture.resize((size, size), resample, box=box)
        if rng is not None and rng.random() < self.config.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"pixels": _to_tensor(crop), "draws": draws(rng)}

    def spec(self) -> InputSpec:
        """Three channels."""
        return InputSpec("image", channels=3)

    def _eval_fraction(self) -> float:
        resize = self.config.eval_resize or round(self.config.size * 256 / 224)
        return min(1.0, self.config.size / resize)


def decode_image(path: Path) -> Image.Image:
    """Read a picture of any mode as upright RGB.

    The one place where pictures are decoded.

    Raises:
        UserError: the file is missing, truncated or not a picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # PIL clips 16-bit to white; keep the high byte instead
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"picture not found: {path}") from error
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        # RuntimeError: AVIF's decoder, and NotImplementedError of DDS
        raise UserError(
            f"cannot decode the picture {path} ({error}); replace the file, or leave its row out of the data set"
        ) from error


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _centre_box(width: int, height: int, fraction: float) -> tuple[float, float, float, float]:
    side = min(width, height) * fraction
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(
    width: int,
    height: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """The box of torchvision's RandomResizedCrop: ten tries, then the largest allowed centre box."""
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    widest, highest = min(width, height * ratio[1]), min(height, width / ratio[0])
    x, y = (width - widest) / 2, (height - highest) / 2
    return x, y, x + widest, y + highest
