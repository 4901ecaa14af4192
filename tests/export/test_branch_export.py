"""``mmvicreg export``: files that other libraries load, and a check that finds out when they do not."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_runs import mmvicreg
from tiny import tiny_recipe, untrained_run
from torch import Tensor

from mmvicreg.cli import main
from mmvicreg.errors import UserError
from mmvicreg.export import formats
from mmvicreg.export.subject import Subject, open_subject
from mmvicreg.export.write import export
from mmvicreg.locking import locked
from mmvicreg.runs import Run, open_run


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> Run:
    settings = ("inputs.text.max_length=6", "branches.text.encoder.bidirectional=true")
    path = tmp_path_factory.mktemp("export") / "captions"
    return open_run(untrained_run(path, tiny_recipe("image-text", tiny_shapes, *settings)).path)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> dict[str, Run]:
    """Two views of one branch, with a small stem or without it, and a vision transformer."""
    settings = {
        "small_stem": ("branches.image.encoder.small_stem=true",),
        "resnet": ("branches.image.encoder.small_stem=false",),
        "vit": ("branches.image.encoder={name: vit_small, patch: 16}",),
    }
    folder = tmp_path_factory.mktemp("views")
    return {
        name: open_run(untrained_run(folder / name, tiny_recipe("image-image", tiny_shapes, *more)).path)
        for name, more in settings.items()
    }


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory, tiny_tones: Path) -> Run:
    path = tmp_path_factory.mktemp("export") / "sounds"
    return open_run(untrained_run(path, tiny_recipe("wave-mel", tiny_tones)).path)


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """What the lines beside a file make of it, and everything beside it."""
    beside = path / "export.json" if path.is_dir() else path.with_name(f"{path.name}.json")
    about = json.loads(beside.read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"FILE": str(path)}
    exec("\n".join(about["load"]), scope)
    return scope["model"], about


def outputs(subject: Subject, model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(*subject.inputs.values())
    return found


@pytest.mark.parametrize(("branch", "suffix"), [("image", ".pth"), ("mel", ".safetensors")])
def test_a_residual_network_is_torchvisions(
    captions: Run, sounds: Run, branch: str, suffix: str, tmp_path: Path
) -> None:
    run, out = captions if branch == "image" else sounds, tmp_path / f"net{suffix}"
    assert export(run, branch, format="torchvision", out=out).files == (
        out,
        out.with_name(f"{out.name}.json"),
    )
    model, about = load(out)
    assert type(model).__module__.startswith("torchvision.")
    assert not any("mmvicreg" in line for line in about["load"])
    subject = open_subject(run, branch)
    assert torch.equal(outputs(subject, model), subject.expected)
    assert about["inputs"]["x"]["shape"] == ["n", *subject.inputs["x"].shape[1:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


def test_a_residual_network_is_transformers_too(sounds: Run, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    export(sounds, "mel", format="transformers", out=out)
    model, _ = load(out)
    subject = open_subject(sounds, "mel")
    torch.testing.assert_close(outputs(subject, model), subject.expected)
    with pytest.raises(UserError, match=r"folder exists; give --overwrite"):
        export(sounds, "mel", format="transformers", out=out)
    (out / "export.json").rename(out / "diary.txt")
    with pytest.raises(UserError, match=r"not an earlier export's folder"):
        export(sounds, "mel", format="transformers", out=out, overwrite=True)
    with pytest.raises(UserError, match=r"not an earlier export's folder"):  # --overwrite would not help
        export(sounds, "mel", format="transformers", out=out)
    (out / "diary.txt").rename(out / "export.json")
    export(sounds, "mel", format="transformers", out=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("encoder", "format", "name"),
    [
        ("small_stem", "torchvision", "b.pth"),
        ("small_stem", "timm", "b.pth"),
        ("resnet", "torchvision", "b.safetensors"),
        ("resnet", "transformers", "b"),
        ("vit", "torchvision", "b.pth"),
        ("vit", "timm", "b.pth"),
        ("vit", "transformers", "b"),
    ],
)
def test_the_branch_of_two_views_passes_the_comparison(
    views: dict[str, Run], encoder: str, format: str, name: str, tmp_path: Path
) -> None:
    pytest.importorskip(format, reason="the extra 'export' is not installed")
    written = export(views[encoder], "image", format=format, out=tmp_path / name, prove=True)
    assert written.verdict is not None
    if format == "transformers":
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        picture = processor(torch.zeros(3, 40, 50), return_tensors="pt")["pixel_values"]
        assert picture.shape == (1, 3, 32, 32)


def test_a_small_stem_is_refused_by_what_it_is(views: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and transformers' ResNet has no small_stem"):
        export(views["small_stem"], "image", format="transformers", out=tmp_path / "b")


def test_the_command_proves_it_where_mmvicreg_cannot_be_imported(
    captions: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("text.pt2")  # as people type it; the check runs in another folder
    words = ["export", captions.path, "--branch", "text", "--format", "pt2", "--out", out, "--check"]
    monkeypatch.setattr(sys, "argv", ["mmvicreg", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert f"{out}\n" in printed
    assert "check: max abs difference" in printed
    assert (
        f"3 x 24 outputs, largest value {open_subject(captions, 'text').expected.abs().max():.3g}" in printed
    )
    assert "(torch 2" in printed
    assert "without mmvicreg" in printed


def test_the_check_fails_when_the_file_is_not_the_branch(
    captions: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "image.pth"

    def altered(subject: Subject) -> dict[str, Tensor]:
        state = {key: value.clone() for key, value in encoder_state(subject).items()}
        state["layer4.1.bn2.bias"][7] += 1e-3
        return state

    encoder_state = formats.encoder_state
    monkeypatch.setattr(formats, "encoder_state", altered)
    with pytest.raises(UserError, match=r"the check failed: what torchvision .* differs from ours by"):
        export(captions, "image", format="torchvision", out=out, prove=True)
    monkeypatch.setattr(formats, "encoder_state", encoder_state)

    def needing_us(subject: Subject, path: Path) -> formats.Loading:
        loading = formats.torchvision_file(subject, path)
        return formats.Loading(("import mmvicreg", *loading.lines), loading.inputs)

    changed = formats.Format(needing_us, formats.STATE)
    monkeypatch.setitem(formats.FORMATS, "torchvision", changed)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"cannot be loaded \(ImportError: mmvicreg must not be needed here\)"
    ):
        export(captions, "image", format="torchvision", out=out, prove=True)
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_programs_of_the_waveform_branch(sounds: Run, tmp_path: Path) -> None:
    subject = open_subject(sounds, "wave")
    export(sounds, "wave", format="safetensors", out=tmp_path / "wave.safetensors", prove=True)
    state, _ = load(tmp_path / "wave.safetensors")
    own = subject.branch.encoder.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], own[key]) for key in own)
    export(sounds, "wave", format="pt2", out=tmp_path / "wave.pt2")
    program, _ = load(tmp_path / "wave.pt2")
    torch.testing.assert_close(outputs(subject, program), subject.expected)
    torch.testing.assert_close(program(subject.inputs["x"][:1]), subject.expected[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("branch", ["image", "text", "wave", "mel"])
def test_onnx_of_every_branch(captions: Run, sounds: Run, branch: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra 'export' is not installed")
    run = captions if branch in captions.recipe.branches else sounds
    written = export(run, branch, format="onnx", out=tmp_path / "b.onnx", prove=True)
    assert written.verdict is not None
    assert written.verdict.library.startswith("onnxruntime")


@pytest.mark.parametrize("branch", ["image", "mel"])
def test_timm_of_residual_networks(captions: Run, sounds: Run, branch: str, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra 'export' is not installed")
    run = captions if branch == "image" else sounds
    written = export(run, branch, format="timm", out=tmp_path / "b.pth", prove=True)
    assert written.verdict is not None
    assert written.verdict.difference == 0


def test_what_cannot_be_is_said_before_anything_is_written(
    captions: Run, sounds: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.pth").write_text("mine")
    (tmp_path / "b.pth.json").write_text("mine too")
    cases: list[tuple[Run, str, str, str, str]] = [
        (captions, "imge", "torchvision", "a.pth", r"no branch 'imge'; did you mean 'image'\? It has image, text"),
        (captions, "image", "torchvison", "a.pth", r"unknown format 'torchvison'; did you mean 'torchvision'"),
        (captions, "image", "torchvision", "a.onnx", r"a file of torchvision ends in \.pth or \.pt or \.safetensors"),
        (captions, "text", "torchvision", "a.pth", r"its encoder is gru, .* choose safetensors, pt2 or onnx"),
        (sounds, "wave", "transformers", "a", r"its encoder is resnet18_1d, and transformers has no model of it"),
        (captions, "image", "torchvision", "mine.pth", r"mine\.pth exists; give --overwrite"),
        (captions, "image", "torchvision", "b.pth", r"b\.pth\.json exists; give --overwrite"),
    ]  # fmt: skip
    for run, branch, format, name, message in cases:
        with pytest.raises(UserError, match=message):
            export(run, branch, format=format, out=tmp_path / name)
    monkeypatch.setattr("mmvicreg.export.write.missing", lambda packages: list(packages))
    with pytest.raises(UserError, match=r"needs onnx and onnxscript: pip install 'mmvicreg\[export\]', or"):
        export(captions, "image", format="onnx", out=tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"--check of timm needs timm: pip install"):
        export(captions, "image", format="timm", out=tmp_path / "a.pth", prove=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "mine.pth": "mine",
        "b.pth.json": "mine too",
    }


def test_without_a_place_it_goes_into_the_run_folder(
    captions: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(captions.path, folder)
    words = ("export", folder, "--branch", "image")
    for format, name in (
        ("torchvision", "image.pth"),
        ("safetensors", "image.safetensors"),
        ("transformers", "image"),
    ):
        assert mmvicreg(monkeypatch, *words, "--format", format) == 0
        assert capsys.readouterr().out.splitlines()[0] == str(folder / "export" / name)
        assert load(folder / "export" / name)[1]["format"] == format
    assert mmvicreg(monkeypatch, *words, "--format", "torchvision") == 2
    assert "image.pth exists; give --overwrite" in capsys.readouterr().err
    with pytest.raises(UserError, match="no branch 'imge'"):
        export(open_run(folder), "imge", format="torchvision")


def test_a_full_disk_leaves_what_was_there(
    captions: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "image.pth"
    out.write_text("the one of yesterday")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match=r"cannot write .*image\.pth: No space left on device; free some space"
    ):
        export(captions, "image", format="torchvision", out=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["image.pth"]
    assert out.read_text() == "the one of yesterday"


def test_formats_of_one_name_have_their_own_tokenizers(captions: Run, tmp_path: Path) -> None:
    """The second was refused, as it would have replaced the first one's."""
    for suffix in ("safetensors", "pt2"):
        export(captions, "text", format=suffix, out=tmp_path / f"text.{suffix}")
        _, about = load(tmp_path / f"text.{suffix}")
        assert about["preprocessing"]["file"] == f"text.{suffix}.sentencepiece.model"
    assert len(list(tmp_path.glob("*.sentencepiece.model"))) == 2


