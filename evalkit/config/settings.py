"""Build frozen, validated dataclasses from a Hydra config; only `config` uses `DictConfig`."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from evalkit import texts
from evalkit.errors import ConfigError, nearest

MOST_THREADS = 1024
"""Most threads: more than any machine has cores; with many more, native thread pools crash."""
GROUPS = ("model", "dataset", "engine", "search", "reranker", "experiment")
"""The config groups: each is a folder of YAML files, chosen by `group=name`."""
LISTING = {group: "searches" if group == "search" else f"{group}s" for group in GROUPS}
"""The word after `evalkit ls` that lists the names of each group."""
METRICS = ("ndcg@10", "mrr@10", "recall@100")
"""The metrics of every result. Others can be added; metrics are in neither store key nor run id."""
METRIC = re.compile(
    r"((?:ndcg|ndcg_burges|map|mrr|recall|precision|hit_rate|f1)(@([1-9][0-9]*))?|r-precision)(-l([1-9]))?"
)
"""ranx's names of metrics with values between 0 and 1, with a cutoff and the least relevant grade.

Without a cutoff, a metric is over all documents that a query retrieved. r-precision has none: it looks at as many
documents as are relevant.

Left out: hits and DCG, which have no upper bound; bpref, whose values are wrong if unjudged documents share a number;
and rbp.
"""
GIVEN = "given"
"""The sub-folder of a group for configs that one command writes for a folder or a repository."""
CONFIGS = "EVALKIT_CONFIGS"
"""The environment variable with the user's own config folders: model/NAME.yaml, dataset/NAME.yaml, …"""
_NAME_CHARACTERS = 50
"""Most characters of a folder's name in a dataset's name: a run id, which contains it, must fit into 255 bytes."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The published numbers of documents, judged queries and judgements; None if a number is not published."""

    documents: int | None = None
    queries: int | None = None
    judgements: int | None = None
    missing: int = 0
    """Judged documents missing from the published corpus: no system can find them, which lowers all scores."""


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """The size of the generated demo collection."""

    documents: int
    queries: int
    seed: int


SourceName: TypeAlias = Literal["folder", "ir_datasets", "hub", "mirror", "demo"]
"""The sources of datasets; `evalkit.datasets.SOURCES` has a reader for each."""


