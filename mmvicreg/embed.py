"""Vectors and ids of a run's branches in a file, to be used without this library.

``.npz``: numpy alone reads it (``np.load(file)``; nothing in it is pickled). For every branch ``B``::

    B/vectors  float32 (m, d)
    B/ids      text (m,): the id of each row; of a text branch the caption's
    B/samples  text (m,): the id of the sample each row was made from

and ``about``, a text of JSON: run, epoch, data set, split, space, version, number of samples that could not
be read and are in no branch (``on_bad_sample`` is ``skip``).

``.parquet``: one table, a row for each vector, with the columns ``branch``, ``id``, ``sample`` and ``vector``
(a list of float32), ``about`` in the schema's metadata. It needs pyarrow: ``pip install 'mmvicreg[parquet]'``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

import mmvicreg
from mmvicreg.branches.model import JointModel
from mmvicreg.encode import Encoded, encode, row_ids, without_failed
from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.runs import Run, check_writable, evaluation_data
from mmvicreg.samples import Sample
from mmvicreg.skipped import OnBadSample, check_on_bad_sample, write_skipped
from mmvicreg.training.distributed import World
from mmvicreg.training.log import say
from mmvicreg.training.processes import on_processes

Space: TypeAlias = Literal["embedding", "representation"]
_GROUP = 65_536
"""Rows of a Parquet row group."""


@dataclass(frozen=True)
class Rows:
    """One branch's vectors.

    Attributes:
        vectors: float32 ``(m, d)``.
        ids: ``(m,)`` the id of each row.
        samples: ``(m,)`` the id of the sample each row was made from.
    """

    vectors: npt.NDArray[np.float32]
    ids: list[str]
    samples: list[str]


@dataclass(frozen=True)
class Order:
    """What :func:`embed` was asked for, besides the run."""

    out: Path
    data_root: Path | None
    dataset: str | None
    split: str | None
    space: Space
    captions: int | None
    on_bad_sample: OnBadSample
    branches: tuple[str, ...] | None


def embed(
    run: Run,
    out: Path,
    *,
    data_root: Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    space: str | None = None,
    captions: int | None = None,
    devices: int = 1,
    device: str = "auto",
    force: bool = False,
    on_bad_sample: OnBadSample = "error",
    branches: Sequence[str] | None = None,
) -> None:
    """Write what the branches of a run make of a split.

    Args:
        run: an opened run with a checkpoint.
        out: ``.npz`` or ``.parquet``; the module says what is in it.
        data_root: where the data is; None: where it was in training.
        dataset: another data set than the run's own, by name.
        split: None: as :func:`~mmvicreg.runs.evaluation_data` chooses.
        space: ``embedding`` or ``representation``; None: that of the recipe's ``evaluation``.
        captions: only the first so many of each sample; None: all.
        devices: processes on this machine that share the work.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: overwrite ``out``.
        on_bad_sample: ``error`` stops at a sample that cannot be read; ``skip`` leaves it out of every branch
            and lists it in the run folder, ``eval/skipped-<data set>-<split>.jsonl``.
        branches: these alone; None: every one that the data has something for (the others are told).

    Raises:
        UserError: no such branch, or nothing for one that is named; ``out`` exists, has another suffix or cannot be
            written; pyarrow is missing; the data or the run cannot be read.
    """
    _writer(out)
    if out.exists() and not force:
        raise UserError(f"{out} exists; give --force to overwrite it, or --out another name")
    check_writable(out)
    known = get_args(Space)
    if space is not None and space not in known:
        raise UserError(f"unknown space '{space}'{nearest(space, known)} Known: {', '.join(known)}.")
    chosen = cast(Space, space or run.recipe.evaluation.space)
    check_on_bad_sample(on_bad_sample)
    for name in branches or ():
        if name not in run.recipe.branches:
            raise UserError(
                f"the run {run.path} has no branch '{name}'{nearest(name, run.recipe.branches)} It has "
                f"{', '.join(run.recipe.branches)}."
            )
    asked = tuple(dict.fromkeys(branches)) if branches else None
    order = Order(out, data_root, dataset, split, chosen, captions, on_bad_sample, asked)
    on_processes(devices, device, _embed, run, order)


def _embed(world: World, run: Run, order: Order) -> None:
    data, samples, split = evaluation_data(
        run, root=order.data_root, dataset=order.dataset, split=order.split
    )
    model = run.model(device=world.device.type)
    names = _fed(
        world, run, model, samples, order, where=f"the split '{split}' of {data.name} at {data.root}"
    )
    encoded: dict[str, Encoded] = {
        name: encode(
            model,
            name,
            samples,
            space=order.space,
            batch_size=run.recipe.evaluation.batch_size,
            captions=order.captions,
            description=f"encoding {split} with {name}",
            world=world,
            skip=order.on_bad_sample == "skip",
        )
        for name in names
    }
    if not world.is_main:
        return
    encoded, samples, skipped = without_failed(encoded, samples)
    if skipped:
        listed = run.path / "eval" / f"skipped-{data.name}-{split}.jsonl"
        write_skipped(listed, skipped)
        say(f"{len(skipped):,} samples could not be read and are left out: {listed} lists them")
    branches = {
        name: Rows(
            found.vectors,
            row_ids(samples, found.owner, text=run.recipe.branches[name].input == "text"),
            [samples[index].id for index in found.owner],
        )
        for name, found in encoded.items()
    }
    about = {
        "run": str(run.path),
        "epoch": run.epochs_done,
        "dataset": data.name,
        "split": split,
        "space": order.space,
        "skipped": len(skipped),
        "mmvicreg": mmvicreg.__version__,
    }
    temporary = order.out.with_name(f".{order.out.name}.tmp")
    try:
        order.out.parent.mkdir(parents=True, exist_ok=True)
        _writer(order.out)(temporary, branches, json.dumps(about))
        temporary.replace(order.out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {order.out}: {error.strerror or error}") from error


def _fed(
    world: World, run: Run, model: JointModel, samples: Sequence[Sample], order: Order, *, where: str
) -> list[str]:
    """The branches to encode with: those asked for, or all that any sample has something for."""
    fields = {name: model.inputs[branch.input].field for name, branch in run.recipe.branches.items()}
    here = {
        field: any(getattr(sample, field) for sample in samples)
        for field in dict.fromkeys(fields.values())
        if field
    }
    without = [name for name in order.branches or fields if not here.get(fields[name], True)]
    if without and (order.branches is not None or len(without) == len(fields)):
        raise UserError(
            f"{where} has nothing for {', '.join(without)} to read: no {fields[without[0]]} in any sample"
        )
    if without and world.is_main:
        say(f"{where} has nothing for {', '.join(without)} to read, left out")
    return [name for name in order.branches or fields if name not in without]


def _writer(out: Path) -> Callable[[Path, Mapping[str, Rows], str], None]:
    """What writes a file of this suffix."""
    if out.suffix not in (".npz", ".parquet"):
        raise UserError(f"--out {out}: name a file that ends in .npz or .parquet")
    if out.suffix == ".npz":
        return _write_npz
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("writing .parquet needs pyarrow: pip install 'mmvicreg[parquet]', or write .npz")
    return _write_parquet


def _write_npz(path: Path, branches: Mapping[str, Rows], about: str) -> None:
    arrays: dict[str, Any] = {"about": np.array(about)}
    for name, rows in branches.items():  # a branch's name holds no '/'
        arrays[f"{name}/vectors"] = rows.vectors
        arrays[f"{name}/ids"] = np.array(rows.ids, dtype=np.str_)
        arrays[f"{name}/samples"] = np.array(rows.samples, dtype=np.str_)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_parquet(path: Path, branches: Mapping[str, Rows], about: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [("branch", pa.string()), ("id", pa.string()), ("sample", pa.string())]
    schema = pa.schema([*columns, ("vector", pa.list_(pa.float32()))], metadata={"about": about})
    with pq.ParquetWriter(path, schema) as writer:
        for name, rows in branches.items():
            for start in range(0, len(rows.ids), _GROUP):
                part = slice(start, start + _GROUP)
                m, width = rows.vectors[part].shape
                ends = pa.array(np.arange(m + 1, dtype=np.int32) * width)
                vectors = pa.ListArray.from_arrays(ends, pa.array(rows.vectors[part].ravel()))
                texts = [[name] * m, rows.ids[part], rows.samples[part]]
                arrays = [*(pa.array(text, pa.string()) for text in texts), vectors]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
