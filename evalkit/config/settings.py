"""Settings: one Hydra config in, frozen and validated dataclasses out; nothing below this door sees a `DictConfig`."""

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
"""No machine here has more cores; with many more, native thread pools crash."""
GROUPS = ("model", "dataset", "engine", "search", "reranker", "experiment")
"""The config groups: each is a folder of YAML files, chosen by `group=name`."""
LISTING = {group: "searches" if group == "search" else f"{group}s" for group in GROUPS}
"""What `evalkit ls` calls the list of a group's names."""
METRICS = ("ndcg@10", "mrr@10", "recall@100")
"""The metrics of every result; a run may add others, which are in neither store key nor run id."""
METRIC = re.compile(r"(ndcg|ndcg_burges|map|mrr|recall|precision|hit_rate|f1|r-precision)(@([1-9][0-9]*))?(-l([1-9]))?")
"""What ranx calls metrics whose values lie between 0 and 1, with a cutoff and the least grade that is relevant.

Not here: hits and DCG, which have no upper bound, bpref, whose values are wrong where unjudged documents share a
number, and rbp.
"""
GIVEN = "given"
"""The sub-folder of a group for configs that are made for one command, of a folder or a repository."""
CONFIGS = "EVALKIT_CONFIGS"
"""The environment variable that names folders of the user's own configs: model/NAME.yaml, dataset/NAME.yaml, …"""
_NAME_CHARACTERS = 50
"""How much of a folder's name a dataset takes: run ids hold more than it, and a file name has room for 255 bytes."""


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


