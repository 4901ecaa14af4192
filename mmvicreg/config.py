"""The recipe: one schema for everything that decides a run.

A recipe is a YAML file (``configs/<pair>/<name>.yaml``), overridden by named flags, overridden by
``--set a.b=c``. Unknown keys are errors. What an input, a frontend, an encoder or an objective can be
told is declared by that component (its ``Config``), so the recipe that is saved with a run holds every
value, defaults included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mmvicreg import registry
from mmvicreg.errors import UserError
from mmvicreg.registry import Registry, nearest

NO_ACCUMULATION = (
    "gradients are not accumulated over batches, because an objective over batch statistics or negatives would "
    "then be that of the small batches; for a batch larger than memory, set training.batch_size to the whole batch "
    "and training.micro_batch (--micro-batch) to what fits, which trains the whole batch exactly"
)
_BY_NAME = {"frontend", "encoder", "objective", "augmentation", "worker_augmentation"}
"""Parts of a recipe that may be given by their name alone."""


class Strict(BaseModel):
    """A part of a recipe: unknown keys are forbidden, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def component(value: Any, table: Registry) -> dict[str, Any]:
    """Check ``{"name": ..., **options}`` against the options its component declares; fill the defaults."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(f"expected {table.kind} as {{name: ..., option: ...}}")
    cls = table.load(str(value["name"]))
    options = {key: option for key, option in value.items() if key != "name"}
    for key in options:
        if key not in cls.Config.model_fields:
            known = sorted(cls.Config.model_fields)
            raise ValueError(
                f"unknown key '{key}' for the {table.kind} '{value['name']}'{nearest(key, known)}"
                f" Known: {', '.join(known)}"
            )
    return {"name": value["name"], **cls.Config.model_validate(options).model_dump(mode="json")}


class DatasetConfig(Strict):
    """Which samples are trained on and which are held out."""

    name: str
    root: str | None = None
    """Folder (or manifest file); null: ``$MMVICREG_DATA/<name>``, else the cache folder."""
    train_split: str = "train"
    """Split for training; ``a+b`` is a union. Ignored for data sets in folds."""
    eval_split: str | None = None
    """Split for evaluation; null: ``test`` where there is one, else ``val``."""
    fold: int | Literal["none"] = 1
    """For data sets in folds: the fold held out of pretraining; ``none`` pretrains on all (transductive)."""
    captions: Literal["one", "all"] = "one"
    """``one`` caption drawn per picture and epoch, or ``all``: every pair once an epoch."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """Where a sample cannot be decoded: stop with its name, or put another, chosen by its address, in its place."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in registry.DATASETS.names():
            registry.DATASETS.load(name)
        return name


class ExpanderConfig(Strict):
    """The MLP between representation and embedding, thrown away after pretraining."""

    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    norm: Literal["batchnorm", "none"] = "batchnorm"
    last_bias: bool = False


class SeenConfig(Strict):
    """Data that weights were trained on."""

    dataset: str
    fold: int | Literal["none"]
    """Which fold was held out, for data in folds."""


class InitConfig(Strict):
    """Weights that a branch's encoder starts from; its expander starts anew."""

    source: str
    """A run folder or one of its checkpoint files; or the path or URL of a file of weights."""
    branch: str | None = None
    """Which branch of that run; null: the one of the same name."""
    sha256: str | None = None
    """Of the tensors; filled in when the run starts, and checked whenever they are loaded again."""
    seen: list[SeenConfig] = []
    """What they were trained on; filled in when the run starts."""


