"""The larger encoders of Table 9 and ViT-S: the paper's sizes, and the authors' own forward on their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.registry import ENCODERS

TABLE_9 = {
    "narrow_resnet50x2": (66, 2048),
    "narrow_resnet50x4": (221, 2048),
    "resnet50x2": (93, 4096),
    "resnet50x4": (375, 8192),
    "resnext101_32x16d": (191, 2048),
    "resnet200x2": (250, 4096),
}
"""Millions of parameters, cut off, and width of the representation."""


@pytest.mark.parametrize("name", TABLE_9)
def test_sizes_are_those_of_table_9(name: str) -> None:
    millions, width = TABLE_9[name]
    cls = ENCODERS.load(name)
    with torch.device("meta"):
        encoder = cls(cls.Config(), InputSpec("image", channels=3))
        assert sum(p.numel() for p in encoder.parameters()) // 10**6 == millions
        assert encoder.out_features == width
        assert encoder(torch.empty(2, 3, 64, 64)).shape == (2, width)
        small = cls(cls.Config(small_stem=True, zero_init_residual=True), InputSpec("image", channels=1))
        assert small.network.conv1.weight.shape == (encoder.network.conv1.out_channels, 1, 3, 3)
        assert small(torch.empty(2, 1, 32, 32)).shape == (2, width)


def test_small_vision_transformer_is_vit_s_16() -> None:
    cls = ENCODERS.load("vit_small")
    with torch.device("meta"):
        encoder = cls(cls.Config(), InputSpec("image", channels=3, size=224))
        # by hand: class token and positions; patches; 12 layers of attention, MLP, two norms; the last norm
        layer = (3 * 384 * 384 + 3 * 384) + (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
        expected = 384 + 197 * 384 + (3 * 256 * 384 + 384) + 12 * layer + 2 * 384
        assert sum(p.numel() for p in encoder.parameters()) == expected == 21_665_664
        assert encoder(torch.empty(2, 3, 224, 224)).shape == (2, encoder.out_features) == (2, 384)
    tiny = cls(cls.Config(patch=8), InputSpec("image", channels=1, size=16))
    assert tiny(torch.zeros(2, 1, 16, 16)).isfinite().all()
    with pytest.raises(
        UserError, match=r"patches of 16 pixels, and these are of 30; set inputs\.image\.size"
    ):
        cls(cls.Config(), InputSpec("image", channels=3, size=30))


def authors_layout(blocks: tuple[int, ...], widen: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of facebookresearch/vicreg's ``resnet.py``, written from its definition."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    channels = 64 * widen
    shapes["conv1.weight"] = (channels, 3, 7, 7)
    norm("bn1", channels)
    for stage, count in enumerate(blocks):
        width = 64 * widen * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            for conv, shape in (
                ("1", (width, channels, 1, 1)),
                ("2", (width, width, 3, 3)),
                ("3", (4 * width, width, 1, 1)),
            ):
                shapes[f"{name}.conv{conv}.weight"] = shape
                norm(f"{name}.bn{conv}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    return shapes


def authors_forward(state: dict[str, Tensor], x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Their forward in evaluation mode: padding of one, then a stem padded by two (``resnet.py``)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.batch_norm(
            x,
            *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")),
            eps=1e-5,
        )

    x = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), state["conv1.weight"], stride=2, padding=2)
    x = functional.max_pool2d(norm(x, "bn1").relu(), 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage > 0 and block == 0 else 1
            inner = norm(functional.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            inner = functional.conv2d(inner, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            inner = functional.conv2d(norm(inner, f"{name}.bn2").relu(), state[f"{name}.conv3.weight"])
            if block == 0:
                x = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = (norm(inner, f"{name}.bn3") + x).relu()
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("name", "blocks", "widen"),
    [("resnet50", (3, 4, 6, 3), 1), ("resnet50x2", (3, 4, 6, 3), 2), ("resnet200x2", (3, 24, 36, 3), 2)],
)
def test_names_and_shapes_are_those_of_the_published_files(
    name: str, blocks: tuple[int, ...], widen: int
) -> None:
    cls = ENCODERS.load(name)
    with torch.device("meta"):
        encoder = cls(cls.Config(), InputSpec("image", channels=3))
    ours = {key: tuple(value.shape) for key, value in encoder.network.state_dict().items()}
    assert ours == authors_layout(blocks, widen)


def test_a_published_file_gives_the_authors_features(tmp_path: Path) -> None:
    """Of ResNet-50 (x2), bare and as the full checkpoint that training writes."""
    blocks, state = (3, 4, 6, 3), {}
    for key, shape in authors_layout(blocks, 2).items():
        fan_in = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 1
        if key.endswith("running_var"):
            state[key] = torch.rand(shape) + 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.randn(shape) * (2 / fan_in) ** 0.5
        if key.endswith("weight") and len(shape) == 1:
            state[key] = torch.rand(shape) * 0.4 + 0.3
    full = {f"module.backbone.{key}": value for key, value in state.items()}
    full["module.projector.0.weight"] = torch.zeros(2, 2)
    torch.save({"epoch": 1000, "model": full, "optimizer": {"state": {}}}, tmp_path / "full.pth")
    cls = ENCODERS.load("resnet50x2")
    encoder = cls(cls.Config(weights=str(tmp_path / "full.pth")), InputSpec("image", channels=3)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), authors_forward(state, x, blocks))
    torch.save(state, tmp_path / "resnet50x2.pth")
    resnet50 = ENCODERS.load("resnet50")
    with (
        torch.device("meta"),
        pytest.raises(
            UserError, match=r"for resnet50, do not fit .* and \d+ more\); they are resnet50x2's: "
        ),
    ):
        resnet50(resnet50.Config(weights=str(tmp_path / "resnet50x2.pth")), InputSpec("image", channels=3))
