"""Every reader of outside data as a function of bytes, with seeds and the errors that it may raise: what is fuzzed.

A reader is faulty if it raises any other error, or a message of several lines. Readers also check what was read: ids
that a run file can hold, finite scores, the same value after a checksum. tests/property/test_readers.py, fuzz.py
(atheris) and scrambled.py (random bytes) share them.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from unittest import mock

import yaml

from evalkit import texts
from evalkit.errors import ConfigError, EvalkitError
from evalkit.storage import columns, seal, untrusted

LONGEST_MESSAGE = 20_000
"""Characters of an error message: it may quote names, never a whole file."""
MEMORY = Path("/dev/shm")  # noqa: S108 (mkdtemp creates a folder in it)


class WrongError(Exception):
    """Raised if a reader accepts an input with a wrong result."""


class Reader(NamedTuple):
    """One reader of outside data."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...] = (EvalkitError,)

    def check(self, data: bytes) -> str:
        """Read bytes; return `read` or `refused`. All errors other than `refusals` are raised."""
        try:
            self.read(data)
        except self.refusals as error:
            text = str(error)
            if "\n" in text or len(text) > LONGEST_MESSAGE:
                msg = f"{self.name}: a refusal of {len(text)} characters in {len(text.splitlines())} lines"
                raise WrongError(msg) from error
            return "refused"
        return "read"


