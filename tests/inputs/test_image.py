"""Pictures of every kind become upright RGB; crops are torchvision's; what cannot be read is named."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from mmvicreg.branches.frontends import ImageFrontend
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import DRAWS
from mmvicreg.inputs.image import ImageInput, _random_box, _resize, decode_image
from mmvicreg.samples import Sample


def smooth(width: int, height: int) -> np.ndarray:
    """A picture without fine detail, so that two resamplers agree on it; uint8 ``(height, width, 3)``."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    channels = [np.sin(3 * x + y), np.cos(2 * y - x), np.sin(2 * x * y + 1)]
    return np.stack([127.5 + 127 * c for c in channels], axis=2).astype(np.uint8)


def as_array(path: Path) -> np.ndarray:
    return np.asarray(decode_image(path)).astype(int)


def view(path: Path, rng: np.random.Generator | None = None, **options: object) -> torch.Tensor:
    config = ImageInput.Config.model_validate({"size": 32, **options})
    return ImageInput(config).load(Sample("s", image=path), rng)["pixels"]


def test_grey_palette_and_transparent_pictures_are_rgb(tmp_path: Path) -> None:
    pixels = smooth(20, 12)
    grey = pixels[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (as_array(tmp_path / "grey.png") == grey[:, :, None]).all()
    few = (pixels // 128) * 255  # eight colours: a palette holds them exactly
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert (as_array(tmp_path / "palette.png") == few).all()
    alpha = np.full((12, 20, 1), 200, np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert (as_array(tmp_path / "rgba.png") == pixels).all()
    Image.fromarray(grey > 128).save(tmp_path / "bilevel.png")
    assert (as_array(tmp_path / "bilevel.png") == ((grey > 128) * 255)[:, :, None]).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[:] = (200, 60, 30)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    assert np.abs(as_array(tmp_path / "cmyk.jpg") - flat).max() <= 3


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    values = (np.arange(256, dtype=np.uint16) * 256 + 77).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (as_array(tmp_path / "deep.png") == np.arange(256).reshape(16, 16, 1)).all()


def test_sixteen_bit_netpbm_keeps_its_high_byte(tmp_path: Path) -> None:
    values = (np.arange(256, dtype=np.uint16) * 256 + 77).reshape(16, 16)
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535 " + values.astype(">u2").tobytes())
    assert (as_array(tmp_path / "deep.pgm") == np.arange(256).reshape(16, 16, 1)).all()


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    pixels = smooth(9, 5)
    deep = pixels.astype(np.uint16) * 256 + 77
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in deep)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9, 5, 16, 2, 0, 0, 0)
    png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert (as_array(tmp_path / "deep.png") == pixels).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_known_white_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.linspace(0, 9, 64).reshape(8, 8).astype(kind)).save(tmp_path / "map.tiff")
    with pytest.raises(UserError, match=r"map\.tiff \(it has 32 bits a channel.*save it with 8 or 16"):
        decode_image(tmp_path / "map.tiff")


def test_a_palette_with_transparency_keeps_its_colours_in_silence(tmp_path: Path) -> None:
    few = (smooth(20, 12) // 128) * 255
    palette = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128, 255]))
    palette.save(tmp_path / "clear.gif", transparency=0)
    for name in ("clear.png", "clear.gif"):
        assert "transparency" in Image.open(tmp_path / name).info
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (as_array(tmp_path / name) == few).all()


def test_exif_that_cannot_be_read_leaves_the_picture_as_stored(tmp_path: Path) -> None:
    pixels = smooth(24, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for cut in range(0, len(whole), 3):
        Image.fromarray(pixels).save(tmp_path / "odd.png", exif=whole[:cut] + b"\xff" * (len(whole) - cut))
        assert decode_image(tmp_path / "odd.png").size in {(24, 10), (10, 24)}
    Image.fromarray(pixels).save(tmp_path / "odd.png", exif=b"Exif\0\0nonsense")
    assert (as_array(tmp_path / "odd.png") == pixels).all()


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turn: object) -> None:
    pixels = smooth(24, 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert callable(turn)
    assert (as_array(tmp_path / "turned.png") == turn(pixels)).all()


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert getattr(Image.open(tmp_path / "moving.gif"), "n_frames", 1) == 3
    assert (as_array(tmp_path / "moving.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes_still_give_a_square_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "thin.png")
    for rng in (None, np.random.default_rng(0)):
        pixels = view(tmp_path / "thin.png", rng)
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.uint8
        assert (pixels == torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]).all()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "missing", "folder", "broken avif"])
def test_what_is_not_a_picture_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    if kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken avif":  # its decoder raises RuntimeError, not OSError
        path = tmp_path / "photo.avif"
        Image.fromarray(smooth(40, 40)).save(path)
        content = path.read_bytes()
        path.write_bytes(content[:-60] + bytes(60))
    with pytest.raises(UserError, match=r"photo\.(jpg|avif)"):
        decode_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp", "ppm"])
