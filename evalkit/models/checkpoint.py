"""Find a checkpoint's files (a folder, a Python package, a hub repository) and say by content what they are."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from evalkit.config import CheckpointSource
from evalkit.errors import ModelError

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
"""The old format of weights, which may hold code; read only where a config allows it, and then tensors only."""
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
FILES = (CONFIG, TOKENIZER, WEIGHTS)
"""The files that decide a vector; anything else in a repository is not read."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk: its folder, where it came from, and the checksum of every file that is read."""

    folder: Path
    origin: str
    revision: str | None
    checksums: dict[str, str]

    def config(self) -> dict[str, Any]:
        """Return config.json. Raises ModelError when it is not a JSON object."""
        path = self.folder / CONFIG
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"{path}: not JSON ({error}); wanted the checkpoint's configuration; fetch the file again"
            raise ModelError(msg) from error
        if not isinstance(values, dict):
            msg = f"{path}: got a {type(values).__name__}, wanted a JSON object; fetch the file again"
            raise ModelError(msg)
        return values


def resolve(source: CheckpointSource, *, allow_pickle: bool = False) -> Checkpoint:
    """Return the checkpoint's files on disk, from the first of path, package and repository that is given and there.

    `allow_pickle` takes `pytorch_model.bin` where there is no `model.safetensors`.

    Raises ModelError when the files cannot be had or one of them is missing.
    """
    if source.path is not None:
        folder = Path(source.path).expanduser()
        if not folder.is_dir():
            msg = f"checkpoint folder {folder} does not exist; wanted a folder with {', '.join(FILES)}"
            raise ModelError(msg)
        return _checkpoint(folder, origin=str(folder), revision=None, allow_pickle=allow_pickle)
    if source.package is not None:
        packaged = _package_folder(source.package)
        if packaged is not None:
            return _checkpoint(packaged, origin=f"package {source.package}", revision=None, allow_pickle=allow_pickle)
        if source.repo is None:
            msg = f"Python package folder {source.package!r} is not installed; install the package that carries it"
            raise ModelError(msg)
    assert source.repo is not None  # CheckpointSource admits no source without one of the three
    return _from_hub(source.repo, source.revision, allow_pickle=allow_pickle)


def on_disk(source: CheckpointSource) -> bool:
    """Tell whether a checkpoint's weights can be read without the network; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source.path).expanduser() if source.path is not None else None
    if folder is None and source.package is not None:
        folder = _package_folder(source.package)
    if folder is not None:
        return any((folder / name).is_file() for name in (WEIGHTS, PICKLE))
    if source.repo is None:
        return False
    found = (try_to_load_from_cache(source.repo, name, revision=source.revision) for name in (WEIGHTS, PICKLE))
    return any(isinstance(path, str) for path in found)


def _package_folder(package: str) -> Path | None:
    """Return the folder that `module:folder` names, or None when the package is not installed."""
    module, _, folder = package.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / folder
    return path if path.is_dir() else None


def _from_hub(repo: str, revision: str | None, *, allow_pickle: bool) -> Checkpoint:
    """Return a hub repository's files, from the local cache where they are, else downloaded (with resume)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{repo}@{revision or 'main'}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*FILES, "artifact.metadata"]))
        if allow_pickle and not (folder / WEIGHTS).is_file():
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*FILES, PICKLE]))
    except RevisionNotFoundError as error:
        msg = f"{wanted}: the repository has no such revision; check the revision in the model's config"
        raise ModelError(msg) from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        msg = (
            f"{wanted}: the hub says the repository is missing, private or gated; "
            "set HF_TOKEN to a token with access, or choose other dims with dim="
        )
        raise ModelError(msg) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = (
            f"{wanted}: not in the local Hugging Face cache and the hub could not be reached ({reason}); "
            "fetch it on a machine with network, or give the folder of a copy by path"
        )
        raise ModelError(msg) from error
    # A snapshot folder is named by the commit that it holds.
    return _checkpoint(folder, origin=repo, revision=folder.name, allow_pickle=allow_pickle)


def _checkpoint(folder: Path, *, origin: str, revision: str | None, allow_pickle: bool) -> Checkpoint:
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
    checksums = {name: file_checksum(folder / name) for name in files}
    return Checkpoint(folder=folder, origin=origin, revision=revision, checksums=checksums)


def file_checksum(path: Path) -> str:
    """Return xxh3-128 of a file's bytes, read in 1 MiB pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
