"""Encoders: widths, stems, weights from a file or server, padding that must not matter."""

from __future__ import annotations

import copy
import functools
import http.server
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tiny import tiny_bert
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from mmvicreg.branches.expander import expand, expander
from mmvicreg.branches.frontends import TextBatch
from mmvicreg.branches.gru import GRUText, run_packed
from mmvicreg.branches.resnet import ResNet18, ResNet50
from mmvicreg.branches.resnet1d import BasicBlock1d, ResNet18Wave, filterbank
from mmvicreg.branches.transformers_text import TransformersText
from mmvicreg.config import ExpanderConfig
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.inputs.text import TextInput
from mmvicreg.inputs.tokenizers import TransformersTokenizer
from mmvicreg.registry import ENCODERS
from mmvicreg.samples import Sample


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet101", 2048), ("resnet152", 2048)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resnet_is_torchvisions_without_the_classifier(name: str, width: int, channels: int) -> None:
    cls = ENCODERS.load(name)
    with torch.device("meta"):
        encoder = cls(cls.Config(), InputSpec(channels=channels))
        whole = getattr(torchvision.models, name)()
    assert encoder.out_features == width
    assert tuple(encoder(torch.empty(2, channels, 64, 64, device="meta")).shape) == (2, width)
    ours, theirs = sum(p.numel() for p in encoder.parameters()), sum(p.numel() for p in whole.parameters())
    assert ours == theirs - width * 1000 - 1000 - (3 - channels) * 64 * 49


def test_wave_blocks_may_begin_as_the_identity() -> None:
    encoder = ResNet18Wave(ResNet18Wave.Config(zero_init_residual=True), InputSpec(channels=1))
    block = encoder.stages[1]  # same width and length in and out, so its shortcut is the identity
    x = torch.rand(2, 64, 1, 50)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_small_stem_keeps_the_resolution() -> None:
    encoder = ResNet18(ResNet18.Config(small_stem=True), InputSpec(channels=3))
    seen: list[tuple[int, ...]] = []
    encoder.network.layer1.register_forward_hook(lambda _m, x, _y: seen.append(tuple(x[0].shape)))
    encoder(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]


def test_weights_from_a_file_and_from_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), tmp_path / "resnet18.pt")
    x = torch.randn(2, 3, 64, 64)
    reference.fc = nn.Identity()
    expected = reference.eval()(x)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    try:
        for weights in (str(tmp_path / "resnet18.pt"), f"http://127.0.0.1:{server.server_port}/resnet18.pt"):
            encoder = ResNet18(ResNet18.Config(weights=weights), InputSpec(channels=3)).eval()
            torch.testing.assert_close(encoder(x), expected)
    finally:
        server.shutdown()
    grey = ResNet18(ResNet18.Config(weights=str(tmp_path / "resnet18.pt")), InputSpec(channels=1)).eval()
    shade = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(shade), reference(shade.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_weights_that_do_not_fit_or_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(
        UserError, match=r"for resnet50, do not fit .*layer1\.0\.conv3\.weight.* and \d+ more"
    ):
        ResNet50(ResNet50.Config(weights=str(tmp_path / "resnet18.pt")), InputSpec(channels=3))
    with pytest.raises(UserError, match=r"no weights file 'nowhere\.pt'"):
        ResNet18(ResNet18.Config(weights="nowhere.pt"), InputSpec(channels=3))
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"cannot read the weights .*broken.pt"):
        ResNet18(ResNet18.Config(weights=str(tmp_path / "broken.pt")), InputSpec(channels=3))
    ResNet18(
        ResNet18.Config(weights="nowhere.pt"), InputSpec(channels=3), pretrained=False
    )  # a checkpoint follows


def test_wave_resnet_may_start_from_a_bank_of_band_pass_filters() -> None:
    bank = filterbank(16, 64)
    spectrum = torch.fft.rfft(bank, n=4096).abs()
    cycles = torch.logspace(math.log10(1 / 64), math.log10(0.47), 16)
    # a Hann window of 64 is 4 / 64 cycles a sample wide from zero to zero
    assert bool(((spectrum.argmax(1) / 4096 - cycles).abs() < 0.5 / 64).all())
    torch.testing.assert_close(bank.norm(dim=1), torch.full((16,), (2 / 16) ** 0.5))
    encoder = ResNet18Wave(ResNet18Wave.Config(stem_kernel=64, stem_init="filterbank"), InputSpec(channels=1))
    peaks = torch.fft.rfft(encoder.stem[0].weight[:, 0].detach(), n=4096).abs().argmax(1)
    assert bool((peaks[8:].diff() > 0).all())


