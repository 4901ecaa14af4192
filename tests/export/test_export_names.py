"""What an export rests on: names of other libraries, a GRU without packing, preprocessing told in full."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from PIL import Image
from tiny import tiny_bert, tiny_recipe, untrained_run
from torch import Tensor

from mmvicreg.branches.frontends import TextBatch
from mmvicreg.branches.gru import GRUText
from mmvicreg.branches.resnet import ResNet
from mmvicreg.export import hugging, resnets, transformer
from mmvicreg.export.describe import preprocessing
from mmvicreg.export.programs import PaddedGRU
from mmvicreg.export.subject import open_subject
from mmvicreg.export.write import export
from mmvicreg.inputs.base import InputSpec
from mmvicreg.registry import ENCODERS
from mmvicreg.runs import Run, open_run

CAPTIONS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_gru_without_packing_is_the_same(pooling: str, bidirectional: bool, layers: int) -> None:
    config = GRUText.Config(
        word_features=8, hidden=16, layers=layers, pooling=pooling, bidirectional=bidirectional
    )
    encoder = GRUText(config, InputSpec(vocabulary=20)).eval()
    ids = torch.tensor([c + [0] * (9 - len(c)) for c in CAPTIONS])
    length = torch.tensor([len(c) for c in CAPTIONS])
    torch.testing.assert_close(PaddedGRU(encoder).eval()(ids, length), encoder(TextBatch(ids, length)))


def on_meta(name: str, channels: int = 3, **options: Any) -> Any:
    cls = ENCODERS.load(name)
    with torch.device("meta"):
        return cls(cls.Config(**options), InputSpec("image", channels=channels, size=32))


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("name", resnets.TORCHVISION)
def test_torchvisions_names(name: str) -> None:
    for options, channels in (({}, 3), ({"small_stem": True}, 1)):
        encoder = on_meta(name, channels, **options)
        scope: dict[str, Any] = {"torch": torch}
        with torch.device("meta"):
            exec("\n".join(resnets.torchvision_lines(name, encoder) or ()), scope)
            assert scope["model"](torch.empty(2, channels, 32, 32)).shape == (2, encoder.out_features)
        assert shapes(scope["model"].state_dict()) == shapes(encoder.network.state_dict())


def test_timms_names() -> None:
    pytest.importorskip("timm", reason="the extra 'export' is not installed")
    for name in resnets.TIMM:
        encoder = on_meta(name, 1)
        scope: dict[str, Any] = {"torch": torch}
        with torch.device("meta"):
            exec("\n".join(resnets.timm_lines(name, encoder) or ()), scope)
        assert shapes(scope["model"].state_dict()) == shapes(encoder.network.state_dict())
    cls = ENCODERS.load("vit_small")
    encoder = cls(cls.Config(patch=8), InputSpec("image", channels=1, size=16)).eval()
    exec("\n".join(transformer.timm_lines(encoder)), scope)
    scope["model"].load_state_dict(transformer.timm_names(encoder.network.state_dict()))
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(scope["model"].eval()(x), encoder(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", hugging.DEPTHS)
def test_transformers_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict load in ``write_resnet``, on shapes alone."""
    from transformers import ResNetModel

    made: list[Any] = []
    monkeypatch.setattr(ResNetModel, "save_pretrained", lambda model, path: made.append(model))
    encoder = on_meta(name, 1)
    subject: Any = SimpleNamespace(encoder=name, source=None)
    state = {key: torch.empty_like(value) for key, value in encoder.network.state_dict().items()}
    with torch.device("meta"):
        hugging.write_resnet(subject, encoder, state, tmp_path)
        out = made[0](pixel_values=torch.empty(2, 1, 64, 64)).pooler_output
    assert out.flatten(1).shape == (2, encoder.out_features)
    assert len(made[0].state_dict()) == len(state)


def test_a_small_stem_is_not_transformers() -> None:
    encoder = on_meta("resnet18", small_stem=True)
    assert isinstance(encoder, ResNet)
    assert not hugging.fits("resnet18", encoder)


def test_a_small_vision_transformer_is_torchvisions() -> None:
    cls = ENCODERS.load("vit_small")
    encoder = cls(cls.Config(patch=8), InputSpec("image", channels=1, size=16)).eval()
    scope: dict[str, Any] = {"torch": torch}
    exec("\n".join(transformer.torchvision_lines(encoder)), scope)
    scope["model"].load_state_dict(encoder.network.state_dict())
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(scope["model"].eval()(x), encoder(x))