class Memory(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """A path to a file in memory, so that readers of one file need no disk; all such paths share one content."""

    content = b""

    def read_bytes(self) -> bytes:
        """Return the content."""
        return Memory.content

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Open the content for reading."""
        stream = io.BytesIO(Memory.content)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8")

    def is_file(self) -> bool:
        """Return True."""
        return True

    def stat(self, **_: Any) -> os.stat_result:
        """Return the status of a regular file of this size."""
        return os.stat_result((stat.S_IFREG, 1, 1, 1, 0, 0, len(Memory.content), 0, 0, 0))


def in_memory(path: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of bytes from a reader of a path."""
    file = Memory(path)

    def of(data: bytes) -> object:
        Memory.content = data
        return read(file)

    return of


def in_memory_folder() -> Path | None:
    """Return a folder in memory, or None if the system has none."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


@cache
def scratch() -> Path:
    """Return this process's temporary folder, in memory if possible."""
    folder = Path(mkdtemp(prefix="faults-", dir=os.environ.get("FAULTS_SCRATCH") or in_memory_folder()))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def on_disk(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of bytes from a reader that needs a file on disk: `name` in the scratch folder."""

    def of(data: bytes) -> object:
        path = scratch() / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return read(path)

    return of


def resealed(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a reader that gets every JSON object with a valid checksum, so that the code after the check is fuzzed."""

    def of(data: bytes) -> object:
        values = untrusted.json_object(data)
        values.pop(seal.FIELD, None)
        return read(json.dumps(seal.seal(values)).encode())

    return of


def demand(holds: object, what: str) -> None:
    """Raise WrongError unless a condition holds; an AssertionError could come from a reader."""
    if not holds:
        raise WrongError(what)


# Texts.


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _grade(data: bytes) -> object:
    text = _text(data)
    found = columns.grade_of(text)
    if found is not None:
        demand(float(text) == found, f"grade {found} of {text!r}")
    return found


def _columns(data: bytes) -> object:
    found = columns.split(_text(data))
    demand(not any(" " in one or "\t" in one for one in found), "a column with a space")
    return found


def _names(data: bytes) -> object:
    text = _text(data)
    shown = texts.one_line(text)
    demand(not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown), "a control character is told")
    if texts.unusable_name(text, parts=True) is None:
        demand(".." not in text.split("/") and not text.startswith("/"), f"{text!r} as a name")
        demand(len(text.encode()) <= texts.NAME_BYTES, f"{text!r} is too long")
    return shown


def _json(data: bytes) -> object:
    value = untrusted.json_value(data)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def _yaml(data: bytes) -> object:
    value = untrusted.yaml_value(data)
    repr(value).encode()
    return value


# Lines.


def _checked_run(path: Path) -> object:
    from evalkit.storage import trec

    run = trec.read_run(path)
    for query, hits in run.items():
        demand(columns.is_identifier(query), f"query {query!r}")
        demand(all(columns.is_identifier(hit.document_id) and math.isfinite(hit.score) for hit in hits), "a hit")
    return run


def _checked_qrels(read: Callable[[Path], Mapping[str, Mapping[str, int]]]) -> Callable[[Path], object]:
    def of(path: Path) -> object:
        found = read(path)
        for query, grades in found.items():
            demand(columns.is_identifier(query) and all(map(columns.is_identifier, grades)), "an id")
            demand(all(type(grade) is int for grade in grades.values()), "a grade")
        return found

    return of


def _trec_qrels(path: Path) -> Mapping[str, Mapping[str, int]]:
    from evalkit.storage import trec

    return trec.read_qrels(path)


def _folder_qrels(path: Path) -> Mapping[str, Mapping[str, int]]:
    from evalkit.datasets import folder

    return folder.read_qrels(path)


def _queries(path: Path) -> object:
    from evalkit.datasets import folder

    found = folder.read_queries(path)
    demand(all(columns.is_identifier(query.id) and query.text.encode() for query in found), "a query")
    return found


def _corpus(path: Path) -> object:
    from evalkit.datasets.folder import FolderCorpus

    found = list(FolderCorpus(path.parent).documents())
    for document in found:
        demand(columns.is_identifier(document.id), f"document {document.id!r}")
        "".join(document).encode()
    return found


def _zipped(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    return lambda data: read(gzip.compress(data, compresslevel=0, mtime=0))


def _per_query(path: Path) -> object:
    from evalkit.storage import per_query_file

    found = per_query_file.read(path)
    demand(((found.value_QM >= 0) & (found.value_QM <= 1)).all(), "a value")
    demand(len(found.queries) == len(found.value_QM), "queries without values")
    return found


# Records.


def _scores(path: Path) -> object:
    from evalkit.storage import results

    return results.read(path)


def _manifest(path: Path) -> object:
    from evalkit.storage import shard_files

    return shard_files.read_manifest(path.parent, path.stem)


def _survey(path: Path) -> object:
    from evalkit.datasets import survey

    return survey._read(path)


def _resealed_survey(data: bytes) -> object:
    from evalkit.datasets import survey

    facts = untrusted.json_object(data).get("survey")
    Memory.content = json.dumps({"survey": facts, "xxh3": survey._own_checksum(facts)}).encode()
    return survey._read(Memory("survey.json"))


def _job(path: Path) -> object:
    from evalkit.run import jobs

    return jobs._read(path)


def _settings(data: bytes) -> object:
    from evalkit.storage import cell_config

    values = untrusted.yaml_value(data)
    try:
        return cell_config.config_of(values)
    except (KeyError, TypeError, AttributeError) as error:  # callers report these in one line
        msg = f"no settings ({type(error).__name__})"
        raise ConfigError(msg) from error


def _waivers(path: Path) -> object:
    from evalkit.report import card

    return card.read_waivers(path.parent)


def _rates(path: Path) -> object:
    from evalkit.operations import device_rates

    return device_rates.measured_rates(path.parents[3], gpu="H", model="m")


# Archives and columns.


def _bundle(path: Path) -> object:
    from evalkit.operations import fetch

    home = scratch() / "homes"
    shutil.rmtree(home, ignore_errors=True)
    before = {each.name for each in scratch().iterdir()}
    homes = {name: home / name for name in ("huggingface", "ir_datasets", "evalkit")}
    try:
        with mock.patch.object(fetch, "_homes", return_value=homes):
            return fetch.unpack_bundle(path, cache_dir=home / "cache")
    finally:
        demand({each.name for each in scratch().iterdir()} - before <= {"homes"}, "an archive left its folder")
        inside = {each.name for each in home.iterdir()} if home.is_dir() else set()
        demand(inside <= {"huggingface", "ir_datasets", "evalkit"}, "an archive left its folder")
        size = sum(each.stat().st_size for each in home.rglob("*") if each.is_file())
        demand(size <= path.stat().st_size, f"an archive of {path.stat().st_size} bytes wrote {size}")


def _parquet(path: Path) -> object:
    from evalkit.datasets.hub import HubCorpus

    found = list(HubCorpus("o/n@c", (path,)).documents())
    demand(all(columns.is_identifier(document.id) for document in found), "an id")
    "".join(part for document in found for part in document).encode()
    return found


def _hub_queries(path: Path) -> object:
    from evalkit.datasets import hub

    return list(hub._read_queries([path]))


def _hub_qrels(path: Path) -> Mapping[str, Mapping[str, int]]:
    from evalkit.datasets import hub

    return hub._read_qrels([path])


def _hub_card(path: Path) -> object:
    from evalkit.datasets import hub

    return hub._splits(path.parent, "corpus")


# Checkpoints.


def _checkpoint(folder: Path, **files: str) -> Any:
    from evalkit.models.checkpoint import Checkpoint

    return Checkpoint(folder=folder, origin="a checkpoint", revision=None, checksums=dict(files))


def _model_config(data: bytes) -> object:
    from evalkit.models.backbones import native
    from evalkit.models.checkpoint import read_json

    Memory.content = data
    values = read_json(Memory("config.json"))
    return native.config_values(values, [*native.ARCHITECTURE_KEYS, "hidden_act"], origin="a checkpoint")


def _modules(path: Path) -> object:
    from evalkit.models import checkpoint

    return checkpoint.dense_folders(path.parent)


def _tokenizer(path: Path) -> object:
    from evalkit.models import tokens

    vocabulary = tokens.load_vocabulary(_checkpoint(path.parent))
    return vocabulary.encoded(["a b文", ""], 8)


def _tensors(path: Path) -> object:
    from evalkit.models.backbones import native

    checkpoint = _checkpoint(path.parent)
    return native.count_parameters(checkpoint, adapter=None), native.read_tensors(checkpoint)


def _pickle(path: Path) -> object:
    from evalkit.models.backbones import native

    return native.read_tensors(_checkpoint(path.parent, **{"pytorch_model.bin": ""}))


_PARTS = ("config.json", "artifact.metadata", "config_sentence_transformers.json", "modules.json")


def _inferred(data: bytes) -> object:
    """Infer a model's settings from six files, separated by `====`; an empty file is left out."""
    from evalkit.config.settings import CheckpointSource
    from evalkit.models import infer

    folder = scratch() / "inferred"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1_Dense").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    parts = data.split(b"====")
    for name, part in zip((*_PARTS, "1_Pooling/config.json", "1_Dense/config.json"), parts, strict=False):
        if part:
            (folder / name).write_bytes(part)
    found = infer.infer(CheckpointSource(path=str(folder)), name="m")
    return found.values(), found.lines()


# Words and texts.


def _words(data: bytes) -> object:
    from evalkit.config.compose import compose

    return compose(_text(data).split("\n"))


def _analyzed(data: bytes) -> object:
    text = data.decode("utf-8", errors="replace")
    return [_analyzer(name)(text) for name in ("english", "bm25s", "cjk", "thai", "arabic", "german")]


@cache
def _analyzer(name: str) -> Any:
    from evalkit.bm25.analyzers import ANALYZERS

    return ANALYZERS[name]()


# Seeds.

RUN = b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 0.5 t\nq2\tQ0\td1\t1\t1.25\tt\n"
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2.0\n"
TREC_QRELS = b"q1 0 d1 1\nq1 0 d2 0\nq2 0 d2 2\n"
QUERIES = b'{"_id": "q1", "text": "red fox"}\n{"_id": "q2", "text": "a \\u00e9"}\n'
CORPUS = b'{"_id": "d1", "title": "T", "text": "red fox"}\n{"_id": "d2", "title": null, "text": ""}\n'
PER_QUERY = b"query_id\tndcg@10\tmrr@10\nq1\t0.5\t1.0\nq2\t0.0\t0.25\n"
CONFIG = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
HUB_QRELS = b'{"query-id": 1, "corpus-id": "d1", "score": 1}\n{"query-id": "q2", "corpus-id": "d1", "score": 2.0}\n'
HUB_CARD = b"""---
license: mit
configs:
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus/corpus-*.parquet
- config_name: queries
  data_files: queries.jsonl
---
# A card
"""


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _scores_seed() -> bytes:
    from evalkit.storage import keys

    protocol = {"k1": 0.9, "corpus": "f3", "depth": 100, "drop_self": True}
    values: dict[str, Any] = {
        "run_id": keys.run_id("a", "test", "bm25", None, protocol),
        "model": "bm25",
        "dim": None,
        "dataset": "a",
        "split": "test",
        "language": "en",
        "main_metric": "ndcg@10",
        "metrics": {"ndcg@10": 0.5},
        "groups": {},
        "counts": {"documents": 2},
        "deviations": [],
        "protocol": protocol,
        "wall_s": {"score": 0.5},
        "environment": {"checkpoint": None},
        "schema_version": 2,
        "files": {"run.trec.gz": "ab"},
    }
    return _dump(seal.seal(values))


def _run_id() -> str:
    return str(json.loads(_scores_seed())["run_id"])


def _manifest_seed() -> bytes:
    facts = {"start": 0, "stop": 2, "vectors": 3, "run_id": "a.test.b.1", "protocol": {"dim": 2}}
    values = {"format": 2, "name": "s", "size_bytes": 3, "arrays_xxh3_128": "ab", "facts": facts}
    return _dump(seal.seal(values))


def _survey_seed() -> bytes:
    from evalkit.datasets import survey

    facts = {
        "documents": 2,
        "checksum": "ab",
        "shards": [[0, 2, "ab", "cd"]],
        "empty_documents": 0,
        "missing": ["d3"],
    }
    return _dump({"survey": facts, "xxh3": survey._own_checksum(facts)})


def _config_values() -> dict[str, Any]:
    from evalkit.config.compose import compose
    from evalkit.storage import cell_config

    values: dict[str, Any] = cell_config.plain(compose(["model=bm25"]))
    return values


def _settings_seed() -> bytes:
    return yaml.safe_dump(_config_values(), sort_keys=False).encode()


def _job_seed() -> bytes:
    facts = {"config": _config_values(), "process": "here 1", "started": "now", "error": None, "locked": True}
    return _dump(seal.seal(facts))


def _bundle_seed(*, name: str = "huggingface/a/b.txt", content: bytes = b"abc", checksum: str | None = None) -> bytes:
    import xxhash

    stream = io.BytesIO()
    facts = {"bytes": len(content), "xxh3": checksum or xxhash.xxh3_128_hexdigest(content)}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in (
            ("evalkit-bundle.json", _dump({"format": 1, "files": {name: facts}})),
            (name, content),
        ):
            header = tarfile.TarInfo(member)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def _parquet_seed() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    table = pa.table({"_id": ["d1", "d2"], "title": ["T", None], "text": ["red fox", "é"]})
    parquet.write_table(table, stream)
    return stream.getvalue()


def _tokenizer_seed() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token=words[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    return str(tokenizer.to_str()).encode()


def _tensors_seed() -> bytes:
    import torch
    from safetensors.torch import save

    return bytes(save({"a.weight": torch.arange(6.0).view(3, 2), "b": torch.tensor([1, 2])}))


def _pickle_seed() -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"a.weight": torch.arange(6.0).view(3, 2)}, stream)
    return stream.getvalue()


def _inferred_seeds() -> tuple[bytes, ...]:
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    dense = [modules[0], {"type": "a.Dense", "path": "1_Dense"}]
    stanford = {"dim": 8, "query_maxlen": 32, "doc_maxlen": 180, "mask_punctuation": True, "query_token_id": "[Q]"}
    pylate = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "skiplist_words": ["."]}
    return (
        b"====".join([_dump(CONFIG), _dump(stanford)]),
        b"====".join([_dump({**CONFIG, "model_type": "unknown"}), _dump(stanford)]),  # imports transformers
        b"====".join([_dump(CONFIG), b"", _dump(pylate), _dump(dense), b"", _dump({"out_features": 8})]),
        b"====".join([_dump(CONFIG), b"", b"", _dump(modules), _dump({"pooling_mode_mean_tokens": True})]),
    )


