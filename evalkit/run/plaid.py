"""`search=plaid`: search the stored embeddings with a fast-plaid index, after the exact search of the same embeddings.

fast-plaid needs another version of torch, so it runs in a separate process with an environment of its own
(scripts/plaid.py). An index is built in a temporary folder and renamed when it is complete. Its record has the checksum
of the embeddings and the time that building took.

Shapes: Q queries, K documents kept per query.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evalkit.config.settings import EncoderConfig, RunConfig, SearchConfig
from evalkit.errors import ConfigError, EngineError, StoreError
from evalkit.ranking import Hits, best_of_shard, ranked_ids
from evalkit.run import identity
from evalkit.run.cells import Cell, Task
from evalkit.storage import keys, seal, shard_files
from evalkit.storage.paths import (
    environments_dir,
    index_dir,
    make_folder,
    publish,
    remove_left_over,
    store_dir,
    temporary,
    temporary_suffix,
    write_atomic,
    write_error,
)
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Run

ENVIRONMENT = "EVALKIT_PLAID"
"""The environment variable that names the folder of fast-plaid's virtual environment."""
RECORD = "index.json"
OWN_FILES = (RECORD, "places.json")
"""Files in an index's folder that evalkit wrote; they do not count towards its size."""
CUTOFF = 10
"""The cutoff at which the hits of index and exact search are compared."""


class Indexed(NamedTuple):
    """The hits of an index search, and its cost."""

    hits: Hits
    facts: dict[str, Any]
    """The facts of the index that the result records."""
    search_s: float


class _Stored(NamedTuple):
    """The stored embeddings of a corpus."""

    paths: tuple[Path, ...]
    ids: tuple[str, ...]
    vectors: int
    checksum: str
    """The checksum over all arrays, in the order of the shards."""


def script() -> Path:
    """Return the path of scripts/plaid.py in an installed wheel, else in the checkout."""
    installed = Path(__file__).parents[1] / "_scripts" / "plaid.py"
    return installed if installed.is_file() else Path(__file__).parents[2] / "scripts" / "plaid.py"


def environment_dir(cache_dir: Path) -> Path:
    """Return the folder of fast-plaid's environment, whether or not it exists."""
    chosen = os.environ.get(ENVIRONMENT)
    return (Path(chosen).expanduser() if chosen else environments_dir(cache_dir) / "plaid").absolute()


def check(config: RunConfig) -> None:
    """Raise ConfigError if a config cannot be combined with `search=plaid`, before anything is encoded."""
    model, nbits = config.model, config.search.nbits
    if not isinstance(model, EncoderConfig) or model.pooling != "tokens":
        msg = f"search=plaid: {model.name} has no token vectors to index"
        raise ConfigError(f"{msg}; wanted a late-interaction model (evalkit ls models)")
    if config.store.keep != "embeddings":
        msg = f"search=plaid: got store.keep={config.store.keep}, wanted store.keep=embeddings"
        raise ConfigError(f"{msg}: the index is built from what is stored")
    assert nbits is not None
    for dim in config.dims:
        if dim is not None and dim * nbits % 8:
            msg = f"search.nbits={nbits}: got dim {dim}, whose residuals fill no whole bytes"
            raise ConfigError(f"{msg}; wanted dim x nbits to be a multiple of 8")


def exact_config(config: RunConfig) -> RunConfig:
    """Return the config of the exact search of the same embeddings, given a config with an index."""
    return dataclasses.replace(config, search=SearchConfig(depth=config.search.depth))


def exact_cell(task: Task, cell: Cell) -> Cell:
    """Return the exact cell with the same embeddings and queries, given a cell with an index."""
    protocol = identity.exact_protocol(cell.protocol)
    model, dataset = task.config.model.name, task.dataset
    run_id = keys.run_id(dataset.name, dataset.split, model, cell.dim, protocol)
    return cell._replace(protocol=protocol, run_id=run_id, search_key=keys.key_of(protocol))


