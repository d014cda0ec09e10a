"""Bring files of a Hugging Face repository into its cache: resumed where they stopped, and proved by content.

huggingface_hub goes on after a broken connection, but keeps nothing of a download whose process ended, and compares
sizes only. So blobs are laid into its cache here first, under the names that it gives them; it then finds them there.
A blob's name is its content's address: SHA-256 for large files, git's SHA-1 for the others.

What a commit holds never changes. So where one is pinned and all that is wanted of it is in the cache, nobody is asked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlparse

from evalkit.storage.paths import publish

RepoType = Literal["model", "dataset"]
COMMIT: Final = re.compile("[0-9a-f]{40}")
_BLOCK_BYTES: Final = 1 << 20
_SHA256_DIGITS: Final = 64
_SHA1_DIGITS: Final = 40


class DownloadError(OSError):
    """A download broke off, or ended with something else than the repository holds."""


def snapshot(
    repo: str,
    *,
    revision: str | None,
    patterns: Sequence[str],
    whole: Callable[[Path], bool],
    repo_type: RepoType = "model",
) -> Path:
    """Return the folder of a commit with the files of these patterns, fetching those that are not in the cache.

    The network is left alone where `revision` is a commit of whose folder `whole` says that nothing is missing: a file
    is linked there only once all of it has arrived. A file that was cut off is asked for from there on, also by a later
    process. Progress is shown on a terminal.

    Raises huggingface_hub's own errors for a repository or revision that cannot be had, and DownloadError when the
    connection breaks for good or a file's content is not what its address says.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        kept = snapshot_folder(repo, revision, repo_type=repo_type)
        if kept.is_dir() and whole(kept):
            return kept
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # its lazy exports have no types

    class Silent(tqdm):
        """No bar: the library's own counts files, most of which are there by then."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})  # type: ignore[no-untyped-call]  # as above

    wanted: dict[str, Any] = {
        "repo_type": repo_type,
        "revision": revision,
        "allow_patterns": list(dict.fromkeys(patterns)),
        "tqdm_class": Silent,
    }
    try:
        if not constants.HF_HUB_OFFLINE:
            _refuse_token()
            if reason := _unreachable():
                return _from_cache(repo, wanted, reason)
            _fetch_missing(repo, wanted)
        return Path(snapshot_download(repo, **wanted))
    except ValueError as error:  # of the libraries below: a name or an address that they do not take
        if isinstance(error, OSError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        msg = f"the request cannot be made ({reason}); check the repository's name, HF_ENDPOINT and the proxy's address"
        raise DownloadError(msg) from error
    except Exception as error:
        # The HTTP library's errors are no OSError, and which library it is depends on huggingface_hub's version.
        if isinstance(error, OSError) or not type(error).__module__.startswith("httpx"):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        msg = f"the connection broke ({reason}); what has arrived is kept: run the same command again to go on"
        raise DownloadError(msg) from error


def _from_cache(repo: str, wanted: dict[str, Any], reason: str) -> Path:
    """Return what the cache has of a repository. Raises LocalEntryNotFoundError with the reason if files lack."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, **wanted, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise LocalEntryNotFoundError(reason) from error


def _fetch_missing(repo: str, wanted: dict[str, Any]) -> None:
    """Fetch the files that the cache lacks; where the hub cannot say which, nothing is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        planned = snapshot_download(repo, **wanted, dry_run=True)
    except DryRunError:  # the cache may do, or the reason is raised when it is asked
        return
    for file in planned:
        if file.will_download:
            _fetch(repo, file.filename, commit=file.commit_hash, repo_type=wanted["repo_type"])


def _refuse_token() -> None:
    """Raise DownloadError for a token that no request can carry: HTTP wants ASCII."""
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        msg = "the token (HF_TOKEN) has a character that is not ASCII, wanted one as the hub gave it; copy it again"
        raise DownloadError(msg)


def _unreachable() -> str | None:
    """Say why the hub cannot be reached, or None: asked once, for the library asks for most of a minute, warning."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if not (type(error).__module__.startswith("httpx") or isinstance(error, (ValueError, OSError, ImportError))):
            raise  # a proxy's address that is none is a ValueError, a kind that wants another package an ImportError
        return " ".join(f"{constants.ENDPOINT}: {type(error).__name__}: {error}".split())
    return None


def snapshot_folder(repo: str, commit: str, *, repo_type: RepoType = "model") -> Path:
    """Return where the cache keeps a repository at a commit, whether it is there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=repo_type) / "snapshots" / commit


def answered(error: BaseException | None) -> int | None:
    """Return the HTTP status that the hub answered with, where an error or one of its causes tells it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _fetch(repo: str, name: str, *, commit: str, repo_type: RepoType) -> None:
    """Lay one file's content into the cache as a blob, from where an earlier download of it stopped."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # its lazy exports have no types

    url = hf_hub_url(repo, name, repo_type=repo_type, revision=commit)
    facts = get_hf_file_metadata(url)
    if facts.etag is None:
        return  # without an address there is nothing to resume by; the library fetches it
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # a range of compressed bytes is of no use
    if urlparse(url).netloc != urlparse(facts.location).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=repo, repo_type=repo_type)
    blob = cache / folder / "blobs" / facts.etag
    partial = blob.with_name(f"{facts.etag}.incomplete")
    lock = cache / ".locks" / folder / f"{facts.etag}.lock"  # the library's own, so that both never write at once
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():
            return
        kept = partial.stat().st_size if partial.is_file() else 0
        if facts.size is not None and kept > facts.size:
            partial.unlink()
            kept = 0
        with partial.open("ab") as file:
            http_get(
                facts.location,
                file,
                resume_size=kept,
                headers=headers,
                expected_size=facts.size,
                displayed_filename=f"{repo}/{name}",
            )
            file.flush()
            os.fsync(file.fileno())
        if (found := _address(partial, like=facts.etag)) != facts.etag:
            partial.unlink()
            msg = (
                f"{repo}/{name}: got content {found}, wanted {facts.etag}; "
                "it was damaged on its way and is not kept: run the same command again"
            )
            raise DownloadError(msg)
        publish(partial, blob)


def _address(path: Path, *, like: str) -> str:
    """Return a file's content address of the same kind as `like`; `like` itself where that is no address."""
    digest = address_digest(like, size_bytes=path.stat().st_size)
    if digest is None:
        return like
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def address_digest(address: str, *, size_bytes: int) -> hashlib._Hash | None:
    """Return what computes a content address of the same kind, for a file of that size; None where it is no address."""
    if re.fullmatch(r"[0-9a-f]*", address) is None:
        return None
    if len(address) == _SHA256_DIGITS:
        return hashlib.sha256()
    if len(address) == _SHA1_DIGITS:
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return None


def blob_of(path: Path) -> Path | None:
    """Return the blob that a file of a snapshot is a link to, named by its content; None for a file of another kind."""
    blob = path.resolve()
    return blob if path.is_symlink() and blob.parent.name == "blobs" else None


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
