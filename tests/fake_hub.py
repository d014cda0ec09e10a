"""A Hugging Face Hub on the loopback interface: the routes that a download uses, with configurable faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple, Self

import pytest

LARGE = 100_000
"""Files of at least this size are addressed by SHA-256, as the Hub does for files that it keeps outside git."""


class Asked(NamedTuple):
    """One request: its method, path and Range header, and whether it carried a token."""

    method: str
    path: str
    range: str | None
    token: bool


@dataclass
class Repository:
    """One repository at one commit; a `status` other than 200 is the answer to every request for it."""

    commit: str
    files: dict[str, bytes]
    status: int = 200


@dataclass
class FakeHub:
    """Repositories by route (`owner/name`, `datasets/owner/name`), the requests so far, and the faults."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: dict[str, tuple[Literal["break", "stall", "short", "damage"], int]] = field(default_factory=dict)
    """By file name: `break` or `stall` after n bytes, omit the last n bytes (`short`), or `damage` byte n."""
    fails_after: dict[str, int] = field(default_factory=dict)
    """By file name: the number of requests after which the server closes connections without an answer."""
    elsewhere: str | None = None
    """Another server to which requests for files are redirected, as the Hub does for large files."""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def publish(self, route: str, folder: Path, *, commit: str) -> None:
        """Serve the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[route] = Repository(commit, files)

    def gets(self, name: str) -> list[Asked]:
        """Return the requests for the content of one file."""
        return [each for each in self.asked if each.method == "GET" and each.path.endswith(f"/{name}")]

    def stand_in(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this process use the server as the Hub, with its own cache."""
        constants = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(cache),
        }
        for name, value in constants.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


def address(content: bytes) -> str:
    """Return the checksum by which the Hub addresses a file."""
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(name: str, content: bytes) -> dict[str, object]:
    """Return a file's entry in the Hub's listing of a repository."""
    facts = {"oid": address(content), "size": len(content)}
    large = {"lfs": {**facts, "pointerSize": 130}} if len(content) >= LARGE else {}
    return {"type": "file", "path": name, **facts, **large}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.state.asked.append(Asked(self.command, path, self.headers.get("Range"), "Authorization" in self.headers))
        if match := re.fullmatch(r"/api/(?:models/)?(.+)/(revision|tree)/([^/]+)", path):
            self.describe(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            self.send_file(match[1], match[2], match[3])
        else:
            self.refuse(404, "EntryNotFound")

    def repository(self, route: str, revision: str) -> Repository | None:
        found = self.state.repositories.get(route)
        if found is None or found.status == 404:
            self.refuse(404, "RepoNotFound")
        elif found.status == 403:
            self.refuse(403, "GatedRepo")
        elif found.status != 200:
            self.refuse(found.status, None)
        elif revision not in ("main", found.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def describe(self, route: str, what: str, revision: str) -> None:
        found = self.repository(route, revision)
        if found is None:
            return
        facts: object = {"id": route.removeprefix("datasets/"), "sha": found.commit, "siblings": []}
        if what == "tree":
            facts = [described(name, content) for name, content in found.files.items()]
        self.reply(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def send_file(self, route: str, revision: str, name: str) -> None:
        found = self.repository(route, revision)
        if found is None:
            return
        if name not in found.files:
            self.refuse(404, "EntryNotFound")
            return
        content = found.files[name]
        headers = {"ETag": f'"{address(content)}"', "X-Repo-Commit": found.commit, "Accept-Ranges": "bytes"}
        kind, bytes_ = self.state.faults.get(name, ("", 0))
        if kind == "short":
            content = content[:-bytes_]
        if kind == "damage":
            content = content[:bytes_] + bytes([content[bytes_] ^ 1]) + content[bytes_ + 1 :]
        if self.command == "GET" and len(self.state.gets(name)) > self.state.fails_after.get(name, 1_000):
            self.close_connection = True
            return
        if self.state.elsewhere is not None:
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            self.reply(302, b"", {**headers, **linked, "Location": f"{self.state.elsewhere}{self.path}"})
            return
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = start + bytes_ if kind in ("break", "stall") and self.command == "GET" else None
        self.reply(status, content[start:], headers, stop=None if stop is None else bytes_, stall=kind == "stall")

    def refuse(self, status: int, code: str | None) -> None:
        self.reply(status, b'{"error": "refused"}', {} if code is None else {"X-Error-Code": code})

    def reply(
        self, status: int, body: bytes, headers: dict[str, str], *, stop: int | None = None, stall: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body[:stop])
            self.wfile.flush()
            if stop is not None and stop < len(body):
                if stall:
                    self.state.stalled.set()
                    self.state.go_on.wait(600)
                self.close_connection = True
        except OSError:  # the client has disconnected
            self.close_connection = True
