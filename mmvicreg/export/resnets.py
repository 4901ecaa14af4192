"""Residual networks in torchvision's and timm's terms: the lines that make the network a file is loaded into."""

from __future__ import annotations

from mmvicreg.branches.resnet import ResNet

TORCHVISION = {
    "resnet18": "resnet18()",
    "resnet34": "resnet34()",
    "resnet50": "resnet50()",
    "resnet101": "resnet101()",
    "resnet152": "resnet152()",
    "narrow_resnet50x2": "wide_resnet50_2()",
    "narrow_resnet50x4": "resnet50(width_per_group=256)",
    "resnext101_32x16d": "resnet101(groups=32, width_per_group=16)",
}
TIMM = {
    "resnet18": "'resnet18'",
    "resnet34": "'resnet34'",
    "resnet50": "'resnet50'",
    "resnet101": "'resnet101'",
    "resnet152": "'resnet152'",
    "narrow_resnet50x2": "'wide_resnet50_2'",
    "narrow_resnet50x4": "'resnet50', base_width=256",
    "resnext101_32x16d": "'resnext101_32x16d'",
}


def torchvision_lines(name: str, encoder: ResNet) -> tuple[str, ...] | None:
    """Lines that make ``model``, without its classifier; None where torchvision has no such network."""
    if name not in TORCHVISION:
        return None
    return (
        "import torchvision",
        f"model = torchvision.models.{TORCHVISION[name]}",
        "model.fc = torch.nn.Identity()",
        *_stem_lines(encoder),
    )


def timm_lines(name: str, encoder: ResNet) -> tuple[str, ...] | None:
    """The same for timm."""
    if name not in TIMM:
        return None
    return ("import timm", f"model = timm.create_model({TIMM[name]}, num_classes=0)", *_stem_lines(encoder))


def _stem_lines(encoder: ResNet) -> tuple[str, ...]:
    conv = encoder.network.conv1
    if conv.in_channels == 3 and conv.kernel_size == (7, 7):
        return ()
    side, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    lines = (
        f"model.conv1 = torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, {side}, stride={stride}, "
        f"padding={padding}, bias=False)",
    )
    return lines if side == 7 else (*lines, "model.maxpool = torch.nn.Identity()")