class BranchConfig(Strict):
    """One node of the graph: how one modality becomes an embedding and how that is regularised."""

    input: str
    """Which of ``inputs`` this branch reads."""
    view: int = 0
    """Which random view of it; branches with the same input and view see the same crop."""
    frontend: dict[str, Any]
    encoder: dict[str, Any]
    init: InitConfig | None = None
    """What the encoder starts from in place of its own ``weights``; the source alone may be given."""
    expander: ExpanderConfig
    variance: Annotated[float, Field(ge=0)] = 25.0
    """mu of Eq. 6, for this branch alone."""
    covariance: Annotated[float, Field(ge=0)] = 1.0
    """nu of Eq. 6, for this branch alone."""
    lr_factor: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: float | None = None
    freeze: Literal["none", "encoder", "batchnorm"] = "none"
    """``encoder``: no gradient and no running statistics; ``batchnorm``: its running statistics only."""
    freeze_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs after which the frozen part thaws; null: never."""
    thaw_to: Literal["none", "batchnorm"] = "none"
    """What stays frozen then: nothing, or BatchNorm's running statistics, so that it keeps using them."""

    @model_validator(mode="after")
    def _thaw(self) -> BranchConfig:
        if self.freeze_epochs is not None and self.freeze == "none":
            raise ValueError("freeze_epochs says when a frozen part thaws, and freeze is none")
        if self.thaw_to != "none" and self.freeze_epochs is None:
            raise ValueError("thaw_to says what stays frozen after freeze_epochs, which is not given")
        return self

    @field_validator("frontend", mode="before")
    @classmethod
    def _frontend(cls, value: Any) -> dict[str, Any]:
        return component(value, registry.FRONTENDS)

    @field_validator("init", mode="before")
    @classmethod
    def _init(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder(cls, value: Any) -> dict[str, Any]:
        return component(value, registry.ENCODERS)


class EdgeConfig(Strict):
    """One edge of the graph. ``a == b`` pulls two views of one branch together (shared weights)."""

    a: str
    b: str
    invariance: Annotated[float, Field(ge=0)] = 25.0
    """lambda of Eq. 6."""
    source: str | None = None
    """Which of ``sources`` its samples are from; null: ``dataset``."""


class TermsConfig(Strict):
    """A branch's coefficients on one source; null: the branch's own."""

    variance: Annotated[float, Field(ge=0)] | None = None
    covariance: Annotated[float, Field(ge=0)] | None = None


class SourceConfig(Strict):
    """One more data set of the same run, for the edges that name it (see mmvicreg.sources)."""

    dataset: DatasetConfig
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Its samples in a step, over all processes; null: ``training.batch_size``."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What its loss is multiplied by before it is added to that of ``dataset``."""
    branches: dict[str, TermsConfig] = {}
    """Coefficients that branches have on its batches in place of their own."""


class OptimizerConfig(Strict):
    """How gradients become steps. Biases and normalisation (ndim 1) are never decayed."""

    name: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate, whatever the batch."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """In its place, the rate at a batch of 256: lr = base_lr * batch_size / 256 (section 4.2)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """``adamw``: taken from the weights; the others add it to the gradient."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of ``adamw`` and ``adam``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of ``sgd`` and ``lars``."""
    eta: Annotated[float, Field(gt=0)] = 0.001
    """Of ``lars``: the norm of a step, before the rate, as a part of the norm of the weights."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest l2 norm of the whole gradient; null: no clipping."""

    @model_validator(mode="after")
    def _one_rate(self) -> OptimizerConfig:
        if self.lr is None and self.base_lr is None:
            raise ValueError("missing key 'lr', or 'base_lr' for a rate that grows with the batch")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError("lr and base_lr are two ways to say the rate: set one of them to null")
        return self

    @model_validator(mode="after")
    def _options_of_its_own(self) -> OptimizerConfig:
        # a saved recipe names every option, so what is at its default is not held against it
        for option, names in {
            "betas": ("adamw", "adam"),
            "momentum": ("sgd", "lars"),
            "eta": ("lars",),
        }.items():
            if self.name not in names and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} is an option of {' and '.join(names)}, and name is {self.name}")
        return self

    def rate(self, batch_size: int) -> float:
        """The highest learning rate, for a global batch of this many samples."""
        return self.lr if self.lr is not None else (self.base_lr or 0.0) * batch_size / 256