def _readers() -> list[Reader]:
    unreadable = (untrusted.UnreadableError, EvalkitError)
    waiver = {"system": "s", "dim": 1, "dataset": "d", "metric": "m", "source": "card", "measured": 0.4, "reason": "r"}
    rates = _dump(
        {"format": 1, "gpu": "H", "model": "m", "tokens_per_s": 1.0, "search_flop_per_s": 2.0, "query_vectors": 3}
    )
    seals = (ValueError,)
    scores = in_memory(f"runs/{_run_id()}/scores.json", _scores)
    manifest = in_memory("store/s.json", _manifest)
    job = on_disk("jobs/k.json", _job)
    run = in_memory("r.trec", _checked_run)
    return [
        Reader("grade", _grade, (b"1", b"1.0", b"-2", b"1e2")),
        Reader("columns", _columns, (b"q1 Q0 d1 1 0.5 t", b"a\tb c")),
        Reader("names", _names, (b"beir/nfcorpus", b"../x", b"a\x1b[2J")),
        Reader("json", _json, (b'{"a": [1, null, "x", 0.5]}', b'"\\u00e9"'), unreadable),
        Reader("seal", seal.read, (_dump(seal.seal({"a": 1})),), seals),
        Reader("resealed", resealed(seal.read), (_dump({"a": [1, {"b": None}]}),), seals),
        Reader("yaml", _yaml, (b"a: [1, null]\nb:\n  - c: 'd'\n", b"? a\n: !!int 3"), unreadable),
        Reader("run", run, (RUN,)),
        Reader("run-gz", on_disk("r.trec.gz", _checked_run), (gzip.compress(RUN, mtime=0),)),
        Reader("run-zipped", _zipped(on_disk("z.trec.gz", _checked_run)), (RUN,)),
        Reader("qrels", in_memory("q.tsv", _checked_qrels(_folder_qrels)), (QRELS, TREC_QRELS)),
        Reader("trec-qrels", in_memory("q.trec", _checked_qrels(_trec_qrels)), (TREC_QRELS,)),
        Reader("qrels-gz", on_disk("q.tsv.gz", _checked_qrels(_folder_qrels)), (gzip.compress(QRELS, mtime=0),)),
        Reader("queries", in_memory("queries.jsonl", _queries), (QUERIES,)),
        Reader("corpus", on_disk("folder/corpus.jsonl", _corpus), (CORPUS,)),
        Reader("per-query", in_memory("per_query.tsv", _per_query), (PER_QUERY,)),
        Reader("scores", scores, (_scores_seed(),)),
        Reader("scores-resealed", resealed(scores), (_scores_seed(),), unreadable),
        Reader("manifest", manifest, (_manifest_seed(),)),
        Reader("manifest-resealed", resealed(manifest), (_manifest_seed(),), unreadable),
        Reader("survey", in_memory("survey.json", _survey), (_survey_seed(),)),
        Reader("survey-resealed", _resealed_survey, (_survey_seed(),), unreadable),
        Reader("job", job, (_job_seed(),)),
        Reader("job-resealed", resealed(job), (_job_seed(),), unreadable),
        Reader("settings", _settings, (_settings_seed(),), unreadable),
        Reader("waivers", in_memory("waivers.yaml", _waivers), (_dump([waiver]),)),
        Reader("card-rates", on_disk("bench/gpu/H/card.json", _rates), (rates,)),
        Reader("bundle", on_disk("bundle.tar", _bundle), (_bundle_seed(), _bundle_seed(name="ir_datasets/../escaped"))),
        Reader("parquet", on_disk("c.parquet", _parquet), (_parquet_seed(),)),
        Reader("hub-queries", in_memory("h.jsonl", _hub_queries), (QUERIES,)),
        Reader("hub-qrels", in_memory("h.jsonl", _checked_qrels(_hub_qrels)), (HUB_QRELS,)),
        Reader("hub-card", on_disk("hub/README.md", _hub_card), (HUB_CARD,)),
        Reader("model-config", _model_config, (_dump(CONFIG),)),
        Reader("modules", on_disk("m/modules.json", _modules), (_dump([{"type": "a.Dense", "path": "1_Dense"}]),)),
        Reader("tokenizer", on_disk("t/tokenizer.json", _tokenizer), (_tokenizer_seed(),)),
        Reader("safetensors", on_disk("w/model.safetensors", _tensors), (_tensors_seed(),)),
        Reader("pickle", on_disk("p/pytorch_model.bin", _pickle), (_pickle_seed(),)),
        Reader("inferred-model", _inferred, _inferred_seeds()),
        Reader("words", _words, (b"model=bm25\ndataset=beir/fiqa", b"dim=[128,64]", b"metrics=[map,recall@50]")),
        Reader("analyzers", _analyzed, (b"The running foxes' dens", "狐狸 é ß".encode())),
    ]


@cache
def readers() -> Mapping[str, Reader]:
    """Return every reader by name, the cheapest first."""
    return {reader.name: reader for reader in _readers()}
