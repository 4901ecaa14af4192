"""WebDataset shards: listed once, read in place, the same exact epochs as any other data set."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_TEXT
from typer.testing import CliRunner

from mmvicreg.branches.model import build_inputs
from mmvicreg.cli import app
from mmvicreg.config import Recipe
from mmvicreg.data import webdataset
from mmvicreg.data.coco import Coco
from mmvicreg.data.verify import verify
from mmvicreg.data.webdataset import WebDataset, expand_braces, split_of
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.inputs.image import ImageInput, decode_image
from mmvicreg.inputs.text import TextInput
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.runs import open_run
from mmvicreg.samples import Member, fingerprint
from mmvicreg.trained_ids import hash_ids
from mmvicreg.training.loader import TrainingLoader


def picture(value: int, kind: str = "png") -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def numbered(first: int, count: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        members[f"{number:06d}.png"] = picture(number)
        members[f"{number:06d}.txt"] = f"picture no. {number} of many\n".encode()
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three training shards of unequal length (40 samples) and one of validation (7)."""
    root = tmp_path / "shards"
    for number, (first, count) in enumerate(((0, 9), (9, 20), (29, 11))):
        shard(root / f"train-{number:04d}.tar", numbered(first, count))
    shard(root / "val-0000.tar", numbered(40, 7))
    return root


