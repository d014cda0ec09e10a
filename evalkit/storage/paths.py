"""Every file and folder name that evalkit writes, once, and the one way to write a file that is whole or absent."""

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

LONGEST_KEPT: Final = 120
"""Bytes of a name that are kept in that of its temporary file."""
DAY_S: Final = 86_400


def survey_file(cache_dir: Path, key: str) -> Path:
    """Name the file of the counts, checksum and shard cuts of a corpus."""
    return cache_dir / "surveys" / f"{key}.json"


def fetched_file(cache_dir: Path, name: str) -> Path:
    """Name the file of the checksums of a model or dataset that was fetched ahead of time.

    >>> fetched_file(Path("cache"), "dataset beir/fiqa test").name
    'dataset-beir-fiqa-test.json'
    """
    return cache_dir / "fetched" / f"{name.replace('/', '-').replace(' ', '-').replace(',', '')}.json"


def corpora_dir(cache_dir: Path) -> Path:
    """Name the folder of the checksums that corpora had when they were first read whole."""
    return cache_dir / "corpora"


def learned_file(cache_dir: Path, name: str, key: str) -> Path:
    """Name the file of the checksum that a dataset's corpus had when it was first read whole."""
    return corpora_dir(cache_dir) / f"{name.replace('/', '-')}.{key}.json"


def store_dir(cache_dir: Path, store_key: str) -> Path:
    """Name the folder of the checkpointed embeddings under one model and dim, of whatever corpus.

    A shard's files are named by its checksum, here and among the top-k: `ShardRange.checksum`.
    """
    return cache_dir / "stores" / store_key


def topk_dir(cache_dir: Path, search_key: str) -> Path:
    """Name the folder of the checkpointed top-k of each shard for one set of queries."""
    return cache_dir / "topk" / search_key


def environments_dir(cache_dir: Path) -> Path:
    """Return the folder of virtual environments that other libraries run in.

    >>> environments_dir(Path("cache")).as_posix()
    'cache/environments'
    """
    return cache_dir / "environments"


def index_dir(cache_dir: Path, key: str) -> Path:
    """Name the folder of an index over the stored embeddings of one corpus."""
    return cache_dir / "indexes" / key


def default_results_dir() -> Path:
    """Return where finished runs are unless a command says otherwise, as `results_dir` of the config has it."""
    return Path(os.environ.get("EVALKIT_RESULTS") or "evalkit-results")


def run_dir(results_dir: Path, run_id: str) -> Path:
    """Name the folder of everything that one finished cell leaves."""
    return results_dir / "runs" / run_id


MTEB = "mteb"
"""Where a results folder keeps what was read from results of mteb's."""


def mteb_file(results_dir: Path, model: str, revision: str, dataset: str) -> Path:
    """Name the record of a mean that mteb measured, laid out as mteb's own results.

    >>> mteb_file(Path("r"), "org/name", "abc", "beir/fiqa").as_posix()
    'r/mteb/org__name/abc/beir-fiqa.json'
    """
    return results_dir / MTEB / model.replace("/", "__") / revision / f"{dataset.replace('/', '-')}.json"


def below(folder: Path, name: str) -> Path:
    """Return the path of a file below a folder. Raises StoreError for a name that leads elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        msg = f"{name!r}: wanted a name of a file below {folder}; nothing was written there"
        raise StoreError(msg)
    return folder.joinpath(*parts)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are not there. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after any fault it is either the whole new content or what was there before.

    Raises StoreError where it cannot be written: no space, no permission, no folder.
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
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> StoreError:
    """Return the error that says why a file could not be written, that nothing is lost, and what to do."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return StoreError(
        f"{path}: could not be written ({reason}); finished shards are kept: free disk space, "
        "or choose another place (results_dir=DIR, cache_dir=DIR), and run the same command again"
    )


def temporary(path: Path) -> Path:
    """Name what will be renamed to a path: of this process alone, also among machines that share a file system."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_KEPT:  # with its additions it would be longer than a name may be
        name = f"{name[:16]}-{zlib.crc32(os.fsencode(name)):08x}"
    return path.with_name(f".{name}{_owner(os.getpid())}")


def _owner(pid: int) -> str:
    return f".{socket.gethostname()}.{pid}.tmp"


def remove_left_over(folders: Iterable[Path]) -> int:
    """Remove the temporary files and folders in some folders that killed processes left; return how many there were.

    Of processes of this machine it is known whether they live. A file of another machine goes after DAY_S seconds
    without a change: no write takes that long.
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
    pid = path.name.removesuffix(".tmp").rpartition(".")[2]
    if not (pid.isascii() and pid.isdigit()):
        return False
    if path.name.endswith(_owner(int(pid))):
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # somebody else's process lives
            return False
        return False
    return time.time() - path.stat().st_mtime > DAY_S


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is or would be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def publish(unfinished: Path, path: Path) -> None:
    """Rename a fully written, synced file into place and sync the folder, so that the name survives a power cut."""
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_checksum(path: Path, *, beside: hashlib._Hash | None = None) -> str:
    """Return xxh3-128 of a file's bytes, read in 1 MiB blocks; a digest `beside` it takes the same bytes in."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if beside is not None:
                beside.update(block)
    return digest.hexdigest()