def search(task: Task, cell: Cell, queries: ShardVectors) -> Indexed:
    """Search the index of a cell's stored embeddings with queries; build the index if there is none.

    Raises StoreError if embeddings are missing or the index was built from others. Raises EngineError if the library
    fails. An incomplete index is deleted.
    """
    assert cell.dim is not None
    stored = _stored(task, cell)
    settings = cell.protocol["index"]
    build = {name: settings[name] for name in ("nbits", "kmeans_iterations", "seed")}
    wanted = {**build, "library": settings["library"], "dim": cell.dim, "embeddings": stored.checksum}
    address = {**build, "library": settings["library"], "store": cell.store_key, "corpus": cell.protocol["corpus"]}
    folder = index_dir(task.config.cache_dir, keys.key_of(address)).absolute()
    record = _record(folder, wanted)
    make_folder(folder.parent)
    remove_left_over([folder.parent])
    unfinished = temporary(folder)
    suffix = temporary_suffix(os.getpid())  # so that `remove_left_over` finds a killed process's folder
    with tempfile.TemporaryDirectory(prefix=".search-", suffix=suffix, dir=folder.parent) as work:
        index = folder if record is not None else unfinished
        job = _job(task, stored, settings, queries, index=index, build=build if record is None else None, work=work)
        try:
            answer, hits = _run_library(job, Path(work), task.config.cache_dir, stored, queries=len(queries.ids))
            if record is None:
                record = _publish(folder, index, {**wanted, **answer, "vectors": stored.vectors})
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    facts = {
        "library": settings["library"],
        "torch": answer["torch"],
        "embeddings": stored.checksum,
        "bytes": record["bytes"],
        "build_s": round(record["build_s"], 3),
        "queries_per_s": round(len(queries.ids) / max(answer["search_s"], 1e-9), 2),
    }
    found = best_of_shard(*hits, ranked_ids(stored.ids), depth=task.depth)
    return Indexed(found, facts, answer["search_s"])


def _job(  # noqa: PLR0913 (keyword-only after the first four)
    task: Task,
    stored: _Stored,
    settings: Mapping[str, Any],
    queries: ShardVectors,
    *,
    index: Path,
    build: Mapping[str, Any] | None,
    work: str,
) -> dict[str, Any]:
    """Write the query vectors to the folder `work`, and return the request to scripts/plaid.py.

    `build` has the settings of an index that must be built; None means that it exists.
    """
    vectors = {
        "vectors": queries.vectors.rows_XD.cpu().contiguous(),
        "lengths": queries.vectors.lengths_N.to(torch.int32),
    }
    save_file(vectors, Path(work) / "queries.safetensors")
    return {
        "library": identity.FAST_PLAID,
        "index": str(index),
        "shards": [str(path.absolute()) for path in stored.paths],
        "queries": str(Path(work) / "queries.safetensors"),
        "depth": min(task.depth, len(stored.ids)),
        "threads": task.config.engine.threads,
        "device": str(task.device),
        "build": build,
        "search": {name: settings[name] for name in ("n_ivf_probe", "n_full_scores")},
        "out": work,
    }


def overlap(run: Run, exact: Run) -> dict[str, float]:
    """Compare the run of an index with the exact run; return means over the queries with hits in the exact run.

    `overlap@10` is the fraction of the exact first 10 hits that are among the index's first 10. `recall of exact 10` is
    the fraction of them that the index returned at any rank.

    >>> from evalkit.types import Hit
    >>> overlap({"q": [Hit("a", 2.0), Hit("b", 1.0)]}, {"q": [Hit("a", 2.0), Hit("c", 1.0)]})
    {'overlap@10': 0.5, 'recall of exact 10': 0.5}
    """
    overlaps, recalls = [], []
    for query, hits in exact.items():
        best = {hit.document_id for hit in hits[:CUTOFF]}
        if best:
            got = [hit.document_id for hit in run.get(query, [])]
            overlaps.append(len(best.intersection(got[:CUTOFF])) / len(best))
            recalls.append(len(best.intersection(got)) / len(best))
    count = max(len(overlaps), 1)
    return {"overlap@10": sum(overlaps) / count, "recall of exact 10": sum(recalls) / count}


def python(cache_dir: Path) -> Path:
    """Return the Python of fast-plaid's environment. Raises ConfigError that names the command to create it."""
    folder = environment_dir(cache_dir)
    found = folder / "bin" / "python"
    if not found.is_file():
        msg = f"search=plaid: got no environment in {folder}, wanted one with fast-plaid {identity.FAST_PLAID}"
        raise ConfigError(f"{msg}; make it: python {script()} make {folder} (or name another: {ENVIRONMENT}=DIR)")
    return found