@dataclass(frozen=True, kw_only=True)
class HubCopy:
    """A dataset on the Hugging Face Hub: data files that the repository's README.md lists; no code is run."""

    repo: str
    corpus: str
    """The name in README.md of the config with the documents; likewise for queries and judgements."""
    queries: str
    qrels: str
    split: str | None = None
    """The repository's name of the split, if it differs; documents and queries with a single split are always read."""
    revision: str | None = None
    """The commit; None means the current `main`, and the result records which commit that was."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset: its sources, its split, and the rules that decide its scores."""

    name: str
    sources: tuple[SourceName, ...]
    """The sources in the order in which they are tried; the first that can be read is used and recorded."""
    split: str
    language: str
    drop_self: bool
    main_metric: Literal["ndcg@10", "mrr@10"]
    template: Literal["title text", "text"] = "title text"
    """The text of a document that a system reads: title and text joined by a space, as in BEIR, or only the text."""
    path: str | None = None
    """A BEIR-format folder; if given, it is the only source."""
    ir_datasets_id: str | None = None
    hub: HubCopy | None = None
    mirror: HubCopy | None = None
    """A second copy on the Hub, for example in a repository with several datasets."""
    demo: DemoSize | None = None
    counts: Counts = Counts()
    checksum: str | None = None
    """XXH3 of the corpus's ids, titles and texts in order; None if no complete copy has been read yet."""
    mean_characters: int | None = None
    """Mean number of characters of a document's title and text according to MTEB; used only for forecasts."""
    verify: bool = True
    """Whether different counts or another checksum raise an error; False records the deviation instead."""
    licence: str = "unknown"
    citation: str = ""

    def __post_init__(self) -> None:
        _check_name("dataset.name", self.name, parts=True)
        _check_name("dataset.split", self.split)
        if not self.sources:
            msg = f"dataset {self.name!r}: got no source, wanted one or more of folder, ir_datasets, hub, mirror, demo"
            raise ConfigError(msg)
        if self.sources == ("folder",) and self.path is None:
            msg = f"dataset {self.name!r} is read from a BEIR-format folder: got no path, wanted dataset.path=DIR"
            raise ConfigError(msg)
        if self.demo is not None and self.path is not None:
            msg = f"dataset {self.name!r} is generated, not read from a folder: got dataset.path={self.path}"
            raise ConfigError(f"{msg}; for a folder of your own choose dataset=folder")


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """The place of a checkpoint's files: a folder, an installed Python package, or a hub repository."""

    repo: str | None = None
    revision: str | None = None
    package: str | None = None
    """`package:folder`, a folder in an installed Python package."""
    path: str | None = None
    code_revision: str | None = None
    """The commit of the other repository that `auto_map` takes its code from, for `model.trust_remote_code=true`."""
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """XXH3-128 of the published weights' files, by file name; empty if they were never read.

    Verdicts depend on them: with other weights, a cell deviates. Only the checksums of the packaged config are
    compared, because checksums from the command line prove nothing.
    """

    def __post_init__(self) -> None:
        if not (self.path or self.package or self.repo):
            msg = "a checkpoint needs one of path=DIR, package=NAME:FOLDER or repo=OWNER/NAME; got none of them"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How one side's text becomes token ids: length, marker, expansion."""

    max_tokens: int
    """Most token ids of a text, including special tokens and marker; longer texts are truncated.

    A config file may give one length per dataset or family (`{default: 32, beir/arguana: 300}`); this is the dataset's.
    """
    marker: str | None = None
    """A token inserted after the first special token, or several separated by spaces."""
    expansion: bool = False
    """Whether to fill up to `max_tokens` with mask tokens, whose vectors are scored like the others."""
    attend_to_expansion: bool = False
    """Whether the other tokens attend to the mask tokens."""
    prompt: str = ""
    """A prefix of every text, like the prompts of sentence-transformers; it counts towards `max_tokens`."""

    def __post_init__(self) -> None:
        if self.max_tokens < 4:
            msg = f"max_tokens={self.max_tokens}: wanted at least 4 (special tokens, a marker and one token of text)"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A model that turns a text into one vector per token (late interaction) or one vector in all."""

    name: str
    kind: Literal["late_interaction", "single_vector"]
    backbone: Literal["jina_embeddings_v3", "bert", "jina_bert", "xmod", "transformers"]
    """`transformers` is any text model of transformers, named by `architecture`."""
    checkpoints: Mapping[str, CheckpointSource]
    """Checkpoint by dim, as text (`"128"`); for a model without a head, the one dim is its hidden size."""
    query: TextRules
    document: TextRules
    head: Literal["linear", "dense", "none"]
    """`linear`: project hidden states by the checkpoint's `linear.weight`; `none`: hidden states as they are.

    `dense`: project them by the Dense modules in the checkpoint's modules.json (PyLate, sentence-transformers).
    """
    pooling: Literal["tokens", "mean", "cls"]
    """`tokens` keeps one vector per token; the others compute one vector per text."""
    normalize: bool
    """Whether to L2-normalise every vector, so that a dot product is a cosine."""
    skiplist: Literal["stanford", "pylate", "none"]
    """Which punctuation tokens of a document are dropped after encoding; the two libraries differ."""
    dtype: Literal["float32", "bfloat16", "float16"]
    architecture: str | None = None
    """The `model_type` of config.json for `backbone: transformers`; other backbones imply it."""
    skiplist_words: tuple[str, ...] | None = None
    """The words that `skiplist: pylate` drops from documents, instead of the punctuation characters."""
    rope_theta: Literal["checkpoint"] | float = "checkpoint"
    """RoPE base: `checkpoint` takes `rotary_emb_base` from config.json, else 10000 (inferred, not published)."""
    adapter: str | None = None
    """XMOD's language adapter. A config file gives one per language; this is the one for the dataset's language."""
    allow_pickle: bool = False
    """Whether to read `pytorch_model.bin` (tensors only) if a checkpoint has no safetensors file."""
    trust_remote_code: bool = False
    """Whether the checkpoint's own code builds the backbone instead of the native class; the result records it."""
    verify: bool = True
    """Whether a contradiction with the checkpoint's own settings raises an error; False records it instead."""
    parameters: int | None = None
    """Parameters of the published checkpoint, including the head; None if the number is not published."""
    licence: str = "unknown"
    source: str = ""
    """The sources of this config's facts, each with its certainty: A primary, B second-hand, C inferred."""

    def __post_init__(self) -> None:
        _check_name("model.name", self.name)
        for dim in self.checkpoints:
            if not re.fullmatch(r"[1-9][0-9]{0,5}", dim):
                msg = f"model.checkpoints.{dim}: wanted a dim, a whole number from 1 to 999999"
                raise ConfigError(msg)
        if self.rope_theta != "checkpoint" and self.rope_theta <= 0:
            msg = f"model.rope_theta={self.rope_theta}: wanted checkpoint or a number above 0"
            raise ConfigError(msg)
        if (self.backbone == "transformers") != (self.architecture is not None):
            msg = f"model.backbone={self.backbone} with model.architecture={self.architecture}: wanted an architecture"
            raise ConfigError(f"{msg} (config.json's model_type) for backbone transformers, and for no other")
        if self.skiplist_words is not None and self.skiplist != "pylate":
            msg = f"model.skiplist_words with model.skiplist={self.skiplist}: wanted them with skiplist pylate only"
            raise ConfigError(msg)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dims of this model, in the order of the config."""
        return tuple(int(dim) for dim in self.checkpoints)


AnalyzerName: TypeAlias = Literal[
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


@dataclass(frozen=True, kw_only=True)
class Bm25Config:
    """Lucene's BM25 over one or more fields, whose scores are added."""

    name: str
    kind: Literal["bm25"]
    k1: float
    b: float
    fields: tuple[Literal["title", "text", "contents"], ...]
    """`contents` is title and text joined by a space; fields are indexed separately and their scores added.

    A config file may give k1, b and fields per dataset or family of datasets, and the analyzer per language.
    """
    analyzer: AnalyzerName
    lengths: Literal["lucene", "exact"] = "lucene"
    """`lucene` rounds a document's length as Lucene's index does, to one byte; `exact` does not, as in bm25s."""
    unmatched: Literal["leave_out", "fill"] = "leave_out"
    """Documents that share no term with a query: Lucene does not retrieve them; bm25s fills up to `depth` with them."""
    ties: Literal["trec_eval", "anserini"] = "trec_eval"
    """Order of equal scores: by document id descending (trec_eval) or ascending (Anserini, whose run files keep it)."""
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        _check_name("model.name", self.name)

    @property
    def dims(self) -> tuple[int, ...]:
        """Empty: BM25 has no vectors."""
        return ()


