"""The graph of branches as one module: both towers, the expanders and the objective in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmvicreg import registry
from mmvicreg.branches.expander import expand, expander
from mmvicreg.branches.init import start_encoder
from mmvicreg.branches.target import follow, momentum_at, move, moving_copy
from mmvicreg.branches.weights import load_strictly
from mmvicreg.config import BranchConfig, EdgeConfig, Recipe
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import FIRST_CROP, Input, Item
from mmvicreg.objectives.base import Edge, Graph, Node, NonFiniteError, Objective
from mmvicreg.sources import FIRST, in_source, part_recipes

ON_CPU = frozenset({"length", "draws", "view"})
"""What of an item stays on the CPU: lengths, where packing wants them; draws and the view's number, of which each
picture's changes are decided there. Brought back from a GPU, they would have every step wait for what it computes."""


@dataclass
class Batch:
    """What the loader hands over.

    Attributes:
        index: positions of the samples in the training list, int64 ``(n,)``.
        views: ``"<input>/<view>"`` -> the collated tensors of that view.
        others: the same step's batches of the recipe's other sources, by name.
    """

    index: Tensor
    views: dict[str, Item]
    others: dict[str, Batch] = field(default_factory=dict)

    def by_source(self) -> dict[str, Batch]:
        """This batch and the others, by source."""
        return {FIRST: self, **self.others}

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, copied while the device computes where the memory is pinned."""
        views = {
            key: {k: v if k in ON_CPU else v.to(device, non_blocking=True) for k, v in item.items()}
            for key, item in self.views.items()
        }
        others = {name: other.to(device) for name, other in self.others.items()}
        return Batch(self.index.to(device, non_blocking=True), views, others)

    def pin_memory(self) -> Batch:
        """Called by the data loader's pinning thread."""
        views = {
            k: {name: value.pin_memory() for name, value in item.items()} for k, item in self.views.items()
        }
        others = {name: other.pin_memory() for name, other in self.others.items()}
        return Batch(self.index.pin_memory(), views, others)

    def rows(self, which: slice) -> Batch:
        """Some of the samples, without the other sources'; the tensors are views of this batch's."""
        views = {
            key: {name: value[which] for name, value in item.items()} for key, item in self.views.items()
        }
        return Batch(self.index[which], views)


