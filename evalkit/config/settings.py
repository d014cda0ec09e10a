"""Settings: one Hydra config in, frozen and validated dataclasses out; nothing below this door sees a `DictConfig`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from evalkit.errors import ConfigError, nearest

GROUPS = ("model", "dataset", "engine", "reranker", "experiment")
"""The config groups: each is a folder of YAML files, chosen by `group=name`."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many documents, judged queries and judgements a dataset must have; None where nobody published it."""

    documents: int | None = None
    queries: int | None = None
    judgements: int | None = None
    missing: int = 0
    """Judged documents that the published corpus itself has not: no system can find them, and all lose by it."""


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How large a demo collection the generator writes."""

    documents: int
    queries: int
    seed: int


SourceName: TypeAlias = Literal["folder", "ir_datasets", "hub", "demo"]
"""Where a dataset can come from; `evalkit.datasets.SOURCES` has a reader for each."""


@dataclass(frozen=True, kw_only=True)
class HubCopy:
    """A copy of a dataset on the Hugging Face Hub: data files that the repository's README.md names, no code."""

    repo: str
    corpus: str
    """The config of the documents, as README.md names it; likewise those of queries and judgements."""
    queries: str
    qrels: str
    split: str | None = None
    """The judgements' split, where the copy calls it otherwise than the dataset does."""
    revision: str | None = None
    """The commit; None is not pinned: what `main` is at the time, and the result records which commit that was."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset: where it comes from, which split, and the rules that decide its score."""

    name: str
    sources: tuple[SourceName, ...]
    """Where to look, in this order: the first that can be had is used, and the result names it."""
    split: str
    language: str
    drop_self: bool
    main_metric: Literal["ndcg@10", "mrr@10"]
    template: Literal["title text", "text"] = "title text"
    """What a system reads of a document: title and text joined by a space, as BEIR does, or the text alone."""
    path: str | None = None
    """A BEIR-format folder; when given it is read in place of any other source."""
    ir_datasets_id: str | None = None
    hub: HubCopy | None = None
    demo: DemoSize | None = None
    counts: Counts = Counts()
    checksum: str | None = None
    """XXH3 of the corpus' ids, titles and texts in order; None until somebody has measured a whole copy."""
    mean_characters: int | None = None
    """Characters of a document's title and text, on average, as MTEB counted them; for forecasts only."""
    verify: bool = True
    """Stop when counts or checksum differ from the wanted ones; False records the deviation instead."""
    licence: str = "unknown"
    citation: str = ""

    def __post_init__(self) -> None:
        if not self.sources:
            msg = f"dataset {self.name!r}: got no source, wanted one or more of folder, ir_datasets, hub, demo"
            raise ConfigError(msg)
        if self.sources == ("folder",) and self.path is None:
            msg = f"dataset {self.name!r} is read from a BEIR-format folder: got no path, wanted dataset.path=DIR"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """Where one checkpoint's files are: a folder, inside an installed Python package, or a hub repository."""

    repo: str | None = None
    revision: str | None = None
    package: str | None = None
    """`package:folder`, a folder that an installed Python package carries."""
    path: str | None = None
    code_revision: str | None = None
    """The commit of the other repository that `auto_map` takes its code from, for `model.trust_remote_code=true`."""

    def __post_init__(self) -> None:
        if not (self.path or self.package or self.repo):
            msg = "a checkpoint needs one of path=DIR, package=NAME:FOLDER or repo=OWNER/NAME; got none of them"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How one side's text becomes token ids: length, marker, expansion."""

    max_tokens: int
    """Ids per text at most, special tokens and marker included; longer texts are cut.

    A config may give one length per dataset (`{default: 32, beir/arguana: 300}`); the run's own is taken at the door.
    """
    marker: str | None = None
    """A token put behind the first special token, or several with spaces between them."""
    expansion: bool = False
    """Fill up to `max_tokens` with mask tokens, whose vectors are scored like any other's."""
    attend_to_expansion: bool = False
    """Whether the other tokens attend to the mask tokens."""

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            msg = f"max_tokens={self.max_tokens}: wanted at least 4 (special tokens, a marker and one token of text)"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A model that turns a text into one vector per token (late interaction) or one vector in all."""

    name: str
    kind: Literal["late_interaction", "single_vector"]
    backbone: Literal["jina_embeddings_v3", "bert", "jina_bert", "xmod"]
    checkpoints: Mapping[str, CheckpointSource]
    """Checkpoint by dim, as text (`"128"`); a model without a head has one entry, its hidden size."""
    query: TextRules
    document: TextRules
    head: Literal["linear", "none"]
    """`linear`: project hidden states by the checkpoint's `linear.weight`; `none`: hidden states as they are."""
    pooling: Literal["tokens", "mean", "cls"]
    """`tokens` keeps one vector per token; the others make one vector per text."""
    normalize: bool
    """L2-normalise every vector, so that a dot product is a cosine."""
    skiplist: Literal["stanford", "pylate", "none"]
    """Which punctuation tokens of a document are dropped after encoding; the two libraries differ."""
    dtype: Literal["float32", "bfloat16", "float16"]
    rope_theta: Literal["checkpoint"] | float = "checkpoint"
    """RoPE base: `checkpoint` takes `rotary_emb_base` from config.json, else 10000 (inferred, not published)."""
    adapter: str | None = None
    """XMOD's language adapter. A config gives one per language; that of the dataset's language is taken at the door."""
    allow_pickle: bool = False
    """Read `pytorch_model.bin` (tensors only) where a checkpoint has no safetensors file."""
    trust_remote_code: bool = False
    """Let the checkpoint's own code build the backbone, in place of the native class; the result records it."""
    verify: bool = True
    """Stop where the checkpoint's artifact.metadata contradicts these settings; False records the deviation instead."""
    parameters: int | None = None
    """Parameters of the published checkpoint, head included; None where nobody published the count."""
    licence: str = "unknown"
    source: str = ""
    """Where the facts of this config were read, each with its certainty: A primary, B second-hand, C inferred."""

    def __post_init__(self) -> None:
        if self.rope_theta != "checkpoint" and self.rope_theta <= 0:
            msg = f"model.rope_theta={self.rope_theta}: wanted checkpoint or a number above 0"
            raise ConfigError(msg)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dims that this model has, as the config lists them."""
        return tuple(int(dim) for dim in self.checkpoints)


@dataclass(frozen=True, kw_only=True)
class Bm25Config:
    """Lucene's BM25 over one or more fields, whose scores are added."""

    name: str
    kind: Literal["bm25"]
    k1: float
    b: float
    fields: tuple[Literal["title", "text", "contents"], ...]
    """`contents` is title and text joined by a space; fields are indexed apart and their scores added."""
    """A config may give k1, b and fields per dataset or family of datasets, and the analyzer per language."""
    analyzer: Literal[
        "arabic",
        "bm25s",
        "cjk",
        "dutch",
        "english",
        "finnish",
        "french",
        "german",
        "hindi",
        "indonesian",
        "italian",
        "persian",
        "portuguese",
        "russian",
        "spanish",
        "standard",
        "thai",
        "whitespace",
    ]
    lengths: Literal["lucene", "exact"] = "lucene"
    """`lucene` rounds a document's length to the byte that an index keeps of it; `exact` does not, as bm25s."""
    ties: Literal["trec_eval", "anserini"] = "trec_eval"
    """Order of equal scores: by document id descending (trec_eval) or ascending (Anserini, whose run files keep it)."""
    licence: str = "unknown"
    source: str = ""

    @property
    def dims(self) -> tuple[int, ...]:
        """Empty: BM25 has no vectors."""
        return ()


