"""Weights from elsewhere: each file and server that may be wrong is named; a broken transfer is continued."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from file_server import Server, serving
from safetensors.torch import save_file
from torch import nn

from mmvicreg.branches import weights
from mmvicreg.branches.resnet import ResNet18
from mmvicreg.branches.resnet_wide import ResNet50x2
from mmvicreg.branches.weights import fetch, read_weights
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving() as state:
        yield state


def saved(state: object, path: Path) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


def test_a_transfer_that_broke_is_continued_and_kept(server: Server, tmp_path: Path) -> None:
    server.files["a.pth"] = saved({"w": torch.arange(3000.0)}, tmp_path / "a.pth")
    half = len(server.files["a.pth"]) // 2
    server.cut = [half]
    for _ in range(2):
        assert torch.equal(read_weights(f"{server.url}/a.pth")["w"], torch.arange(3000.0))
    assert server.asked == [("/a.pth", None), ("/a.pth", f"bytes={half}-")]


def test_files_of_one_name_from_two_places_are_two(server: Server, tmp_path: Path) -> None:
    server.files["mine/resnet50.pth"] = saved({"w": torch.zeros(1)}, tmp_path / "one")
    read_weights(f"{server.url}/mine/resnet50.pth")
    server.files["theirs/resnet50.pth"] = saved({"w": torch.ones(1)}, tmp_path / "two")
    assert read_weights(f"{server.url}/theirs/resnet50.pth")["w"].item() == 1
    assert read_weights(f"{server.url}/mine/resnet50.pth")["w"].item() == 0


def test_a_checksum_in_the_name_is_checked(server: Server, tmp_path: Path) -> None:
    content = saved({"w": torch.zeros(1)}, tmp_path / "x")
    digest = hashlib.sha256(content).hexdigest()[:8]
    server.files[f"net-{digest}.pth"] = content
    server.files["net-0123456a.pth"] = content
    assert fetch(f"{server.url}/net-{digest}.pth").read_bytes() == content
    with pytest.raises(UserError, match=rf"came with the sha256 {digest}\.\.\., and its name says 0123456a"):
        fetch(f"{server.url}/net-0123456a.pth")
    assert not list((tmp_path / "cache").rglob("net-0123456a.pth"))


@pytest.mark.parametrize("name", ["resnet18-20220115.pth", "model-00050000.pth", "net-1700000000.pth"])
def test_a_date_or_a_number_of_steps_is_no_checksum(server: Server, tmp_path: Path, name: str) -> None:
    server.files[name] = saved({"w": torch.zeros(1)}, tmp_path / "x")
    assert fetch(f"{server.url}/{name}").read_bytes() == server.files[name]


@pytest.mark.parametrize(("small", "told"), [(True, "true"), (False, "false")])
def test_weights_of_another_stem_say_so(tmp_path: Path, small: bool, told: str) -> None:
    """ "Choose the encoder they were trained with" would not help: it is the one."""
    spec = InputSpec("image", channels=3)
    theirs = ResNet18(ResNet18.Config(small_stem=small), spec).network.state_dict()
    saved(theirs, tmp_path / "r18.pth")
    with pytest.raises(
        UserError, match=rf"do not fit \(1 of another shape: .*small_stem to {told}, as they were"
    ):
        ResNet18(ResNet18.Config(weights=str(tmp_path / "r18.pth"), small_stem=not small), spec)
    other = {**theirs, "conv1.weight": torch.zeros(64, 3, 5, 5)}
    saved(other, tmp_path / "r18.pth")
    with pytest.raises(UserError, match=r"they are resnet18's: choose the encoder"):
        ResNet18(ResNet18.Config(weights=str(tmp_path / "r18.pth"), small_stem=not small), spec)


def test_files_from_before_batches_were_counted_are_read_as_torch_does(tmp_path: Path) -> None:
    reference = torchvision.models.resnet18()
    old = {key: value for key, value in reference.state_dict().items() if "num_batches" not in key}
    assert len(old) == len(reference.state_dict()) - 20
    reference.load_state_dict(old, strict=True)
    saved(old, tmp_path / "old.pth")
    spec = InputSpec("image", channels=3)
    encoder = ResNet18(ResNet18.Config(weights=str(tmp_path / "old.pth")), spec).eval()
    reference.fc = nn.Identity()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder(x), reference.eval()(x))
    assert all(int(value) == 0 for key, value in encoder.state_dict().items() if "num_batches" in key)
    saved({key: value for key, value in old.items() if "bn1." not in key}, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"missing: .*bn1"):
        ResNet18(ResNet18.Config(weights=str(tmp_path / "less.pth")), spec)


def test_a_server_that_refuses_is_named_with_what_it_says(server: Server) -> None:
    with pytest.raises(UserError, match=r"/nothing\.pth answers 404 Not Found; give the path of"):
        read_weights(f"{server.url}/nothing.pth")


@pytest.mark.parametrize("path", ["[::1/net.pth", "127.0.0.1:1/n\u00e4tz.pth", "x" * 70 + ".invalid/net.pth"])
def test_an_address_that_is_none_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"net|n\u00e4tz") as error:
        read_weights(f"http://{path}")
    assert f"http://{path} is not an address that can be asked (" in str(error.value)
    assert "give the path of a downloaded file" in str(error.value)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """Copied into an encoder they were taken for its weights without a word."""
    state = dict(torchvision.models.resnet18().state_dict())
    state["bn1.weight"] = torch.ones(64, dtype=torch.int64)
    saved(state, tmp_path / "r18.pth")
    with pytest.raises(UserError, match=r"do not fit \(1 of whole numbers: bn1\.weight\)"):
        ResNet18(ResNet18.Config(weights=str(tmp_path / "r18.pth")), InputSpec("image", channels=3))


def test_imagenet_weights_come_from_where_torchvision_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.imagenet_url("resnet18") == torchvision.models.ResNet18_Weights.DEFAULT.url
    with pytest.raises(UserError, match="torchvision has no ImageNet weights for resnet50x2"):
        ResNet50x2(ResNet50x2.Config(weights="imagenet"), InputSpec("image", channels=3))
    reference = torchvision.models.resnet18()
    server.files["resnet18.pth"] = saved(reference.state_dict(), tmp_path / "r")
    where = f"{server.url}/resnet18.pth"
    monkeypatch.setattr("mmvicreg.branches.resnet.imagenet_url", {"resnet18": where}.__getitem__)
    encoder = ResNet18(ResNet18.Config(weights="imagenet"), InputSpec("image", channels=3)).eval()
    reference.fc = nn.Identity()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder(x), reference.eval()(x))


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": _Code()}, "zip.pth")
    Path("plain.pth").write_bytes(pickle.dumps({"w": _Code()}))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match=rf"cannot read the weights {name}: it holds code or unknown"):
            read_weights(name)
    assert not Path("ran").exists()


def test_files_that_are_no_weights_are_named_with_their_fault(tmp_path: Path) -> None:
    whole = saved({"w": torch.zeros(500)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes(whole[:40])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pth")
    torch.save({0: torch.ones(2)}, tmp_path / "numbers.pth")
    for kind in (torch.float8_e4m3fn, torch.int8, torch.complex64):
        torch.save({"w": torch.ones(2).to(kind)}, tmp_path / f"{kind}.pth")
    torch.save({"w": torch.ones(2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"w": torch.ones(2, device="meta")}, tmp_path / "meta.pth")
    save_file({"w": torch.ones(2)}, tmp_path / "good.safetensors")
    for name, fault in {
        "cut.pth": r"truncated",
        "cut.safetensors": r"truncated",
        "list.pth": r"not a state dict of tensors",
        "nan.pth": r"hold NaN or infinity in w",
        "absent.pth": r"no weights file",
        "numbers.pth": r"not a state dict of tensors by name",
        "torch.float8_e4m3fn.pth": r"not plain numbers \(w: float8_e4m3fn\)",
        "torch.int8.pth": r"not plain numbers \(w: int8\)",
        "torch.complex64.pth": r"not plain numbers \(w: complex64\)",
        "sparse.pth": r"not plain numbers \(w: sparse_coo\)",
        "meta.pth": r"not plain numbers \(w: without numbers\)",
    }.items():
        with pytest.raises(UserError, match=fault) as error:
            read_weights(str(tmp_path / name))
        assert name in str(error.value)
    assert torch.equal(read_weights(str(tmp_path / "good.safetensors"))["w"], torch.ones(2))
    assert torch.equal(read_weights((tmp_path / "good.safetensors").as_uri())["w"], torch.ones(2))