class ScheduleConfig(Strict):
    """Linear warm-up from zero, then a cosine down to ``final_lr_factor`` times the rate or ``final_lr``, or steps."""

    name: Literal["cosine", "step"] = "cosine"
    milestones: list[Annotated[float, Field(gt=0)]] = []
    """Epochs after which the rate is multiplied by ``gamma``, for ``step``."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    final_lr_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    final_lr: Annotated[float, Field(ge=0)] | None = None
    """In its place, the rate itself; that of a branch is ``lr_factor`` times it, as its whole rate is."""

    @model_validator(mode="after")
    def _one_end(self) -> ScheduleConfig:
        if self.final_lr is not None and self.final_lr_factor:
            raise ValueError(
                "final_lr and final_lr_factor are two ways to say the last rate: give one of them"
            )
        return self

    def final_factor(self, rate: float) -> float:
        """The last rate as a part of ``rate``, the highest."""
        return self.final_lr_factor if self.final_lr is None else self.final_lr / rate

    @model_validator(mode="after")
    def _steps(self) -> ScheduleConfig:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("'milestones' are needed with name: step, and only there")
        return self


class TrainingConfig(Strict):
    """Length, batch, arithmetic, and what is written how often."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)]
    """Global: over all processes."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Samples that a process embeds at once, where its part of the batch is larger than memory; null: all
    of them. Loss and gradients stay those of the whole batch, for one forward more; but BatchNorm in a
    branch sees micro-batches (see mmvicreg.training.microbatch)."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """``bf16`` is autocast, ``fp64`` is for checking; the objective is in float32 or better.
    ``auto``: bf16 on a GPU that has it, fp32 on a CPU."""
    channels_last: bool = True
    compile: bool = False
    """Encoders of pictures through torch.compile; the same to rounding, after minutes of compiling."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between measurements of the embeddings (one line of metrics.jsonl each)."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2


class MonitorConfig(Strict):
    """When a branch counts as collapsed (see mmvicreg.training.monitor)."""

    dead_std: Annotated[float, Field(ge=0)] = 0.01
    """A dimension whose standard deviation is below this is dead; collapsed: so is their average."""
    max_dead: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Collapsed: a larger part of the embedding than this is dead."""
    min_rank: Annotated[float, Field(ge=0)] = 2.0
    """Collapsed: the embedding's effective rank is below this."""
    grace_steps: Annotated[int, Field(ge=0)] = 100
    patience: Annotated[int, Field(ge=1)] = 5
    """Collapsed measurements (a healthy one takes one back): the first warns, the last stops the run."""


class EvaluationConfig(Strict):
    """How the protocols read this run's branches."""

    space: Literal["embedding", "representation"] = "embedding"
    similarity: Literal["cosine", "dot", "euclidean"] = "cosine"
    batch_size: Annotated[int, Field(ge=1)] = 128