@pytest.mark.parametrize("channels", [1, 2])
def test_wave_resnet_is_that_of_1d_modules_with_the_channels_last_inside(channels: int) -> None:
    torch.manual_seed(0)
    encoder = ResNet18Wave(
        ResNet18Wave.Config(widths=(8, 12, 16, 20), stem_kernel=9), InputSpec(channels=channels)
    ).double()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = torch.randn(3, channels, 2000, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.max_pool1d(
        batch_norm_1d(torch.nn.functional.conv1d(x, state["stem.0.weight"], stride=8, padding=4)).relu(), 4
    )
    for stage, stride in enumerate([1, 1, 4, 1, 4, 1, 4, 1]):
        short = state.get(f"stages.{stage}.shortcut.0.weight")
        first, second = (state[f"stages.{stage}.conv{i}.weight"] for i in (1, 2))
        inner = batch_norm_1d(torch.nn.functional.conv1d(y, first, stride=stride, padding=1)).relu()
        inner = batch_norm_1d(torch.nn.functional.conv1d(inner, second, padding=1))
        if short is not None:
            y = batch_norm_1d(torch.nn.functional.conv1d(y, short, stride=stride))
        y = (inner + y).relu()
    expected = y.mean(2)
    slopes = torch.autograd.grad(expected.square().sum(), x)[0]
    layouts: list[bool] = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            module.register_forward_hook(lambda _m, _x, y: layouts.append(y.stride(1) == 1))
    got = encoder(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x)[0], slopes, rtol=1e-9, atol=1e-9)
    assert len(layouts) == 20
    assert all(layouts)