@dataclass(frozen=True, kw_only=True)
class RunFileConfig:
    """A system of which only a run file exists, written by another program; `evalkit score --system` scores it."""

    kind: Literal["run_file"]
    name: str
    """By convention `LIBRARY:SYSTEM`, for example `pylate:jina-colbert-v2`."""

    def __post_init__(self) -> None:
        if problem := texts.unusable_system(self.name):
            msg = f"system {self.name[: texts.NAME_BYTES]!r}: {problem}"
            raise ConfigError(msg)

    @property
    def dims(self) -> tuple[int, ...]:
        """Empty: a run file does not have a dim."""
        return ()


ModelConfig: TypeAlias = EncoderConfig | Bm25Config | RunFileConfig
MODEL_KINDS: Mapping[str, type[EncoderConfig | Bm25Config | RunFileConfig]] = {
    "late_interaction": EncoderConfig,
    "single_vector": EncoderConfig,
    "bm25": Bm25Config,
    "run_file": RunFileConfig,
}
"""The dataclass of each `model.kind`."""


@dataclass(frozen=True, kw_only=True)
class RerankerConfig:
    """A model that reads query and document together and scores the first documents of a run again."""

    name: str
    checkpoint: CheckpointSource
    max_tokens: int
    """Most token ids of a pair, including special tokens; the longer side is truncated first."""
    dtype: Literal["float32", "bfloat16", "float16"]
    allow_pickle: bool = False
    parameters: int | None = None
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        _check_name("reranker.name", self.name)
        if self.max_tokens < 8:
            msg = f"reranker.max_tokens={self.max_tokens}: wanted at least 8 (four special tokens and both texts)"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The kind of search, its parameters, and the depth."""

    depth: int
    """Documents kept per query; at least 100, which recall@100 needs."""
    name: Literal["exact", "plaid"] = "exact"
    """`exact` scores every document; `plaid` searches an index of the stored embeddings and measures its loss."""
    nbits: int | None = None
    """search=plaid: bits per value of a residual: 1, 2, 4 or 8."""
    n_ivf_probe: int | None = None
    """search=plaid: clusters that are probed per query token."""
    n_full_scores: int | None = None
    """search=plaid: candidates that are kept after scoring with centroids only."""
    kmeans_iterations: int | None = None
    """search=plaid: iterations of the k-means clustering that computes the centroids."""
    seed: int | None = None
    """search=plaid: seed of the sample that is clustered, and of the clustering."""

    def __post_init__(self) -> None:
        if self.depth < 100:
            msg = f"search.depth={self.depth}: wanted 100 or more, because recall@100 is reported"
            raise ConfigError(msg)
        for key in INDEX_SETTINGS:
            value = getattr(self, key)
            if self.name == "exact" and value is not None:
                msg = f"search.{key}={value} is a setting of search=plaid, got search=exact"
                raise ConfigError(f"{msg}; add search=plaid")
            least = 0 if key == "seed" else 1
            if self.name != "exact" and (value is None or value < least):
                raise ConfigError(f"search.{key}={value}: wanted a whole number from {least} on for search={self.name}")
        if self.nbits is not None and self.nbits not in (1, 2, 4, 8):
            raise ConfigError(f"search.nbits={self.nbits}: wanted 1, 2, 4 or 8")
        if self.n_full_scores is not None and self.n_full_scores < self.depth:
            msg = f"search.n_full_scores={self.n_full_scores}: wanted at least the {self.depth} documents kept"
            raise ConfigError(f"{msg} per query (search.depth)")


INDEX_SETTINGS = ("nbits", "n_ivf_probe", "n_full_scores", "kmeans_iterations", "seed")
"""The settings of an index; they are None with `search=exact`."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What is stored of a shard, in which dtype, and how large shards are."""

    keep: Literal["embeddings", "topk"]
    """`embeddings` keeps token embeddings for later jobs; `topk` drops them once the shard is searched."""
    dtype: Literal["float16", "float32"]
    shard_tokens: Literal["auto"] | int
    """Most tokens of a shard, estimated from the bytes of the text (`evalkit.datasets.survey.estimated_tokens`).

    `auto` depends on the device (`evalkit.run.auto.shard_tokens`).
    """

    def __post_init__(self) -> None:
        if self.shard_tokens != "auto" and not 1_000 <= self.shard_tokens <= 64_000_000:
            msg = f"store.shard_tokens={self.shard_tokens}: wanted 1000 to 64000000, or auto"
            raise ConfigError(msg)


