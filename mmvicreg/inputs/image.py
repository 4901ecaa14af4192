"""Pictures: decode once, crop and flip each view, to uint8 tensors."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional
from torchvision import io as torchvision_io

from mmvicreg.errors import UserError
from mmvicreg.inputs.augment import Augmentation, augment_, draw_changes
from mmvicreg.inputs.base import FIRST_CROP, Input, InputSpec, Item, draws
from mmvicreg.samples import File, Sample
from mmvicreg.strict import Strict


class ImageInput(Input):
    """Random resized crop and flip in training; resize and centre crop in evaluation."""

    field = "image"

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
        small_size: Annotated[int, Field(ge=8)] = 96
        """Side of the small crops, pixels, where an edge has ``crops``."""
        small_area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
            0.05,
            0.14,
        )
        """Smallest and largest part of the picture's area that a small crop covers (SwAV's; its large ones
        cover 0.14 to 1)."""
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Probability of a horizontal flip."""
        eval_resize: Annotated[int, Field(ge=8)] | None = None
        """Shorter side before the centre crop in evaluation, pixels; null: size * 256 / 224."""
        interpolation: Literal["bilinear", "bicubic"] = "bilinear"
        worker_augmentation: Augmentation = Augmentation()
        """The frontend's ``augmentation`` (the same views, to rounding), done here on the loader's CPUs."""

        @field_validator("crop_area", "crop_ratio", "small_area")
        @classmethod
        def _in_order(cls, bounds: tuple[float, float]) -> tuple[float, float]:
            if bounds[0] > bounds[1]:
                raise ValueError(f"expected [smallest, largest], got [{bounds[0]:g}, {bounds[1]:g}]")
            return bounds

        @model_validator(mode="after")
        def _resize_holds_crop(self) -> ImageInput.Config:
            if self.eval_resize is not None and self.eval_resize < self.size:
                raise ValueError(
                    f"eval_resize is {self.eval_resize}, below the size of {self.size} that is cut out: set it to "
                    f"{self.size} (the whole picture) or more, or to null (size * 256 / 224)"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """``pixels``: uint8 ``(3, size, size)``; ``draws``: float32 for the device."""
        if rng is not None:
            return self._view(decode_pixels(_file(sample)), rng, 0)
        picture = decode_image(_file(sample))
        size, resample = self.config.size, Image.Resampling[self.config.interpolation.upper()]
        box = _centre_box(picture.width, picture.height, self._eval_fraction())
        crop = picture.resize((size, size), resample, box=box)  # where the box falls between pixels
        return {"pixels": _to_tensor(crop), "draws": draws(None)}

    def load_views(
        self, sample: Sample, rngs: Mapping[int, np.random.Generator], *, caption: int | None = None
    ) -> dict[int, Item]:
        """Views of one picture, which is decoded once."""
        whole = decode_pixels(_file(sample))
        return {view: self._view(whole, rng, view) for view, rng in rngs.items()}

    def collate(self, items: Sequence[Item]) -> Item:
        """Stack the items of a batch; in memory the channels of a pixel stay side by side.

        So decoders give them and resizing takes them. Parting them is left to the frontend, for a whole batch.
        """
        batch = super().collate([{**item, "pixels": item["pixels"].permute(1, 2, 0)} for item in items])
        return {**batch, "pixels": batch["pixels"].permute(0, 3, 1, 2)}

    def _view(self, whole: Tensor, rng: np.random.Generator, view: int) -> Item:
        """One training view of a picture, uint8 ``(3, h, w)``; a small crop from ``FIRST_CROP`` on."""
        size, area = self.config.size, self.config.crop_area
        if view >= FIRST_CROP:
            size, area = self.config.small_size, self.config.small_area
        box = _random_box(whole.shape[2], whole.shape[1], area, self.config.crop_ratio, rng)
        pixels = _resize(whole, box, size, self.config.interpolation)
        if rng.random() < self.config.flip:
            pixels = pixels.flip(2)
        drawn, augmentation = draws(rng), self.config.worker_augmentation
        if augmentation.active:
            changes = draw_changes(augmentation, drawn[None], torch.tensor([view]))
            planes = pixels[None].to(torch.float32, memory_format=torch.contiguous_format)
            pixels = augment_(planes, changes)[0].round_().to(torch.uint8)
        return {"pixels": pixels, "draws": drawn}

    def spec(self) -> InputSpec:
        """Three channels of a square."""
        return InputSpec(
            "image", channels=3, size=self.config.size, augmented=self.config.worker_augmentation.active
        )

    def _eval_fraction(self) -> float:
        resize = self.config.eval_resize or round(self.config.size * 256 / 224)
        return min(1.0, self.config.size / resize)


def decode_image(path: File) -> Image.Image:
    """Read a picture of any mode as upright RGB: of an animation the first frame, of 16 bits the high byte.

    Transparency is dropped and the colours under it are kept.

    Raises:
        UserError: the file is missing, truncated, not a picture, or of 32 bits a channel.
    """
    try:
        # what PIL warns of (broken EXIF, transparent palettes) would be said again in every epoch
        source = path if isinstance(path, Path) else path.open()
        with warnings.catch_warnings(action="ignore"), Image.open(source) as image:
            image.load()
            with suppress(Exception):  # EXIF that cannot be read says nothing against the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(image).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"picture not found: {path}") from error
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
        raise UserError(
            f"cannot decode the picture {path} ({error}); replace the file, or leave its row out of the data set"
        ) from error


def decode_pixels(path: File) -> Tensor:
    """:func:`decode_image` as uint8 ``(3, h, w)``; most JPEGs in 5/6 of the time.

    The one place where torchvision's decoder is called, deprecated since 0.29: without it PIL decodes everything.
    PIL reads the header and so decides what is left to torchvision: upright JPEGs of one or three channels, for
    which both call libjpeg alike. Whatever torchvision refuses, PIL reads, or says what is wrong with it.

    Raises:
        UserError: as :func:`decode_image`.
    """
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        with path.open("rb") if isinstance(path, Path) else path.open() as file:
            content = bytearray(file.read())
        with Image.open(io.BytesIO(content)) as header:
            plain = header.format == "JPEG" and header.mode in ("L", "RGB")
            # asked last: for the EXIF of a PNG, PIL would decode all of it
            upright = plain and header.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if upright:
            pixels: Tensor = torchvision_io.decode_jpeg(
                torch.frombuffer(content, dtype=torch.uint8), mode="RGB"
            )
            return pixels
    return _to_tensor(decode_image(path))


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # PIL would clip 16 bits to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel and does not say what white is: save it with 8 or 16")
    return image


def _file(sample: Sample) -> File:
    if sample.image is None:
        raise UserError(
            sample.fault or f"sample '{sample.id}' has no picture; choose a --dataset that has pictures"
        )
    return sample.image


def _to_tensor(image: Image.Image) -> Tensor:
    """uint8 ``(3, h, w)``, the channels of a pixel side by side in memory, as torchvision's decoder gives them."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resize(pixels: Tensor, box: tuple[int, int, int, int], size: int, mode: str) -> Tensor:
    """Crop uint8 ``(3, h, w)`` to a box and resize that, as PIL does (to one level) in less than half its time."""
    left, top, right, bottom = box
    # with a batch axis that torch recognises as channels last, it neither parts the channels nor puts them together
    crop = pixels.permute(1, 2, 0)[None, top:bottom, left:right].permute(0, 3, 1, 2)
    return functional.interpolate(crop, (size, size), mode=mode, antialias=True)[0]


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
) -> tuple[int, int, int, int]:
    """The box of torchvision's RandomResizedCrop: ten tries, then the largest allowed centre box."""
    for _ in range(10):
        target = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    widest = max(1, round(min(width, height * ratio[1])))
    highest = max(1, round(min(height, width / ratio[0])))
    left, top = (width - widest) // 2, (height - highest) // 2
    return left, top, left + widest, top + highest
