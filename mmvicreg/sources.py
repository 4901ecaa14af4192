"""A run over several data sets: what is trained on each of them, as a recipe of its own.

``dataset`` is the first source and ``sources`` are the others; an edge belongs to the source it names, and to
``dataset`` when it names none. Every step draws a batch of each and embeds it with the branches that its edges join,
so that a branch on edges of two sources is trained on both, with one set of weights. The loss is the sum over the
sources, each times its ``weight``, of the method's loss over that source's own graph and batch: statistics and
negatives are never of two data sets at once, and neither is a batch that BatchNorm sees (its running statistics
are of all in turn). A method with parameters (predictors, prototypes) has those of each source apart.

An epoch is one of ``dataset``. The others go round: step t of the run takes batch t mod S of round t div S of a
source with S batches, in the order that (seed, name of the source, round) addresses. So the step decides everything,
and a resumed run needs nothing but its number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mmvicreg.config import Recipe, TermsConfig

FIRST = ""
"""The name, among sources, of a recipe's own ``dataset``."""


def part_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """Source -> the recipe of what is trained on it; without ``sources`` the recipe itself, as :data:`FIRST`.

    A part has the source's data set, batch size, edges and coefficients, the branches on these edges and their
    inputs. Branches that no edge joins are the first's.
    """
    if not recipe.sources:
        return {FIRST: recipe}
    elsewhere = {end for edge in recipe.edges if edge.source for end in (edge.a, edge.b)}
    own = {end for edge in recipe.edges if not edge.source for end in (edge.a, edge.b)}
    first = {name for name in recipe.branches if name in own or name not in elsewhere}
    parts = {FIRST: _part(recipe, None, first, {}, {"sources": {}})}
    for name, source in recipe.sources.items():
        ends = {end for edge in recipe.edges if edge.source == name for end in (edge.a, edge.b)}
        size = source.batch_size or recipe.training.batch_size
        changes = {
            "dataset": source.dataset,
            "sources": {},
            "seed": _seed(recipe.seed, name),
            "training": recipe.training.model_copy(update={"batch_size": size}),
        }
        parts[name] = _part(recipe, name, ends, source.branches, changes)
    return parts


def in_source(source: str, name: str) -> str:
    """What a node or the end of a term is called in a run's metrics: ``pictures:image/0``; the first's by itself."""
    return f"{source}:{name}" if source else name


def _part(
    recipe: Recipe,
    source: str | None,
    branches: set[str],
    terms: Mapping[str, TermsConfig],
    changes: Mapping[str, object],
) -> Recipe:
    kept = {
        name: branch.model_copy(update=terms[name].model_dump(exclude_none=True)) if name in terms else branch
        for name, branch in recipe.branches.items()
        if name in branches
    }
    read = {branch.input for branch in kept.values()}
    update = {
        "branches": kept,
        "inputs": {name: options for name, options in recipe.inputs.items() if name in read},
        "edges": [edge for edge in recipe.edges if edge.source == source],
        **changes,
    }
    return recipe.model_copy(update=update)


def _seed(seed: int, source: str) -> int:
    """So that the samples of two sources do not draw alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:7], "big")