Attention: TypeAlias = Literal["auto", "sdpa", "varlen", "flash"]
"""Attention over padded texts (`sdpa`: torch's kernel, or evalkit's for fp32 on CPUs) or packed (`varlen`, `flash`)."""


Elementwise: TypeAlias = Literal["auto", "torch", "triton"]
"""What computes RoPE, and residuals with their norms: torch's own calls, or Triton kernels in one pass over memory."""


MaxsimKernel: TypeAlias = Literal["auto", "simd", "packed", "triton", "late-interaction-kernels"]
"""The kernel that nominates documents: `auto` is `simd` on a CPU or `triton` on CUDA if they work, else `packed`."""


Nomination: TypeAlias = Literal["auto", "float32", "int16", "bfloat16"]
"""Precision of the products that nominate documents. `auto` is `int16` on CPUs with AVX-512 VNNI: half the time."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how the shard step runs."""

    name: Literal["local", "ray"]
    device: str
    """`auto` (CUDA if there is a CUDA device), `cpu`, `cuda` or `cuda:N`."""
    batch_tokens: Literal["auto"] | int
    """Most tokens of a batch, padding included; `auto` depends on the device (`evalkit.run.auto`)."""
    nominate: Nomination = "auto"
    """Precision of the products that nominate documents for exact scoring: it changes the time, never the run.

    It applies to CPUs; on CUDA products are as precise as the stored vectors. `bfloat16` is for CPUs that support it.
    """
    maxsim: MaxsimKernel = "auto"
    """The kernel of these products: like `nominate`, it changes the time, never the run."""
    attention: Attention = "auto"
    """`auto` pads on the CPU and packs on CUDA. It is in the store key: it can change the last bits of vectors."""
    elementwise: Elementwise = "auto"
    """`auto` uses Triton kernels on CUDA. Like `attention` it can change the last bits and is in the store key."""
    tokenizer_workers: Literal["auto"] | int = "auto"
    """Threads that tokenise the next shard while the model runs; 0 means no such thread. Vectors do not change."""
    threads: int | None = None
    """CPU threads; None means PyTorch's default (engine=ray: `cpus_per_worker`)."""
    workers: int | None = None
    """engine=ray: workers, one encoder each; None means one per GPU, or per `cpus_per_worker` CPUs."""
    address: str | None = None
    """engine=ray: None starts Ray on this machine; `auto` or HOST:PORT joins a cluster."""
    gpus_per_worker: float = 1.0
    """engine=ray on GPUs: 0.5 puts two workers on each."""
    cpus_per_worker: int | None = None
    """engine=ray: CPUs and threads of a worker; None means 1, or with GPUs an equal share of the node's."""

    def __post_init__(self) -> None:
        if self.batch_tokens != "auto" and self.batch_tokens < 1:
            msg = f"engine.batch_tokens={self.batch_tokens}: wanted a positive number of tokens, or auto"
            raise ConfigError(msg)
        if self.tokenizer_workers != "auto" and not 0 <= self.tokenizer_workers <= MOST_THREADS:
            msg = f"engine.tokenizer_workers={self.tokenizer_workers}: wanted auto, 0 or up to {MOST_THREADS} threads"
            raise ConfigError(msg)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            msg = f"engine.threads={self.threads}: wanted null or a number of threads from 1 to {MOST_THREADS}"
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
                msg = f"engine.{key}={getattr(self, key)} is a setting of engine=ray, got engine={self.name}"
                raise ConfigError(f"{msg}; add engine=ray")
        if self.address is not None and self.address != "auto" and not self.address.rpartition(":")[2].isdigit():
            msg = f"engine.address={self.address}: wanted auto or HOST:PORT, for example 10.0.0.1:6379"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a job without a sweep: a model at one or more dims, on one dataset."""

    model: ModelConfig
    dataset: DatasetConfig
    engine: EngineConfig
    search: SearchConfig
    store: StoreConfig
    dims: tuple[int | None, ...]
    """The dims to compute; `(None,)` for a model without vectors."""
    results_dir: Path
    cache_dir: Path
    metrics: tuple[str, ...] = METRICS
    """The metrics by ranx's names (`map`, `recall@50`); METRICS come first."""
    reranker: RerankerConfig | None = None
    """The re-ranker of `evalkit rerank`; `evalkit run` refuses it."""


