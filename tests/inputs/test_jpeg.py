"""Training decodes JPEGs by torchvision: to PIL's pixels, and to PIL's refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import io as torchvision_io

from mmvicreg.errors import UserError
from mmvicreg.inputs.image import decode_image, decode_pixels


def smooth() -> np.ndarray:
    y, x = np.mgrid[0:50, 0:75] / 75
    channels = [np.sin(3 * x + y), np.cos(2 * y - x), np.sin(2 * x * y + 1)]
    return np.stack([127.5 + 127 * c for c in channels], axis=2).astype(np.uint8)


def by_pil(path: Path) -> np.ndarray:
    return np.asarray(decode_image(path))


def jpegs() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """Pictures and what to save them with."""
    picture = Image.fromarray(smooth()).effect_spread(3)
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "grey": (picture.convert("L"), {}),
        "cmyk": (picture.convert("CMYK"), {"quality": 95}),
        "odd": (picture.crop((0, 0, 37, 23)), {}),
        "restarts": (picture, {"restart_marker_blocks": 3}),
        "stored as rgb": (picture, {"keep_rgb": True}),
    }
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        kinds[subsampling] = (picture, {"subsampling": subsampling, "quality": 90})
        kinds[f"progressive {subsampling}"] = (picture, {"subsampling": subsampling, "progressive": True})
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds[f"turned {orientation}"] = (picture, {"exif": exif})
    return kinds


@pytest.mark.parametrize("kind", jpegs())
def test_a_jpeg_in_training_has_pils_pixels(tmp_path: Path, kind: str) -> None:
    picture, options = jpegs()[kind]
    picture.save(tmp_path / "a.jpg", **options)
    found = decode_pixels(tmp_path / "a.jpg")
    assert found.dtype == torch.uint8
    assert (found.permute(1, 2, 0).numpy() == by_pil(tmp_path / "a.jpg")).all()


def test_torchvision_decodes_upright_jpegs_and_pil_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls, decoded = torchvision_io.decode_jpeg, [], []

    def counted(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(arguments)
        return decode(*arguments, **options)

    def absent(*arguments: object, **options: object) -> torch.Tensor:
        raise RuntimeError("Couldn't load the image extension.")

    for kind, (picture, options) in jpegs().items():
        picture.save(tmp_path / "a.jpg", **options)
        monkeypatch.setattr(torchvision_io, "decode_jpeg", counted, raising=False)
        found = decode_pixels(tmp_path / "a.jpg")
        decoded += [kind] * len(calls)
        calls.clear()
        monkeypatch.setattr(torchvision_io, "decode_jpeg", absent)
        assert torch.equal(found, decode_pixels(tmp_path / "a.jpg"))
        monkeypatch.delattr(torchvision_io, "decode_jpeg")
        assert torch.equal(found, decode_pixels(tmp_path / "a.jpg"))
    assert decoded == [kind for kind in jpegs() if kind not in ("cmyk", "turned 3", "turned 6")]


def test_what_is_no_jpeg_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL decodes a whole PNG when it is asked for its EXIF."""
    loads, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(1) or load(image))
    for suffix in ("png", "webp", "gif"):
        Image.fromarray(smooth()).save(tmp_path / f"a.{suffix}")
        loads.clear()
        by_pil(tmp_path / f"a.{suffix}")
        once = len(loads)
        decode_pixels(tmp_path / f"a.{suffix}")
        assert len(loads) == 2 * once


def outcome(decode: Callable[[Path], Any], path: Path) -> Any:
    try:
        return decode(path)
    except UserError as error:
        return str(error)


def test_a_damaged_jpeg_is_in_training_what_it_is_to_pil(tmp_path: Path) -> None:
    """Cut, or with bytes changed: the same pixels, or refused in the same words."""
    rng, named = np.random.default_rng(0), 0
    path = tmp_path / "a.jpg"
    for trial in range(150):
        picture, options = list(jpegs().values())[trial % len(jpegs())]
        picture.save(path, **options)
        damaged = np.frombuffer(path.read_bytes(), np.uint8).copy()
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        elif trial % 3 == 1:
            damaged = damaged[: -rng.integers(1, 40)]
        else:
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        expected, found = outcome(by_pil, path), outcome(decode_pixels, path)
        if isinstance(expected, str):
            assert found == expected
            named += 1
        else:
            assert (found.permute(1, 2, 0).numpy() == expected).all()
    assert 50 < named < 140