SourceName: TypeAlias = Literal["folder", "ir_datasets", "hub", "mirror", "demo"]
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
    """The copy's name of the dataset's split, where it is another one; a config with a single split is read anyway."""
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
    mirror: HubCopy | None = None
    """A second copy on the Hub, for instance one repository that gathers several datasets."""
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
        _check_name("dataset.name", self.name, parts=True)
        _check_name("dataset.split", self.split)
        if not self.sources:
            msg = f"dataset {self.name!r}: got no source, wanted one or more of folder, ir_datasets, hub, mirror, demo"
            raise ConfigError(msg)
        if self.sources == ("folder",) and self.path is None:
            msg = f"dataset {self.name!r} is read from a BEIR-format folder: got no path, wanted dataset.path=DIR"
            raise ConfigError(msg)
        if self.demo is not None and self.path is not None:
            msg = f"dataset {self.name!r} is generated and read from no folder: got dataset.path={self.path}"
            raise ConfigError(f"{msg}; for a folder of your own choose dataset=folder")


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
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """XXH3-128 of the files of the published weights, by name, where somebody has read them; a verdict asks for them.

    They are compared with the packaged config's alone: what the command line gives here proves nothing.
    """

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
    prompt: str = ""
    """What stands before every text, as sentence-transformers' prompts do; it takes its share of `max_tokens`."""

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
    """`transformers` is any text model that transformers itself has, by the name under `architecture`."""
    checkpoints: Mapping[str, CheckpointSource]
    """Checkpoint by dim, as text (`"128"`); a model without a head has one entry, its hidden size."""
    query: TextRules
    document: TextRules
    head: Literal["linear", "dense", "none"]
    """`linear`: project hidden states by the checkpoint's `linear.weight`; `none`: hidden states as they are.

    `dense`: by the Dense modules that the checkpoint's modules.json names, as PyLate and sentence-transformers save.
    """
    pooling: Literal["tokens", "mean", "cls"]
    """`tokens` keeps one vector per token; the others make one vector per text."""
    normalize: bool
    """L2-normalise every vector, so that a dot product is a cosine."""
    skiplist: Literal["stanford", "pylate", "none"]
    """Which punctuation tokens of a document are dropped after encoding; the two libraries differ."""
    dtype: Literal["float32", "bfloat16", "float16"]
    architecture: str | None = None
    """The `model_type` of config.json, for `backbone: transformers`; of the other backbones it is known."""
    skiplist_words: tuple[str, ...] | None = None
    """The words that `skiplist: pylate` drops from documents, in place of the punctuation signs."""
    rope_theta: Literal["checkpoint"] | float = "checkpoint"
    """RoPE base: `checkpoint` takes `rotary_emb_base` from config.json, else 10000 (inferred, not published)."""
    adapter: str | None = None
    """XMOD's language adapter. A config gives one per language; that of the dataset's language is taken at the door."""
    allow_pickle: bool = False
    """Read `pytorch_model.bin` (tensors only) where a checkpoint has no safetensors file."""
    trust_remote_code: bool = False
    """Let the checkpoint's own code build the backbone, in place of the native class; the result records it."""
    verify: bool = True
    """Stop where the checkpoint's own account contradicts these settings; False records the deviation instead."""
    parameters: int | None = None
    """Parameters of the published checkpoint, head included; None where nobody published the count."""
    licence: str = "unknown"
    source: str = ""
    """Where the facts of this config were read, each with its certainty: A primary, B second-hand, C inferred."""

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
        _check_name("reranker.name", self.name)
        if self.max_tokens < 8:
            msg = f"reranker.max_tokens={self.max_tokens}: wanted at least 8 (four special tokens and both texts)"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How documents are found, and how many are kept."""

    depth: int
    """Documents kept per query; at least 100, which recall@100 needs."""
    name: Literal["exact", "plaid"] = "exact"
    """`exact` scores every document; `plaid` asks an index of the stored embeddings, and measures what that loses."""
    nbits: int | None = None
    """search=plaid: bits of a value of a residual: 1, 2, 4 or 8."""
    n_ivf_probe: int | None = None
    """search=plaid: clusters that each query token looks into."""
    n_full_scores: int | None = None
    """search=plaid: candidates that are left after the scores by centroids alone."""
    kmeans_iterations: int | None = None
    """search=plaid: of the clustering that gives the centroids."""
    seed: int | None = None
    """search=plaid: of the sample that is clustered and of the clustering."""

    def __post_init__(self) -> None:
        if self.depth < 100:
            msg = f"search.depth={self.depth}: wanted 100 or more, because recall@100 is reported"
            raise ConfigError(msg)
        for key in INDEX_SETTINGS:
            value = getattr(self, key)
            if self.name == "exact" and value is not None:
                raise ConfigError(f"search.{key}={value} is of search=plaid, and the search is exact; add search=plaid")
            if self.name != "exact" and (value is None or value < (0 if key == "seed" else 1)):
                raise ConfigError(f"search.{key}={value}: wanted a positive whole number, as search=plaid has it")
        if self.nbits is not None and self.nbits not in (1, 2, 4, 8):
            raise ConfigError(f"search.nbits={self.nbits}: wanted 1, 2, 4 or 8")
        if self.n_full_scores is not None and self.n_full_scores < self.depth:
            msg = f"search.n_full_scores={self.n_full_scores}: wanted no fewer than the {self.depth} documents kept"
            raise ConfigError(f"{msg} per query (search.depth)")


INDEX_SETTINGS = ("nbits", "n_ivf_probe", "n_full_scores", "kmeans_iterations", "seed")
"""The settings of an index; a search without one has none of them."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What is checkpointed of a shard, and how."""

    keep: Literal["embeddings", "topk"]
    """`embeddings` keeps token embeddings for later runs; `topk` drops them once the shard is searched."""
    dtype: Literal["float16", "float32"]
    shard_tokens: Literal["auto"] | int
    """Tokens per shard at most, by an upper estimate from the bytes of the text; `auto` goes by the device
    (`evalkit.run.environment.shard_tokens`)."""

    def __post_init__(self) -> None:
        if self.shard_tokens != "auto" and not 1_000 <= self.shard_tokens <= 64_000_000:
            msg = f"store.shard_tokens={self.shard_tokens}: wanted 1000 to 64000000, or auto"
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
    metrics: tuple[str, ...] = METRICS
    """What a run is scored by, METRICS first, as ranx names it: `map`, `recall@50`, `ndcg@10`."""
    reranker: RerankerConfig | None = None
    """What `evalkit rerank` scores a run again with; `evalkit run` has no use for it."""


