"""Whether the data of a sweep's alternatives have the split that it is to be judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmvicreg.config import Recipe
from mmvicreg.datasets import open_dataset
from mmvicreg.errors import UserError
from mmvicreg.registry import nearest
from mmvicreg.runs import RECIPE, Run, open_run

if TYPE_CHECKING:
    from mmvicreg.samples import DataSet


def check_split(split: str, plans: Mapping[str, Sequence[Recipe]], out: Path) -> None:
    """Refuse a split to judge on that the data do not have: the judgement comes only after a whole training.

    Where nothing is said of the data's place, it is looked at where a run that is to be continued has it.

    Args:
        split: what the sweep is judged on; ``a+b`` is a union.
        plans: alternative -> its recipe, once a seed.
        out: the sweep's folder, where runs that were begun are.

    Raises:
        UserError: no such split, or no data; the alternative is named.
    """
    from mmvicreg.eval.retrieval import judged_data

    opened: dict[tuple[str, str | None], DataSet] = {}
    for name, seeds in plans.items():
        try:
            config = judged_data(Run(Path(name), seeds[0]))
            begun = (out / name / f"seed{recipe.seed}" for recipe in seeds)
            there = next((folder for folder in begun if (folder / RECIPE).is_file()), None)
            if config.root is None and there is not None:
                config = judged_data(open_run(there))
            place = (config.name, config.root)
            if place not in opened:
                root = Path(config.root) if config.root is not None else None
                opened[place] = open_dataset(config.name, root=root)
        except UserError as error:
            raise UserError(f"alternative '{name}': {error}") from error
        data = opened[place]
        splits = data.splits()
        for part in (part.strip() for part in split.split("+")):
            if part not in splits:
                raise UserError(
                    f"alternative '{name}': split: {data.name} at {data.root} has no split '{part}' to judge on"
                    f"{nearest(part, splits)} It has {', '.join(splits)}. Name one in the sweep's file "
                    "that is not test data; a+b is a union"
                )
