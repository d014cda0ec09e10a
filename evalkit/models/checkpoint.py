"""Locate a checkpoint's files (in a folder, a Python package or a hub repository) and identify them by content."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from evalkit.config.settings import CheckpointSource
from evalkit.errors import ModelError, Tried
from evalkit.storage import hub, untrusted
from evalkit.storage.paths import file_checksum

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
"""Weights in the old pickle format, which can contain code. Read only if a config allows it, and only its tensors."""
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
"""transformers' settings of the tokenizer. It is optional; one that contradicts TOKENIZER is refused."""
CONFIG = "config.json"
MODULES = "modules.json"
"""The list of modules, each with its folder, that sentence-transformers and PyLate save."""
ST_CONFIG = "config_sentence_transformers.json"
"""The file with a model's settings (PyLate) or prompts (sentence-transformers)."""
METADATA = "artifact.metadata"
"""The file with a model's settings that Stanford ColBERT saves. It is optional and does not change vectors."""
FILES = (CONFIG, TOKENIZER, WEIGHTS)
"""The files that decide vectors. METADATA and TOKENIZER_CONFIG are only compared; code is read only if allowed."""
NO_LIMIT = str(int(1e30)).encode()
"""What transformers writes as model_max_length of a tokenizer without a limit: more than JSON's readers can hold."""
CODE = ".py"
"""The ending of the names of files with a checkpoint's own code."""
_NO_ACCESS = (401, 403, 404)
"""The hub's HTTP statuses for a repository that does not exist, is private or is gated."""


class FileState(NamedTuple):
    """The properties of a file that change when it is replaced or written to."""

    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Return a file's state, following links; None if there is no file."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its folder, its origin, and the checksum of every file that is read."""

    folder: Path
    origin: str
    revision: str | None
    checksums: dict[str, str]
    """By file name; code of another repository by `OWNER/NAME@COMMIT/FILE`. Code is listed only if it will be run."""
    addressed: frozenset[str] = frozenset()
    """The files that are content-addressed: blobs in the repository's cache folder, named by the hash of their content.

    A plain file in a snapshot folder is not among them: nothing proves that it belongs to the commit.
    """
    states: Mapping[Path, FileState | None] = field(default_factory=dict, repr=False, compare=False)
    """The state of each file just before its checksum was computed."""

    def facts(self) -> dict[str, Any]:
        """Return the facts that a result records: origin and checksums, without paths."""
        local = self.origin == str(self.folder)
        return {
            "folder": None,
            "origin": f"folder {self.folder.name}" if local else self.origin,
            "revision": self.revision,
            "checksums": dict(self.checksums),
        }

    def code(self) -> dict[str, str]:
        """Return the checksums of the Python files that build the backbone; empty if a native class is used."""
        return {name: checksum for name, checksum in self.checksums.items() if name.endswith(CODE)}

    @property
    def code_repository(self) -> tuple[str, str] | None:
        """Return the other repository that the code comes from and its commit, or None."""
        for name in self.code():
            repo, at, rest = name.partition("@")
            if at:
                return repo, rest.partition("/")[0]
        return None

    def config(self) -> dict[str, Any]:
        """Return config.json. Raises ModelError if it is not a JSON object."""
        return read_json(self.folder / CONFIG)


