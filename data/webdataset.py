"""WebDataset shards: pictures and captions in tar files, read where they lie and never unpacked.

The format is WebDataset's (https://github.com/webdataset/webdataset): members of one shard whose path up to the
first dot is the same are one sample, ``000017.jpg`` with ``000017.txt`` (its captions, one a line) or ``000017.json``
(``{"caption": "..."}``, one whatever its lines, or ``{"captions": ["...", ...]}``; it counts where both are there).
The engine is not: it streams, shuffles in a buffer and shares shards out, so that processes get unequal epochs (or
samples twice) and a position cannot be computed, only replayed. Here every shard is listed once (tarfile; kept in the
cache folder), after which a sample is an offset: its place in an epoch depends on (seed, epoch) alone, as for any
other data set.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from mmvicreg.data.card import Card
from mmvicreg.data.files import list_folder
from mmvicreg.data.pictures import files_below
from mmvicreg.data.reader import Reader, check_captions, duplicates, encode_name, shorten
from mmvicreg.datasets import cache_folder
from mmvicreg.errors import UserError
from mmvicreg.samples import Member, Sample

PICTURES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "pgm", "tif", "tiff"))
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
"""What a compressed tar is called."""
_ORDER = ("train", "val", "test")
_FORMAT = 4
"""Of the lists in the cache folder: another number where what is read from a shard has changed."""
_BLOCK = 512
"""Bytes of a tar header."""


@dataclass(frozen=True)
class Entry:
    """One sample of a shard: its key, its picture's member (name, offset, size), its captions.

    What cannot be taken for one is left out, and ``fault`` says why: one among millions must not stop the others.
    """

    key: str
    picture: tuple[str, int, int] | None
    captions: tuple[str, ...]
    fault: str = ""


class WebDataset(Reader):
    """Shards by folder (``*.tar``, in any case, in it and in the folders below it), file, glob, or brace range.

    ``{000..012}`` counts, keeping the zeros, and ``{train,val}`` lists. A shard belongs to the split that a word of its
    name says, wherever it stands (``train-0``, ``cc3m-validation-0``, ``coco_val2017``), else its folder's
    (``test/0``), else to train; a name with words of two splits is refused.
    """

    name: ClassVar[str] = "webdataset"
    pairs: ClassVar[tuple[str, ...]] = ("image-text", "image-image")
    card: ClassVar[Card] = Card(
        name="webdataset",
        title="A set of WebDataset shards",
        source=("https://github.com/webdataset/webdataset",),
        licence="yours",
        description="Captioned pictures in uncompressed tar files, for sets that outgrow a disk of single files.",
        pairs=("image-text", "image-image"),
        splits=_ORDER,
        citation="",
        manual=(
            "Give its shards with --data-root: a folder of .tar files, or 'train-{0000..0099}.tar'. WebDataset's "
            "ShardWriter and img2dataset write them (key.jpg with key.txt, one caption a line, or key.json)."
        ),
    )

    def _check_root(self) -> None:
        """What is there is found by :meth:`_find`; a pattern is no folder."""

    def _find(self) -> tuple[str, ...]:
        self._shards: dict[str, list[Path]] = {}
        unsaid = 0
        for shard in find_shards(self.root):
            encode_name(str(shard), "shard", self.root)  # ids hold it
            said = split_of(shard, root=self.root)
            unsaid += said is None
            self._shards.setdefault(said or "train", []).append(shard)
        splits = tuple(sorted(self._shards, key=_ORDER.index))
        counts = ", ".join(f"{split} {len(self._shards[split]):,}" for split in splits)
        note = f"; {unsaid:,} whose names say no split count as train" if unsaid else ""
        self.notes = (f"shards by the words of their names: {counts}{note}",)
        return splits

    def _load(self, split: str) -> list[Sample]:
        shards = self._shards[split]
        with ThreadPoolExecutor(min(8, len(shards))) as pool:
            listed = list(pool.map(list_shard, shards))
        samples = [
            Sample(
                id=f"{shard.stem}/{entry.key}",
                image=Member(shard, *entry.picture) if entry.picture is not None else None,
                captions=entry.captions,
                fault=entry.fault,
            )
            for shard, entries in zip(shards, listed, strict=True)
            for entry in entries
        ]
        if twice := duplicates(sample.id for sample in samples):
            raise UserError(
                f"{self.root}: several samples of the split {split} are called {shorten(twice)}; shards of one split "
                "need names of their own"
            )
        captions = sum(len(sample.captions) for sample in samples)
        if captions:  # else the set is one of pictures alone
            samples = [_silent(sample) if not sample.captions else sample for sample in samples]
        note = f"{split}: shards {len(shards):,}, samples {len(samples):,}, captions {captions:,}"
        self.notes = (*self.notes, note)
        return samples


def _silent(sample: Sample) -> Sample:
    """A sample that has no caption where others have, with that for its fault unless it has another."""
    if sample.fault:
        return sample
    return replace(
        sample, fault=f"{sample.image} has no caption; add key.txt or key.json, or leave the picture out"
    )


def find_shards(root: Path) -> list[Path]:
    """The shards that a folder, file, glob or brace pattern means, in order.

    Raises:
        UserError: an address of the network, a compressed archive, a folder that cannot be listed, or nothing there
            (what is missing is named).
    """
    text = str(root)
    if re.match(r"^(s3|gs|gcs|https?|hdfs|pipe|hf|ais):", text):
        raise UserError(
            f"--data-root {text}: shards are read from files, at their offsets; mount or copy them, and give their path"
        )
    if root.is_dir():
        inside = list(files_below(root, (".tar",)))
        if packed := sorted(name for name in inside if _PACKED.search(name)):
            raise UserError(
                f"{root} holds compressed shards, which cannot be read at their offsets: {shorten(packed)}; unpack "
                "them to .tar, or, to leave them out, name the others by a pattern"
            )
        shards = sorted(root / name for name in inside if name.lower().endswith(".tar"))
        if not shards:
            raise UserError(
                f"no shards at {root}: neither it nor the folders below it hold a .tar. {WebDataset.card.manual}"
            )
        return shards
    shards, missing = [], []
    for path in expand_braces(text):
        there = [shard for shard in _matching(path) if _is_file(shard)]
        shards += there
        missing += [] if there else [path]
    if missing:
        raise UserError(
            f"{len(missing):,} of the shards that --data-root {text} means are not there: {shorten(missing)}. "
            f"{WebDataset.card.manual}"
        )
    if twice := duplicates(map(str, shards)):
        raise UserError(f"--data-root {text} names shards twice: {shorten(twice)}")
    return shards


def _matching(pattern: str) -> list[Path]:
    """What a glob pattern means, sorted; not glob.glob, which passes over folders that it may not list.

    Names that begin with a dot are passed over unless the pattern's do. What is there by the very name (``v[2]``) is
    meant, and no pattern.

    Raises:
        UserError: a folder cannot be listed.
    """
    path = Path(pattern)
    found = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        if not glob.has_magic(part):
            found = [folder / part for folder in found]
            continue
        found = [folder / name for folder in found for name in _meant(part, list_folder(folder))]
    return sorted(found, key=str)


def _meant(part: str, there: Collection[str]) -> list[str]:
    """Which of the names in a folder a part of a pattern means."""
    if part in there:
        return [part]
    hidden = part.startswith(".")
    return [
        name for name in there if fnmatch.fnmatchcase(name, part) and (hidden or not name.startswith("."))
    ]


def _is_file(shard: Path) -> bool:
    """Whether there is such a file.

    Raises:
        UserError: nobody can tell, its folder being another user's.
    """
    try:
        return shard.is_file()
    except OSError as error:
        raise UserError(f"cannot read the shard {shard}: {error.strerror}") from error


def expand_braces(pattern: str) -> list[str]:
    """``a{1,2}b{08..10}`` as a shell expands it: lists, and ranges of whole numbers, which keep their zeros.

    Raises:
        UserError: a brace that is not closed, or holds neither a list nor a range.
    """
    parts: list[list[str]] = []
    rest = pattern
    while (start := rest.find("{")) >= 0:
        end = rest.find("}", start)
        if end < 0 or "{" in rest[start + 1 : end]:
            raise UserError(f"--data-root {pattern}: braces must be closed, and not within one another")
        parts += [[rest[:start]], _alternatives(rest[start + 1 : end], pattern)]
        rest = rest[end + 1 :]
    return ["".join(words) for words in itertools.product(*parts, [rest])]


def _alternatives(inner: str, pattern: str) -> list[str]:
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = counted[1], counted[2]
        numbers = range(int(first), int(last) + 1)
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        if numbers:
            return [str(number).zfill(width) for number in numbers]
    elif "," in inner:
        return inner.split(",")
    raise UserError(
        f"--data-root {pattern}: '{{{inner}}}' is neither a list {{a,b}} nor a range {{0000..0099}}"
    )


def split_of(shard: Path, *, root: Path) -> str | None:
    """The split that a word of a shard's name says, else one of its folder's, and so on below ``root``, or None.

    Words are runs of letters: ``cc3m-validation-0007`` and ``val2017`` say val, ``evaluation`` and ``latest`` nothing.

    Raises:
        UserError: one name has words of two splits, and what it holds is not for the program to guess.
    """
    above = list(shard.parents)
    folders = above[: above.index(root)] if root in above else above[:1]
    for path in (shard, *folders):
        words = re.findall(r"[^\W\d_]+", path.name.lower())
        said = sorted({_SPLITS[word] for word in words if word in _SPLITS}, key=_ORDER.index)
        if len(said) > 1:
            raise UserError(
                f"{path}: its name says several splits ({', '.join(said)}), so that nobody can tell what to train on; "
                "rename it, or link to it by a name that says one"
            )
        if said:
            return said[0]
    return None


def list_shard(shard: Path) -> list[Entry]:
    """The samples of a shard, from the cache folder where its size and time are still the same.

    Raises:
        UserError: not a whole uncompressed tar, one without samples, or a member that is there twice; shard and member
            are named.
    """
    try:
        state = shard.stat()
    except OSError as error:
        raise UserError(f"cannot read the shard {shard}: {error.strerror}") from error
    stamp = [_FORMAT, str(shard.absolute()), state.st_size, state.st_mtime_ns]
    kept = (
        cache_folder()
        / "webdataset"
        / f"{hashlib.sha256(str(shard.absolute()).encode()).hexdigest()[:24]}.json"
    )
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        tree = json.loads(kept.read_text(encoding="utf-8"))
        if tree["stamp"] == stamp:
            return [
                Entry(key, tuple(picture) if picture else None, tuple(captions), fault)
                for key, picture, captions, fault in tree["entries"]
            ]
    entries = _read_shard(
        shard.absolute()
    )  # faults are kept with the place, which is read from elsewhere too
    rows = [[entry.key, entry.picture, entry.captions, entry.fault] for entry in entries]
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # without a place for it the shard is listed again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"stamp": stamp, "entries": rows}), encoding="utf-8")
        temporary.replace(kept)
    return entries


def _read_shard(shard: Path) -> list[Entry]:
    parts: dict[str, dict[str, Member]] = {}
    for member in _members(shard):
        path = PurePosixPath(member.name)
        stem, dot, suffix = path.name.partition(".")
        if not dot or path.name.startswith("."):
            continue
        fields = parts.setdefault(str(path.parent / stem), {})
        if suffix.lower() in fields:
            raise UserError(f"{shard}: the member '{member.name}' is there twice")
        fields[suffix.lower()] = member
    if not parts:
        raise UserError(
            f"{shard} holds no samples (key.jpg with key.txt or key.json); is it another archive?"
        )
    return [_entry(shard, key, fields) for key, fields in parts.items()]


def _members(shard: Path) -> Iterator[Member]:
    """Every regular file of a tar, in order.

    Raises:
        UserError: not an uncompressed tar, or cut short.
    """
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                if info.isreg():
                    yield Member(shard, _in_unicode(info.name), info.offset_data, info.size)
            with shard.open("rb") as file:  # tarfile takes the end of the file for the end of the archive
                file.seek(archive.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard} is not a whole uncompressed tar ({error}): get it again, or, if it is compressed, unpack it to "
            ".tar first (samples are read at their offsets)"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the shard {shard}: {error.strerror or error}") from error


def _in_unicode(name: str) -> str:
    """A member's name; bytes that are not UTF-8 as ``\\xe9``, since ids are written in it, and places go by offsets."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entry(shard: Path, key: str, fields: dict[str, Member]) -> Entry:
    """One sample, with what is wrong with it.

    Raises:
        UserError: the shard cannot be read.
    """
    faults: list[str] = []
    pictures = [member for suffix, member in fields.items() if suffix in PICTURES]
    if len(pictures) != 1:
        what = "no picture" if not pictures else f"{len(pictures)} pictures"
        faults.append(f"{shard}: the sample '{key}' has {what} (it has {', '.join(fields)})")
    captions: tuple[str, ...] = ()
    try:
        if told := _captions(shard, key, fields):
            captions = check_captions(told, key, shard)
    except OSError as error:  # the disk's fault, and perhaps none next time: not for the list that is kept
        raise UserError(f"cannot read the shard {shard}: {error.strerror or error}") from error
    except UserError as error:
        faults.append(str(error))
    picture = (pictures[0].name, pictures[0].offset, pictures[0].size) if len(pictures) == 1 else None
    return Entry(key, picture, captions, "; ".join(faults))


def _captions(shard: Path, key: str, fields: dict[str, Member]) -> Sequence[object]:
    """From key.json, else the lines of key.txt; none where neither is there.

    Raises:
        UserError: one of them is not what it should be.
    """
    try:
        tree: object = json.loads(_text(fields["json"])) if "json" in fields else {}
        text = _text(fields["txt"]) if "txt" in fields else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shard}: the text of the sample '{key}' cannot be read ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f'{shard}: {key}.json is not an object such as {{"caption": "..."}}')
    told = tree.get("captions", tree.get("caption"))
    if isinstance(told, list):
        return told
    if told is not None:
        return [told]
    if text is None:
        return []
    # retrieval sets (those of CLIP_benchmark, say) put the captions of a picture into the lines of one file
    return [line.strip() for line in text.split("\n") if line.strip()] or [""]


def _text(member: Member) -> str:
    return member.open().read().decode("utf-8-sig")
