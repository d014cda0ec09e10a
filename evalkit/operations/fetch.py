"""Download the models and datasets of a selection ahead of time, verify them offline, and bundle them for other hosts.

A selection consists of the words of `evalkit run`, with several values each (`dataset=beir/fiqa,beir/nq`). Files stay
where the libraries that download them keep them (HF_HOME, IR_DATASETS_HOME). These libraries resume downloads and check
them, and other programs find the same copy. evalkit records checksums of its own in the cache.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Self

import xxhash
from rich.console import Console

from evalkit import datasets
from evalkit.config.compose import combinations, compose
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.datasets import learned
from evalkit.datasets.hub import HubCorpus
from evalkit.datasets.integrity import agree, integrity
from evalkit.datasets.irds import IrdsCorpus
from evalkit.errors import ConfigError, DatasetError, EvalkitError, StoreError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import checkpoints
from evalkit.models.tokens import vocabulary_of
from evalkit.run import pipeline
from evalkit.run.cells import Task
from evalkit.storage import keys, seal, untrusted
from evalkit.storage.hub import snapshot_folder
from evalkit.storage.network import network_off
from evalkit.storage.paths import (
    corpora_dir,
    fetched_file,
    file_checksum,
    free_bytes,
    make_folder,
    publish,
    temporary,
    write_atomic,
    write_error,
)
from evalkit.texts import printable
from evalkit.types import Dataset

CHECKSUMS_FOLDER: Final = "evalkit"
"""The folder in a bundle that has the checksums of corpora when first read completely."""
_MANIFEST: Final = "evalkit-bundle.json"
_FORMAT: Final = 1
_BLOCK_BYTES: Final = 1 << 20
_TAR_BLOCK: Final = 512
_EXTENSIONS: Final = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Headers whose content tarfile reads into memory completely, for example long names."""
_MAX_EXTENSION_BYTES: Final = 1 << 16
_MAX_MANIFEST_BYTES: Final = 1 << 26
_MAX_PART_BYTES: Final = 200
_MAX_NAME_CHARACTERS: Final = 1000
_MAX_MTIME: Final = 1 << 33
"""The latest time of a member, in seconds since 1970: in the year 2242."""
_READ_ERRORS: Final = (
    *(tarfile.TarError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
)


class Fetched(NamedTuple):
    """One model or dataset that is on disk."""

    name: str
    source: str
    checksums: Mapping[str, str]
    """The checksum of a dataset's corpus, or of each file of a model."""
    files: tuple[Path, ...]
    """The files that a bundle must contain; empty for an installed package and for a folder of the user's."""
    notes: tuple[str, ...] = ()
    """The lines that `--verify` prints about it."""


def selection(words: Sequence[str]) -> list[RunConfig]:
    """Return a config for each combination of the words' values. Raises ConfigError for a wrong word."""
    return [compose(combination) for combination in combinations(words)]


def fetch(configs: Sequence[RunConfig], *, console: Console) -> list[Fetched]:
    """Download every model and dataset of a selection and record its checksums. Files on disk are only checked.

    Raises EvalkitError subclasses for files that cannot be obtained or differ from their config.
    """
    found = [_model(config) for config in _distinct(configs, "model")]
    found += [
        _dataset(pipeline.prepare(config, console=console), cache_dir=config.cache_dir)
        for config in _distinct(configs, "dataset")
    ]
    cache_dir = configs[0].cache_dir
    for each in found:
        record = {"name": each.name, "source": each.source, "checksums": dict(each.checksums)}
        write_atomic(fetched_file(cache_dir, each.name), f"{json.dumps(seal.seal(record), indent=1)}\n".encode())
    return found


def verify(configs: Sequence[RunConfig], *, console: Console) -> list[Fetched]:
    """Read every model and dataset of a selection completely, without network, and compare checksums with the fetch.

    If further sources of a dataset are on disk, their content must be the same. A dataset's notes are its accepted
    deviations, its integrity report, and the sources that were compared. A note says if no fetch was recorded.
    Raises EvalkitError subclasses for what is missing, damaged, changed, or differs between sources.
    """
    with network_off(), tempfile.TemporaryDirectory() as scratch:
        found = [_model(config) for config in _distinct(configs, "model")]
        for config in _distinct(configs, "dataset"):
            # A survey in the cache would be used without reading the corpus, hence an empty cache folder.
            task = pipeline.prepare(replace(config, cache_dir=Path(scratch)), console=console)
            report = (*integrity(task.dataset).lines(), *_compare_sources(config, task.dataset))
            found.append(_dataset(task, cache_dir=config.cache_dir)._replace(notes=(*task.deviations, *report)))
    return [_compare_with_record(each, configs[0].cache_dir) for each in found]


def _compare_with_record(found: Fetched, cache_dir: Path) -> Fetched:
    """Compare what was found with its fetch record; add a note if there is none. Raises StoreError for a change."""
    path = fetched_file(cache_dir, found.name)
    if not path.is_file():
        return found._replace(
            notes=(*found.notes, f"not compared with a fetch         none is recorded in {cache_dir}")
        )
    try:
        record = seal.read(path.read_bytes())
        recorded: Mapping[str, str] = dict(record["checksums"])
        if record["name"] != found.name:
            msg = f"it is of {record['name']}"
            raise ValueError(msg)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: got an unusable record ({error}), wanted the checksums of {found.name} as fetched"
        raise StoreError(f"{msg}; run evalkit fetch again") from error
    if recorded != found.checksums:
        part = next(key for key in {**recorded, **found.checksums} if recorded.get(key) != found.checksums.get(key))
        msg = (
            f"{found.name}: got checksum {found.checksums.get(part)} of {part}, wanted {recorded.get(part)} as fetched"
        )
        raise StoreError(f"{msg}; delete the changed file and run evalkit fetch again")
    return found


def write_bundle(found: Sequence[Fetched], path: Path, *, cache_dir: Path) -> int:
    """Write a tar file of everything that a selection needs, atomically; return its size in bytes.

    It begins with a manifest of checksums. Its plain files (links are resolved) lie under `huggingface/`,
    `ir_datasets/` and `evalkit/`; the last has the checksums of corpora that were read completely here. Raises
    StoreError if there is nothing to move, or if the file cannot be written.
    """
    names = {_bundled_name(file, cache_dir): file for each in found for file in each.files}
    if not names:
        msg = "nothing of this selection needs moving: it comes with installed packages or from folders of your own"
        raise StoreError(msg)
    manifest = {
        "format": _FORMAT,
        "files": {name: {"bytes": file.stat().st_size, "xxh3": file_checksum(file)} for name, file in names.items()},
    }
    make_folder(path.parent)
    unfinished = temporary(path)
    try:
        with tarfile.open(unfinished, "w", dereference=True) as archive:
            content = json.dumps(manifest, indent=1).encode()
            header = tarfile.TarInfo(_MANIFEST)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
            for name, file in names.items():
                archive.add(file, arcname=name, recursive=False, filter=_anonymous)
        publish(unfinished, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path.stat().st_size


def unpack_bundle(path: Path, *, cache_dir: Path) -> int:
    """Extract a bundle's files to where the libraries look for them (HF_HOME, IR_DATASETS_HOME); return their number.

    The recorded checksums of corpora go to the cache. This machine's first read of a corpus must agree with them; a
    bundle that contradicts a checksum recorded here is refused.

    Every member must be a plain file that the manifest lists, with its size and checksum. A file that is on disk with
    the right content stays. Free space is checked before anything is written. Raises StoreError for any other bundle;
    files that were extracted before the error are complete.
    """
    done = 0
    try:
        with tarfile.open(path, "r:", tarinfo=_Member) as archive:
            wanted = _manifest(archive, path, cache_dir)
            while member := archive.next():
                facts = wanted.pop(member.name, None)
                _check_name(path, member.name)
                target = _unbundled_path(path, member, cache_dir)
                if facts is None:
                    raise _bundle_error(
                        path, f"member {member.name!r}", "only files that its manifest lists, once each"
                    )
                if member.size != facts.bytes:
                    got = f"member {member.name!r} of {member.size} bytes"
                    raise _bundle_error(path, got, f"{facts.bytes} as its manifest says")
                if member.name.startswith(f"{CHECKSUMS_FOLDER}/"):
                    _refuse_other_checksum(path, member, target, facts.xxh3)
                _extract(archive, member, target, facts.xxh3, path)
                done += 1
    except FileNotFoundError as error:
        raise _bundle_error(path, "nothing at this path", "a bundle") from error
    except EvalkitError:
        raise
    except OSError as error:
        raise _bundle_error(
            path, f"{error.strerror or error}", "a bundle that can be read, and room to unpack it"
        ) from error
    except _READ_ERRORS as error:
        raise _bundle_error(path, f"a damaged or half-copied archive ({error})", "a whole bundle") from error
    if wanted:
        raise _bundle_error(
            path, f"an archive without {len(wanted)} of its files, first {next(iter(wanted))!r}", "all of them"
        )
    return done


class _FileFacts(NamedTuple):
    """What a bundle's manifest says of a file."""

    bytes: int
    xxh3: str


def _manifest(archive: tarfile.TarFile, path: Path, cache_dir: Path) -> dict[str, _FileFacts]:
    """Return the manifest at an archive's beginning. Raises StoreError if it is invalid or the disks lack space."""
    first = archive.next()
    stream = archive.extractfile(first) if first and first.name == _MANIFEST and first.isreg() else None
    if first is None or stream is None:
        raise _bundle_error(path, f"no {_MANIFEST} at its beginning", "a file that evalkit fetch --bundle wrote")
    if first.size > _MAX_MANIFEST_BYTES:
        raise _bundle_error(path, f"a manifest of {first.size} bytes", f"{_MAX_MANIFEST_BYTES} at most")
    manifest = untrusted.json_object(stream.read())
    if manifest.get("format") != _FORMAT:
        raise _bundle_error(path, f"bundle format {manifest.get('format')!r}", f"{_FORMAT}")
    wanted = {}
    for name, facts in manifest["files"].items():
        _check_name(path, name)
        size, checksum = facts["bytes"], facts["xxh3"]
        if type(size) is not int or not 0 <= size < 1 << 62 or not isinstance(checksum, str):
            raise _bundle_error(path, f"{facts!r} for {name!r} in its manifest", "its bytes and its checksum")
        wanted[name] = _FileFacts(size, checksum)
    homes = _homes(cache_dir)
    needed: dict[Path, int] = {}
    for name, facts in wanted.items():
        if (home := homes.get(name.partition("/")[0])) is not None and not home.joinpath(
            *name.split("/")[1:]
        ).is_file():
            needed[home] = needed.get(home, 0) + facts.bytes
    for home, size in needed.items():
        if size > (free := free_bytes(home)):
            raise _bundle_error(path, f"{size:,} bytes for {home}, where {free:,} are free", "room for all of it")
    return wanted


class _Member(tarfile.TarInfo):
    """A member of an untrusted archive. Sparse files and headers that would fill the memory are refused."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Check a header before tarfile parses it: tarfile reads an extension's content into memory, at any size."""
        file: Any = archive.fileobj
        place = file.tell()
        block = file.read(_TAR_BLOCK)
        if len(block) == _TAR_BLOCK and block.strip(b"\0"):
            kind, size = (
                block[156:157],
                cls.frombuf(block, archive.encoding or "utf-8", archive.errors or "strict").size,
            )
            _refuse_header(kind, size, file)
        file.seek(place)
        return super().fromtarfile(archive)


def _refuse_header(kind: bytes, size: int, file: Any) -> None:
    """Raise ReadError for a header that no bundle has. `file` is positioned after the header."""
    if size < 0:
        msg = f"a member of {size} bytes"
    elif kind == tarfile.GNUTYPE_SPARSE:
        msg = "a sparse member"
    elif kind in _EXTENSIONS and size > _MAX_EXTENSION_BYTES:
        msg = f"a header of {size} bytes"
    elif kind in _EXTENSIONS and b"GNU.sparse" in file.read(size):
        msg = "a sparse member"
    else:
        return
    raise tarfile.ReadError(msg)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without the name and id of the user who made the bundle."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, wanted: str, path: Path) -> None:
    stream = archive.extractfile(member)
    assert stream is not None  # _unbundled_path has refused everything but plain files
    digest = xxhash.xxh3_128()
    unfinished = temporary(target)
    try:
        if target.is_file() and file_checksum(target) == wanted:
            return
        make_folder(target.parent)
        with unfinished.open("wb") as file:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != wanted:
            raise _bundle_error(path, f"member {member.name!r} with checksum {digest.hexdigest()}", wanted)
        os.utime(unfinished, (member.mtime, member.mtime))  # the fingerprint of ir-datasets' files has size and time
        publish(unfinished, target)
    except OSError as error:
        msg = f"{target}: could not be written ({error.strerror}); free this path or disk space and unpack again"
        raise StoreError(msg) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _refuse_other_checksum(path: Path, member: tarfile.TarInfo, target: Path, wanted: str) -> None:
    """Raise StoreError if the checksum of a corpus' first read here differs from that in the bundle."""
    if target.is_file() and file_checksum(target) != wanted:
        msg = f"{member.name!r}, whose checksum of a corpus differs from that in {target}, of its first read here"
        raise StoreError(
            f"{path}: got {msg}, wanted the same; find out which copy is damaged, and delete that file here"
        )


def _homes(cache_dir: Path) -> dict[str, Path]:
    """Return the folder on this machine for each top-level folder of a bundle."""
    import huggingface_hub.constants
    import ir_datasets

    return {
        "huggingface": Path(huggingface_hub.constants.HF_HUB_CACHE),
        "ir_datasets": Path(ir_datasets.util.home_path()),
        CHECKSUMS_FOLDER: corpora_dir(cache_dir),
    }


def _bundled_name(file: Path, cache_dir: Path) -> str:
    homes = _homes(cache_dir)
    for name, home in homes.items():
        if file.is_relative_to(home):
            return f"{name}/{file.relative_to(home).as_posix()}"
    msg = f"{file}: got a file outside {' and '.join(map(str, homes.values()))}, wanted one that is kept there"
    raise StoreError(f"{msg}; set HF_HOME and IR_DATASETS_HOME as they were when it was fetched")


def _unbundled_path(path: Path, member: tarfile.TarInfo, cache_dir: Path) -> Path:
    """Return the path of a member on this machine. Raises StoreError for a link, a device, and an unsafe name."""
    name = PurePosixPath(member.name)
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "no plain file"
        raise _bundle_error(path, f"member {member.name!r}, which is {kind}", "plain files only")
    homes = _homes(cache_dir)
    if name.is_absolute() or ".." in name.parts or len(name.parts) < 2 or name.parts[0] not in homes:
        raise _bundle_error(path, f"member {member.name!r}, which leads elsewhere", f"names under {' or '.join(homes)}")
    if not 0 <= member.mtime < _MAX_MTIME:
        got = f"member {member.name!r} of time {member.mtime}"
        raise _bundle_error(path, got, "seconds since 1970, before the year 2242")
    return homes[name.parts[0]].joinpath(*name.parts[1:])


def _check_name(path: Path, name: str) -> None:
    """Raise StoreError for a name that is too long for a file system, or that has control characters."""
    long = any(len(os.fsencode(part)) > _MAX_PART_BYTES for part in name.split("/"))
    if long or len(name) > _MAX_NAME_CHARACTERS or printable(name) != name:
        shown = f"a member called {name[:_MAX_PART_BYTES]!r}"
        raise _bundle_error(path, shown, f"printable names of {_MAX_PART_BYTES} bytes per part at most")


def _bundle_error(path: Path, got: str, wanted: str) -> StoreError:
    return StoreError(f"{path}: got {got}, wanted {wanted}; make or copy the bundle again")


def _distinct(configs: Sequence[RunConfig], part: str) -> list[RunConfig]:
    """Return one config for each distinct model (with its dims) or dataset."""
    if not configs:
        msg = "got an empty selection, wanted for example model=bm25 dataset=beir/scifact"
        raise ConfigError(msg)
    distinct: list[RunConfig] = []
    for config in configs:
        key = (getattr(config, part), config.dims if part == "model" else None)
        if all(key != (getattr(seen, part), seen.dims if part == "model" else None) for seen in distinct):
            distinct.append(config)
    return distinct


def _model(config: RunConfig) -> Fetched:
    """Fetch a model's checkpoints and tokenizers; a model without weights needs no files."""
    model = config.model
    if not isinstance(model, EncoderConfig):
        return Fetched(f"model {model.name}", "no files needed", {}, ())
    found = checkpoints(model, [dim for dim in config.dims if dim is not None])
    for checkpoint in found.values():
        vocabulary_of(model, checkpoint)
    return Fetched(
        f"model {keys.label(model.name, *found)}",
        ", ".join(
            dict.fromkeys(f"{each.origin}{f'@{each.revision}' if each.revision else ''}" for each in found.values())
        ),
        {f"{dim}/{name}": checksum for dim, each in found.items() for name, checksum in each.checksums.items()},
        tuple(dict.fromkeys(file for each in found.values() for file in _stored_files(each))),
    )


def _stored_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files of a Hub checkpoint and the file that names its commit. A package and a folder have none.

    Code that the checkpoint imports from another repository is included.
    """
    folders = [] if checkpoint.revision is None else [checkpoint.folder]
    if checkpoint.code_repository is not None:
        folders.append(snapshot_folder(*checkpoint.code_repository))
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    references = [folder.parents[1] / "refs" / "main" for folder in folders]
    return [*files, *(reference for reference in references if reference.is_file())]


def _dataset(task: Task, *, cache_dir: Path) -> Fetched:
    """Return a surveyed dataset with the files that a bundle needs."""
    corpus = task.dataset.corpus
    moved = corpus.stored_files() if isinstance(corpus, (HubCorpus, IrdsCorpus)) else ()
    return Fetched(
        f"dataset {task.dataset.name} {task.dataset.split}",
        task.dataset.source,
        {"corpus": task.survey.checksum},
        (*moved, *learned.remembered_in(cache_dir, task.dataset, task.config.dataset)),
        task.deviations,
    )


def _compare_sources(config: RunConfig, used: Dataset) -> Iterator[str]:
    """Compare the dataset with each further source on disk; yield a line for each.

    Counts of further sources are not checked against the config. Raises DatasetError for a difference.
    """
    for name in datasets.source_names(config.dataset):
        one = replace(config.dataset, sources=(name,), verify=False)
        if datasets.on_disk(one) is None:
            continue
        try:
            other = datasets.load(one)
        except DatasetError as error:
            yield f"not compared                      {error}"
            continue
        if other.source != used.source:
            same = "the same as from" if agree(used, other) else "same documents, another order"
            yield f"{same:<33} {other.source}"
