"""The recipe: one schema for everything that decides a run.

Unknown keys are errors. What an input, a frontend, an encoder or an objective can be told is declared by that
component (its ``Config``), so the recipe that is saved with a run holds every value, defaults included. How its
parts must fit together is in :mod:`mmvicreg.graph`, how it is read and written in :mod:`mmvicreg.recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from mmvicreg import registry
from mmvicreg.graph import check_branches, check_edges, check_sources
from mmvicreg.strict import Strict, component

LEFT_TO_THE_MACHINE = frozenset({"auto", "bf16-if-native"})
"""Values of ``training.precision`` that come to another on one machine than on the next; a run's recipe has which."""


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
    split: str = "train"
    """Which split was trained on, for data in splits."""
    samples: int | None = None
    """How many samples that were; 0: taken at the split's word; null: not recorded (by earlier versions)."""
    names: str | None = None
    """With them, the digest of their names (:func:`mmvicreg.samples.fingerprint`)."""


class InitConfig(Strict):
    """Weights that a branch's encoder starts from; its expander starts anew."""

    source: str
    """A run folder or one of its checkpoint files; or the path or URL of a file of weights."""
    branch: str | None = None
    """Which branch of that run; null: the one of the same name."""
    sha256: str | None = None
    """Of the tensors; filled in when the run starts, and checked whenever they are loaded again."""
    seen: list[SeenConfig] = Field(default_factory=list)
    """What they were trained on; filled in when the run starts."""


class BranchConfig(Strict):
    """One node of the graph: how one modality becomes an embedding and how that is regularised."""

    input: str
    """Which of ``inputs`` this branch reads."""
    view: Annotated[int, Field(ge=0, lt=15)] = 0
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
    crops: Annotated[int, Field(ge=0, le=64)] = 0
    """Multi-crop: so many more, smaller views of one branch (``a == b``), each joined to both whole ones;
    ``inputs.image.small_size`` and ``small_area`` say how small."""


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
    branches: dict[str, TermsConfig] = Field(default_factory=dict)
    """Coefficients that branches have on its batches in place of their own."""


Rate = Annotated[float, Field(gt=0)]
BaseRate = Annotated[
    Annotated[Rate, Tag("number")]
    | Annotated[dict[Annotated[int, Field(ge=2)] | Literal["other"], Rate], Tag("by batch")],
    Discriminator(lambda value: "by batch" if isinstance(value, Mapping) else "number"),
]


class OptimizerConfig(Strict):
    """How gradients become steps. Biases, normalisation (ndim 1) and SwAV's prototypes are never decayed."""

    name: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | None = None
    """Highest learning rate, whatever the batch."""
    base_lr: BaseRate | None = None
    """In its place, the rate at a batch of 256: lr = base_lr * batch_size / 256 (section 4.2). Or one for each batch
    size, ``{256: 0.5, 512: 0.4, other: 0.3}`` (C.4)."""
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
        if self.lr is not None:
            return self.lr
        base = self.base_lr
        if isinstance(base, dict):
            base = base.get(batch_size, base.get("other"))
        if base is None:
            raise ValueError(
                f"base_lr has no rate for a batch of {batch_size}: add it, or one for 'other' batches"
            )
        return base * batch_size / 256


class ScheduleConfig(Strict):
    """Linear warm-up, then a cosine down to ``final_lr_factor`` times the rate or ``final_lr``, or steps.

    Step by step: :func:`mmvicreg.training.optim.rate_factor`.
    """

    name: Literal["cosine", "step"] = "cosine"
    milestones: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
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

    epochs: Annotated[int, Field(ge=0)]
    """0: a run of the weights that its encoders start from, as they are (see mmvicreg.training.imported)."""
    batch_size: Annotated[int, Field(ge=2)]
    """Global: over all processes."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Samples that a process embeds at once, where its part of the batch is larger than memory; null: all
    of them. Loss and gradients stay those of the whole batch, for one forward more; but BatchNorm in a
    branch sees micro-batches (see mmvicreg.training.microbatch)."""
    precision: Literal["auto", "fp32", "bf16", "bf16-if-native", "fp64"] = "auto"
    """``bf16`` is autocast, ``fp64`` is for checking; the objective is in float32 or better.
    ``auto``: bf16 on a GPU that has it, fp32 on a CPU. ``bf16-if-native``: bf16 on such CPUs too as have
    instructions for it (AMX, AVX512-BF16, Arm's), fp32 on the others, where it is many times slower. The run's
    recipe has what it came to."""
    channels_last: bool = True
    compile: bool = False
    """Encoders of pictures through torch.compile; the same to rounding, after minutes of compiling."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between measurements of the embeddings (one line of metrics.jsonl each)."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """The newest so many; there is one an epoch."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Keep that of every so many epochs as well, for a curve (``mmvicreg eval curve``); null: the newest alone."""


class MonitorConfig(Strict):
    """When a branch counts as collapsed (see mmvicreg.training.monitor)."""

    dead_std: Annotated[float, Field(ge=0)] = 0.01
    """A dimension whose standard deviation is below this is dead; collapsed: so is their average."""
    max_dead: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Collapsed: a larger part of the embedding than this is dead."""
    min_rank: Annotated[float, Field(ge=0)] = 2.0
    """Collapsed: the embedding's effective rank is below this (below the middle of what a smaller batch allows)."""
    min_agreement: float = 0.05
    """An edge whose embeddings agree by less at the end of the run has taught nothing; said then, and only said."""
    min_spread: Annotated[float, Field(ge=0)] = 0.1
    """Embeddings that end with less than this part of the spread that they should have (VICReg's gamma; the whole
    sphere, for methods that compare directions) have nearly collapsed; said then, and only said."""
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
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
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
        registry.check_pair(pair)
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
                f"schedule.final_lr is {self.schedule.final_lr:g}, above the rate of {self.rate:g} it falls from at a "
                f"batch of {self.training.batch_size}: lower schedule.final_lr, or raise "
                f"{'training.batch_size' if self.optimizer.lr is None else 'optimizer.lr'}"
            )
        return self

    @model_validator(mode="after")
    def _one_graph(self) -> Recipe:
        check_branches(self)
        check_edges(self)
        check_sources(self)
        return self

    @property
    def trained_on(self) -> list[DatasetConfig]:
        """Every data set of the run, ``dataset`` first."""
        return [self.dataset, *(source.dataset for source in self.sources.values())]

    def trained_as(self, name: str) -> DatasetConfig | None:
        """How the run was trained on the data set called ``name``; None where it was not."""
        return next((config for config in self.trained_on if config.name == name), None)


def _input(name: str, options: Any) -> dict[str, Any]:
    """The options of one input, filled in; an input is registered under the name it has in the recipe.

    Raises:
        ValidationError: with the places of its problems from ``inputs`` on.
    """
    try:
        if not isinstance(options, Mapping | None):
            raise ValueError("expected a mapping from options to values")
        given = {"name": name, **(options or {})}
        if given["name"] != name:
            raise ValueError(f"name is '{given['name']}': an input is called by its kind")
        return component(given, registry.INPUTS)
    except ValidationError as error:
        problems = [
            InitErrorDetails(
                type=problem["type"],
                loc=(name, *problem["loc"]),
                input=problem["input"],
                ctx=problem.get("ctx", {}),
            )
            for problem in error.errors()
        ]
    except ValueError as error:
        problems = [InitErrorDetails(type="value_error", loc=(name,), input=options, ctx={"error": error})]
    raise ValidationError.from_exception_data("inputs", problems)
