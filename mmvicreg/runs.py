"""A run is a folder: recipe, metrics, events, checkpoints, evaluations."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmvicreg.config import Recipe
from mmvicreg.errors import UserError
from mmvicreg.recipes import differences, dump_recipe, parse_saved, say_differences

if TYPE_CHECKING:
    from torch import Tensor

    from mmvicreg.branches.model import JointModel
    from mmvicreg.samples import DataSet, Sample

PARTS = frozenset({"model", "optimizer", "monitor", "inputs", "data", "position"})
RECIPE, CHECKPOINTS, INITIAL = "recipe.yaml", "checkpoints", "initial.pt"
_FREE = re.compile(
    r"(evaluation|monitor)[.:]|training\.(keep_|log_every:)|inputs\.[^.]+\.cache:"
    r"|(sources\.[^.]+\.)?dataset\.(root|on_bad_sample|eval_split):"
)
"""Keys, as :func:`differences` has them, that no weight depends on; a resumed run may be told them anew."""
MISFIT = "its recipe.yaml or its checkpoint was changed: put the one back that it was trained with"


def is_free(difference: str) -> bool:
    """Whether no weight depends on what a line of :func:`differences` is about, or a key with its colon."""
    return _FREE.match(difference) is not None


@dataclass(frozen=True)
class Run:
    """A run folder opened for reading.

    Attributes:
        path: the folder.
        recipe: its resolved recipe.
        checkpoint: the checkpoint file it is opened at; None: the newest.
    """

    path: Path
    recipe: Recipe
    checkpoint: Path | None = field(default=None, kw_only=True)

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind the checkpoint."""
        return int(self.content["position"]["epoch"])

    @property
    def weights(self) -> dict[str, str]:
        """Branch -> where its encoder's weights are from, in a run that was not trained (no epochs); else nothing."""
        if self.recipe.training.epochs:
            return {}
        found = {
            name: branch.init.source if branch.init is not None else branch.encoder.get("weights", "none")
            for name, branch in self.recipe.branches.items()
        }
        return {name: source for name, source in found.items() if source != "none"}

    @cached_property
    def content(self) -> dict[str, Any]:
        """The checkpoint, read once.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        from mmvicreg.training.checkpoint import list_checkpoints, load_checkpoint

        there = list_checkpoints(self.checkpoints)
        if not there:
            raise UserError(f"the run {self.path} has no checkpoint yet; train it for at least one epoch")
        file = self.checkpoint or there[-1]
        content = load_checkpoint(file)
        if absent := PARTS - content.keys():
            raise UserError(
                f"the checkpoint {file} is not one of a run: it lacks {', '.join(sorted(absent))}; {MISFIT}"
            )
        self._check_recipe(content, file)
        return content

    def let_go(self) -> None:
        """Forget the checkpoint that was read, gigabytes of weights and momenta; who asks again has it read again."""
        self.__dict__.pop("content", None)

    def _check_recipe(self, content: dict[str, Any], file: Path) -> None:
        """Refuse another recipe than was trained with: its weights may fit, and the figures would be of no run.

        Checkpoints of earlier versions do not hold the recipe, and are taken at their recipe.yaml's word.
        """
        if "recipe" not in content:
            return
        then = parse_saved(content["recipe"], source=str(file))
        changed = [line for line in differences(then, self.recipe) if not is_free(line)]
        if changed:
            raise UserError(
                f"the checkpoint {file} was trained by another recipe than {self.path / RECIPE} says "
                f"({say_differences(changed)}): {MISFIT}"
            )

    @property
    def resumed_recipe(self) -> Recipe:
        """The recipe with its parts in the order in which they were trained: an optimiser's state goes by place."""
        if "recipe" not in self.content:
            return self.recipe
        then = parse_saved(self.content["recipe"], source=str(self.path))
        return self.recipe.model_copy(
            update={
                part: {name: getattr(self.recipe, part)[name] for name in getattr(then, part)}
                for part in ("inputs", "branches", "sources")
            }
        )

    @cached_property
    def initial(self) -> dict[str, dict[str, Tensor]]:
        """The encoders that started from weights of elsewhere, as they began: branch -> state dict."""
        from mmvicreg.training.checkpoint import load_checkpoint

        file = self.path / INITIAL
        if not file.is_file():
            return {}
        encoders = load_checkpoint(file).get("encoders")
        if not isinstance(encoders, dict):
            raise UserError(f"{file} does not hold the encoders that the run started from; {MISFIT}")
        return encoders

    def save_initial(self, model: JointModel) -> None:
        """Keep a copy of the encoders that start from weights of elsewhere.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        from mmvicreg.branches.init import names_weights
        from mmvicreg.training.checkpoint import save_data

        names = [
            name
            for name, branch in self.recipe.branches.items()
            if branch.init is not None or names_weights(branch)
        ]
        if not names:
            return
        encoders = {
            name: {
                key: value.cpu().contiguous()
                for key, value in model.branch(name).encoder.state_dict().items()
            }
            for name in names
        }
        try:
            save_data(self.path / INITIAL, {"encoders": encoders})
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            raise UserError(f"cannot write {self.path / INITIAL}: {error}; free some space") from error

    def model(self, *, untrained: bool = False, device: str | None = None) -> JointModel:
        """The model in evaluation mode: trained (its checkpoint), or as it was before its first step.

        Args:
            untrained: the run's own initial weights instead (the seed addresses them); where nothing was trained,
                random ones in the place of those it holds.
            device: where to put it; null: a GPU where there is one.
        """
        from mmvicreg.branches.weights import load_strictly
        from mmvicreg.training.distributed import resolve_device
        from mmvicreg.training.setup import build_model, restore_inputs

        content = self.content
        inputs = restore_inputs(self.recipe, content["inputs"])
        pretrained = untrained and not self.weights
        initial = self.initial if pretrained else None
        model = build_model(self.recipe, inputs, pretrained=pretrained, initial=initial)
        if untrained:  # what frontends measured is no weight, and without it they do not work
            measured = {key: value for key, value in content["model"].items() if ".frontend." in key}
            model.load_state_dict(measured, strict=False)
        else:
            load_strictly(model, content["model"], what=f"the weights of the run {self.path}", way_out=MISFIT)
        return model.to(resolve_device(device or "auto")).eval()

    def dataset(self, *, name: str | None = None, root: Path | None = None) -> DataSet:
        """The data set it was trained on, at ``root`` or where it was then.

        Args:
            name: another, by name: one of the run's other sources is looked for where it was, too.
            root: where it is now.
        """
        from mmvicreg.datasets import open_dataset

        config = self.recipe.dataset if name is None else self.recipe.trained_as(name)
        place = root if root is not None else config.root if config is not None else None
        return open_dataset(name or self.recipe.dataset.name, root=Path(place) if place is not None else None)


def evaluation_data(
    run: Run, *, root: Path | None = None, dataset: str | None = None, split: str | None = None
) -> tuple[DataSet, Sequence[Sample], str]:
    """What a run is to be judged on: a data set, its samples, and the name of their split.

    Args:
        run: an opened run.
        root: where the data is; None: where it was in training.
        dataset: another data set than the run's own, by name.
        split: None: the recipe's ``eval_split``, else the held-out fold, else ``test``, else ``val``.

    Raises:
        UserError: no such data set or split, or nothing in it.
    """
    from mmvicreg.datasets import evaluation_split, in_folds

    data = run.dataset(name=dataset, root=root)
    settings = run.recipe.dataset if dataset is None else run.recipe.trained_as(dataset)
    if settings is not None:
        name = evaluation_split(data, split or settings.eval_split, fold=settings.fold)
    else:
        # a part of the run's own data set (ESC-10 of ESC-50) shares its folds: the one that was held out
        held_out = run.recipe.dataset.fold
        same = in_folds(data) and f"fold{held_out}" in data.splits()
        name = evaluation_split(data, split, fold=held_out if same else "none")
    samples = data.samples(name)
    if not samples:
        raise UserError(f"the split '{name}' of {data.name} at {data.root} is empty")
    return data, samples, name


def open_run(path: Path) -> Run:
    """Open a run folder.

    Raises:
        UserError: not a run folder, or its recipe cannot be read.
    """
    file = path / RECIPE
    if not path.is_dir():
        raise UserError(f"no run folder at {path}")
    if not file.is_file():
        raise UserError(f"{path} is not a run folder: it holds no {RECIPE}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} is not a recipe")
    return Run(path, parse_saved(tree, source=str(file)))


def newest_run(
    base: Path, *, pairs: Sequence[str] | None = None, joins_two: bool = False, like: Recipe | None = None
) -> Run:
    """The run folder under ``base`` whose newest checkpoint was written last.

    Args:
        base: where to look, however deep.
        pairs: only runs of these.
        joins_two: only runs with an edge between two different branches.
        like: only runs of this recipe's pair, data set and objective.

    Raises:
        UserError: there is none.
    """
    found: list[tuple[float, Path]] = []
    if base.is_dir():
        for file in base.rglob(RECIPE):
            checkpoints = list((file.parent / CHECKPOINTS).glob("step-*.pt"))
            try:
                tree = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError):
                continue  # a broken run is not the newest fitting one; opened by name it is an error
            if not isinstance(tree, dict) or (pairs is not None and tree.get("pair") not in pairs):
                continue
            if (joins_two and not _joins_two(tree)) or (like is not None and _kind(tree) != _kind_of(like)):
                continue
            if checkpoints:
                found.append((max(path.stat().st_mtime for path in checkpoints), file.parent))
    if not found:
        what = f" of the pair {' or '.join(pairs)}" if pairs else " of two branches" if joins_two else ""
        what += f" of {', '.join(_kind_of(like))}" if like is not None else ""
        raise UserError(f"no run{what} under {base}; train one first (mmvicreg train), or name its folder")
    return open_run(max(found)[1])


def _joins_two(tree: dict[str, Any]) -> bool:
    edges = tree.get("edges")
    return isinstance(edges, list) and any(
        isinstance(edge, dict) and edge.get("a") != edge.get("b") for edge in edges
    )


def _kind_of(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.pair, recipe.dataset.name, recipe.objective["name"]


def _kind(tree: dict[str, Any]) -> tuple[str, str, str] | None:
    """Pair, data set and objective of a recipe as it is written; None where they are not all there."""
    try:
        return tree["pair"], tree["dataset"]["name"], tree["objective"]["name"]
    except (TypeError, KeyError):
        return None


def fold_runs(folder: Path) -> dict[int, Path]:
    """The runs ``fold1``, ``fold2``, ... in a folder that is not itself a run; empty when it has none."""
    if not folder.is_dir() or (folder / RECIPE).is_file():
        return {}
    found = {
        int(match[1]): entry
        for entry in folder.iterdir()
        if (match := re.fullmatch(r"fold(\d+)", entry.name)) and (entry / RECIPE).is_file()
    }
    return dict(sorted(found.items()))


def check_free(path: Path) -> None:
    """Refuse a place for a new run where something is already; nothing of it is touched."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        hint = "continue it with --resume, or" if (path / RECIPE).is_file() else "to keep it,"
        raise UserError(f"{path} exists and is not empty; {hint} choose another --out")


def create_run(path: Path, recipe: Recipe) -> Run:
    """Make the folder of a new run and write its recipe.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    check_free(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / RECIPE, dump_recipe(recipe))
    except OSError as error:
        raise UserError(f"cannot make the run folder {path}: {error.strerror or error}") from error
    return Run(path, recipe)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that what is there is the old or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def check_writable(path: Path) -> None:
    """Find out, by a temporary file that is removed again, what writing a file would only say after the work.

    Folders that are not there yet are not made: the nearest that is must take the file.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
