"""List the cache, verify it, and remove entries from it. Results are never touched.

An entry is what can be removed by itself: embeddings of one model and dim that the same datasets use, the top-k of one
search, an index over stored embeddings, one survey, the checksum of a corpus' first read, the environment of another
library, the record of a stopped job, or the temporary files of killed processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.datasets import learned
from evalkit.errors import StoreError, nearest
from evalkit.operations import forecast
from evalkit.run import identity, jobs
from evalkit.storage import keys, shard_files, untrusted
from evalkit.storage.paths import (
    corpora_dir,
    environments_dir,
    file_checksum,
    index_dir,
    store_dir,
    surveys_dir,
    topk_dir,
)
from evalkit.storage.results import CellScores

CHECKSUM = "checksum"
ENVIRONMENT = "environment"
NEVER_UNUSED = (CHECKSUM, ENVIRONMENT, "job")
"""The kinds that `--unused` keeps: no cell refers to them, but they are needed later."""


class CellKeys(NamedTuple):
    """The keys of what one cell uses in the cache; the cell is finished, running or stopped."""

    run_id: str
    dataset: str
    store_key: str
    search_key: str
    corpus: str


class Shard(NamedTuple):
    """A shard's manifest and its arrays. Either file may be missing."""

    manifest: Path
    arrays: Path
    facts: Mapping[str, Any]
    """The content of the manifest; empty if it is missing or damaged."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The existing files. The manifest is deleted first, because a shard without one does not count as finished."""
        return tuple(path for path in (self.manifest, self.arrays) if path.is_file())


class Entry(NamedTuple):
    """One thing in the cache."""

    kind: str
    """`embeddings`, `top-k`, `index`, `survey`, `checksum`, `environment`, `job` or `leftover`."""
    key: str
    runs: tuple[str, ...]
    """The ids of the cells that are known to use it, finished or not."""
    datasets: tuple[str, ...]
    shards: tuple[Shard, ...]
    files: tuple[Path, ...]
    """The files in the order in which to delete them."""
    size_bytes: int
    used: datetime
    """When one of its files was last read or written, as far as the file system records reads."""


def entries(cache_dir: Path, finished: Iterable[CellScores]) -> list[Entry]:
    """Return every entry of a cache, largest first.

    Its users are taken from the `finished` cells and from the records of running and stopped jobs.
    """
    users = _cell_keys(cache_dir, finished)
    searches = {folder.name: _shards(folder) for folder in _folders(topk_dir(cache_dir, "x").parent)}
    found = [*_embeddings(cache_dir, searches, users)]
    for key, shards in searches.items():
        using = [user for user in users if user.search_key == key]
        found.append(_entry("top-k", key, shards, [path for shard in shards for path in shard.files], using))
    for path in _files(surveys_dir(cache_dir), "*.json"):
        using = [user for user in users if user.corpus == _surveyed_corpus(path)]
        found.append(_entry("survey", path.stem, (), [path], using))
    for path in _files(corpora_dir(cache_dir), "*.json"):
        entry = _entry(CHECKSUM, path.stem, (), [path], ())
        found.append(entry._replace(datasets=(learned.dataset_of(path),)))
    indexes = [folder for folder in _folders(index_dir(cache_dir, "x").parent) if not folder.name.startswith(".")]
    found += [_entry("index", folder.name, (), _files(folder, "**/*"), ()) for folder in indexes]
    for folder in _folders(environments_dir(cache_dir)):
        inside = [path for path in _files(folder, "**/*") if not path.is_symlink()]
        found.append(_entry(ENVIRONMENT, folder.name, (), inside, ()))
    for job in jobs.known(cache_dir):
        planned = [] if job.config is None else [job.config.dataset.name]
        entry = _entry("job", job.path.stem, (), [job.path], ())
        found.append(entry._replace(datasets=tuple(planned)))
    if leftover := [path for path in sorted(cache_dir.rglob(".*.tmp")) if path.is_file()]:
        found.append(_entry("leftover", "tmp", (), leftover, ()))
    existing = (entry for entry in found if entry.files)
    return sorted(existing, key=lambda entry: (-entry.size_bytes, entry.kind, entry.key))