def configs_dir() -> Path:
    """Return the folder of the YAML configs: in an installed wheel, else at the root of the checkout."""
    installed = Path(__file__).parents[1] / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def own_configs_dirs() -> tuple[Path, ...]:
    """Return the user's own config folders, given by `--config-dir` or EVALKIT_CONFIGS.

    Raises ConfigError for one that does not exist.
    """
    given = filter(None, os.environ.get(CONFIGS, "").split(os.pathsep))
    folders = tuple(dict.fromkeys(Path(folder).expanduser().absolute() for folder in given))
    for folder in folders:
        if not folder.is_dir():
            msg = f"{folder}: got no such folder, wanted one with model/NAME.yaml or dataset/NAME.yaml in it"
            raise ConfigError(f"{msg}; check --config-dir and {CONFIGS}")
    return folders


def group_files(group: str) -> dict[str, Path]:
    """Return the YAML files of a config group by name, including the user's own.

    Raises ConfigError for a name in two folders: an order of folders must not decide which one is used.
    """
    found: dict[str, Path] = {}
    for folder in (configs_dir(), *own_configs_dirs()):
        root = folder / group
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            if name in found:
                msg = f"{group} {name!r}: got two files, {found[name]} and {path}, wanted one; rename your own"
                raise ConfigError(msg)
            found[name] = path
    return dict(sorted(found.items()))


