"""Where names become classes: data sets, inputs, frontends, encoders, objectives, protocols.

The tables hold import paths, not objects, so that listing names imports nothing heavy and the library
never imports ``mmvicreg.data`` or ``mmvicreg.eval`` itself. Other packages add to a table through the
entry-point group of the same name (``mmvicreg.datasets``, ``mmvicreg.encoders``, ...).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from mmvicreg.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when a known name is close to ``name``, else a full stop."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


@dataclass(frozen=True)
class Registry:
    """A table from names to classes, loaded when asked for.

    Args:
        kind: what the names are, in words, for messages ("data set").
        builtin: name -> ``"package.module:attribute"``.
        group: the entry-point group through which other packages add names.
    """

    kind: str
    builtin: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted({*self.builtin, *(point.name for point in self._points())})

    def load(self, name: str) -> Any:
        """The class registered as ``name``.

        Raises:
            UserError: no such name; the message gives the nearest one and the whole list.
        """
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for point in self._points():
            if point.name == name:
                return point.load()
        names = self.names()
        raise UserError(f"unknown {self.kind} '{name}'{nearest(name, names)} Known: {', '.join(names)}.")

    def _points(self) -> Iterable[Any]:
        return entry_points(group=self.group) if self.group else ()


DATASETS = Registry(
    "data set",
    {
        "coco": "mmvicreg.data.coco:Coco",
        "flickr8k": "mmvicreg.data.flickr:Flickr8k",
        "flickr30k": "mmvicreg.data.flickr:Flickr30k",
        "shapes": "mmvicreg.data.shapes:Shapes",
        "esc50": "mmvicreg.data.esc50:Esc50",
        "esc10": "mmvicreg.data.esc50:Esc10",
        "tones": "mmvicreg.data.tones:Tones",
        "manifest": "mmvicreg.data.manifest:Manifest",
        "audio-folder": "mmvicreg.data.audio_folder:AudioFolder",
        "image-folder": "mmvicreg.data.image_folder:ImageFolder",
        "imagenet": "mmvicreg.data.imagenet:ImageNet",
        "cifar10": "mmvicreg.data.cifar10:Cifar10",
        "voc07": "mmvicreg.data.voc:Voc07",
        "webdataset": "mmvicreg.data.webdataset:WebDataset",
        "places205": "mmvicreg.data.listed_pictures:Places205",
        "inat18": "mmvicreg.data.listed_pictures:INat18",
    },
    "mmvicreg.datasets",
)
INPUTS = Registry(
    "input",
    {
        "image": "mmvicreg.inputs.image:ImageInput",
        "text": "mmvicreg.inputs.text:TextInput",
        "audio": "mmvicreg.inputs.audio:AudioInput",
    },
    "mmvicreg.inputs",
)
FRONTENDS = Registry(
    "frontend",
    {
        "image": "mmvicreg.branches.frontends:ImageFrontend",
        "text": "mmvicreg.branches.frontends:TextFrontend",
        "waveform": "mmvicreg.branches.frontends:WaveformFrontend",
        "log_mel": "mmvicreg.branches.log_mel:LogMelFrontend",
    },
    "mmvicreg.frontends",
)
ENCODERS = Registry(
    "encoder",
    {
        "resnet18": "mmvicreg.branches.resnet:ResNet18",
        "resnet34": "mmvicreg.branches.resnet:ResNet34",
        "resnet50": "mmvicreg.branches.resnet:ResNet50",
        "resnet101": "mmvicreg.branches.resnet:ResNet101",
        "resnet152": "mmvicreg.branches.resnet:ResNet152",
        "resnet50x2": "mmvicreg.branches.resnet_wide:ResNet50x2",
        "resnet50x4": "mmvicreg.branches.resnet_wide:ResNet50x4",
        "resnet200x2": "mmvicreg.branches.resnet_wide:ResNet200x2",
        "narrow_resnet50x2": "mmvicreg.branches.resnet_wide:NarrowResNet50x2",
        "narrow_resnet50x4": "mmvicreg.branches.resnet_wide:NarrowResNet50x4",
        "resnext101_32x16d": "mmvicreg.branches.resnet_wide:ResNeXt101",
        "vit_small": "mmvicreg.branches.vit:ViTSmall",
        "resnet18_1d": "mmvicreg.branches.resnet1d:ResNet18Wave",
        "gru": "mmvicreg.branches.gru:GRUText",
        "transformers": "mmvicreg.branches.transformers_text:TransformersText",
    },
    "mmvicreg.encoders",
)
OBJECTIVES = Registry(
    "method",
    {
        "vicreg": "mmvicreg.objectives.vicreg:VICReg",
        "barlow_twins": "mmvicreg.objectives.barlow_twins:BarlowTwins",
        "vse": "mmvicreg.objectives.vse:VSE",
        "simclr": "mmvicreg.objectives.simclr:SimCLR",
        "byol": "mmvicreg.objectives.byol:BYOL",
        "simsiam": "mmvicreg.objectives.simsiam:SimSiam",
        "wmse": "mmvicreg.objectives.wmse:WMSE",
        "swav": "mmvicreg.objectives.swav:SwAV",
    },
    "mmvicreg.objectives",
)
PROTOCOLS = Registry(
    "evaluation protocol",
    {
        "retrieval": "mmvicreg.eval.retrieval:run",
        "retrieval-folds": "mmvicreg.eval.retrieval_folds:run",
        "linear": "mmvicreg.eval.linear:run",
        "linear-image": "mmvicreg.eval.linear_image:run",
        "knn": "mmvicreg.eval.knn:run",
        "curve": "mmvicreg.eval.curve:run",
        "finetune": "mmvicreg.eval.finetune:run",
        "svm": "mmvicreg.eval.svm:run",
        "supervised": "mmvicreg.eval.supervised:run",
    },
    "mmvicreg.protocols",
)
DOWNLOADERS = Registry("downloader", {"http": "mmvicreg.data.download:Downloader"})
PAIRS: Mapping[str, str] = {"image-text": "coco", "wave-mel": "esc50", "image-image": "imagenet"}
"""Pair -> the data set it uses when none is named."""


def check_pair(pair: str) -> None:
    """Raise :class:`UserError` naming the nearest pair unless ``pair`` is one."""
    if pair not in PAIRS:
        raise UserError(f"unknown pair '{pair}'{nearest(pair, PAIRS)} Known: {', '.join(PAIRS)}.")