@pytest.fixture
def pythons_ctrl_c() -> Iterator[None]:
    """torch's launcher leaves a handler of its own, where a test before this one has called it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_export_leaves_nothing_behind(
    views: dict[str, Run], number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "b", Path.rename
    export(views["resnet"], "image", format="transformers", out=out)
    before = (out / "export.json").read_bytes()
    settled = signal.getsignal(signal.SIGTERM)

    def stopped(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == out:  # the old folder is out of the way, the new one not yet in its place
            signal.raise_signal(number)
        return moved

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        export(views["resnet"], "image", format="transformers", out=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (out / "export.json").read_bytes() == before
    assert signal.getsignal(signal.SIGTERM) == settled


def test_what_a_killed_export_left_goes_and_what_it_had_put_aside_comes_back(
    captions: Run, tmp_path: Path
) -> None:
    killed, running = tmp_path / ".image.pth.exporting-a", tmp_path / ".image.pth.exporting-b"
    for folder in (killed, running):
        (folder / "made").mkdir(parents=True)
        (folder / "made" / "image.pth").write_text("a part")
        (folder / "lock").touch()
    with locked(running / "lock", create=True):
        export(captions, "image", format="torchvision", out=tmp_path / "image.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "image.pth", "image.pth.json"]
    killed = tmp_path / ".folder.exporting-a"
    (killed / "made" / "folder.old").mkdir(parents=True)
    (killed / "lock").touch()
    with pytest.raises(UserError, match=r"folder exists; give --overwrite"):
        export(captions, "image", format="transformers", out=tmp_path / "folder")
    assert not killed.exists()
