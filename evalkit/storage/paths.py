"""The names of all files and folders that evalkit writes, and the function that writes a file atomically.

Two folders hold them. `results_dir` has finished cells. `cache_dir` has what can be computed or fetched again: shards,
top-k, surveys, indexes, and records of jobs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import xxhash

from evalkit.errors import StoreError

LONGEST_NAME: Final = 120
"""Longer names, in bytes, are shortened in the name of their temporary file."""
ABANDONED_AFTER_S: Final = 86_400
"""A temporary file of another machine that did not change for a day belongs to no running write."""


def surveys_dir(cache_dir: Path) -> Path:
    """Return the folder of all surveys."""
    return cache_dir / "surveys"


def survey_file(cache_dir: Path, key: str) -> Path:
    """Return the file with the counts, checksum and shard boundaries of a corpus."""
    return surveys_dir(cache_dir) / f"{key}.json"


def fetched_file(cache_dir: Path, name: str) -> Path:
    """Return the file with the checksums of a model or dataset that was fetched ahead of time.

    >>> fetched_file(Path("cache"), "dataset beir/fiqa test").name
    'dataset-beir-fiqa-test.json'
    """
    return cache_dir / "fetched" / f"{name.replace('/', '-').replace(' ', '-').replace(',', '')}.json"


def corpora_dir(cache_dir: Path) -> Path:
    """Return the folder with the checksums of corpora when first read completely (`evalkit.datasets.learned`)."""
    return cache_dir / "corpora"


def learned_file(cache_dir: Path, name: str, key: str) -> Path:
    """Return the file with the checksum that a dataset's corpus had when it was first read completely."""
    return corpora_dir(cache_dir) / f"{name.replace('/', '-')}.{key}.json"


def store_dir(cache_dir: Path, store_key: str) -> Path:
    """Return the folder of the embeddings of one model at one dim, for shards of any corpus.

    Here and in `topk_dir` the files of a shard are named by its checksum, `ShardRange.checksum`.
    """
    return cache_dir / "stores" / store_key


def topk_dir(cache_dir: Path, search_key: str) -> Path:
    """Return the folder of the top-k of each shard, for one cell's queries and search settings."""
    return cache_dir / "topk" / search_key


def environments_dir(cache_dir: Path) -> Path:
    """Return the folder of the virtual environments of other libraries.

    >>> environments_dir(Path("cache")).as_posix()
    'cache/environments'
    """
    return cache_dir / "environments"


def index_dir(cache_dir: Path, key: str) -> Path:
    """Return the folder of an index over the stored embeddings of one corpus."""
    return cache_dir / "indexes" / key


def default_results_dir() -> Path:
    """Return the default folder of finished cells, the same as the config's default of `results_dir`."""
    return Path(os.environ.get("EVALKIT_RESULTS") or "evalkit-results")


def runs_dir(results_dir: Path) -> Path:
    """Return the folder of all finished cells."""
    return results_dir / "runs"


def run_dir(results_dir: Path, run_id: str) -> Path:
    """Return the folder of one cell's result files."""
    return runs_dir(results_dir) / run_id


MTEB = "mteb"
"""The subfolder of a results folder for scores that mteb measured."""


def mteb_file(results_dir: Path, model: str, revision: str, dataset: str) -> Path:
    """Return the record of a mean that mteb measured. Folders are laid out like mteb's own results.

    >>> mteb_file(Path("r"), "org/name", "abc", "beir/fiqa").as_posix()
    'r/mteb/org__name/abc/beir-fiqa.json'
    """
    return results_dir / MTEB / model.replace("/", "__") / revision / f"{dataset.replace('/', '-')}.json"


def below(folder: Path, name: str) -> Path:
    """Return the path of a file below a folder. Raises StoreError for a name that would be outside it."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        msg = f"{name!r}: wanted a name of a file below {folder}; nothing was written there"
        raise StoreError(msg)
    return folder.joinpath(*parts)


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist. Raises StoreError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: after any fault it has either the whole new content or the previous one.

    The content is written to a temporary file, synced and renamed. Raises StoreError if that fails.
    """
    make_folder(path.parent)
    unfinished = temporary(path)
    try:
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> StoreError:
    """Return a StoreError that says why a file could not be written and what to do."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return StoreError(
        f"{path}: could not be written ({reason}); finished shards are kept: free disk space, "
        "or choose another place (results_dir=DIR, cache_dir=DIR), and run the same command again"
    )


def temporary(path: Path) -> Path:
    """Return the temporary name of a path. Host name and process id make it unique on a shared file system too."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:  # with the suffix it would exceed the file system's limit
        name = f"{name[:16]}-{zlib.crc32(os.fsencode(name)):08x}"
    return path.with_name(f".{name}{temporary_suffix(os.getpid())}")


def temporary_suffix(pid: int) -> str:
    """Return the suffix of the temporary files and folders of a process on this machine."""
    return f".{socket.gethostname()}.{pid}.tmp"


def remove_left_over(folders: Iterable[Path]) -> int:
    """Remove the temporary files and folders of killed processes from some folders; return how many were removed.

    On this machine, a temporary file is removed if its process has ended. A file of another machine is removed after
    ABANDONED_AFTER_S seconds without a change.
    """
    removed = 0
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            with suppress(OSError):  # another process may be tidying up too
                if _left_over(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
    return removed


def _left_over(path: Path) -> bool:
    """Whether the process that wrote a temporary file has ended."""
    pid = path.name.removesuffix(".tmp").rpartition(".")[2]
    if not (pid.isascii() and pid.isdigit()):
        return False
    if path.name.endswith(temporary_suffix(int(pid))):
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # the process exists and belongs to another user
            return False
        return False
    return time.time() - path.stat().st_mtime > ABANDONED_AFTER_S


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system of a folder, which need not exist."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def publish(unfinished: Path, path: Path) -> None:
    """Rename a completely written and synced file, and sync the folder, so that the rename survives a power failure."""
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_checksum(path: Path, *, also: hashlib._Hash | None = None) -> str:
    """Return the xxh3-128 of a file. A second digest, `also`, is updated with the same bytes in the same pass."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if also is not None:
                also.update(block)
    return digest.hexdigest()