def group_names(group: str) -> tuple[str, ...]:
    """Return every valid name of a config group, sub-folders with a slash (`beir/nfcorpus`)."""
    return tuple(group_files(group))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Build the validated config from Hydra's composed and resolved mapping.

    Raises ConfigError for an unknown key, a missing or ill-typed value, or a dim that the model lacks.
    """
    known = {"model", "dataset", "engine", "reranker", "search", "store", "dim", "metrics", "results_dir", "cache_dir"}
    for key in values:
        if key not in known:
            msg = f"setting {key!r} unknown; {nearest(key, known)}"
            raise ConfigError(msg)
    values = _paths_at_home(values)
    model_values = values["model"]
    if not isinstance(model_values, Mapping):
        msg = f"model={model_values!r}: wanted a group of settings"
        raise ConfigError(msg)
    kind = model_values.get("kind")
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        msg = f"model.kind={kind!r} unknown; {nearest(str(kind), MODEL_KINDS)}"
        raise ConfigError(msg)
    dataset: DatasetConfig = from_mapping(DatasetConfig, named(values["dataset"]), where="dataset")
    model: ModelConfig = from_mapping(MODEL_KINDS[kind], _for_dataset(model_values, dataset), where="model")
    reranker = values.get("reranker")
    search: SearchConfig = from_mapping(SearchConfig, values["search"], where="search")
    return RunConfig(
        model=model,
        dataset=dataset,
        engine=from_mapping(EngineConfig, values["engine"], where="engine"),
        search=search,
        metrics=selected_metrics(values.get("metrics"), depth=search.depth),
        store=from_mapping(StoreConfig, values["store"], where="store"),
        dims=_selected_dims(values.get("dim"), model),
        results_dir=_folder("results_dir", values["results_dir"]),
        cache_dir=_folder("cache_dir", values["cache_dir"]),
        reranker=None if reranker is None else from_mapping(RerankerConfig, reranker, where="reranker"),
    )


def named(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a dataset's values. One without a name is named by its folder or ir-datasets id."""
    if not isinstance(dataset, Mapping) or dataset.get("name", "") is not None:
        return dataset
    if (path := dataset.get("path")) is not None:
        return {**dataset, "name": folder_name(str(path))}
    identifier = dataset.get("ir_datasets_id")
    names = {"folder": "folder", "ir_datasets": f"ir-datasets/{identifier}" if identifier else "ir-datasets"}
    return {**dataset, "name": names.get(" ".join(dataset.get("sources") or []))}


