"""Names with accents: composed in the table and decomposed on the disk, as archives made on a Mac have them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import data_layouts as layouts
import pytest

from mmvicreg.data.audio_folder import AudioFolder
from mmvicreg.data.files import Files
from mmvicreg.data.flickr import Flickr8k
from mmvicreg.data.image_folder import ImageFolder
from mmvicreg.data.listed_pictures import Places205
from mmvicreg.data.manifest import Manifest
from mmvicreg.errors import UserError

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


@pytest.fixture
def both_spellings(tmp_path: Path) -> None:
    """Skip where the disk takes the two for one name itself."""
    (tmp_path / unicodedata.normalize("NFC", "ä")).touch()
    if (tmp_path / unicodedata.normalize("NFD", "ä")).exists():
        pytest.skip("this file system does not tell them apart")


@pytest.mark.parametrize(("listed", "there"), FORMS)
@pytest.mark.usefixtures("both_spellings")
def test_tables_of_recordings(tmp_path: Path, listed: str, there: str) -> None:
    names = [f"Geräusche/{fold}é.wav" for fold in (1, 2)]
    for name in names:
        layouts.recording(tmp_path / "data" / unicodedata.normalize(there, name))
    asked = [unicodedata.normalize(listed, name) for name in names]
    table = layouts.write_csv(
        tmp_path / "data" / "clips.csv",
        [{"filename": name, "label": "x", "fold": fold} for fold, name in enumerate(asked, start=1)],
    )
    data = AudioFolder(tmp_path / "data")
    assert data.notes == ()  # of recordings that the table does not list
    assert [sample.id for sample in data.samples("all")] == asked
    assert all(sample.audio is not None and sample.audio.is_file() for sample in data.samples("all"))
    table.unlink()
    path = layouts.write_csv(
        tmp_path / "data" / "m.csv", [{"audio": name, "split": f"s{n}"} for n, name in enumerate(asked)]
    )
    samples = Manifest(path).samples("s1")
    assert [sample.audio for sample in samples] == [
        tmp_path / "data" / unicodedata.normalize(there, names[1])
    ]


@pytest.mark.usefixtures("both_spellings")
def test_the_same_file_in_two_spellings_is_refused(tmp_path: Path) -> None:
    """It would be trained on under one and tested under the other."""
    layouts.picture(tmp_path / unicodedata.normalize("NFD", "é.jpg"))
    rows = [
        {"image": unicodedata.normalize(form, "é.jpg"), "caption": "x", "split": form}
        for form in ("NFC", "NFD")
    ]
    path = layouts.write_csv(tmp_path / "m.csv", rows)
    with pytest.raises(UserError, match=r"m\.csv lists the same file in two spellings that look alike: "):
        Manifest(path)
    layouts.picture(tmp_path / unicodedata.normalize("NFC", "é.jpg"), 9)  # two files indeed
    assert Manifest(path).samples("NFC")[0].image == tmp_path / str(rows[0]["image"])


@pytest.mark.usefixtures("both_spellings")
def test_karpathys_file(tmp_path: Path) -> None:
    path = layouts.karpathy(tmp_path, "flickr8k") / "dataset_flickr8k.json"
    tree = json.loads(path.read_text())
    tree["images"][1]["filename"] = unicodedata.normalize("NFC", "é.jpg")
    path.write_text(json.dumps(tree))
    there = tmp_path / "images" / unicodedata.normalize("NFD", "é.jpg")
    (tmp_path / "images" / "p1.jpg").rename(there)
    assert there in [sample.image for sample in Flickr8k(tmp_path).samples("train")]


@pytest.mark.usefixtures("both_spellings")
def test_karpathys_file_lists_a_file_in_two_spellings(tmp_path: Path) -> None:
    """It would be trained on under one and tested under the other."""
    path = layouts.karpathy(tmp_path, "flickr8k") / "dataset_flickr8k.json"
    tree = json.loads(path.read_text())
    nfc, nfd = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    tree["images"][0]["filename"], tree["images"][-1]["filename"] = nfc, nfd
    assert tree["images"][0]["split"] != tree["images"][-1]["split"]
    path.write_text(json.dumps(tree))
    layouts.picture(tmp_path / "images" / nfd)
    with pytest.raises(
        UserError, match=r"flickr8k\.json lists the same file in two spellings that look alike"
    ):
        Flickr8k(tmp_path)
    layouts.picture(tmp_path / "images" / nfc, 9)  # two files indeed
    assert {tmp_path / "images" / name for name in (nfc, nfd)} <= {
        sample.image for sample in Flickr8k(tmp_path).samples("all")
    }


@pytest.mark.parametrize(("listed", "there"), FORMS)
@pytest.mark.usefixtures("both_spellings")
def test_lists_of_pictures(tmp_path: Path, listed: str, there: str) -> None:
    names = ["c/café/é.jpg", "d/den/1.jpg"]
    for name in names:
        layouts.picture(tmp_path / "images256" / unicodedata.normalize(there, name))
    table = tmp_path / "train_places205.csv"
    lines = [f"{unicodedata.normalize(listed, name)} {label}" for label, name in enumerate(names)]
    table.write_text("\n".join(lines), encoding="utf-8")
    samples = Places205(tmp_path).samples("train")
    assert [sample.image for sample in samples] == [
        tmp_path / "images256" / unicodedata.normalize(there, name) for name in names
    ]
    folder, _, file = names[0].rpartition("/")
    folder = unicodedata.normalize(listed, folder)
    both = [f"{folder}/{unicodedata.normalize(form, file)} 0" for form in (listed, there)]
    table.write_text("\n".join([*both, lines[1]]), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"places205\.csv lists the same file in two spellings that look alike"
    ):
        Places205(tmp_path).samples("train")


@pytest.mark.usefixtures("both_spellings")
def test_class_folders_that_look_alike_are_told_from_missing_ones(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("café", "den"):
            layouts.picture(tmp_path / split / unicodedata.normalize(form, name) / f"{split}.png")
    with pytest.raises(UserError, match="café is in both, its accents in another spelling: rename one"):
        ImageFolder(tmp_path)


def test_what_is_not_there_in_any_spelling(tmp_path: Path) -> None:
    assert Files().find(tmp_path / "ä" / "ö.wav") is None
    assert Files().find(Path("nowhere") / "ö.wav") is None