def configs_dir() -> Path:
    """Return the folder of YAML configs: inside an installed wheel, else at the root of the checkout."""
    installed = Path(__file__).parents[1] / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def own_configs_dirs() -> tuple[Path, ...]:
    """Return the folders of the user's own configs, as `--config-dir` or EVALKIT_CONFIGS names them.

    Raises ConfigError for one that is not there.
    """
    given = filter(None, os.environ.get(CONFIGS, "").split(os.pathsep))
    folders = tuple(dict.fromkeys(Path(folder).expanduser().absolute() for folder in given))
    for folder in folders:
        if not folder.is_dir():
            msg = f"{folder}: got no such folder, wanted one with model/NAME.yaml or dataset/NAME.yaml in it"
            raise ConfigError(f"{msg}; check --config-dir and {CONFIGS}")
    return folders


def group_files(group: str) -> dict[str, Path]:
    """Return the YAML file of every name of a config group, the user's own among them, by name.

    Raises ConfigError for a name that two folders have: which of them runs must not depend on an order.
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

    Raises ConfigError for an unknown key, a missing or ill-typed value, or a dim that the model has not.
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
    dataset: DatasetConfig = from_mapping(DatasetConfig, _named(values["dataset"]), where="dataset")
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


def _named(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a dataset's values; one without a name is called by its folder, so that two folders are two datasets."""
    if not isinstance(dataset, Mapping) or dataset.get("name", "") is not None:
        return dataset
    path = dataset.get("path")
    return {**dataset, "name": "folder" if path is None else folder_name(str(path))}


def folder_name(path: str) -> str:
    """Return the name of the dataset in a folder: `folder/` and the folder's own, without what a run id cannot hold.

    >>> folder_name("/data/my corpus/")
    'folder/my_corpus'
    """
    own = Path(os.path.abspath(Path(path).expanduser())).name  # noqa: PTH100 (a link keeps its own name)
    safe = re.sub(r"[^\w.-]+", "_", own)[:_NAME_CHARACTERS]
    return f"folder/{safe}" if safe else "folder"


def selected_metrics(selector: object, *, depth: int) -> tuple[str, ...]:
    """Turn `metrics=[map,recall@50]`, one name or nothing into the metrics to score by, METRICS always first.

    Raises ConfigError for a name that ranx does not know, and for a cutoff beyond what a search keeps.

    >>> selected_metrics(["map", "ndcg@10"], depth=100)
    ('ndcg@10', 'mrr@10', 'recall@100', 'map')
    """
    asked = [] if selector is None else list(selector) if isinstance(selector, (list, tuple)) else [selector]
    for name in asked:
        found = METRIC.fullmatch(str(name))
        if found is None:
            known = ("ndcg", "ndcg_burges", "map", "mrr", "recall", "precision", "hit_rate", "f1", "r-precision")
            msg = f"metric {str(name)!r} unknown; {nearest(str(name).partition('@')[0], known)}, each with a cutoff"
            raise ConfigError(f"{msg} (recall@50) or without (map), and -l2 where only grades from 2 on are relevant")
        if found[3] is not None and int(found[3]) > depth:
            msg = f"metric {name}: got a cutoff beyond the {depth} documents that are kept per query"
            raise ConfigError(f"{msg}, wanted no more than that; search.depth={found[3]} keeps as many")
    return tuple(dict.fromkeys((*METRICS, *map(str, asked))))


def _folder(key: str, value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        msg = f"{key}={value!r}: wanted a folder, for example {key}=/data/{key.removesuffix('_dir')}"
        raise ConfigError(msg)
    return Path(at_home(key, value))


def at_home(setting: str, path: str) -> str:
    """Return a path with `~` at its beginning replaced by the home folder. Raises ConfigError where there is none."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib raises RuntimeError without saying which setting)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        msg = f"{setting}={path!r}: {user} has no home folder here; wanted a path"
        raise ConfigError(f"{msg} (./{path} where {user} is a folder's name)")
    return expanded


def _check_name(setting: str, name: str, *, parts: bool = False) -> None:
    """Raise ConfigError for a name that could not be part of a path: names become folders of results."""
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