def _cell_keys(cache_dir: Path, finished: Iterable[CellScores]) -> list[CellKeys]:
    """Return the keys of the `finished` cells, and of the cells of running and stopped jobs."""
    protocols = [(cell.run_id, cell.dataset, cell.protocol) for cell in finished]
    for job in jobs.known(cache_dir):
        if job.config is not None:
            cells = [planned.cell for planned in forecast.forecast_cells(job.config) if planned.cell is not None]
            protocols += [(cell.run_id, job.config.dataset.name, cell.protocol) for cell in cells]
    return list(dict.fromkeys(_keys_of(*of) for of in protocols))


def _keys_of(run_id: str, dataset: str, protocol: Mapping[str, Any]) -> CellKeys:
    return CellKeys(
        run_id, dataset, identity.store_key_in(protocol), keys.key_of(protocol), str(protocol.get("corpus"))
    )


def _embeddings(cache_dir: Path, searches: Mapping[str, Sequence[Shard]], users: Sequence[CellKeys]) -> Iterator[Entry]:
    """Yield a model's stored shards, grouped by the cells that use them: those whose top-k name them or wrote them."""
    by_search = {user.search_key: user for user in users}
    named: dict[tuple[str, str], set[str]] = {}
    for key, shards in searches.items():
        for shard in shards:
            if (protocol := shard.facts.get("protocol")) and (user := by_search.get(key)) is not None:
                named.setdefault((identity.store_key_in(protocol), shard.manifest.stem), set()).add(user.run_id)
    by_run = {user.run_id: user for user in users}
    for folder in _folders(store_dir(cache_dir, "x").parent):
        groups: dict[tuple[str, ...], list[Shard]] = {}
        for shard in _shards(folder):
            using = set(named.get((folder.name, shard.manifest.stem), ()))
            using |= {str(shard.facts["run_id"])} if "run_id" in shard.facts else set()
            groups.setdefault(tuple(sorted(using)), []).append(shard)
        if len(groups) == 2 and () in groups:
            # Arrays without a manifest do not name a user. All other shards have the same users, so these have too.
            without_manifest = groups.pop(())
            next(iter(groups.values())).extend(without_manifest)
        for runs, members in groups.items():
            known = [by_run[run] for run in runs if run in by_run]
            files = [path for shard in members for path in shard.files]
            # The id of an unknown cell still begins with its dataset, as run ids spell it.
            names = [by_run[run].dataset if run in by_run else run.split(".")[0] for run in runs]
            entry = _entry("embeddings", folder.name, members, files, known)
            yield entry._replace(datasets=tuple(dict.fromkeys(names)))