@dataclass
class ModelOutput:
    """One forward: the loss, its terms, and detached copies to measure.

    Attributes:
        loss: scalar to differentiate.
        terms: detached scalars of the objective.
        embeddings: node -> ``(n_local, width)``, detached; of another source ``"<source>:<node>"``.
        representations: node -> ``(n_local, features)``, detached.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    embeddings: dict[str, Tensor]
    representations: dict[str, Tensor]


class Branch(nn.Module):
    """frontend -> encoder -> representation y -> expander -> embedding z.

    Args:
        config: the branch's part of the recipe.
        source: its input, fitted.
        name: what the recipe calls it.
        pretrained: load the weights the encoder is to start from; false where a checkpoint follows.
        initial: a copy of what ``init`` names, to be loaded in its place.
    """

    def __init__(
        self,
        config: BranchConfig,
        source: Input,
        *,
        name: str,
        pretrained: bool,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        spec = source.spec()
        frontend = registry.FRONTENDS.load(config.frontend["name"])
        encoder = registry.ENCODERS.load(config.encoder["name"])
        self.config = config
        self.frontend = frontend(_options(frontend, config.frontend), spec)
        own = pretrained and config.init is None and initial is None
        self.encoder = encoder(_options(encoder, config.encoder), self.frontend.spec, pretrained=own)
        if pretrained and initial is not None:
            load_strictly(
                self.encoder, initial, what=f"the initial weights of '{name}'", way_out="start a new run"
            )
        elif pretrained and config.init is not None:
            start_encoder(self.encoder, config, source, name=name)
        self.expander = expander(self.encoder.out_features, config.expander)
        self.frozen: str = config.freeze

    def represent(self, item: Item) -> Tensor:
        """Representation ``(n, features)``."""
        x = self.frontend(item)
        if isinstance(x, Tensor):
            # frontends give float32; a run for checking is in float64
            x = x.to(next(self.expander.parameters()).dtype)
        out: Tensor = self.encoder(x)
        return out

    def forward(self, item: Item) -> tuple[Tensor, Tensor]:
        """Representation ``(n, features)`` and embedding ``(n, width)``."""
        y = self.represent(item)
        return y, self.expander(y)

    def freeze(self, what: str) -> None:
        """Freeze ``"encoder"``, its ``"batchnorm"`` statistics only, or ``"none"``."""
        self.frozen = what
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(what != "encoder")
        self.train(self.training)

    def train(self, mode: bool = True) -> Branch:
        """Training mode, but a frozen part keeps evaluating: its statistics must not move either."""
        super().train(mode)
        if self.frozen == "encoder":
            self.encoder.eval()
        elif self.frozen == "batchnorm":
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()
        return self


class JointModel(nn.Module):
    """Every branch of a recipe, joined by its objective."""

    def __init__(
        self,
        recipe: Recipe,
        inputs: Mapping[str, Input],
        *,
        pretrained: bool = True,
        initial: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.inputs = dict(inputs)
        self.branches = nn.ModuleDict(
            {
                name: Branch(
                    config,
                    inputs[config.input],
                    name=name,
                    pretrained=pretrained,
                    initial=(initial or {}).get(name),
                )
                for name, config in recipe.branches.items()
            }
        )
        self.graphs = {name: build_graph(part) for name, part in part_recipes(recipe).items()}
        self.graph = self.graphs[FIRST]
        for node in (node for graph in self.graphs.values() for node in graph.nodes if node.crop):
            if getattr(self.branch(node.branch).encoder, "one_size", False):
                raise UserError(
                    f"the encoder {recipe.branches[node.branch].encoder['name']} of branch '{node.branch}' reads "
                    "pictures of one size, and small crops have another; choose a ResNet, or leave out the edge's crops"
                )
        self.objective = _objective(recipe, self.graph)
        self.objectives = nn.ModuleDict(
            {name: _objective(recipe, graph) for name, graph in self.graphs.items() if name != FIRST}
        )
        averaged = recipe.branches if self.objective.target_momentum is not None else ()
        self.targets = nn.ModuleDict({name: moving_copy(self.branch(name)) for name in averaged})
        self.autocast: torch.dtype | None = None

    def branch(self, name: str) -> Branch:
        """The branch called ``name``."""
        branch = self.branches[name]
        assert isinstance(branch, Branch)
        return branch

    def forward(self, batch: Batch) -> ModelOutput:
        """Embed every node of the graph and compute the objective over the global batch, source by source."""
        parts = {}
        for source, rows in batch.by_source().items():
            embeddings, representations = self.embed(rows, source)
            targets = self.embed_targets(rows, source)
            parts[source] = self.judge(embeddings, representations, targets, source=source)
        return self.join(parts)

    def judge(
        self,
        embeddings: Mapping[str, Tensor],
        representations: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        *,
        source: str = FIRST,
    ) -> ModelOutput:
        """The objective over a source's global batch, of which these are the local rows."""
        objective: Any = self.objective_of(source)  # only a method with targets takes them
        try:
            output = objective(embeddings, targets=targets) if targets else objective(embeddings)
        except NonFiniteError as error:
            error.source = source
            raise
        return ModelOutput(
            output.loss,
            output.terms,
            {name: z.detach() for name, z in embeddings.items()},
            {name: y.detach() for name, y in representations.items()},
        )

    def objective_of(self, source: str) -> Objective:
        """The objective over the graph of one source."""
        found = self.objectives[source] if source != FIRST else self.objective
        assert isinstance(found, Objective)
        return found

    def join(self, parts: Mapping[str, ModelOutput]) -> ModelOutput:
        """The whole step's output: the weighted sum of the sources' losses; a single source's as it is.

        The terms have each source's own loss, unweighted, as ``loss/dataset`` and ``loss/<source>``.
        """
        if len(parts) == 1:
            return parts[FIRST]
        loss = parts[FIRST].loss
        whole = ModelOutput(loss, {}, {}, {})
        terms: dict[str, Tensor] = {}
        for source, part in parts.items():
            if source != FIRST:
                loss = loss + self.recipe.sources[source].weight * part.loss
            terms[f"loss/{source or 'dataset'}"] = part.loss.detach()
            for name, value in part.terms.items():
                kind, _, where = name.partition("/")
                terms[f"{kind}/{in_source(source, where)}"] = value
            whole.embeddings |= {in_source(source, name): z for name, z in part.embeddings.items()}
            whole.representations |= {in_source(source, name): y for name, y in part.representations.items()}
        return ModelOutput(loss, terms, whole.embeddings, whole.representations)

    def embed(self, batch: Batch, source: str = FIRST) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embedding ``(n_local, width)`` and representation ``(n_local, features)`` of every node of a source."""
        embeddings: dict[str, Tensor] = {}
        representations: dict[str, Tensor] = {}
        with self.arithmetic(batch.index.device):
            shared: dict[str, list[str]] = {}
            for node in self.graphs[source].nodes:
                item = batch.views[view_key(self.recipe, node)]
                representations[node.name] = self.branch(node.branch).represent(item)
                shared.setdefault(node.branch, []).append(node.name)
            for branch, nodes in shared.items():
                views = expand(self.branch(branch).expander, [representations[node] for node in nodes])
                embeddings.update(zip(nodes, views, strict=True))
        return embeddings, representations

    def embed_targets(self, batch: Batch, source: str = FIRST) -> dict[str, Tensor]:
        """What the moving averages embed every node as, without gradient; empty for a method without targets.

        To be called after :meth:`embed`, so that the branches draw the same random numbers with and without.
        """
        embeddings: dict[str, Tensor] = {}
        with self.arithmetic(batch.index.device):
            for node in self.graphs[source].nodes if self.targets else ():
                item = batch.views[view_key(self.recipe, node)]
                _, embeddings[node.name] = follow(self.targets[node.branch], self.branch(node.branch), item)
        return embeddings

    def move_targets(self, step: int, *, steps: int) -> None:
        """Let the moving averages follow the branches, after the optimiser's 0-based ``step`` of ``steps``."""
        start = self.objective.target_momentum
        if start is None:
            return
        for name, average in self.targets.items():
            momentum = momentum_at(step, steps=steps, start=start)
            move(average, self.branch(name), momentum=momentum)

    @contextmanager
    def arithmetic(self, device: torch.device) -> Iterator[None]:
        """Autocast for the towers, where the run asked for it."""
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            yield