def test_a_sample_is_the_members_of_one_key(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "train-0.tar",
        {
            "a/1.jpg": picture(1, "jpeg"),
            "a/1.txt": "  eine Katze 🐈 \n".encode(),
            "a/1.seg.png": b"another field",
            "b/1.PNG": picture(2),
            "b/1.json": json.dumps({"captions": ["one", "two"], "url": "x"}).encode(),
            "./c.webp": picture(3, "webp"),
            "./c.json": json.dumps({"caption": "猫"}).encode(),
            "./c.txt": b"not this one",
            ".hidden": b"",
            "README": b"no key",
        },
    )
    samples = WebDataset(path).samples("train")
    assert [sample.id for sample in samples] == ["train-0/a/1", "train-0/b/1", "train-0/c"]
    assert [sample.captions for sample in samples] == [("eine Katze 🐈",), ("one", "two"), ("猫",)]
    assert [str(sample.image).removeprefix(f"{path}:") for sample in samples] == [
        "a/1.jpg",
        "b/1.PNG",
        "./c.webp",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["train-0.tar"]


def test_the_lines_of_a_text_are_captions(tmp_path: Path) -> None:
    """CLIP_benchmark's shards have the five captions of a picture in one file; as one caption, every rank is wrong."""
    path = shard(
        tmp_path / "test-0.tar",
        {
            "1.png": picture(1),
            "1.txt": b"one dog\ntwo dogs \r\n\n  three\nfour\nfive\n",
            "2.png": picture(2),
            "2.txt": "\ufeffa line\u2028with a mark inside".encode(),
            "3.png": picture(3),
            "3.txt": b"not\nthese",
            "3.json": json.dumps({"caption": "one, in\ntwo lines"}).encode(),
        },
    )
    assert [sample.captions for sample in WebDataset(path).samples("test")] == [
        ("one dog", "two dogs", "three", "four", "five"),
        ("a line\u2028with a mark inside",),
        ("one, in\ntwo lines",),
    ]


def test_a_list_of_another_form_is_made_anew(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version took for captions is not kept for ever in the cache folder."""
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_FORMAT", webdataset._FORMAT - 1)
        patch.setattr(webdataset, "_captions", lambda *_: ["of before"])
        assert WebDataset(shards).samples("val")[0].captions == ("of before",)
    assert WebDataset(shards).samples("val")[0].captions == ("picture no. 40 of many",)


def test_the_ending_of_a_shard_may_be_in_capitals(shards: Path) -> None:
    """Passed over, its samples would be missing without a word."""
    (shards / "train-0001.tar").rename(shards / "train-0001.TAR")
    (shards / "folder.tar").mkdir()
    samples = WebDataset(shards).samples("train")
    assert [sample.id.partition("/")[0] for sample in samples[:40:10]] == [
        "train-0000", "train-0001", "train-0001", "train-0002",
    ]  # fmt: skip
    assert len(samples) == 40


def test_pictures_are_read_in_place(shards: Path) -> None:
    samples = WebDataset(shards).samples("train")
    assert len(samples) == 40
    for number in (0, 8, 9, 39):
        image = samples[number].image
        assert isinstance(image, Member)
        with Image.open(io.BytesIO(picture(number))) as expected:
            assert (np.asarray(decode_image(image)) == np.asarray(expected.convert("RGB"))).all()
    report = verify("webdataset", shards, progress=False)
    assert report.problems == ()
    assert [(row.split, row.readable) for row in report.splits] == [("train", 40), ("val", 7)]


def test_shards_lie_at_any_depth(shards: Path) -> None:
    """Those more than one folder down were left out beside shallower ones, without a word."""
    shard(shards / "a" / "train" / "b" / "deep.tar", numbered(100, 3))
    assert len(WebDataset(shards).samples("train")) == 43
    (shards / "train-0009.tar").symlink_to(shards / "gone.tar")
    with pytest.raises(UserError, match=r"cannot read the shard .*train-0009\.tar: No such file"):
        WebDataset(shards).samples("train")


@pytest.mark.parametrize("root", ["", "*/*/0.tar", "*/val/*.tar", "{a,b}/*/0.tar"])
def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, unlisted: Callable[[Path], None], root: str
) -> None:
    """glob passes over it, so that its shards would be missing without a word."""
    for name in ("a/train/0.tar", "a/val/0.tar", "b/train/0.tar", "b/val/0.tar"):
        shard(tmp_path / name, numbered(0, 1))
    assert WebDataset(tmp_path / root).splits()
    locked = tmp_path / "b" / "val" if root in ("", "*/val/*.tar") else tmp_path / "b"
    unlisted(locked)
    with pytest.raises(UserError, match=rf"cannot list {re.escape(str(locked))}/?: Permission denied"):
        WebDataset(tmp_path / root)


def test_a_shard_in_a_folder_of_another_user_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(UserError, match=r"cannot read the shard .*0\.tar: Permission denied"):
        webdataset.find_shards(tmp_path / "0.tar")


def test_patterns_pass_over_hidden_names(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / "._train-0000.tar").write_bytes(b"Mac OS X")
    shard(shards / ".old" / "train-0.tar", numbered(0, 1))
    assert len(WebDataset(shards / "*.tar").samples("train")) == 40
    assert [path.parent.name for path in webdataset.find_shards(shards / ".o*" / "*.tar")] == [".old"]
    (shards / "v[2]").mkdir()
    for name in ("train-0000.tar", "train-0001.tar"):
        (shards / name).rename(shards / "v[2]" / name)  # a folder's own name, as it stands
    for pattern in ("train-0000.tar", "train-000{0,1}.tar", "*1.tar"):
        found = webdataset.find_shards(shards / "v[2]" / pattern)
        assert [path.parent.name for path in found] == ["v[2]"] * len(found) != []
    for name in ("train-0000.tar", "train-0001.tar"):
        (shards / "v[2]" / name).rename(shards / name)
    monkeypatch.chdir(shards)
    assert [str(path) for path in webdataset.find_shards(Path("train-000[12].tar"))] == [
        "train-0001.tar",
        "train-0002.tar",
    ]
    monkeypatch.chdir(shards.parent)
    assert len(webdataset.find_shards(Path("*") / "train-*.tar")) == 3


def test_patterns_mean_what_a_shell_makes_of_them(shards: Path) -> None:
    assert expand_braces("a{8..11}b{x,y}") == [f"a{n}b{c}" for n in (8, 9, 10, 11) for c in "xy"]
    assert expand_braces("{008..010}") == ["008", "009", "010"]
    assert expand_braces("plain") == ["plain"]
    one = WebDataset(shards / "train-{0000..0002}.tar")
    assert one.splits() == ("train",)
    assert len(one.samples("train")) == 40
    both = WebDataset(Path(f"{shards}/{{train,val}}-0000.tar"))
    assert [len(both.samples(split)) for split in both.splits()] == [9, 7]
    assert len(WebDataset(shards / "train-*.tar").samples("train")) == 40
    for pattern in ("{0..", "{a}", "{5..1}", "{a,{b,c}}"):
        with pytest.raises(UserError, match="--data-root"):
            expand_braces(pattern)


def test_names_and_folders_say_the_split(tmp_path: Path) -> None:
    root = tmp_path / "val-shards"  # the root's own name says nothing
    for name, split in (
        ("train-0.tar", "train"), ("val_0.tar", "val"), ("validation/0.tar", "val"), ("test.0.tar", "test"),
        ("cc3m-validation-0007.tar", "val"), ("coco_val_00001.tar", "val"), ("laion-test-000.tar", "test"),
        ("coco-val2017-3.tar", "val"), ("2017val-0.tar", "val"), ("CC3M.Dev.0.TAR", "val"),
        ("a/b-test/c/0.tar", "test"), ("test/train-1.tar", "train"), ("val/test/0.tar", "test"),
        ("cc3m-0.tar", None), ("trainer/0.tar", None), ("0001.tar", None), ("latest-0.tar", None),
        ("evaluation-0.tar", None), ("contest/minival-0.tar", None), ("éval-0.tar", None),
    ):  # fmt: skip
        assert split_of(root / name, root=root) == split, name
    assert split_of(root / "0.tar", root=root / "*.tar") == "val"  # of a pattern, the folder's name says it
    assert split_of(root / "0.tar", root=root / "0.tar") == "val"


@pytest.mark.parametrize("name", ["train-val-0.tar", "test_of_training/0.tar", "trains/dev2test.tar"])
def test_a_name_of_two_splits_is_refused(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "train-0.tar", numbered(0, 1))
    shard(tmp_path / name, numbered(1, 1))
    with pytest.raises(
        UserError, match=rf"{re.escape(name.split('/0')[0])}: its name says several splits \("
    ):
        WebDataset(tmp_path)


def test_validation_shards_are_not_trained_on(tmp_path: Path) -> None:
    """Told by the beginning of their names alone, they were; how many shards each split has is said."""
    shard(tmp_path / "cc3m-train-0.tar", numbered(0, 3))
    shard(tmp_path / "cc3m-validation-0.tar", numbered(3, 2))
    shard(tmp_path / "more-0.tar", {**numbered(5, 1), "6.png": picture(6), "6.txt": b"one\ntwo"})
    data = WebDataset(tmp_path)
    assert [sample.id.partition("/")[0] for sample in data.samples("val")] == ["cc3m-validation-0"] * 2
    assert len(data.samples("train")) == 5
    assert data.notes == (
        "shards by the words of their names: train 2, val 1; 1 whose names say no split count as train",
        "val: shards 1, samples 2, captions 2",
        "train: shards 2, samples 5, captions 6",
    )


def test_a_shard_is_listed_once_and_again_when_it_changes(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = WebDataset(shards).samples("train")

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_read_shard", never)
        assert WebDataset(shards).samples("train") == before
    changed = shard(shards / "train-0001.tar", numbered(100, 3))
    os.utime(changed, ns=(1, 1))
    after = WebDataset(shards).samples("train")
    assert len(after) == 23
    assert [sample.captions for sample in after[9:12]] == [
        (f"picture no. {n} of many",) for n in (100, 101, 102)
    ]


def recipe(shards: Path, *settings: str) -> Recipe:
    path = recipe_path("image-text", "webdataset", None)
    return load_recipe(path, {"dataset.root": str(shards)}, [*IMAGE_TEXT, "training.batch_size=8", *settings])


def loader(settings: Recipe, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> TrainingLoader:
    samples = WebDataset(Path(str(settings.dataset.root))).samples("train")
    inputs = build_inputs(settings)
    for source in inputs.values():
        source.fit(samples)
    return TrainingLoader(settings, inputs, samples, rank=rank, world_size=world_size, workers=workers)


def test_epochs_are_exact_in_every_process_and_continue_at_any_batch(shards: Path) -> None:
    """40 samples in batches of 8: five steps everywhere, every sample once, whatever the shards' lengths."""
    settings = recipe(shards)
    whole = list(loader(settings).epoch(1))
    assert sorted(torch.cat([batch.index for batch in whole]).tolist()) == list(range(40))
    parts = [list(loader(settings, rank=rank, world_size=4).epoch(1)) for rank in range(4)]
    assert [len(part) for part in parts] == [5, 5, 5, 5]
    for one, *shares in zip(whole, *parts, strict=True):
        assert [len(share.index) for share in shares] == [2, 2, 2, 2]
        assert torch.equal(one.index, torch.cat([share.index for share in shares]))
        pixels = torch.cat([share.views["image/0"]["pixels"] for share in shares])
        assert torch.equal(one.views["image/0"]["pixels"], pixels)
    for one, again in zip(whole[3:], loader(settings, workers=2).epoch(1, start=3), strict=True):
        assert torch.equal(one.index, again.index)
        assert torch.equal(one.views["image/0"]["pixels"], again.views["image/0"]["pixels"])


def test_trained_and_judged_from_shards_with_a_damaged_picture(shards: Path, tmp_path: Path) -> None:
    members = numbered(60, 8)
    members["000062.png"] = members["000062.png"][:50]
    shard(shards / "train-0003.tar", members)
    settings = [word for setting in (*IMAGE_TEXT, "training.epochs=1") for word in ("--set", setting)]
    out = tmp_path / "run"
    flags = ["--pair", "image-text", "--dataset", "webdataset", "--data-root", str(shards), "--workers", "0"]
    words = ["train", *flags, *settings, "--out", str(out), "--on-bad-sample", "skip"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    listed = (out / "skipped.jsonl").read_text()
    assert json.loads(listed)["file"] == f"{shards / 'train-0003.tar'}:000062.png"
    result = CliRunner().invoke(app, ["eval", "retrieval", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "webdataset val" in result.output
    assert open_run(out).epochs_done == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.txt": b"x"}, r"the sample '1' has no picture \(it has txt\)"),
        ({"1.jpg": picture(1), "1.png": picture(1)}, "the sample '1' has 2 pictures"),
        ({"1.png": picture(1), "1.txt": b" \n"}, "caption 1 of 1 of the picture '1' is empty"),
        ({"1.png": picture(1), "1.json": b"[1]"}, "is not an object"),
        ({"1.png": picture(1), "1.json": b"{"}, "the text of the sample '1' cannot be read"),
        ({"1.png": picture(1), "1.json": b"[" * 100_000}, "the text of the sample '1' cannot be read"),
        ({"1.png": picture(1), "1.txt": b"\xff\xfe\xfa"}, "the text of the sample '1' cannot be read"),
        ({"1.png": picture(1), "1.json": b'{"caption": 7}'}, "is not text: 7"),
        ({"0.png": picture(0), "0.txt": b"x", "1.png": picture(1)}, r"train-0.tar:1.png has no caption; add key.txt"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sample_is_told_where_it_is_read(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    """One among millions does not stop the others from being listed; verify names it."""
    path = shard(tmp_path / "train-0.tar", members)
    sample = WebDataset(path).samples("train")[-1]
    assert re.search(message, sample.fault)
    assert "train-0.tar" in sample.fault
    assert WebDataset(path).samples("train")[-1] == sample  # from the list that is kept
    (problem,) = verify("webdataset", path, progress=False).problems
    assert re.search(message, problem)
    source = ImageInput(ImageInput.Config()) if sample.image is None else TextInput(TextInput.Config())
    with pytest.raises(UserError, match=message):
        source.load(sample, None)


def test_names_that_are_not_utf_8_have_ids_that_are(tmp_path: Path) -> None:
    """An archive of a Latin-1 system; what is written of samples is in UTF-8."""
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in (("caf\udce9.png", picture(1)), ("caf\udce9.txt", b"x"), ("é.png", picture(2))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    first, second = WebDataset(path).samples("train")
    assert (first.id, first.captions, second.id) == ("train-0/caf\\xe9", ("x",), "train-0/é")
    assert first.image is not None
    assert decode_image(first.image).size == (10, 12)
    assert fingerprint([first, second])["samples"] == len(hash_ids([first, second])) == 2
    path.rename(tmp_path / "train-\udce9.tar")
    with pytest.raises(UserError, match=r"name of the shard .* is not UTF-8; rename it"):
        WebDataset(tmp_path)


def test_what_is_kept_of_a_fault_names_its_place_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "here" / "train-0.tar", {"1.png": picture(1), "1.txt": b"\n"})
    monkeypatch.chdir(tmp_path / "here")
    WebDataset(Path("train-0.tar")).samples("train")
    monkeypatch.chdir(tmp_path)
    (sample,) = WebDataset(Path("here")).samples("train")
    assert sample.fault.startswith(f"{tmp_path / 'here' / 'train-0.tar'}: caption 1")


def test_pictures_without_any_captions_have_no_fault(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-0.tar", {"1.png": picture(1), "2.png": picture(2)})
    assert [(s.captions, s.fault) for s in WebDataset(path).samples("train")] == [((), "")] * 2


@pytest.mark.parametrize(
    ("members", "message"),
    [({"README": b""}, "holds no samples"), ({"1.png": picture(1), "1.PNG": picture(1)}, "is there twice")],
)
def test_what_is_no_shard_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    path = shard(tmp_path / "train-0.tar", members)
    with pytest.raises(UserError, match=rf"train-0\.tar.*{message}"):
        WebDataset(path).samples("train")


def test_what_the_disk_cannot_read_is_no_fault_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may read it next time; the list of a shard is kept."""
    path = shard(tmp_path / "train-0.tar", numbered(0, 2))

    def broken(_: Member) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_text", broken)
        with pytest.raises(UserError, match=r"cannot read the shard .*train-0\.tar: Input/output error"):
            WebDataset(path).samples("train")
    assert all(sample.captions for sample in WebDataset(path).samples("train"))


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("000009.txt", b" ", "train-0001.tar: caption 1 of 1 of the picture '000009' is empty"),
        ("000009.png", None, "train-0001.tar: the sample '000009' has no picture"),
        ("000009.txt", None, "train-0001.tar:000009.png has no caption"),
    ],
)
def test_a_sample_at_fault_stops_a_run_unless_it_is_skipped(
    shards: Path, tmp_path: Path, member: str, content: bytes | None, message: str
) -> None:
    for path, first in ((shards / "train-0001.tar", 9), (shards / "val-0000.tar", 40)):
        members = numbered(first, 9)
        name = f"{int(member[:6]) - 9 + first:06d}{member[6:]}"
        members |= {name: content} if content is not None else {}
        shard(path, {key: value for key, value in members.items() if content is not None or key != name})
    settings = [word for setting in (*IMAGE_TEXT, "training.epochs=2") for word in ("--set", setting)]
    out = tmp_path / "run"
    flags = ["--pair", "image-text", "--dataset", "webdataset", "--data-root", str(shards), "--workers", "0"]
    words = ["train", *flags, *settings, "--set", "training.batch_size=8", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "go on without them (--on-bad-sample skip)" in str(result.exception)
    result = CliRunner().invoke(app, [*words, "--on-bad-sample", "skip"])
    assert result.exit_code == 0, (result.output, result.exception)
    (listed,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert listed["id"] == "train-0001/000009"
    assert message in listed["reason"]
    result = CliRunner().invoke(app, ["eval", "retrieval", str(out)])
    assert isinstance(result.exception, UserError)
    assert message.replace("train-0001", "val-0000").replace("000009", "000040") in str(result.exception)
    result = CliRunner().invoke(app, ["eval", "retrieval", str(out), "--on-bad-sample", "skip"])
    assert result.exit_code == 0, (result.output, result.exception)
    (report,) = (out / "eval").glob("retrieval-*.json")
    assert json.loads(report.read_text())["samples"] == 8


def test_a_sample_without_captions_is_told_of_where_each_caption_is_a_row(shards: Path) -> None:
    shard(shards / "train-0000.tar", {**numbered(0, 9), "000003.txt": b"one\ntwo", "000004.txt": b""})
    batches = loader(recipe(shards, "dataset.captions=all", "dataset.on_bad_sample=skip"))
    assert len(batches) == 41 // 8
    for _ in (
        epoch for epoch in range(3) for _ in batches.epoch(epoch)
    ):  # an epoch drops the last of 41 rows
        pass
    assert list(batches.skipped) == ["train-0000/000004"]


@pytest.mark.parametrize("damage", ["cut in a member", "cut at its end", "compressed", "no tar", "empty"])
def test_what_is_no_whole_tar_is_named(shards: Path, damage: str) -> None:
    path = shards / "train-0001.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + 512
    path.write_bytes(
        {
            "cut in a member": content[: last.offset_data + 3],
            "cut at its end": content[:end],
            "compressed": gzip.compress(content),
            "no tar": b"<html>" + bytes(2000),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(UserError, match=r"train-0001\.tar is not a whole uncompressed tar"):
        WebDataset(shards).samples("train")
    assert len(WebDataset(shards).samples("val")) == 7


@pytest.mark.parametrize("name", ["more.tar.gz", "more/b.TGZ", "more.tar.zst"])
def test_compressed_shards_beside_plain_ones_are_named(shards: Path, name: str) -> None:
    (shards / name).parent.mkdir(exist_ok=True)
    (shards / name).write_bytes(b"")
    with pytest.raises(
        UserError, match=rf"holds compressed shards.*: {re.escape(name)}; unpack them .*pattern"
    ):
        WebDataset(shards)
    assert len(WebDataset(shards / "train-000{0,1}.tar").samples("train")) > 0


def test_what_a_mac_leaves_beside_a_shard_is_none(shards: Path) -> None:
    before = [sample.id for sample in WebDataset(shards).samples("all")]
    (shards / "._train-0000.tar").write_bytes(b"Mac OS X")
    assert [sample.id for sample in WebDataset(shards).samples("all")] == before


def test_places_without_shards(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looks like webdataset \(--dataset webdataset\)"):
        Coco(shards)
    with pytest.raises(UserError, match=r"needs --data-root DIR, the folder of your shards"):
        open_dataset("webdataset")
    with pytest.raises(
        UserError, match=r"2 of the shards .* are not there: .*train-0003\.tar, .*train-0004\.tar"
    ):
        WebDataset(shards / "train-{0000..0004}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no shards at"):
        WebDataset(tmp_path / "empty")
    with pytest.raises(UserError, match="are not there"):
        WebDataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="mount or copy them"):
        WebDataset(Path("s3://bucket/train-{0..9}.tar"))
    with pytest.raises(UserError, match="names shards twice"):
        WebDataset(shards / "train-000{0,0}.tar")
    shard(shards / "more" / "train-0000.tar", numbered(0, 2))
    with pytest.raises(UserError, match=r"several samples of the split train are called train-0000/000000"):
        WebDataset(shards).samples("train")