class Recipe(Strict):
    """Everything that decides a run, and nothing that does not (no paths of output, no device)."""

    pair: str
    dataset: DatasetConfig
    sources: dict[str, SourceConfig] = {}
    """More data sets, by names of your own. Each step takes a batch of every one."""
    seed: Annotated[int, Field(ge=0)] = 0
    inputs: dict[str, dict[str, Any]]
    branches: dict[str, BranchConfig]
    edges: Annotated[list[EdgeConfig], Field(min_length=1)]
    objective: dict[str, Any]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("pair")
    @classmethod
    def _pair(cls, pair: str) -> str:
        check_pair(pair)
        return pair

    @field_validator("inputs", mode="before")
    @classmethod
    def _inputs(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping from input names to their options")
        return {name: _input(str(name), options) for name, options in value.items()}

    @field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> dict[str, Any]:
        return component(value, registry.OBJECTIVES)

    @property
    def rate(self) -> float:
        """The highest learning rate, before any branch's ``lr_factor``."""
        return self.optimizer.rate(self.training.batch_size)

    @model_validator(mode="after")
    def _falling_rate(self) -> Recipe:
        if self.schedule.final_factor(self.rate) > 1:
            raise ValueError(
                f"schedule.final_lr is {self.schedule.final_lr:g}, above the rate of {self.rate:g} it falls from"
            )
        return self

    @model_validator(mode="after")
    def _graph(self, _: ValidationInfo) -> Recipe:
        for name, branch in self.branches.items():
            if "/" in name or "." in name:
                raise ValueError(f"branch name '{name}' must not contain '/' or '.'")
            if branch.input not in self.inputs:
                raise ValueError(
                    f"branch '{name}' reads input '{branch.input}', which is not one of "
                    f"{', '.join(self.inputs)}{nearest(branch.input, self.inputs)}"
                )
            source = self.inputs[branch.input]
            for key in sorted((branch.frontend.keys() & source.keys()) - {"name"}):
                if branch.frontend[key] != source[key]:  # a mel of another rate would be silently wrong
                    raise ValueError(
                        f"branches.{name}.frontend.{key} is {branch.frontend[key]} and "
                        f"inputs.{branch.input}.{key} {source[key]}; set both to the same"
                    )
        there: set[tuple[frozenset[str], str | None]] = set()
        for edge in self.edges:
            if (ends := (frozenset((edge.a, edge.b)), edge.source)) in there:
                raise ValueError(f"the edge {edge.a}-{edge.b} is there twice; add their invariance up in one")
            there.add(ends)
            for end in (edge.a, edge.b):
                if end not in self.branches:
                    raise ValueError(
                        f"an edge names branch '{end}', which is not one of "
                        f"{', '.join(self.branches)}{nearest(end, self.branches)}"
                    )
            if self.branches[edge.a].expander.widths[-1] != self.branches[edge.b].expander.widths[-1]:
                raise ValueError(
                    f"the edge {edge.a}-{edge.b} joins embeddings of "
                    f"{self.branches[edge.a].expander.widths[-1]} and "
                    f"{self.branches[edge.b].expander.widths[-1]} dimensions; their expanders must end in "
                    "the same width"
                )
        return self

    @model_validator(mode="after")
    def _sources(self) -> Recipe:
        for edge in self.edges:
            if edge.source is not None and edge.source not in self.sources:
                known = f"one of {', '.join(self.sources)}" if self.sources else "there: the recipe has none"
                raise ValueError(
                    f"the edge {edge.a}-{edge.b} names source '{edge.source}', which is not {known}"
                    f"{nearest(edge.source, self.sources)}"
                )
        if all(edge.source is not None for edge in self.edges):
            raise ValueError(
                "every edge names a source, so that nothing is trained on 'dataset'; leave 'source' out of the edges "
                "of one of them and make that one 'dataset': its length is an epoch's"
            )
        for name, source in self.sources.items():
            if not name or set(name) & set("/.:") or name == "dataset":
                raise ValueError(f"source name '{name}' must not be 'dataset', nor contain '/', '.' or ':'")
            ends = {end for edge in self.edges if edge.source == name for end in (edge.a, edge.b)}
            if not ends:
                raise ValueError(f"no edge names source '{name}': give one 'source: {name}', or leave it out")
            for branch in source.branches:
                if branch not in ends:
                    raise ValueError(
                        f"sources.{name}.branches: '{branch}' is not on an edge of that source"
                        f"{nearest(branch, ends)} Those are of {', '.join(sorted(ends))}"
                    )
        return self

    @property
    def trained_on(self) -> list[DatasetConfig]:
        """Every data set of the run, ``dataset`` first."""
        return [self.dataset, *(source.dataset for source in self.sources.values())]

    def trained_as(self, name: str) -> DatasetConfig | None:
        """How the run was trained on the data set called ``name``; None where it was not."""
        return next((config for config in self.trained_on if config.name == name), None)


def _input(name: str, options: Any) -> dict[str, Any]:
    """The options of one input, filled in; an input is registered under the name it has in the recipe."""
    if not isinstance(options, Mapping | None):
        raise ValueError(f"{name}: expected a mapping from options to values")
    given = {"name": name, **(options or {})}
    if given["name"] != name:
        raise ValueError(f"{name}.name is '{given['name']}': an input is called by its kind")
    try:
        return component(given, registry.INPUTS)
    except ValidationError as error:
        problems = (_explain({**problem, "loc": (name, *problem["loc"])}) for problem in error.errors())
        raise ValueError("; ".join(problems)) from error


def check_pair(pair: str) -> None:
    """Raise :class:`UserError` naming the nearest pair unless ``pair`` is one."""
    if pair not in registry.PAIRS:
        raise UserError(
            f"unknown pair '{pair}'{nearest(pair, registry.PAIRS)} Known: {', '.join(registry.PAIRS)}."
        )


def recipes_folder() -> Path:
    """The folder of shipped recipes, in a checkout and in an installed wheel alike."""
    import mmvicreg

    for base in mmvicreg.__path__:
        if (Path(base) / "configs").is_dir():
            return Path(base) / "configs"
    raise FileNotFoundError("the package is installed without its configs folder")


def recipe_path(pair: str, dataset: str, recipe: str | None) -> Path:
    """The YAML file meant by ``--recipe`` (a path, or a name in ``configs/<pair>``; default: the data set).

    Raises:
        UserError: no such recipe; the nearest name and the known ones are given.
    """
    if recipe is not None and (recipe.endswith((".yaml", ".yml")) or "/" in recipe):
        path = Path(recipe)
        if not path.is_file():
            raise UserError(f"no recipe file '{recipe}'")
        return path
    folder = recipes_folder() / pair
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    name = recipe if recipe is not None else dataset
    if name not in names:
        raise UserError(
            f"no recipe '{name}' for the pair {pair}{nearest(name, names)} Known: {', '.join(names)}; "
            "or give the path of a YAML file."
        )
    return folder / f"{name}.yaml"


def load_recipe(
    path: Path, overrides: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
) -> Recipe:
    """Read a recipe file and apply named overrides, then ``a.b=c`` settings, then the schema.

    Args:
        path: the YAML file.
        overrides: dotted key -> value, from named flags.
        settings: ``--set`` arguments; the value is parsed as YAML.

    Raises:
        UserError: unreadable YAML, a recipe of another pair than the overrides', a malformed setting, an
            unknown key (the nearest valid one is named) or a value out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"the recipe {path} is not a mapping of keys to values")
    asked, own = (overrides or {}).get("pair"), tree.get("pair")
    if asked is not None and own in registry.PAIRS and own != asked:
        # its branches would train all the same, under the name of a pair that they are not
        raise UserError(f"the recipe {path} is for the pair {own}, and --pair is {asked}; give --pair {own}")
    for key, value in (overrides or {}).items():
        _assign(tree, key, value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(
                f"--set expects key=value with a dotted key, such as training.epochs=5; got '{setting}'"
            )
        try:
            _assign(tree, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UserError(f"the value in --set {setting} is not valid YAML: {error}") from error
    return parse_recipe(tree, source=str(path))


def parse_recipe(tree: Mapping[str, Any], *, source: str) -> Recipe:
    """Validate a tree of plain values into a :class:`Recipe`; ``source`` is named in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default filled in; :func:`parse_recipe` reads it back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, as ``key: old -> new``."""
    a, b = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in sorted({*a, *b})
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        node = _descend(node, part, ".".join(parents[: depth + 1]), key)
    if isinstance(node, list):
        node[_position(node, leaf, key)] = value
    elif isinstance(node, dict):
        node[leaf] = value
    else:
        raise UserError(f"cannot set '{key}': '{'.'.join(parents)}' holds a single value")


def _descend(node: Any, part: str, path: str, key: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, key)]
    if not isinstance(node, dict):
        raise UserError(f"cannot set '{key}': '{path.rpartition('.')[0]}' holds a single value")
    if isinstance(node.get(part), str) and part in _BY_NAME:
        node[part] = {"name": node[part]}
    if path in {f"branches.{part}", f"inputs.{part}", f"sources.{part}"} and part not in node:
        raise UserError(
            f"cannot set '{key}': the recipe has no '{path}'{nearest(part, node)} It has: {', '.join(node) or 'none'}."
        )
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _position(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(f"cannot set '{key}': '{part}' is not a position in a list of {len(items)}")
    return int(part)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, node in tree.items() for k, v in _flatten(node, f"{prefix}{name}.").items()}
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        return {k: v for i, node in enumerate(tree) for k, v in _flatten(node, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): tree}


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    context = problem.get("ctx", {}).get("error")
    if isinstance(context, ValidationError):  # a component's own options
        return "; ".join(
            _explain({**inner, "loc": (*problem["loc"], *inner["loc"])}) for inner in context.errors()
        )
    if problem["type"] == "extra_forbidden" and "accum" in location[-1].lower():
        return f"unknown key '{key}': {NO_ACCUMULATION}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(location)}"
    if problem["type"] == "missing":
        return f"missing key '{key}'"
    message = str(context) if context is not None else str(problem["msg"])
    return f"{key}: {message}" if key else message


def _nearest_key(location: list[str]) -> str:
    """Suggest a sibling key, or any key of the schema whose last part is near."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            arguments = [
                a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            model = arguments[-1] if arguments else model
    if isinstance(model, type) and issubclass(model, BaseModel):
        return nearest(location[-1], model.model_fields)
    return ""
