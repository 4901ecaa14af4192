"""``train --epochs 0``: weights as they are become a run that every protocol takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from picture_runs import contents, mmvicreg, write_pictures
from tiny import tiny_recipe

from mmvicreg.errors import UserError
from mmvicreg.runs import open_run
from mmvicreg.training.launch import Launch, train

TRAIN = (
    *("train", "--pair", "image-image", "--dataset", "image-folder", "--epochs", 0),
    *("--set", "branches.image.encoder.name=resnet18", "--set", "branches.image.expander.widths=[8]"),
    *("--set", "inputs.image.size=32", "--set", "seed=4"),
)


def weights(path: Path, seed: int = 0) -> torchvision.models.ResNet:
    """A torchvision network whose state dict, classifier included, is in ``path``."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet18().eval()
    network.bn1.running_mean.normal_()
    torch.save(network.state_dict(), path)
    return network


def test_a_file_of_weights_is_judged_and_exported_like_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = weights(tmp_path / "resnet.pth")
    # no data is asked for: the folder that is named is not there
    words = (*TRAIN, "--data-root", tmp_path / "nowhere", "--init", "image=resnet.pth", "--out", "run")
    assert mmvicreg(monkeypatch, *words) == 0
    assert "holds the weights of image: " in capsys.readouterr().err
    run = open_run(tmp_path / "run")
    init = run.recipe.branches["image"].init
    assert init is not None
    assert (init.source, len(init.sha256 or "")) == (str(tmp_path / "resnet.pth"), 64)
    (tmp_path / "resnet.pth").unlink()  # the run has them

    pixels = torch.rand(2, 3, 32, 32)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        encoders = [
            run.model(untrained=random, device="cpu").branch("image").encoder for random in (False, True)
        ]
        held, random = (encoder(pixels) for encoder in encoders)
        assert torch.equal(held, network(pixels))
        assert not torch.allclose(random, held)  # a baseline that is untrained

    root = write_pictures(tmp_path / "data")
    for protocol in (("knn", "--k", "3"), ("linear", "--quick")):
        assert mmvicreg(monkeypatch, "eval", *protocol, "run", "--data-root", root, "--device", "cpu") == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"with the weights {init.source} as they are" in printed
    report = json.loads((run.path / "eval" / "linear-quick-val.json").read_text())
    assert (report["method"], report["weights"]) == ("none", {"image": init.source})
    assert (report["epoch"], report["test"]) == (0, 12)
    words = ("export", "run", "--branch", "image", "--format", "torchvision", "--out", "again.pth")
    assert mmvicreg(monkeypatch, *words) == 0
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in network.state_dict().items())

    assert mmvicreg(monkeypatch, "eval", "curve", "run", "--data-root", root) == 2
    assert "was not trained" in capsys.readouterr().err
    before = contents(run.path)
    assert mmvicreg(monkeypatch, "train", "--resume", "--out", "run") == 0
    assert "nothing is left to do" in capsys.readouterr().err
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "image would start from none: name them with --init image=FILE"),
        (("--init", "image=nowhere.pth"), "no run folder, file or URL"),
        (("--init", "image=r18.pth", "--init", "image=other.pth"), "image twice, r18.pth and other.pth"),
        (("--init", "image=r18.pth", "--set", "branches.image.encoder.name=resnet34"), "they are resnet18's"),
    ],
)
def test_weights_that_are_none_or_do_not_fit_leave_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "r18.pth")
    assert mmvicreg(monkeypatch, *TRAIN, *words, "--out", "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_does_not_come_with_weights(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("image-text", tiny_shapes, "training.epochs=0")
    with pytest.raises(UserError, match="text cannot be used without training"):
        train(Launch(recipe, tmp_path / "run", workers=0))
