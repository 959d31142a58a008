"""The sections of a spec that are settings and not structure, as plain typed values with their defaults.

Structure (signatures, modules, steps) is lowered by `graph`; everything here is read by whoever opens models,
data, retrievers, metrics and optimisers, and only through these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bt_compiler.diagnostics import Span
from bt_compiler.spec.tree import Place
from bt_compiler.spec.types import Field

StepKind = Literal["prompts", "weights"]
TuningMethod = Literal["lora", "rslora", "dora", "full"]
RowSource = Literal["self", "demos", "sampled", "teacher", "gold", "hinted"]
Spans = Mapping[Place, Span]
"""Where settings of a section stand in the spec, by their place in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How completions are sampled."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 128
    """Token budget of each text field that has none of its own."""


IN_PROCESS = ("transformers", "vllm")
"""Engines that hold the model's weights themselves."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Highest ranks that vLLM can be started for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSection:
    """`vllm` of a model: what vLLM is told of the devices; None: vLLM's own default."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    distributed_executor_backend: str | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_lora_rank: int = 32
    """Filled in from `optimize.weights.r` where the spec does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a million tokens of a model cost, in the user's currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of one call."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """One entry of `models`, or `model` under the name `default`."""

    name: str
    id: str
    """A local folder (absolute once resolved), a hub id, or the name a server knows the model by."""
    engine: str = "transformers"
    revision: str | None = None
    endpoints: tuple[str, ...] = ()
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never in a spec."""
    dtype: str = "auto"
    """`auto` (measured once, journalled), `float32`, `bfloat16` or `float16`."""
    batch: int | None = None
    """Rows decoded together in process, or requests in flight to a server; None: the engine's choice."""
    weights: str | None = None
    """Of a model that servers run: where its weights are at hand for training, a local folder or a hub id."""
    vllm: VllmSection | None = None
    """Set where the engine is `vllm`."""
    generation: Generation = field(default_factory=Generation)
    price: Price | None = None
    """For `--budget` in money."""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What one column of a row has to be for the row to be taken; all that is given has to hold."""

    column: str
    among: tuple[Any, ...] = ()
    """Values allowed; empty: any."""
    excluded: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """How a field is cut out of the text of its column; one of the two is given."""

    match: str | None = None
    """A regular expression: its first group where it has one, else what it matches. The first match counts."""
    number_after: str | None = None
    """The number that follows the last of these marks, as in GSM8K's `#### 42`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSection:
    """Where the rows of one split come from: `data/train.jsonl`, `sklearn:iris`, … and which of them are taken."""

    path: str
    limit: int | None = None
    """First n rows only, of those that fit `where`."""
    where: tuple[Condition, ...] = ()
    sample: int | None = None
    """So many rows, drawn by the seed and their content. Samples of one source for several splits do not overlap."""
    seed: int = 0
    """Seed of the sample."""
    span: Span | None = field(default=None, compare=False)
    spans: Spans = field(default_factory=dict, compare=False)
    """Of `(where, COLUMN)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """`data`: either `path` (split by content hash) or `train` with optional `dev` and `test`."""

    path: SourceSection | None = None
    split: Mapping[str, float] = field(default_factory=dict)
    """With `path`: rows per split (all > 1) or proportions (all <= 1), for `train`, `dev`, `test`."""
    stratify: str | None = None
    """With `path`: label whose values every split has in the proportions of the whole."""
    train: SourceSection | None = None
    dev: SourceSection | None = None
    test: SourceSection | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Program field -> column of the data, where the names differ."""
    extract: Mapping[str, Extraction] = field(default_factory=dict)
    """Program field -> how it is cut out of its column."""
    labels: tuple[Field, ...] = ()
    """Label fields beyond the program's outputs, with their types."""
    span: Span | None = field(default=None, compare=False)
    spans: Spans = field(default_factory=dict, compare=False)
    """Of `(columns, FIELD)` and `(stratify,)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSection:
    """The passages of a retriever: a JSONL or CSV file and how a passage is made of a row."""

    path: str
    id: str | None = None
    """Column that identifies a passage; None: the row number, behind `prefix`."""
    prefix: str = ""
    """Keeps row numbers of this corpus apart from other ids; empty where the spec searches nothing else."""
    title: str | None = None
    """Column of the title; None: `title` where there is one."""
    text: str = "{text}"
    """What is indexed and shown, columns in braces."""
    where: tuple[Condition, ...] = ()
    """Which rows are passages of this retriever."""
    span: Span | None = field(default=None, compare=False)
    spans: Spans = field(default_factory=dict, compare=False)
    """Of `(where, COLUMN)`, `(id,)`, `(title,)` and `(text,)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverSection:
    """One entry of `retrievers`; what a kind understands beyond corpus, of and k is in `options`."""

    name: str
    kind: str
    corpus: CorpusSection | None = None
    of: tuple[str, ...] = ()
    """Names of the retrievers whose answers this one combines."""
    k: int = 3
    description: str | None = None
    """What is to be found there, as a `react` module is told."""
    options: Mapping[str, Any] = field(default_factory=dict)
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSection:
    """One entry of `tools`."""

    name: str
    kind: str
    """`calculator`, `split_text`, `entry_point` (a function of an installed package) or `function` (of a file named on
    the command line)."""
    description: str | None = None
    """What it is for, as a `react` module is told."""
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    time_limit: float = 10.0
    """Seconds a call may take."""
    option: str | int | None = None
    """Name of the entry point or function; words of a chunk of `split_text`, None: 200."""
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSection:
    """`metric`: a registered kind, the program output it judges and the label it compares with."""

    kind: str
    output: str
    """Empty where the kind judges something else: what was retrieved, what the run cost."""
    label: str
    """Defaults to the name of the output; empty where the kind compares with none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[MetricSection, ...] = ()
    """The metrics that a `weighted` one is made of."""
    weight: float = 1.0
    """As a part: how much it counts beside the others."""
    span: Span | None = field(default=None, compare=False)

    def leaves(self) -> tuple[MetricSection, ...]:
        """The metrics that judge: itself, or all in its parts."""
        return tuple(leaf for part in self.parts for leaf in part.leaves()) if self.parts else (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsSection:
    """`optimize.prompts`: random search over bootstrapped few-shot demos (the paper's BootstrapFewshotRS)."""

    candidates: int = 6
    """Seeded shuffles searched beside the three fixed candidates (zero-shot, labelled demos, unshuffled bootstrap)."""
    max_bootstrapped_demos: int = 3
    max_labeled_demos: int = 3
    """Demos a module has in all may reach the larger of the two; labelled ones fill up what bootstrapping leaves."""
    train: int | None = None
    """Examples of train that give demos; None: 30 %."""
    val: int | None = None
    """Examples of train that choose among candidates, disjoint from the former; None: the rest."""
    racing: float = 0.05
    """A candidate whose chance to win falls below this is scored no further; 0: every one meets every example."""
    indifference: float = 0.0
    """Winning in a race is to end ahead by more than this many standard errors of the leader's mean score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSection:
    """`optimize.weights.preference`: direct preference optimisation (arXiv 2305.18290), NLL term (arXiv 2404.19733)."""

    beta: float = 0.1
    """How far from the weights it starts from a pair may pull: the smaller, the farther."""
    nll: float = 1.0
    """Weight of the accepted completions' negative log-likelihood a token beside the loss of the pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSection:
    """`optimize.weights.launch`: training in processes that `accelerate launch` starts; one of the two is given."""

    processes: int | None = None
    """So many on this machine, each with the whole model and a share of every step's rows."""
    config: str | None = None
    """File that `accelerate config` writes: which machines and devices, and how the model is spread over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSection:
    """`optimize.weights`: fine-tuning on accepted traces (the paper's BootstrapFinetune)."""

    method: TuningMethod = "lora"
    """What is trained: a LoRA adapter (arXiv 2106.09685), one scaled by alpha / sqrt(r) (`rslora`, arXiv 2312.03732),
    one with a magnitude of its own (`dora`, arXiv 2402.09353), or all parameters (`full`)."""
    r: int = 32
    alpha: int = 64
    dropout: float = 0.0
    noise: float = 0.0
    """NEFTune's alpha, noise on embeddings while training (arXiv 2310.05914); 0: none."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    epochs: int = 5
    learning_rate: float = 1e-4
    batch: int = 4
    """Rows an optimiser step."""
    warmup: int = 5
    """Optimiser steps of linear warm-up before the cosine decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    validation: float = 0.2
    """Share of the train examples kept for validation and early stop."""
    patience: int | None = None
    """Epochs without a better mean probability of the validation rows before training stops; None: all epochs. The best
    checkpoint is kept.
    """
    demos: Literal["drop", "keep"] = "drop"
    """Whether training rows carry the candidate's demos."""
    adapters: Literal["shared", "per_module"] = "shared"
    sources: tuple[RowSource, ...] = ("self", "demos", "sampled", "gold", "hinted")
    """Where rows may come from, beside accepted traces of the program itself (`self`)."""
    samples: int = 4
    """Samples an unsolved example gets where `sampled` is a source."""
    temperature: float = 0.9
    """Temperature of those samples."""
    teacher: str | None = None
    """Name in `models` of the teacher, where `teacher` is a source."""
    start: Literal["base", "current"] = "base"
    """Weights that training starts from."""
    preference: PreferenceSection | None = None
    """Learn from pairs of an accepted and a failed completion too; None: from accepted ones alone."""
    part_tokens: int = 4096
    """Most tokens computed at once: a step of more rows is the sum of several passes. Halved where memory runs out."""
    gradient_checkpointing: bool = False
    """Compute each layer again for the gradient and keep only its input: less memory, a third more work."""
    quantize: Literal["4bit"] | None = None
    """What the frozen base weights are rounded to while an adapter is trained (QLoRA, arXiv 2305.14314)."""
    launch: LaunchSection | None = None
    """None: training runs in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptSection:
    """`optimize.accept`: which traces are good enough to learn from."""

    metric: MetricSection | None = None
    """None: the spec's metric."""
    at_least: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeSection:
    """`optimize`."""

    strategy: tuple[StepKind, ...] = ("prompts", "weights", "prompts")
    prompts: PromptsSection = field(default_factory=PromptsSection)
    weights: WeightsSection = field(default_factory=WeightsSection)
    accept: AcceptSection = field(default_factory=AcceptSection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """All settings of one spec."""

    name: str
    models: tuple[ModelSection, ...]
    """The first is the default."""
    data: DataSection
    retrievers: tuple[RetrieverSection, ...]
    metric: MetricSection
    optimize: OptimizeSection
    tools: tuple[ToolSection, ...] = ()