def folder_name(path: str) -> str:
    """Return the name of a folder's dataset: `folder/` and its name, without characters that are invalid in run ids.

    >>> folder_name("/data/my corpus/")
    'folder/my_corpus'
    """
    own = Path(os.path.abspath(Path(path).expanduser())).name  # noqa: PTH100 (a link keeps its own name)
    safe = re.sub(r"[^\w.-]+", "_", own)[:_NAME_CHARACTERS]
    return f"folder/{safe}" if safe else "folder"


def selected_metrics(selector: object, *, depth: int) -> tuple[str, ...]:
    """Return the metrics of `metrics=[map,recall@50]`, one name or nothing; METRICS always come first.

    Raises ConfigError for a name that ranx does not know, for a cutoff above the search depth, and for one of
    r-precision.

    >>> selected_metrics(["map", "ndcg@10"], depth=100)
    ('ndcg@10', 'mrr@10', 'recall@100', 'map')
    """
    asked = [] if selector is None else list(selector) if isinstance(selector, (list, tuple)) else [selector]
    for name in asked:
        found = METRIC.fullmatch(str(name))
        if found is None and str(name).startswith("r-precision@"):
            msg = f"metric {name}: got a cutoff, wanted none: r-precision looks at as many documents as are relevant"
            raise ConfigError(f"{msg}; write r-precision, or precision@{str(name).partition('@')[2]}")
        if found is None:
            known = ("ndcg", "ndcg_burges", "map", "mrr", "recall", "precision", "hit_rate", "f1", "r-precision")
            msg = f"metric {str(name)!r} unknown; {nearest(str(name).partition('@')[0], known)}, each with a cutoff"
            raise ConfigError(f"{msg} (recall@50) or without (map), and -l2 where only grades from 2 on are relevant")
        if found[3] is not None and int(found[3]) > depth:
            msg = f"metric {name}: got a cutoff above the {depth} documents that are kept per query, wanted at most"
            raise ConfigError(f"{msg} {depth}; search.depth={found[3]} keeps enough")
    return tuple(dict.fromkeys((*METRICS, *map(str, asked))))