def refuse_changes(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise ModelError if a file has changed since its checksum was computed.

    Files are read after their checksums are computed, and weights may stay memory-mapped. Call this after reading, and
    again before anything is stored.
    """
    for checkpoint in checkpoints:
        for path, state in checkpoint.states.items():
            if FileState.of(path) != state:
                msg = (
                    f"{path}: got a file that changed after its checksum was taken, wanted the same file for the whole "
                    "job; nothing more was stored: leave the checkpoint alone and run the command again"
                )
                raise ModelError(msg)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in one of a checkpoint's files. Raises ModelError if it contains none."""
    try:
        return untrusted.read_json_object(path)
    except untrusted.UnreadableError as error:
        msg = f"{path}: not JSON ({error}); wanted the checkpoint's configuration; fetch the file again"
        raise ModelError(msg) from error


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, empty if there is none; no limit of length is null.

    Raises ModelError if it is not a JSON object.
    """
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return {}
    try:
        return untrusted.json_object(path.read_bytes().replace(NO_LIMIT, b"null"))
    except (OSError, untrusted.UnreadableError) as error:
        msg = f"{path}: not JSON ({error}); wanted the tokenizer's settings; fetch the file again"
        raise ModelError(msg) from error


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the JSON list of objects in one of a checkpoint's files. Raises ModelError if it contains none."""
    try:
        values: Any = untrusted.read_json(path)
    except untrusted.UnreadableError as error:
        msg = f"{path}: not JSON ({error}); wanted a list of modules; fetch the file again"
        raise ModelError(msg) from error
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        msg = f"{path}: got {str(values)[:60]}, wanted a list of modules; fetch the file again"
        raise ModelError(msg)
    return values


def modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kind and folder of every module in modules.json, in order; empty without such a file.

    The kind is the name of the Python class: Transformer, Pooling, Dense, Normalize. Raises ModelError if the file is
    not a JSON list of objects.
    """
    path = folder / MODULES
    if not path.is_file():
        return []
    return [(str(entry.get("type")).rpartition(".")[2], str(entry.get("path", ""))) for entry in read_list(path)]


def dense_folders(folder: Path) -> list[str]:
    """Return the folders of the Dense modules, in order. Raises ModelError for one outside the checkpoint."""
    found = [path for kind, path in modules(folder) if kind == "Dense"]
    for path in found:
        if not path or Path(path).is_absolute() or ".." in Path(path).parts:
            msg = f"{folder / MODULES}: got the path {path!r} for a Dense module, wanted a folder in the checkpoint"
            raise ModelError(msg)
    return found


def resolve(
    source: CheckpointSource, *, allow_pickle: bool = False, remote_code: bool = False, dense: bool = False
) -> Checkpoint:
    """Locate a checkpoint's files on disk and compute their checksums; files of a repository are fetched if missing.

    The path is used if one is given, else the package if it is installed, else the repository. `allow_pickle` accepts
    `pytorch_model.bin` if there is no `model.safetensors`. `remote_code` adds the Python files that the checkpoint's
    `auto_map` names, all of them pinned; nothing is run here. `dense` adds modules.json and the Dense modules in it.

    Raises ModelError if the files cannot be obtained, one of them is missing, or code is not pinned.
    """
    checkpoint = _resolved(source, allow_pickle=allow_pickle, remote_code=remote_code)
    if remote_code:
        states: dict[Path, FileState | None] = {}
        checkpoint = _with_files(checkpoint, _code(checkpoint, source, states), states)
    return _with_dense(checkpoint) if dense else checkpoint


def _with_files(
    checkpoint: Checkpoint, files: Mapping[str, _FileIdentity], states: Mapping[Path, FileState | None]
) -> Checkpoint:
    """Return a checkpoint with more files: their identities by name, and their states just before these were taken."""
    return replace(
        checkpoint,
        checksums=checkpoint.checksums | {name: one.checksum for name, one in files.items()},
        addressed=checkpoint.addressed | {name for name, one in files.items() if one.addressed},
        states={**checkpoint.states, **states},
    )


class SmallFiles(NamedTuple):
    """A checkpoint's folder without its weights, and its origin."""

    folder: Path
    origin: str
    revision: str | None


def small_files(source: CheckpointSource) -> SmallFiles:
    """Return a checkpoint's folder with all files that describe it; weights of a repository are not fetched.

    Raises ModelError if the files cannot be obtained, or there is no config.json.
    """
    if source.path is None and source.package is None:
        assert source.repo is not None  # CheckpointSource admits no source without one of the three
        patterns = ["*.json", f"*/{CONFIG}", METADATA, "README.md"]
        folder = _snapshot(source.repo, source.revision, patterns, is_complete=_never_complete)
        files = SmallFiles(folder, source.repo, folder.name)
    else:
        packaged = _package_folder(source.package) if source.path is None and source.package is not None else None
        folder = packaged or Path(str(source.path or source.package)).expanduser()
        files = SmallFiles(folder, str(folder), None)
    if not (folder / CONFIG).is_file():
        names = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else ["no such folder"]
        msg = f"checkpoint {files.origin}: got {', '.join(names) or 'an empty folder'}, wanted {CONFIG} in it"
        raise ModelError(f"{msg}; give the folder of a checkpoint")
    return files


def _with_dense(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with modules.json and the files of its Dense modules, fetched if it came from the hub.

    Raises ModelError if there is no Dense module or a file is missing.
    """
    if checkpoint.revision is not None:
        listed = [MODULES, ST_CONFIG]
        _snapshot(
            checkpoint.origin, checkpoint.revision, listed, is_complete=lambda folder: (folder / MODULES).is_file()
        )
    if not (folders := dense_folders(checkpoint.folder)):
        got = "no Dense module in it" if (checkpoint.folder / MODULES).is_file() else "no such file"
        msg = f"{checkpoint.folder / MODULES}: got {got}, wanted the Dense modules of model.head=dense"
        raise ModelError(f"{msg}; set model.head to linear or none if the model has none")
    names = [f"{folder}/{name}" for folder in folders for name in (CONFIG, WEIGHTS)]
    if checkpoint.revision is not None:

        def complete(folder: Path) -> bool:
            return all((folder / name).is_file() for name in names)

        _snapshot(checkpoint.origin, checkpoint.revision, names, is_complete=complete)
    missing = [name for name in names if not (checkpoint.folder / name).is_file()]
    if missing:
        msg = f"checkpoint {checkpoint.origin} lacks {', '.join(missing)}; wanted every Dense module of {MODULES}"
        raise ModelError(f"{msg} in {checkpoint.folder}")
    states = _states(checkpoint.folder / name for name in (MODULES, *names))
    files = {name: _identify(checkpoint.folder / name, snapshot=checkpoint.folder) for name in (MODULES, *names)}
    if checkpoint.revision is None:
        files = {name: one._replace(addressed=False) for name, one in files.items()}
    return _with_files(checkpoint, files, states)


def _resolved(source: CheckpointSource, *, allow_pickle: bool, remote_code: bool) -> Checkpoint:
    """Return a checkpoint without its Dense modules and code, as `resolve` says."""
    if source.path is not None:
        folder = Path(source.path)
        if not folder.is_dir():
            msg = f"checkpoint folder {folder} does not exist; wanted a folder with {', '.join(FILES)}"
            raise ModelError(msg)
        return _checkpoint(folder, origin=str(folder), revision=None, allow_pickle=allow_pickle)
    if source.package is not None:
        packaged = _package_folder(source.package)
        if packaged is not None:
            return _checkpoint(packaged, origin=f"package {source.package}", revision=None, allow_pickle=allow_pickle)
        if source.repo is None:
            msg = f"Python package folder {source.package!r} is not installed; install the package that contains it"
            raise ModelError(msg)
    assert source.repo is not None  # CheckpointSource admits no source without one of the three
    return _from_hub(source.repo, source.revision, allow_pickle=allow_pickle, remote_code=remote_code)


def _code(
    checkpoint: Checkpoint, source: CheckpointSource, states: dict[Path, FileState | None]
) -> dict[str, _FileIdentity]:
    """Return the identities of the files of code that builds a checkpoint's backbone, and add them to `states`.

    Raises ModelError unless the code is pinned.
    """
    auto_map = checkpoint.config().get("auto_map")
    entries: dict[str, Any] = auto_map if isinstance(auto_map, dict) else {}
    references = {name: str(entries[name]) for name in ("AutoConfig", "AutoModel") if name in entries}
    if "AutoModel" not in references:
        msg = (
            f"{checkpoint.origin}: config.json names no code of the checkpoint's own (auto_map.AutoModel); "
            "leave model.trust_remote_code out"
        )
        raise ModelError(msg)
    # A reference is MODULE.CLASS in this repository, or OWNER/NAME--MODULE.CLASS in another.
    others = sorted({reference.partition("--")[0] for reference in references.values() if "--" in reference})
    if len(others) > 1:
        msg = f"{checkpoint.origin}: its code is in several repositories ({', '.join(others)}), wanted one at most"
        raise ModelError(f"{msg}; use the native class: leave model.trust_remote_code out")
    found: dict[str, _FileIdentity] = {}
    if any("--" not in reference for reference in references.values()):
        if checkpoint.revision is not None and not hub.COMMIT.fullmatch(source.revision or ""):
            _refuse_unpinned(checkpoint, checkpoint.origin, "revision")
        names = _python_files(checkpoint.folder)
        states |= _states(checkpoint.folder / name for name in names)
        found = {name: _identify(checkpoint.folder / name, snapshot=checkpoint.folder) for name in names}
    if others:
        if not hub.COMMIT.fullmatch(source.code_revision or ""):
            _refuse_unpinned(checkpoint, others[0], "code_revision")
        folder = _snapshot(others[0], source.code_revision, [f"*{CODE}"], is_complete=_never_complete)
        names = _python_files(folder)
        states |= _states(folder / name for name in names)
        found |= {f"{others[0]}@{folder.name}/{name}": _identify(folder / name, snapshot=folder) for name in names}
    if not found:
        msg = f"{checkpoint.origin}: got no Python file in {checkpoint.folder}, wanted {references['AutoModel']}"
        raise ModelError(f"{msg}; fetch the checkpoint again")
    return found


def _states(paths: Iterable[Path]) -> dict[Path, FileState | None]:
    return {path: FileState.of(path) for path in paths}


def _python_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{CODE}"))


def _refuse_unpinned(checkpoint: Checkpoint, repo: str, setting: str) -> NoReturn:
    """Raise ModelError that asks to pin the code in `repo` by a setting of the checkpoint."""
    msg = (
        f"{checkpoint.origin}: its code is in {repo}, and nothing says at which commit; read that code, then pin it by "
        f"model.checkpoints.DIM.{setting}=COMMIT (40 hex digits), or leave model.trust_remote_code out"
    )
    raise ModelError(msg)


def on_disk(source: CheckpointSource) -> bool:
    """Tell whether a checkpoint's weights can be read without the network; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source.path) if source.path is not None else None
    if folder is None and source.package is not None:
        folder = _package_folder(source.package)
    if folder is not None:
        return any((folder / name).is_file() for name in (WEIGHTS, PICKLE))
    if source.repo is None:
        return False
    found = (try_to_load_from_cache(source.repo, name, revision=source.revision) for name in (WEIGHTS, PICKLE))
    return any(isinstance(path, str) for path in found)


def _package_folder(package: str) -> Path | None:
    """Return the folder that `module:folder` names, or None if the package is not installed."""
    module, _, folder = package.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / folder
    return path if path.is_dir() else None


def _from_hub(repo: str, revision: str | None, *, allow_pickle: bool, remote_code: bool) -> Checkpoint:
    """Return a hub repository's files from the local cache; missing files are downloaded, resuming partial ones."""
    patterns = [*FILES, METADATA, TOKENIZER_CONFIG, *([f"*{CODE}"] if remote_code else [])]

    def complete(folder: Path) -> bool:
        """Whether a folder has every file that is read; METADATA and TOKENIZER_CONFIG are optional."""
        weights = [WEIGHTS, PICKLE] if allow_pickle else [WEIGHTS]
        found = {path.name for path in folder.iterdir() if path.is_file()}
        return {CONFIG, TOKENIZER} <= found and not found.isdisjoint(weights)

    check = _never_complete if remote_code else complete
    folder = _snapshot(repo, revision, patterns, is_complete=check)
    # As in transformers, pickled weights are used only if a commit has no others.
    if allow_pickle and not (folder / WEIGHTS).is_file():
        folder = _snapshot(repo, revision, [*patterns, PICKLE], is_complete=check)
    # A snapshot folder is named by its commit.
    return _checkpoint(folder, origin=repo, revision=folder.name, allow_pickle=allow_pickle)


def _never_complete(_folder: Path) -> bool:
    """Return False, so that the hub is asked: only it knows all files that match the patterns."""
    return False


def _snapshot(repo: str, revision: str | None, patterns: list[str], *, is_complete: Callable[[Path], bool]) -> Path:
    """Return the folder of a commit. Raises ModelError that says why it cannot be obtained and what to do."""
    from huggingface_hub.errors import RevisionNotFoundError

    wanted = f"{repo}@{revision or 'main'}"
    try:
        return hub.snapshot(repo, revision=revision, patterns=patterns, is_complete=is_complete)
    except RevisionNotFoundError as error:
        msg = f"{wanted}: the repository has no such revision; check the revision in the model's config"
        raise ModelError(msg) from error
    except hub.DownloadError as error:
        msg = f"{wanted}: {error}"
        raise ModelError(msg) from error
    except OSError as error:  # the base class of the hub's own errors
        if (status := hub.http_status(error)) in _NO_ACCESS:
            msg = (
                f"{wanted}: the hub answers {status}, as for a repository that is missing, private or gated; "
                "set HF_TOKEN to a token with access, or choose other dims with dim="
            )
            raise ModelError(msg) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "outgoing traffic has been disabled" in reason:
            reason = "HF_HUB_OFFLINE is set"
        why = f"not in the local Hugging Face cache and the hub could not be reached ({reason})"
        remedy = (
            "fetch it on a machine with network (evalkit fetch --bundle FILE), or give the folder of a copy: "
            "model.checkpoints.DIM.path=DIR"
        )
        raise ModelError.unobtainable(Tried(wanted, why, remedy)) from error


def _checkpoint(folder: Path, *, origin: str, revision: str | None, allow_pickle: bool) -> Checkpoint:
    """Return the checkpoint in a folder. Raises ModelError if a file is missing, damaged or not allowed."""
    files = FILES
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        if not allow_pickle:
            msg = (
                f"checkpoint {origin} has {PICKLE} only, a format that can hold code; "
                "to read its tensors and nothing else, set model.allow_pickle=true"
            )
            raise ModelError(msg)
        files = (CONFIG, TOKENIZER, PICKLE)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        msg = f"checkpoint {origin} lacks {', '.join(missing)}; wanted {', '.join(FILES)} in {folder}"
        raise ModelError(msg)
    states = _states(folder / name for name in files)
    identities = {name: _identify(folder / name, snapshot=folder) for name in files}
    return Checkpoint(
        folder=folder,
        origin=origin,
        revision=revision,
        checksums={name: one.checksum for name, one in identities.items()},
        addressed=frozenset(name for name, one in identities.items() if one.addressed and revision is not None),
        states=states,
    )


class _FileIdentity(NamedTuple):
    """A file's checksum, and whether it is content-addressed (see `Checkpoint.addressed`)."""

    checksum: str
    addressed: bool


def _identify(path: Path, *, snapshot: Path) -> _FileIdentity:
    """Identify a file in a checkpoint's folder. Raises ModelError if a blob's content does not have the named hash.

    A blob is named by the hash of what was downloaded, so a later disk error or edit is found here.
    """
    blob = hub.blob_of(path)
    proof = None if blob is None else hub.address_digest(blob.name, size_bytes=path.stat().st_size)
    checksum = file_checksum(path, also=proof)
    if blob is not None and proof is not None and proof.hexdigest() != blob.name:
        msg = (
            f"{path}: got content {proof.hexdigest()}, wanted {blob.name}, which its name in the cache says; "
            f"it was damaged since it was fetched: delete {blob} and fetch it again"
        )
        raise ModelError(msg)
    in_own_cache = blob is not None and blob.parent == (snapshot.parent.parent / "blobs").resolve()
    return _FileIdentity(checksum, addressed=in_own_cache and proof is not None)