def test_a_damaged_file_is_a_picture_or_is_named(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, or with bytes changed: PIL's decoders raise whatever they like."""
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(smooth(24, 16)).save(path)
    whole, rng, named = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        if trial % 2:
            damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        else:
            damaged = damaged[: rng.integers(len(whole))]
        path.write_bytes(damaged.tobytes())
        try:
            assert decode_image(path).mode == "RGB"
        except UserError as error:
            named += f"photo.{suffix}" in str(error)
    assert named >= 20  # most of the thirty that were cut


def test_a_sample_without_a_picture_is_named() -> None:
    with pytest.raises(UserError, match="'clip-7' has no picture"):
        ImageInput(ImageInput.Config()).load(Sample("clip-7"), None)


@pytest.mark.parametrize(
    ("area", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (1.0, 1.0)), ((0.2, 0.4), (0.5, 2.0))]
)
@pytest.mark.parametrize(("width", "height"), [(500, 375), (60, 200)])
def test_random_boxes_are_distributed_as_torchvisions(
    area: tuple[float, float], ratio: tuple[float, float], width: int, height: int
) -> None:
    rng = np.random.default_rng(0)
    ours = np.array([_random_box(width, height, area, ratio, rng) for _ in range(1500)])
    boxes = v2.RandomResizedCrop(8, scale=area, ratio=ratio)
    blank = torch.empty(3, height, width)
    drawn = [boxes.make_params([blank]) for _ in range(1500)]
    theirs = np.array([(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in drawn])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2] <= width + 1e-9).all()
    assert (ours[:, 3] <= height + 1e-9).all()
    measures = (
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),  # area
        lambda b: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]),  # aspect
        lambda b: (b[:, 2] + b[:, 0]) / 2,  # where, across
        lambda b: (b[:, 3] + b[:, 1]) / 2,  # where, down
    )
    for measure in measures:
        # within one pixel: torchvision rounds the box of last resort to whole pixels
        assert ks_2samp(np.round(measure(ours), 2), np.round(measure(theirs), 2)).statistic < 0.07


@pytest.mark.parametrize(("width", "height"), [(160, 120), (90, 140), (73, 73)])
@pytest.mark.parametrize("resize", [None, 32, 48])
def test_evaluation_is_resize_then_centre_crop(
    tmp_path: Path, width: int, height: int, resize: int | None
) -> None:
    pixels = smooth(width, height)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ours = view(tmp_path / "a.png", eval_resize=resize).float()
    transform = v2.Compose([v2.Resize(resize or 37, antialias=True), v2.CenterCrop(32)])  # 32 * 256 / 224
    theirs = transform(torch.from_numpy(pixels).permute(2, 0, 1)).float()
    # theirs crops at whole pixels of the resized picture: up to half a pixel of shift
    assert (ours - theirs).abs().mean() < 2
    assert (ours - theirs).abs().max() < 8


def test_a_picture_smaller_than_its_crop_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"eval_resize is 32, below the size of 64 .*: set it to 64 .* to null"
    ):
        ImageInput.Config(size=64, eval_resize=32)
    for resize in (64, 72, None):
        ImageInput.Config(size=64, eval_resize=resize)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 40, 90])
def test_a_crop_is_resized_as_pil_does(mode: str, size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    box = (7, 3, 55, 44)
    expected = Image.fromarray(picture).crop(box).resize((size, size), Image.Resampling[mode.upper()])
    ours = _resize(torch.from_numpy(picture).permute(2, 0, 1), box, size, mode).permute(1, 2, 0)
    assert np.abs(ours.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_generator_decides_everything(tmp_path: Path) -> None:
    Image.fromarray(smooth(50, 40)).save(tmp_path / "a.png")
    source = ImageInput(ImageInput.Config(size=32))
    sample = Sample("a", image=tmp_path / "a.png")
    first, again, other = (source.load(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixels"], other["pixels"])
    assert not torch.equal(first["draws"], other["draws"])
    assert first["draws"].shape == (DRAWS,)
    judged = [source.load(sample, None) for _ in range(2)]
    assert torch.equal(judged[0]["pixels"], judged[1]["pixels"])
    assert (judged[0]["draws"] == 0.5).all()


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_flips_as_often_as_asked(tmp_path: Path, chance: float) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    rng = np.random.default_rng(0)
    whole = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": chance}
    flipped = sum(int(view(tmp_path / "half.png", rng, **whole)[0, 0, 0] == 255) for _ in range(400))
    assert abs(flipped / 400 - chance) < 0.08
    if chance in (0.0, 1.0):
        assert flipped == 400 * chance


def test_a_batch_is_stacked(tmp_path: Path) -> None:
    Image.fromarray(smooth(50, 40)).save(tmp_path / "a.png")
    source = ImageInput(ImageInput.Config(size=16))
    items = [source.load(Sample("a", image=tmp_path / "a.png"), np.random.default_rng(i)) for i in range(3)]
    batch = source.collate(items)
    assert batch["pixels"].shape == (3, 3, 16, 16)
    assert batch["draws"].shape == (3, DRAWS)
    assert source.spec().channels == 3
    for item, row in zip(items, batch["pixels"], strict=True):
        assert torch.equal(row, item["pixels"])


@pytest.mark.parametrize("augmentation", ["none", "official"])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_has_its_channels_last_in_memory_however_it_was_made(
    tmp_path: Path, augmentation: str, training: bool
) -> None:
    Image.fromarray(smooth(50, 40)).save(tmp_path / "a.jpg")
    source = ImageInput(ImageInput.Config.model_validate({"size": 16, "worker_augmentation": augmentation}))
    rngs = [np.random.default_rng(i) if training else None for i in range(3)]
    batch = source.collate([source.load(Sample("a", image=tmp_path / "a.jpg"), rng) for rng in rngs])
    assert batch["pixels"].is_contiguous(memory_format=torch.channels_last)
    planes = batch["pixels"].contiguous()
    frontend = ImageFrontend(ImageFrontend.Config(), source.spec()).eval()
    found = frontend({**batch, "view": torch.zeros(3)})
    assert found.is_contiguous()
    assert torch.equal(found, frontend({"pixels": planes}))
