"""``mmvicreg bench input``: pictures a second that one core of a loader makes two training views of.

Against the pipeline of the authors' code, written from its definition: PIL pictures through torchvision's
transforms, one by one, to normalised float tensors. Run in turns, on one thread, on the same JPEG files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from rich.table import Table
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms

from mmvicreg.branches.frontends import ImageFrontend
from mmvicreg.branches.model import ON_CPU
from mmvicreg.errors import UserError
from mmvicreg.inputs.image import ImageInput
from mmvicreg.progress import progress_bar
from mmvicreg.samples import Sample
from mmvicreg.training.distributed import resolve_device

AUTHORS, OURS_DEVICE, OURS_CPU = "authors' code", "ours, colour on the device", "ours, all in the worker"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        pictures: how many different JPEG files.
        width: of the files, pixels.
        height: of the files, pixels.
        size: side of a view, pixels.
        repeats: rounds over all files by every pipeline in turn.
        device: where the colours of ``OURS_DEVICE`` are made: ``auto``, ``cpu`` or ``cuda``.
    """

    pictures: int = 16
    width: int = 500
    height: int = 375
    size: int = 224
    repeats: int = 5
    device: str = "auto"

    def __post_init__(self) -> None:
        if min(self.pictures, self.repeats) < 1 or min(self.width, self.height, self.size) < 8:
            raise UserError(
                "bench input needs one picture and one repeat at least, of 8 pixels or more a side"
            )


@dataclass(frozen=True)
class InputSpeed:
    """One pipeline.

    Attributes:
        pipeline: its name.
        per_second: pictures, two views each, per second of one core: the median over rounds.
        ratio: to the authors' in the same round: the median.
        device_ms: what is left for the device to do for one picture, milliseconds; None where nothing is.
    """

    pipeline: str
    per_second: float
    ratio: float
    device_ms: float | None = None


def bench_input(wanted: Settings) -> list[InputSpeed]:
    """Measure the three pipelines; the processor time of this process counts, not the clock.

    Raises:
        UserError: the device is not there.
    """
    device = resolve_device(wanted.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = write_photographs(Path(folder), wanted)
            pipelines = {
                AUTHORS: authors_pipeline(files, wanted.size),
                OURS_DEVICE: our_pipeline(files, wanted.size, worker_augmentation="none"),
                OURS_CPU: our_pipeline(files, wanted.size, worker_augmentation="official"),
            }
            seconds = in_turns(pipelines, wanted.repeats)
            left = _device_ms(pipelines[OURS_DEVICE](0), device, wanted.repeats)
    finally:
        torch.set_num_threads(threads)
    return [
        InputSpeed(
            name,
            wanted.pictures / median(spent),
            median(theirs / ours for theirs, ours in zip(seconds[AUTHORS], spent, strict=True)),
            left if name == OURS_DEVICE else None,
        )
        for name, spent in seconds.items()
    ]


def rows(found: Sequence[InputSpeed], wanted: Settings) -> list[dict[str, Any]]:
    """A row for each pipeline, as plain data."""
    return [
        {
            "pipeline": one.pipeline,
            "pictures_per_second": one.per_second,
            "ratio": one.ratio,
            "device_ms": one.device_ms,
            "device": resolve_device(wanted.device),
            "picture": [wanted.width, wanted.height],
            "view": wanted.size,
        }
        for one in found
    ]


def table(found: Sequence[InputSpeed], wanted: Settings) -> Table:
    """The same for people."""
    laid_out = Table(
        title=f"Two views of {wanted.size} pixels from JPEGs of {wanted.width} x {wanted.height}, augmented as "
        f"the authors' code does: median of {wanted.repeats} rounds in turns on one core",
        title_justify="left",
    )
    laid_out.add_column("pipeline")
    for heading in ("pictures/s per core", "ratio", f"left for {resolve_device(wanted.device)}, ms/picture"):
        laid_out.add_column(heading, justify="right")
    for one in found:
        left = "-" if one.device_ms is None else f"{one.device_ms:.2f}"
        laid_out.add_row(one.pipeline, f"{one.per_second:.1f}", f"{one.ratio:.2f}x", left)
    return laid_out


def write_photographs(folder: Path, wanted: Settings) -> list[Path]:
    """JPEGs of quality 90 with a photograph's spectrum (amplitudes that fall as 1 / frequency)."""
    rng = np.random.default_rng(0)
    down, across = np.fft.fftfreq(wanted.height)[:, None], np.fft.rfftfreq(wanted.width)[None, :]
    falling = 1 / np.maximum(np.hypot(down, across), 1 / max(wanted.height, wanted.width))
    files = []
    for number in range(wanted.pictures):
        shared = rng.standard_normal((wanted.height, wanted.width, 1))
        noise = shared + 0.5 * rng.standard_normal((wanted.height, wanted.width, 3))
        spectrum = np.fft.rfft2(noise, axes=(0, 1)) * falling[:, :, None]
        pixels = np.fft.irfft2(spectrum, s=noise.shape[:2], axes=(0, 1))
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        files.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def authors_pipeline(files: Sequence[Path], size: int) -> Callable[[int], Any]:
    """One pass of the authors' input over ``files``, to a batch of two float views; seeded by the round."""
    views = authors_views(size)

    def run(seed: int) -> Any:
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        batch = []
        for file in files:
            with file.open("rb") as opened:
                picture = Image.open(opened).convert("RGB")
            batch.append(tuple(view(picture, rng) for view in views))
        return default_collate(batch)

    return run


def authors_views(size: int) -> tuple[Callable[[Image.Image, np.random.Generator], Tensor], ...]:
    """The two transforms of the authors' code, by its definition; float32 ``(3, size, size)``, normalised."""

    def view(blurred: float, solarised: float) -> Callable[[Image.Image, np.random.Generator], Tensor]:
        geometry_and_colour = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(p=0.5),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
            ]
        )
        last = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

        def make(picture: Image.Image, rng: np.random.Generator) -> Tensor:
            picture = geometry_and_colour(picture)
            if rng.random() < blurred:
                picture = picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * rng.random()))
            if rng.random() < solarised:
                picture = ImageOps.solarize(picture)
            tensor: Tensor = last(picture)
            return tensor

        return make

    return view(1.0, 0.0), view(0.1, 0.2)