def batch_norm_1d(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.batch_norm(x, None, None, training=True)


def test_wave_resnet_is_residual_1d_and_384_wide() -> None:
    encoder = ResNet18Wave(ResNet18Wave.Config(), InputSpec(channels=1))
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv1d)]
    assert (
        len([m for m in convolutions if m.kernel_size != (1,)]) == 17
    )  # and a pooled output: ResNet-18's plan
    assert not any(isinstance(m, nn.Conv2d) for m in encoder.modules())
    assert encoder(torch.randn(2, 1, 16000)).shape == (2, 384)
    block = encoder.stages[1]
    for parameter in block.bn2.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    x = torch.randn(2, 64, 1, 50).relu()
    torch.testing.assert_close(block(x), x)  # what is left of a block is its shortcut


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_inputs_shorter_than_the_stride_have_the_same_output_and_right_gradients(length: int) -> None:
    block = BasicBlock1d(4, 6, 3, 4).eval()
    x = torch.randn(5, 4, 1, length)
    longer = torch.nn.functional.pad(x, (0, 4 * ((length + 3) // 4) - length))
    torch.testing.assert_close(block(x), block(longer))
    block(x).square().sum().backward()
    exact = block.conv1.weight.grad.clone()
    for _ in range(10):
        junk = [torch.full((2**power,), 1e30) for power in range(3, 16) for _ in range(6)]
        del junk  # what uninitialised memory would then hold
        block.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = block(x)
        y.float().square().sum().backward()
        assert (block.conv1.weight.grad - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_does_not_see_padding_or_neighbours(pooling: str, bidirectional: bool) -> None:
    config = GRUText.Config(word_features=8, hidden=16, pooling=pooling, bidirectional=bidirectional)
    encoder = GRUText(config, InputSpec(vocabulary=20)).eval()
    captions = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
    alone = [encoder(TextBatch(torch.tensor([c]), torch.tensor([len(c)]))) for c in captions]
    padded = torch.tensor([c + [0] * (9 - len(c)) for c in captions])
    together = encoder(TextBatch(padded, torch.tensor([3, 5, 1])))
    assert together.shape == (3, 16)
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_a_gru_step_by_step_is_torchs(layers: int, enforce_sorted: bool) -> None:
    torch.manual_seed(0)
    gru = nn.GRU(5, 7, layers, batch_first=True, dtype=torch.float64)
    lengths = torch.tensor([9, 6, 6, 2, 1] if enforce_sorted else [6, 1, 9, 2, 6])
    words = torch.randn(5, 9, 5, dtype=torch.float64, requires_grad=True)
    wanted = [words, *gru.parameters()]
    results = []
    for run in (gru, functools.partial(run_packed, gru)):
        states, last = run(
            pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=enforce_sorted)
        )
        padded = pad_packed_sequence(states, batch_first=True)[0]
        loss = padded.square().sum() + (last * torch.arange(1, 8)).sum()
        results.append((padded, last, *torch.autograd.grad(loss, wanted)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gru_names_a_caption_without_tokens() -> None:
    encoder = GRUText(GRUText.Config(word_features=8, hidden=16), InputSpec(vocabulary=20))
    with pytest.raises(UserError, match="caption 1 of the batch has no tokens"):
        encoder(TextBatch(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 0])))


class _Dtypes(TorchDispatchMode):
    """The dtypes of every product computed under it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in ("mm", "linear", "gru")):
            self.products |= {t.dtype for t in (out if isinstance(out, tuple) else (out,)) if t is not None}
        return out


def test_gru_computes_in_float32_on_a_cpu_under_autocast() -> None:
    encoder = GRUText(GRUText.Config(word_features=8, hidden=16), InputSpec(vocabulary=20))
    with _Dtypes() as dtypes:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = encoder(TextBatch(torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 1])))
        y.sum().backward()
    assert dtypes.products == {torch.float32}


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_transformers_text_from_a_local_folder(tmp_path: Path, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_bert(tmp_path / "bert")
    tokenizer = TransformersTokenizer.from_pretrained(str(folder))
    spec = InputSpec(vocabulary=tokenizer.size, model_config=tokenizer.model_config)
    encoder = TransformersText(TransformersText.Config(model=str(folder), pooling=pooling), spec).eval()
    captions = ["a red circle above a blue square .", "a square"]
    ids = [tokenizer.encode(c) for c in captions]
    assert len(set(ids[0])) == 9  # the words are known: no two of them are one unknown
    longest = max(map(len, ids))
    batch = TextBatch(
        torch.tensor([i + [0] * (longest - len(i)) for i in ids]), torch.tensor([len(i) for i in ids])
    )
    theirs = AutoModel.from_pretrained(folder).eval()
    for caption, ours in zip(captions, encoder(batch), strict=True):
        states = theirs(
            **AutoTokenizer.from_pretrained(folder)(caption, return_tensors="pt")
        ).last_hidden_state[0]
        torch.testing.assert_close(ours, states.mean(0) if pooling == "mean" else states[0])
    assert encoder.out_features == 32
    # the configuration in the spec is enough to rebuild it where the folder is gone
    again = TransformersText(TransformersText.Config(model="gone"), spec, pretrained=False)
    again.load_state_dict(encoder.state_dict())
    assert json.loads(json.dumps(dict(tokenizer.model_config)))


def test_transformers_without_its_tokenizer_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inputs\.text\.tokenizer to transformers"):
        TransformersText(TransformersText.Config(model="x"), InputSpec(vocabulary=9))
    with pytest.raises(UserError, match="cannot load the transformers model"):
        TransformersTokenizer.from_pretrained(str(tmp_path / "nothing"))


def _read(folder: Path, *, longest: int = 16, **options: object) -> TransformersText:
    """An encoder of a recipe whose tokenizer is the folder's."""
    source = TextInput(TextInput.Config(tokenizer="transformers", model=str(folder), max_length=longest))
    source.fit([Sample("s", captions=("a red circle",))])
    return TransformersText(TransformersText.Config.model_validate(options), source.spec())


def test_transformers_models_are_the_tokenizers_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tiny_bert(tmp_path / "one"), tiny_bert(tmp_path / "two")
    with pytest.raises(UserError, match=rf"inputs.text.model is {one} and .*encoder.model is {two}"):
        _read(one, model=str(two))
    own = _read(one)  # named once
    monkeypatch.chdir(tmp_path)
    for again in (_read(one, model="one"), _read(one, model=str(one))):
        for key, value in own.state_dict().items():
            assert torch.equal(value, again.state_dict()[key])
    # what was trained holds its weights: the names are of no more use
    spec = InputSpec(vocabulary=13, model_config=json.loads((one / "config.json").read_text()), model="x")
    TransformersText(TransformersText.Config(model="y"), spec, pretrained=False)


def _clip(folder: Path, *, half: bool = False) -> Path:
    """A CLIP of two layers a side (or its text half alone), with the tokenizer of the tiny BERT."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 12, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16, "hidden_size": 24}
    )
    tiny_bert(folder)
    (folder / "model.safetensors").unlink()
    model = CLIPModel(config)
    if half:
        alone, weights = CLIPTextModel(config.text_config), model.state_dict()
        names = {name: f"text_model.{name.removeprefix('text_model.')}" for name in alone.state_dict()}
        alone.load_state_dict({name: weights[whole] for name, whole in names.items()})
        model = alone
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_of_clip_the_text_half_is_taken(tmp_path: Path, half: bool) -> None:
    from transformers import CLIPModel

    torch.manual_seed(1)
    whole = _clip(tmp_path / "whole")
    torch.manual_seed(1)
    encoder = _read(_clip(tmp_path / "half", half=True) if half else whole).eval()
    assert encoder.out_features == 16
    ids = [[2, 6, 8, 3], [2, 5, 3]]
    batch = TextBatch(torch.tensor([[i + 1 for i in ids[0]], [3, 6, 4, 0]]), torch.tensor([4, 3]))
    theirs = CLIPModel.from_pretrained(whole).eval()
    for caption, ours in zip(ids, encoder(batch), strict=True):
        states = theirs.text_model(input_ids=torch.tensor([caption])).last_hidden_state[0]
        torch.testing.assert_close(ours, states.mean(0))
    encoder(batch).sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())  # one without would stop DDP
    again = TransformersText(
        TransformersText.Config(),
        InputSpec(vocabulary=13, model_config=json.loads((whole / "config.json").read_text())),
        pretrained=False,
    )
    if not half:
        again.load_state_dict(encoder.state_dict())  # rebuilt where the folder is gone
        assert torch.equal(again.eval()(batch), encoder(batch))
    with pytest.raises(
        UserError, match="max_length is 21 tokens, and the transformers model has 20 positions"
    ):
        _read(whole, longest=21)
    with pytest.raises(UserError, match=r"pooling is first, and .* all captions would be alike; set pooling"):
        _read(whole, pooling="first")


def test_a_model_of_more_than_text_is_refused(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tiny_bert(tmp_path / "siglip")
    (folder / "model.safetensors").unlink()
    config = SiglipConfig(
        text_config={**sizes, "vocab_size": 12}, vision_config={**sizes, "image_size": 32, "patch_size": 16}
    )
    SiglipModel(config).save_pretrained(folder)
    with pytest.raises(
        UserError, match=rf"'{folder}' is a SiglipModel, which is of more than text .* text alone"
    ):
        _read(folder)


def test_damaged_transformers_files_are_named(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        UserError, match=rf"cannot load the weights of the transformers model '{folder}' \(.+\)"
    ):
        _read(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=rf"cannot load the transformers model '{folder}'"):
        _read(folder)


def test_captions_longer_than_a_transformers_model_are_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    assert _read(folder, longest=64).out_features == 32
    with pytest.raises(
        UserError, match=r"max_length is 65 tokens, and the transformers model has 64 positions"
    ):
        _read(folder, longest=65)


def test_roberta_has_fewer_positions_than_its_table(tmp_path: Path) -> None:
    """Its positions are counted from behind the padding's."""
    from transformers import RobertaConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = RobertaConfig(vocab_size=20, max_position_embeddings=34, pad_token_id=1, **sizes)
    config = json.loads(made.to_json_string(use_diff=False))
    longest = InputSpec(vocabulary=21, model_config=config, longest=32)
    encoder = TransformersText(TransformersText.Config(weights="none"), longest)
    ids = torch.full((1, 32), 6)
    assert encoder(TextBatch(ids, torch.tensor([32]))).shape == (1, 16)
    with pytest.raises(UserError, match="33 tokens, and the transformers model has 32 positions"):
        TransformersText(TransformersText.Config(weights="none"), replace(longest, longest=33))


def test_expander_has_batchnorm_on_inner_layers_only_and_no_last_bias() -> None:
    layers = expander(7, ExpanderConfig(widths=[5, 6, 4]))
    assert [type(m).__name__ for m in layers] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip
    assert [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)] == [
        (7, 5),
        (5, 6),
        (6, 4),
    ]
    assert layers[-1].bias is None
    plain = expander(7, ExpanderConfig(widths=[5, 4], norm="none", last_bias=True))
    assert [type(m).__name__ for m in plain] == ["Linear", "ReLU", "Linear"]
    assert plain[-1].bias is not None


@pytest.mark.parametrize("norm", ["batchnorm", "none"])
def test_views_that_share_an_expander_are_embedded_as_if_alone(norm: str) -> None:
    layers = expander(6, ExpanderConfig.model_validate({"widths": [9, 9, 5], "norm": norm})).double()
    alone = copy.deepcopy(layers)
    views = [torch.randn(n, 6, dtype=torch.float64) + n for n in (7, 4, 7)]
    together = expand(layers, views)
    separate = [alone(view) for view in views]
    for a, b in zip(together, separate, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for views in (together, separate):
        torch.stack([z.square().mean() * (i + 1) for i, z in enumerate(views)]).sum().backward()
    for a, b in zip(layers.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    for a, b in zip(
        layers.buffers(), alone.buffers(), strict=True
    ):  # running statistics, one view after the other
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