def _entry(kind: str, key: str, shards: Sequence[Shard], files: Sequence[Path], using: Sequence[CellKeys]) -> Entry:
    facts = [path.stat() for path in files]
    latest = max((max(fact.st_atime, fact.st_mtime) for fact in facts), default=0.0)
    return Entry(
        kind,
        key,
        tuple(dict.fromkeys(user.run_id for user in using)),
        tuple(dict.fromkeys(user.dataset for user in using)),
        tuple(shards),
        tuple(files),
        sum(fact.st_size for fact in facts),
        datetime.fromtimestamp(latest, UTC),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _shards(folder: Path) -> tuple[Shard, ...]:
    stems = sorted({path.stem for path in folder.iterdir() if path.suffix in (".json", ".safetensors")})
    stems = [stem for stem in stems if not stem.startswith(".")]
    return tuple(Shard(folder / f"{stem}.json", folder / f"{stem}.safetensors", _facts(folder, stem)) for stem in stems)


def _facts(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the facts of a shard's manifest; empty if it is missing or damaged."""
    try:
        return shard_files.read_manifest(folder, name).facts
    except (FileNotFoundError, StoreError):
        return {}


def _surveyed_corpus(path: Path) -> str:
    """Return the checksum of the corpus that a cached survey describes; empty if it is damaged."""
    try:
        found = untrusted.json_object(path.read_bytes()).get("survey")
    except (OSError, ValueError):
        return ""
    return str(found.get("checksum")) if isinstance(found, dict) else ""


class Checked(NamedTuple):
    """The result of reading every shard."""

    intact: int
    """Shards that are complete and undamaged."""
    bytes_read: int
    damaged: tuple[str, ...]
    """A line for each shard whose content differs from its manifest."""
    unfinished: int
    """Shards without a manifest: the job that wrote them was killed, and the next one writes them again."""


def verify(found: Iterable[Entry]) -> Checked:
    """Read every shard of some entries; compare it with its manifest, and the manifest with its own checksum."""
    intact = unfinished = read = 0
    damaged = []
    for shard in (shard for entry in found for shard in entry.shards):
        if not shard.manifest.exists():
            unfinished += 1
            continue
        try:
            problem = _problem(shard)
            read += 0 if problem else shard.arrays.stat().st_size
        except OSError as error:
            problem = f"{error.filename}: cannot be read ({error.strerror})"
        if problem is None:
            intact += 1
        else:
            damaged.append(f"{problem}; the next job that needs it writes it again, or remove it: evalkit cache rm")
    return Checked(intact, read, tuple(damaged), unfinished)


def _problem(shard: Shard) -> str | None:
    """Return what is wrong with a shard, or None. Raises OSError for files that cannot be read."""
    try:
        wanted = _checksum(shard)
        if not shard.arrays.is_file():
            return f"{shard.arrays}: is not there, though its manifest is"
        got = file_checksum(shard.arrays)
        if got != wanted and got != (wanted := _checksum(shard)):  # a job may have replaced it in between
            return f"{shard.arrays}: got checksum {got}, wanted {wanted} as its manifest says"
    except StoreError as error:
        return str(error)
    return None


def _checksum(shard: Shard) -> str:
    return shard_files.read_manifest(shard.manifest.parent, shard.manifest.stem).checksum


def chosen(found: Sequence[Entry], words: Sequence[str], *, unused: bool) -> list[Entry]:
    """Return the entries that words name. `unused` adds those that no cell uses.

    A word is a key, the beginning of one, or a dataset. Embeddings that several datasets use are chosen only if all of
    these are named. The checksum of a corpus' first read is chosen by its key only, because without it any other copy
    would be accepted. Raises StoreError for a word that names nothing, and for the beginning of several keys.
    """
    known = sorted({*(entry.key for entry in found), *(name for entry in found for name in entry.datasets)})
    keys: set[tuple[str, str]] = set()
    for word in words:
        if not word.strip():
            msg = f"got {word!r}, an empty word (an unset variable?), wanted a key or a dataset; nothing was removed"
            raise StoreError(f"{msg} (evalkit cache ls)")
        if any(
            _in_run_id(name) == _in_run_id(word) for entry in found if entry.kind != CHECKSUM for name in entry.datasets
        ):
            continue
        begun = sorted({(entry.kind, entry.key) for entry in found if entry.key.startswith(word)})
        exact = [pair for pair in begun if pair[1] == word]
        if len(begun) > 1 and not exact:
            named = ", ".join(f"{kind} {key}" for kind, key in begun)
            msg = f"cache entry {word!r} is the beginning of {len(begun)} keys: {named}; give more of the key"
            raise StoreError(f"{msg}; nothing was removed")
        if not begun:
            hint = nearest(word, known) if known else "the cache is empty"
            msg = f"cache entry {word!r} unknown; {hint} (evalkit cache ls)"
            raise StoreError(msg)
        keys |= set(exact or begun)
    return [
        entry
        for entry in found
        if (entry.kind, entry.key) in keys
        or (
            entry.kind != CHECKSUM
            and entry.datasets
            and {*map(_in_run_id, entry.datasets)} <= {*map(_in_run_id, words)}
        )
        or (unused and not entry.runs and entry.kind not in NEVER_UNUSED)
    ]


def _in_run_id(dataset: str) -> str:
    """Return a dataset's name as run ids spell it."""
    return dataset.replace("/", "-")


def remove(chosen_entries: Sequence[Entry], cache_dir: Path) -> int:
    """Delete entries and return their bytes. Raises StoreError while a job uses this cache."""
    working = [job for job in jobs.known(cache_dir) if job.running]
    if working:
        msg = f"{cache_dir}: {working[0].process} has used this cache since {working[0].started}; nothing was removed"
        raise StoreError(f"{msg}: wait for it or stop it (evalkit status)")
    for entry in chosen_entries:
        if entry.kind == ENVIRONMENT:
            shutil.rmtree(environments_dir(cache_dir) / entry.key)
            continue
        for path in entry.files:
            path.unlink(missing_ok=True)
        for folder in sorted({path.parent for path in entry.files}, reverse=True):  # inner folders first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return sum(entry.size_bytes for entry in chosen_entries)