def our_pipeline(files: Sequence[Path], size: int, *, worker_augmentation: str) -> Callable[[int], Any]:
    """One pass of a loader's worker over ``files``, to the two batches of uint8 views it hands over."""
    source = ImageInput(
        ImageInput.Config.model_validate(
            {"size": size, "interpolation": "bicubic", "worker_augmentation": worker_augmentation}
        )
    )
    samples = [Sample(file.stem, image=file) for file in files]

    def run(seed: int) -> Any:
        loaded = [
            source.load_views(sample, {view: np.random.default_rng([seed, row, view]) for view in (0, 1)})
            for row, sample in enumerate(samples)
        ]
        return [
            source.collate([{**views[view], "view": torch.tensor(view)} for views in loaded])
            for view in (0, 1)
        ]

    return run


def in_turns(pipelines: dict[str, Callable[[int], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time of every pipeline in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    with progress_bar(len(pipelines) * repeats, "measuring", "round") as bar:
        for turn in range(repeats):
            for name, run in pipelines.items():
                # a worker has one pipeline only: a pass that is not timed takes the caches and the allocator over
                # from the one before (straight after the authors' float batches, ours was a sixth slower)
                run(turn)
                start = time.process_time()
                run(turn + repeats)
                seconds[name].append(time.process_time() - start)
                bar.advance()
    return seconds


def _device_ms(views: list[dict[str, Tensor]], device: str, repeats: int) -> float:
    config = ImageFrontend.Config.model_validate({"augmentation": "official"})
    frontend = ImageFrontend(config, ImageInput(ImageInput.Config()).spec()).to(device).train()
    # as a batch travels
    batches = [
        {name: value if name in ON_CPU else value.to(device) for name, value in item.items()}
        for item in views
    ]
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        for batch in batches:
            frontend(batch)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return 1e3 * median(seconds[1:]) / len(batches[0]["pixels"])