ModelConfig: TypeAlias = EncoderConfig | Bm25Config
MODEL_KINDS: Mapping[str, type[EncoderConfig | Bm25Config]] = {
    "late_interaction": EncoderConfig,
    "single_vector": EncoderConfig,
    "bm25": Bm25Config,
}


@dataclass(frozen=True, kw_only=True)
class RerankerConfig:
    """A model that reads query and document together and scores the first documents of a run again."""

    name: str
    checkpoint: CheckpointSource
    max_tokens: int
    """Ids of a pair at most, special tokens included; the longer side is cut first."""
    dtype: Literal["float32", "bfloat16", "float16"]
    allow_pickle: bool = False
    parameters: int | None = None
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 8:
            msg = f"reranker.max_tokens={self.max_tokens}: wanted at least 8 (four special tokens and both texts)"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a search keeps."""

    depth: int
    """Documents kept per query; at least 100, which recall@100 needs."""

    def __post_init__(self) -> None:
        if self.depth < 100:
            msg = f"search.depth={self.depth}: wanted 100 or more, because recall@100 is reported"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What is checkpointed of a shard, and how."""

    keep: Literal["embeddings", "topk"]
    """`embeddings` keeps token embeddings for later runs; `topk` drops them once the shard is searched."""
    dtype: Literal["float16", "float32"]
    shard_tokens: int
    """Tokens per shard at most, by an upper estimate from the bytes of the text."""

    def __post_init__(self) -> None:
        if not 1_000 <= self.shard_tokens <= 64_000_000:
            msg = f"store.shard_tokens={self.shard_tokens}: wanted 1000 to 64000000"
            raise ConfigError(msg)