def _stored(task: Task, cell: Cell) -> _Stored:
    """Verify the stored embeddings of a corpus, one shard at a time; return their paths, ids and checksum."""
    folder = store_dir(task.config.cache_dir, cell.store_key)
    paths: list[Path] = []
    ids: list[str] = []
    vectors, digest = 0, xxhash.xxh3_128()
    for shard in task.survey.shards:
        arrays = shard_files.load(folder, shard.checksum)
        if arrays is None:
            msg = f"{folder / shard.checksum}: the embeddings of this shard are not stored, and search=plaid needs them"
            raise StoreError(f"{msg}; run the cell again with an empty results_dir and cache_dir")
        found = shard_files.vectors_from_arrays(arrays)
        if (got := found.vectors.rows_XD.shape[1]) != cell.dim:
            msg = f"{folder / shard.checksum}: got vectors of dim {got}, wanted {cell.dim}"
            raise StoreError(f"{msg}; delete this folder and run the cell again")
        digest.update(shard_files.read_manifest(folder, shard.checksum).checksum.encode())
        paths.append(folder / f"{shard.checksum}.safetensors")
        ids += found.ids
        vectors += len(found.vectors.rows_XD)
    return _Stored(tuple(paths), tuple(ids), vectors, digest.hexdigest())


def _record(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of an index, or None if there is no index. Raises StoreError if it has other embeddings."""
    path = folder / RECORD
    again = f"delete {folder} and run the same command again: it is built again"
    try:
        found = seal.read(path.read_bytes())
        size = int(found["bytes"])
        float(found["build_s"])
    except FileNotFoundError:
        if folder.exists():
            raise StoreError(
                f"{folder}: got an index without its record {RECORD}, wanted a whole one; {again}"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not the record of an index ({error}); {again}") from error
    for name, value in wanted.items():
        if found.get(name) != value:
            what = {"embeddings": "embeddings with checksum"}.get(name, name)
            raise StoreError(f"{folder}: got an index of {what} {found.get(name)}, wanted {value}; {again}")
    if (got := _bytes(folder)) != size:
        raise StoreError(f"{folder}: got {got:,} bytes, wanted the {size:,} of its record; {again}")
    return found


def _publish(folder: Path, unfinished: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a new index and rename the index to its final folder."""
    record = {**facts, "bytes": _bytes(unfinished)}
    write_atomic(unfinished / RECORD, json.dumps(seal.seal(record), indent=1).encode())
    try:
        publish(unfinished, folder)
    except OSError as error:
        raise write_error(folder, error) from error
    return record


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in OWN_FILES)


def _run_library(
    job: Mapping[str, Any], work: Path, cache_dir: Path, stored: _Stored, *, queries: int
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Run the library on a request. Return its answer and its hits: query indices, document indices, scores."""
    doing = "searching" if job["build"] is None else "building and searching"
    kept = "" if job["build"] is None else "nothing of the index was kept: "
    again = f"{kept}run the same command again, or make its environment again: "
    again += f"python {script()} make {environment_dir(cache_dir)}"
    write_atomic(work / "job.json", json.dumps(job).encode())
    done = subprocess.run(  # noqa: S603 (the Python of an environment that the user made)
        [python(cache_dir), script(), "run", work / "job.json"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        reason = _last_line(done.stderr) or _last_line(done.stdout) or "it printed nothing"
        raise EngineError(f"search=plaid: fast-plaid failed while {doing} (exit {done.returncode}: {reason}); {again}")
    try:
        answer = json.loads((work / "answer.json").read_bytes())
        arrays = load_file(work / "hits.safetensors")
        times = ("search_s",) if job["build"] is None else ("search_s", "build_s")
        answer = {"torch": str(answer["torch"]), **{name: float(answer[name]) for name in times}}
        hits = _hits(arrays["document"].numpy(), arrays["score"].numpy(), queries=queries, documents=len(stored.ids))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EngineError(f"search=plaid: fast-plaid gave no usable answer while {doing} ({error}); {again}") from error
    return answer, hits


def _hits(
    document_QK: np.ndarray, score_QK: np.ndarray, *, queries: int, documents: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a matrix of hits as flat arrays; -1 means no document. Raises ValueError for invalid hits."""
    if document_QK.shape != score_QK.shape or len(document_QK) != queries:
        msg = f"hits of shapes {document_QK.shape} and {score_QK.shape}, wanted a row for each of {queries} queries"
        raise ValueError(msg)
    query_H, column_H = np.nonzero(document_QK >= 0)
    document_H, score_H = document_QK[query_H, column_H], score_QK[query_H, column_H].astype(np.float32)
    if (document_H >= documents).any() or not np.isfinite(score_H).all():
        msg = f"a document beyond the {documents} of the corpus, or a score that is not a finite number"
        raise ValueError(msg)
    return query_H.astype(np.int32), document_H, score_H


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
