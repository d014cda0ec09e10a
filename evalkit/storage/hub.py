"""Download files of a Hugging Face repository into its cache, resuming partial downloads and verifying the content.

huggingface_hub resumes after a broken connection, but discards the download of a process that ended, and compares only
sizes. Here blobs are therefore written into its cache first, under the names that it expects; it then finds them there.
The name of a blob is the hash of its content: SHA-256 for large files, git's SHA-1 for others.

A commit never changes. If one is pinned and its requested files are in the cache, no network request is made.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """A download was interrupted, or its content differs from the repository's."""


def snapshot(
    repo: str,
    *,
    revision: str | None,
    patterns: Sequence[str],
    is_complete: Callable[[Path], bool],
    repo_type: RepoType = "model",
) -> Path:
    """Return the folder of a commit in the cache, after downloading the missing files that match `patterns`.

    No request is made if `revision` is a commit and `is_complete` returns true for its folder: a file is linked there
    only when it is whole. A partial download is resumed, also by a later process. Progress is shown on a terminal.

    Raises huggingface_hub's own errors for a repository or revision that cannot be obtained, and DownloadError if the
    connection breaks for good or a file's content does not have the expected hash.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        folder = snapshot_folder(repo, revision, repo_type=repo_type)
        if folder.is_dir() and is_complete(folder):
            return folder
    from huggingface_hub import constants, snapshot_download

    wanted: dict[str, Any] = {
        "repo_type": repo_type,
        "revision": revision,
        "allow_patterns": list(dict.fromkeys(patterns)),
        "tqdm_class": _silent_bar(),
    }
    with _download_errors():
        if not constants.HF_HUB_OFFLINE:
            _refuse_token()
            if reason := _unreachable():
                return _from_cache(repo, wanted, reason)
            _fetch_missing(repo, wanted)
        return Path(snapshot_download(repo, **wanted))


def _silent_bar() -> type:
    """Return a progress bar that shows nothing: the library's own counts files, and most of them exist by then."""
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})  # type: ignore[no-untyped-call]  # tqdm has no types

    return Silent


@contextmanager
def _download_errors() -> Iterator[None]:
    """Raise an invalid request, and a failure of the HTTP library, as a DownloadError of one line."""
    try:
        yield
    except ValueError as error:  # of the libraries below: an invalid name or address
        if isinstance(error, OSError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        msg = f"the request cannot be made ({reason}); check the repository's name, HF_ENDPOINT and the proxy's address"
        raise DownloadError(msg) from error
    except Exception as error:
        # The HTTP library's errors are not OSErrors, and the library depends on huggingface_hub's version.
        if isinstance(error, OSError) or not type(error).__module__.startswith("httpx"):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        msg = f"the connection broke ({reason}); what has arrived is kept: run the same command again to go on"
        raise DownloadError(msg) from error


def _from_cache(repo: str, wanted: dict[str, Any], reason: str) -> Path:
    """Return a repository's folder in the cache. Raises LocalEntryNotFoundError with the reason if one is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, **wanted, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise LocalEntryNotFoundError(reason) from error


def _fetch_missing(repo: str, wanted: dict[str, Any]) -> None:
    """Download the files that the cache lacks; if the hub cannot list the files, do nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        planned = snapshot_download(repo, **wanted, dry_run=True)
    except DryRunError:  # the cache may be enough; otherwise the caller raises the reason
        return
    for file in planned:
        if file.will_download:
            _fetch(repo, file.filename, commit=file.commit_hash, repo_type=wanted["repo_type"])


def _refuse_token() -> None:
    """Raise DownloadError for a token with characters that are invalid in HTTP headers."""
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        msg = "the token (HF_TOKEN) has a character that is not ASCII, wanted one as the hub gave it; copy it again"
        raise DownloadError(msg)


def _unreachable() -> str | None:
    """Return why the hub cannot be reached, or None. The library itself would retry with warnings for a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if not (type(error).__module__.startswith("httpx") or isinstance(error, (ValueError, OSError, ImportError))):
            raise  # ValueError: an invalid proxy; ImportError: a kind of proxy that needs another package
        return " ".join(f"{constants.ENDPOINT}: {type(error).__name__}: {error}".split())
    return None


def snapshot_folder(repo: str, commit: str, *, repo_type: RepoType = "model") -> Path:
    """Return the path of a repository's commit in the cache; it need not exist."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=repo_type) / "snapshots" / commit


def http_status(error: BaseException | None) -> int | None:
    """Return the hub's HTTP status if an error or one of its causes has it, else None."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _fetch(repo: str, name: str, *, commit: str, repo_type: RepoType) -> None:
    """Download one file into the cache as a blob, resuming an earlier partial download."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # its lazy exports have no types

    url = hf_hub_url(repo, name, repo_type=repo_type, revision=commit)
    facts = get_hf_file_metadata(url)
    if facts.etag is None:
        return  # without a hash nothing can be resumed; the library downloads the file
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # a range of compressed bytes cannot be appended
    if urlparse(url).netloc != urlparse(facts.location).netloc:
        headers.pop("authorization", None)  # the token must only be sent to the hub
    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=repo, repo_type=repo_type)
    blob = cache / folder / "blobs" / facts.etag
    partial = blob.with_name(f"{facts.etag}.incomplete")
    lock = cache / ".locks" / folder / f"{facts.etag}.lock"  # the library uses it too
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
        if (found := _content_hash(partial, like=facts.etag)) != facts.etag:
            partial.unlink()
            msg = (
                f"{repo}/{name}: got content {found}, wanted {facts.etag}; "
                "it was damaged on its way and is not kept: run the same command again"
            )
            raise DownloadError(msg)
        publish(partial, blob)


def _content_hash(path: Path, *, like: str) -> str:
    """Return the hash of a file's content, of the same kind as `like`; `like` itself if that is no hash."""
    digest = address_digest(like, size_bytes=path.stat().st_size)
    if digest is None:
        return like
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def address_digest(address: str, *, size_bytes: int) -> hashlib._Hash | None:
    """Return a digest that computes hashes of the same kind, for a file of that size; None if `address` is no hash."""
    if re.fullmatch(r"[0-9a-f]*", address) is None:
        return None
    if len(address) == _SHA256_DIGITS:
        return hashlib.sha256()
    if len(address) == _SHA1_DIGITS:
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    return None


def blob_of(path: Path) -> Path | None:
    """Return the blob that a snapshot's file is a link to; None for any other file."""
    blob = path.resolve()
    return blob if path.is_symlink() and blob.parent.name == "blobs" else None


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