def _objective(recipe: Recipe, graph: Graph) -> Objective:
    options = {key: value for key, value in recipe.objective.items() if key != "name"}
    made = registry.OBJECTIVES.load(recipe.objective["name"]).from_config(options, graph)
    assert isinstance(made, Objective)
    return made


def build_graph(recipe: Recipe) -> Graph:
    """Nodes and edges of a recipe, or of its part on one source (:mod:`mmvicreg.sources`).

    An edge from a branch to itself joins two views of it, which are two nodes: ``image/0`` and ``image/1``, each
    with the branch's variance and covariance. An edge from such a branch to another starts at its first view.
    With ``crops`` it joins both of them to every small crop as well, ``image/2`` and on. The edge's invariance is
    divided so that every view has as much of it, on average, as with two.
    """
    crops = {edge.a: edge.crops for edge in recipe.edges if edge.a == edge.b}

    def nodes(name: str) -> list[str]:
        return [f"{name}/{view}" for view in range(2 + crops[name])] if name in crops else [name]

    def edges(edge: EdgeConfig) -> list[Edge]:
        if edge.a != edge.b:
            return [Edge(nodes(edge.a)[0], nodes(edge.b)[0], edge.invariance)]
        whole, other, *small = nodes(edge.a)
        ends = [(whole, other), *((view, crop) for view in (whole, other) for crop in small)]
        share = (2 + len(small)) / (2 * len(ends))
        return [Edge(a, b, edge.invariance * share) for a, b in ends]

    return Graph(
        nodes=tuple(
            Node(
                name=node,
                branch=name,
                width=branch.expander.widths[-1],
                variance=branch.variance,
                covariance=branch.covariance,
                crop=place >= 2,
            )
            for name, branch in recipe.branches.items()
            for place, node in enumerate(nodes(name))
        ),
        edges=tuple(made for edge in recipe.edges for made in edges(edge)),
    )


def view_key(recipe: Recipe, node: Node) -> str:
    """Which loaded view a node reads: ``"<input>/<view>"``."""
    config = recipe.branches[node.branch]
    offset = int(node.name.rpartition("/")[2]) if "/" in node.name else 0
    return f"{config.input}/{FIRST_CROP + offset - 2 if node.crop else config.view + offset}"


def build_inputs(recipe: Recipe) -> dict[str, Input]:
    """The inputs of a recipe, not yet fitted."""
    inputs: dict[str, Input] = {}
    for name, options in recipe.inputs.items():
        cls = registry.INPUTS.load(name)
        inputs[name] = cls(_options(cls, options))
    return inputs


def _options(cls: Any, config: Mapping[str, Any]) -> Any:
    return cls.Config.model_validate({key: value for key, value in config.items() if key != "name"})