def _folder(key: str, value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        msg = f"{key}={value!r}: wanted a folder, for example {key}=/data/{key.removesuffix('_dir')}"
        raise ConfigError(msg)
    return Path(at_home(key, value))


def at_home(setting: str, path: str) -> str:
    """Return a path with a leading `~` replaced by the home folder. Raises ConfigError if there is none."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib raises RuntimeError without saying which setting)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        msg = f"{setting}={path!r}: {user} has no home folder here; wanted a path"
        raise ConfigError(f"{msg} (./{path} where {user} is a folder's name)")
    return expanded


def _check_name(setting: str, name: str, *, parts: bool = False) -> None:
    """Raise ConfigError for a name that cannot be part of a path: names become folders of results."""
    if problem := texts.unusable_name(name, parts=parts):
        shown = name if len(name) <= texts.NAME_BYTES else f"{name[: texts.NAME_BYTES]}…"
        msg = f"{setting}={shown!r}: {problem}"
        raise ConfigError(msg)


def _paths_at_home(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with `~` replaced in the paths of dataset and checkpoints."""
    found = dict(values)
    dataset, model = values.get("dataset"), values.get("model")
    if isinstance(dataset, Mapping) and isinstance(dataset.get("path"), str):
        found["dataset"] = {**dataset, "path": at_home("dataset.path", dataset["path"])}
    checkpoints = model.get("checkpoints") if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and isinstance(checkpoints, Mapping):
        expanded = {
            dim: {**source, "path": at_home(f"model.checkpoints.{dim}.path", source["path"])}
            if isinstance(source, Mapping) and isinstance(source.get("path"), str)
            else source
            for dim, source in checkpoints.items()
        }
        found["model"] = {**model, "checkpoints": expanded}
    return found


def _for_dataset(model: Mapping[str, Any], dataset: DatasetConfig) -> dict[str, Any]:
    """Return a model's values, with the value for this dataset in place of values per dataset or language.

    Raises ConfigError if values per dataset or language lack a `default`, if they name an unknown dataset, and for a
    language without an adapter.
    """
    chosen = dict(model)
    for side in ("query", "document"):
        rules = chosen.get(side)
        if isinstance(rules, Mapping) and isinstance(lengths := rules.get("max_tokens"), Mapping):
            setting = f"model.{side}.max_tokens"
            _check_datasets(setting, lengths, dataset.name)
            chosen[side] = {**rules, "max_tokens": _value_for(setting, lengths, dataset.name)}
    for name in ("k1", "b", "fields"):
        if isinstance(values := chosen.get(name), Mapping):
            _check_datasets(f"model.{name}", values, dataset.name)
            chosen[name] = _value_for(f"model.{name}", values, dataset.name)
    if isinstance(values := chosen.get("analyzer"), Mapping):
        chosen["analyzer"] = _value_for("model.analyzer", values, dataset.language)
    if isinstance(adapters := chosen.get("adapter"), Mapping):
        if dataset.language not in adapters:
            msg = (
                f"model {chosen.get('name')!r} has no adapter for language {dataset.language!r}; "
                f"it has {', '.join(map(str, adapters))}; choose one with model.adapter=CODE"
            )
            raise ConfigError(msg)
        chosen["adapter"] = adapters[dataset.language]
    return chosen


def value_for(values: Mapping[str, Any], of: str) -> Any:
    """Return the value for a dataset or language: its own, else that of its family, else the default; None if absent.

    >>> value_for({"default": 0.9, "beir": 1.2, "beir/nq": 0.8}, "beir/fiqa")
    1.2
    """
    return values.get(of, values.get(of.partition("/")[0], values.get("default")))


def _value_for(setting: str, values: Mapping[str, Any], of: str) -> Any:
    """Return the value for a dataset or language. Raises ConfigError if there is none for the others."""
    if "default" not in values:
        msg = f"{setting}={dict(values)}: wanted a `default` too, for all others"
        raise ConfigError(msg)
    return value_for(values, of)


def _check_datasets(setting: str, values: Mapping[str, Any], dataset: str) -> None:
    """Raise ConfigError if values per dataset have a key that is neither a dataset nor a family of datasets.

    The names of folders and ir-datasets ids are unknown until they are given, so any `folder/NAME` and `ir-datasets/ID`
    is accepted.
    """
    names = {*group_names("dataset"), dataset}
    known = {"default", *names, *(name.partition("/")[0] for name in names)}
    for key in map(str, values):
        if key not in known and not key.startswith(("folder/", "ir-datasets/")):
            msg = f"{setting}: got a value for {key!r}, wanted a dataset, a family of datasets or `default` as its key"
            raise ConfigError(f"{msg}; {nearest(key, known)}")


def _selected_dims(selector: object, model: ModelConfig) -> tuple[int | None, ...]:
    """Return the dims of `dim=128`, `dim=[128,64]` or nothing; BM25 has none and ignores the selector."""
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
    """Build the frozen dataclass `cls` from plain values.

    `where` names the place in the config for messages. Raises ConfigError for unknown or missing keys and wrong types.
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
    """Return `value` as the annotated type. Raises ConfigError if that is not possible."""
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
    """Return `value` as the first type that accepts it; a mapping is checked by the first dataclass."""
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
    """Return a number, text, boolean or null; unlike in Python, a boolean is not a number."""
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
    """Return the name of a type in terms of YAML."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(option) for option in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    if hint in names:
        return names[hint]
    return "a list" if typing.get_origin(hint) is tuple else "a group of settings"