Attention: TypeAlias = Literal["auto", "sdpa", "varlen", "flash"]
"""How texts attend: padded (`sdpa`: torch's kernel or, on a CPU in fp32, evalkit's), or packed (`varlen`, `flash`)."""


Elementwise: TypeAlias = Literal["auto", "torch", "triton"]
"""What computes RoPE, residuals and their norms: torch's own calls, or one pass over memory by Triton's kernels."""


MaxsimKernel: TypeAlias = Literal["auto", "simd", "packed", "triton", "late-interaction-kernels"]
"""The kernel that nominates documents: `auto` is `simd` on a CPU, `triton` on CUDA where both can, else `packed`."""


Nomination: TypeAlias = Literal["auto", "float32", "int16", "bfloat16"]
"""Precision of the products that nominate: `auto` is `int16` on CPUs with AVX-512 VNNI, which takes half the time."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how the shard step runs."""

    name: Literal["local", "ray"]
    device: str
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    batch_tokens: Literal["auto"] | int
    """Padded tokens per encoding batch at most; `auto` goes by the device (`evalkit.run.environment.batch_tokens`)."""
    nominate: Nomination = "auto"
    """Precision of the products that nominate documents for exact scoring: it moves the time, never the run.

    It is of a CPU: on CUDA they are as precise as the stored vectors. `bfloat16` is for CPUs with units for it.
    """
    maxsim: MaxsimKernel = "auto"
    """The kernel of those products: like `nominate`, it moves the time, never the run."""
    attention: Attention = "auto"
    """`auto` pads on the CPU and packs on CUDA. It enters the store key: it can move the last bits of a vector."""
    elementwise: Elementwise = "auto"
    """`auto` takes Triton's kernels on CUDA. Like `attention` it can move the last bits and enters the store key."""
    tokenizer_workers: Literal["auto"] | int = "auto"
    """Threads that tokenise the next shard while the model runs; 0 tokenises in turn. It never moves a vector."""
    threads: int | None = None
    """CPU threads; None leaves PyTorch's choice (engine=ray: `cpus_per_worker`)."""
    workers: int | None = None
    """engine=ray: workers, one encoder each; None is one for each GPU, or for each `cpus_per_worker` CPUs."""
    address: str | None = None
    """engine=ray: None starts Ray on this machine; `auto` or HOST:PORT joins a cluster."""
    gpus_per_worker: float = 1.0
    """engine=ray on GPUs: 0.5 puts two workers on each."""
    cpus_per_worker: int | None = None
    """engine=ray: CPUs and threads of a worker; None is 1, or on GPUs an equal share of the node's."""

    def __post_init__(self) -> None:
        if self.batch_tokens != "auto" and self.batch_tokens < 1:
            msg = f"engine.batch_tokens={self.batch_tokens}: wanted a positive number of tokens, or auto"
            raise ConfigError(msg)
        if self.tokenizer_workers != "auto" and self.tokenizer_workers < 0:
            msg = f"engine.tokenizer_workers={self.tokenizer_workers}: wanted auto, 0 or a number of threads"
            raise ConfigError(msg)
        self._check_workers()

    def _check_workers(self) -> None:
        for key in ("workers", "gpus_per_worker", "cpus_per_worker"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                msg = f"engine.{key}={value}: wanted a positive number"
                raise ConfigError(msg)
        for key in ("workers", "address", "cpus_per_worker"):
            if self.name != "ray" and getattr(self, key) is not None:
                msg = (
                    f"engine.{key}={getattr(self, key)} is of engine=ray, and the engine is {self.name}; add engine=ray"
                )
                raise ConfigError(msg)
        if self.address is not None and self.address != "auto" and not self.address.rpartition(":")[2].isdigit():
            msg = f"engine.address={self.address}: wanted auto or HOST:PORT, for example 10.0.0.1:6379"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One `evalkit run`: a model at one or more dims, on one dataset."""

    model: ModelConfig
    dataset: DatasetConfig
    engine: EngineConfig
    search: SearchConfig
    store: StoreConfig
    dims: tuple[int | None, ...]
    """The dims to run; `(None,)` for a model without vectors."""
    results_dir: Path
    cache_dir: Path
    reranker: RerankerConfig | None = None
    """What `evalkit rerank` scores a run again with; `evalkit run` has no use for it."""


def configs_dir() -> Path:
    """Return the folder of YAML configs: inside an installed wheel, else at the root of the checkout."""
    installed = Path(__file__).parents[1] / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def group_names(group: str) -> tuple[str, ...]:
    """Return every valid name of a config group, sub-folders with a slash (`beir/nfcorpus`)."""
    root = configs_dir() / group
    return tuple(sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml")))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Build the validated config from Hydra's composed and resolved mapping.

    Raises ConfigError for an unknown key, a missing or ill-typed value, or a dim that the model has not.
    """
    known = {"model", "dataset", "engine", "reranker", "search", "store", "dim", "results_dir", "cache_dir"}
    for key in values:
        if key not in known:
            msg = f"setting {key!r} unknown; {nearest(key, known)}"
            raise ConfigError(msg)
    model_values = values["model"]
    kind = model_values.get("kind")
    if kind not in MODEL_KINDS:
        msg = f"model.kind={kind!r} unknown; {nearest(str(kind), MODEL_KINDS)}"
        raise ConfigError(msg)
    dataset: DatasetConfig = from_mapping(DatasetConfig, values["dataset"], where="dataset")
    model: ModelConfig = from_mapping(MODEL_KINDS[kind], _for_dataset(model_values, dataset), where="model")
    reranker = values.get("reranker")
    return RunConfig(
        model=model,
        dataset=dataset,
        engine=from_mapping(EngineConfig, values["engine"], where="engine"),
        search=from_mapping(SearchConfig, values["search"], where="search"),
        store=from_mapping(StoreConfig, values["store"], where="store"),
        dims=_selected_dims(values.get("dim"), model),
        results_dir=_folder("results_dir", values["results_dir"]),
        cache_dir=_folder("cache_dir", values["cache_dir"]),
        reranker=None if reranker is None else from_mapping(RerankerConfig, reranker, where="reranker"),
    )


def _folder(key: str, value: object) -> Path:
    if not isinstance(value, (str, int)) or value == "":
        msg = f"{key}={value!r}: wanted a folder, for example {key}=/data/{key.removesuffix('_dir')}"
        raise ConfigError(msg)
    return Path(str(value)).expanduser()


def _for_dataset(model: Mapping[str, Any], dataset: DatasetConfig) -> dict[str, Any]:
    """Return a model's values with those that it gives per dataset or per language replaced by this dataset's."""
    chosen = dict(model)
    for side in ("query", "document"):
        rules = chosen.get(side)
        if isinstance(rules, Mapping) and isinstance(lengths := rules.get("max_tokens"), Mapping):
            if "default" not in lengths:
                msg = f"model.{side}.max_tokens={dict(lengths)}: wanted a default beside the lengths per dataset"
                raise ConfigError(msg)
            chosen[side] = {**rules, "max_tokens": lengths.get(dataset.name, lengths["default"])}
    for name, of in (
        ("k1", dataset.name),
        ("b", dataset.name),
        ("fields", dataset.name),
        ("analyzer", dataset.language),
    ):
        if isinstance(values := chosen.get(name), Mapping):
            if "default" not in values:
                msg = f"model.{name}={dict(values)}: wanted a default beside the values per dataset"
                raise ConfigError(msg)
            chosen[name] = values.get(of, values.get(of.partition("/")[0], values["default"]))
    if isinstance(adapters := chosen.get("adapter"), Mapping):
        if dataset.language not in adapters:
            msg = (
                f"model {chosen.get('name')!r} has no adapter for language {dataset.language!r}; "
                f"it has {', '.join(map(str, adapters))}; choose one with model.adapter=CODE"
            )
            raise ConfigError(msg)
        chosen["adapter"] = adapters[dataset.language]
    return chosen


def _selected_dims(selector: object, model: ModelConfig) -> tuple[int | None, ...]:
    """Turn `dim=128`, `dim=[128,64]` or nothing into the dims to run; BM25 has none and ignores the selector."""
    if not model.dims:
        return (None,)
    if selector is None:
        return model.dims
    chosen: list[Any] = list(selector) if isinstance(selector, (list, tuple)) else [selector]
    if not chosen:
        msg = f"dim=[] selects nothing; wanted one or more of {', '.join(map(str, model.dims))}"
        raise ConfigError(msg)
    for dim in chosen:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim not in model.dims:
            msg = f"dim={dim!r} is not a dim of model {model.name!r}; valid: {', '.join(map(str, model.dims))}"
            raise ConfigError(msg)
    if len(set(chosen)) != len(chosen):
        msg = f"dim={chosen} names a dim twice"
        raise ConfigError(msg)
    return tuple(chosen)


def from_mapping(cls: type[Any], values: object, *, where: str) -> Any:
    """Build the frozen dataclass `cls` from plain values, refusing unknown keys, missing keys and wrong types.

    `where` names the place in the config for the message. Raises ConfigError.
    """
    if not isinstance(values, Mapping):
        msg = f"{where}={values!r}: wanted a group of settings"
        raise ConfigError(msg)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            msg = f"setting {where}.{key} unknown; {nearest(str(key), fields)}"
            raise ConfigError(msg)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _typed(values[name], hints[name], where=f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            msg = f"setting {where}.{name} is missing; wanted {type_name(hints[name])}"
            raise ConfigError(msg)
    return cls(**arguments)


def _typed(value: object, hint: Any, *, where: str) -> Any:
    """Return `value` as the annotated type, or raise ConfigError saying what was got and wanted."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, typing.get_args(hint), hint, where=where)
    if origin is Literal:
        return _literal(value, typing.get_args(hint), where=where)
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast("type[Any]", hint), value, where=where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(item, typing.get_args(hint)[0], where=where) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        item_hint = typing.get_args(hint)[1]
        return {str(key): _typed(item, item_hint, where=f"{where}.{key}") for key, item in value.items()}
    return _scalar(value, hint, where=where)


def _one_of(value: object, options: tuple[Any, ...], hint: Any, *, where: str) -> Any:
    """Return `value` as the first option that takes it; a group of settings is judged by the option that is a group."""
    for option in options:
        if isinstance(value, Mapping) and dataclasses.is_dataclass(option):
            return _typed(value, option, where=where)
        try:
            return _typed(value, option, where=where)
        except ConfigError:
            continue
    raise _mistyped(value, hint, where=where)


def _literal(value: object, valid: tuple[Any, ...], *, where: str) -> Any:
    if value in valid and not isinstance(value, bool):
        return value
    msg = f"{where}={value!r} unknown; {nearest(str(value), map(str, valid))}"
    raise ConfigError(msg)


def _scalar(value: object, hint: Any, *, where: str) -> Any:
    """Return a number, text, truth value or null; a truth value is no number, though Python says so."""
    if hint is types.NoneType:
        accepted = value is None
    elif hint is float:
        accepted = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        accepted = isinstance(hint, type) and type(value) is hint
    if not accepted:
        raise _mistyped(value, hint, where=where)
    return float(typing.cast("float", value)) if hint is float else value


def _mistyped(value: object, hint: Any, *, where: str) -> ConfigError:
    return ConfigError(f"{where}={value!r}: wanted {type_name(hint)}")


def type_name(hint: Any) -> str:
    """Name a type the way a user of YAML would."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(option) for option in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    if hint in names:
        return names[hint]
    return "a list" if typing.get_origin(hint) is tuple else "a group of settings"