def test_a_transformers_text_branch(tiny_shapes: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_bert(tmp_path / "bert")
    recipe = tiny_recipe(
        "image-text",
        tiny_shapes,
        f"inputs.text={{tokenizer: transformers, model: {folder}, max_length: 12}}",
        f"branches.text.encoder={{name: transformers, model: {folder}}}",
    )
    # the flags of the tiny recipe are a GRU's
    run = open_run(untrained_run(tmp_path / "run", recipe).path)
    export(run, "text", format="transformers", out=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    network = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    caption = "a red circle above a blue square ."
    fed = tokenizer(caption, return_tensors="pt")
    states = network(**fed).last_hidden_state[0]
    subject = open_subject(run, "text")
    item = subject.source.collate([subject.source.encode(caption)])  # type: ignore[attr-defined]
    ours = subject.branch.represent(item)[0]
    torch.testing.assert_close(states.mean(0), ours)


def told(run: Run, branch: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """The preprocessing as it is written, and the subject."""
    subject = open_subject(run, branch)
    return json.loads(json.dumps(preprocessing(subject, folder, "b"))), subject


def test_pictures_and_captions_from_what_is_told(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "inputs.text.max_length=7")
    run = open_run(untrained_run(tmp_path / "run", recipe).path)
    sample = run.dataset().samples("test")[0]
    how, subject = told(run, "image", tmp_path)
    assert sample.image is not None
    picture = Image.open(sample.image).convert("RGB")
    side = min(picture.size) * how["size"] / how["resize"]
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    resample = getattr(Image.Resampling, how["interpolation"].upper())
    square = picture.resize((how["size"],) * 2, resample, box=(left, top, left + side, top + side))
    x = (np.asarray(square) / 255 - how["mean"]) / how["std"]
    ours = subject.branch.frontend(subject.source.collate([subject.source.load(sample, None)]))
    np.testing.assert_allclose(ours[0].numpy(), x.transpose(2, 0, 1), atol=1e-5)

    how, subject = told(run, "text", tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / how["file"]))
    ids = [how["begin"], *pieces.encode(sample.captions[0])]
    assert len(ids) > how["max_length"]
    ids = [*ids[: how["max_length"] - 1], how["end"]]
    assert subject.source.encode(sample.captions[0])["ids"].tolist() == ids


def test_words_from_what_is_told(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "inputs.text={tokenizer: words, min_count: 2}")
    run = open_run(untrained_run(tmp_path / "run", recipe).path)
    how, subject = told(run, "text", tmp_path)
    number = {word: i for i, word in enumerate(how["words"])}
    caption = "The zyzzyva's RED circle, again"
    ids = [number.get(word, how["unknown"]) for word in re.findall(how["pattern"], caption.lower())]
    assert len(ids) + 2 <= how["max_length"]
    ids = [how["begin"], *ids, how["end"]]
    assert subject.source.encode(caption)["ids"].tolist() == ids
    assert len(set(ids)) > 3


@pytest.mark.parametrize("scaling", ["peak", "training"])
def test_sounds_from_what_is_told(tiny_tones: Path, tmp_path: Path, scaling: str) -> None:
    import librosa

    settings = ("branches.mel.frontend.scaling=" + scaling, "inputs.audio.sample_rate=11025")
    settings += ("branches.mel.frontend.sample_rate=11025", "branches.mel.frontend.f_min=50")
    run = open_run(untrained_run(tmp_path / "run", tiny_recipe("wave-mel", tiny_tones, *settings)).path)
    content = run.content["model"]
    if scaling == "training":
        content["branches.mel.frontend.level"].copy_(torch.tensor([-40.0, 12.0]))
    sample = run.dataset().samples("fold1")[3]
    how, subject = told(run, "wave", tmp_path)
    wave, rate = soundfile.read(sample.audio, dtype="int16")
    assert rate == how["sample_rate"]
    start = max(0, len(wave) - how["samples"]) // 2
    x = wave[start : start + how["samples"]] / 32768
    item = subject.source.collate([subject.source.load(sample, None)])
    y = x - x.mean()
    y /= max(y.std(ddof=1), how["std_floor"])
    np.testing.assert_allclose(subject.branch.frontend(item)[0, 0].numpy(), y, atol=1e-4)

    how, subject = told(run, "mel", tmp_path)
    mel = librosa.feature.melspectrogram(
        y=x, sr=how["sample_rate"], n_fft=how["n_fft"], win_length=how["win_length"],
        hop_length=how["hop_length"], n_mels=how["n_mels"], fmin=how["f_min"], fmax=how["f_max"],
        htk=how["mel_scale"] == "htk", norm=how["mel_norm"], power=how["power"], center=how["center"],
        pad_mode=how["pad_mode"],
    )  # fmt: skip
    decibels = 20 / how["power"] * np.log10(np.maximum(mel, how["floor"]))
    if scaling == "training":
        mean, deviation = how["level"]
        scaled = np.clip(0.5 + (decibels - mean) / (6 * deviation), 0, 1)
    else:
        scaled = np.clip((decibels - decibels.max()) / how["top_db"] + 1, 0, 1)
    np.testing.assert_allclose(subject.branch.frontend(item)[0, 0].numpy(), scaled, atol=1e-3)
    assert scaled.std() > 0.05
