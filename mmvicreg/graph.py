"""Whether the parts of a recipe make one graph: inputs, branches, edges, and the sources that edges are trained on.

The schema calls these once every part is valid by itself. A mistake is a ``ValueError``, which becomes one message
with those of the other parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmvicreg.registry import nearest

if TYPE_CHECKING:
    from mmvicreg.config import Recipe


def check_branches(recipe: Recipe) -> None:
    """Every branch reads an input there is, at the rate that input has.

    Raises:
        ValueError: a name that paths or dotted keys cannot hold, no such input, or one option with two values.
    """
    for name, branch in recipe.branches.items():
        if "/" in name or "." in name:
            raise ValueError(f"branch name '{name}' must not contain '/' or '.'")
        if branch.input not in recipe.inputs:
            raise ValueError(
                f"branch '{name}' reads input '{branch.input}', which is not one of "
                f"{', '.join(recipe.inputs)}{nearest(branch.input, recipe.inputs)}"
            )
        source = recipe.inputs[branch.input]
        for key in sorted((branch.frontend.keys() & source.keys()) - {"name"}):
            if branch.frontend[key] != source[key]:  # a mel of another rate would be silently wrong
                raise ValueError(
                    f"branches.{name}.frontend.{key} is {branch.frontend[key]} and "
                    f"inputs.{branch.input}.{key} {source[key]}; set both to the same"
                )


def check_edges(recipe: Recipe) -> None:
    """Every edge joins branches there are, of one width of embedding, and is there once for each source; small
    crops are of one branch that reads pictures.

    Raises:
        ValueError: it does not.
    """
    there: set[tuple[frozenset[str], str | None]] = set()
    for edge in recipe.edges:
        if (ends := (frozenset((edge.a, edge.b)), edge.source)) in there:
            raise ValueError(f"the edge {edge.a}-{edge.b} is there twice; add their invariance up in one")
        there.add(ends)
        for end in (edge.a, edge.b):
            if end not in recipe.branches:
                raise ValueError(
                    f"an edge names branch '{end}', which is not one of "
                    f"{', '.join(recipe.branches)}{nearest(end, recipe.branches)}"
                )
        if recipe.branches[edge.a].expander.widths[-1] != recipe.branches[edge.b].expander.widths[-1]:
            raise ValueError(
                f"the edge {edge.a}-{edge.b} joins embeddings of "
                f"{recipe.branches[edge.a].expander.widths[-1]} and "
                f"{recipe.branches[edge.b].expander.widths[-1]} dimensions; their expanders must end in "
                "the same width"
            )
        if edge.crops and (edge.a != edge.b or recipe.branches[edge.a].input != "image"):
            raise ValueError(
                f"the edge {edge.a}-{edge.b} has crops, which are smaller views for an edge from one branch that reads "
                "pictures to itself; leave them out"
            )


def check_sources(recipe: Recipe) -> None:
    """Every source is trained on by an edge, and so is the recipe's own data set.

    Raises:
        ValueError: it is not, an edge names another, or a source's coefficients are of a branch it does not train.
    """
    for edge in recipe.edges:
        if edge.source is not None and edge.source not in recipe.sources:
            known = f"one of {', '.join(recipe.sources)}" if recipe.sources else "there: the recipe has none"
            raise ValueError(
                f"the edge {edge.a}-{edge.b} names source '{edge.source}', which is not {known}"
                f"{nearest(edge.source, recipe.sources)}"
            )
    if all(edge.source is not None for edge in recipe.edges):
        raise ValueError(
            "every edge names a source, so that nothing is trained on 'dataset'; leave 'source' out of the edges "
            "of one of them and make that one 'dataset': its length is an epoch's"
        )
    for name, source in recipe.sources.items():
        if not name or set(name) & set("/.:") or name == "dataset":
            raise ValueError(f"source name '{name}' must not be 'dataset', nor contain '/', '.' or ':'")
        ends = {end for edge in recipe.edges if edge.source == name for end in (edge.a, edge.b)}
        if not ends:
            raise ValueError(f"no edge names source '{name}': give one 'source: {name}', or leave it out")
        for branch in source.branches:
            if branch not in ends:
                raise ValueError(
                    f"sources.{name}.branches: '{branch}' is not on an edge of that source"
                    f"{nearest(branch, ends)} Those are of {', '.join(sorted(ends))}"
                )
