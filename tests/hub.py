"""A Hugging Face Hub on a free port of this machine: enough of it to list a model repository and to download files."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server holds; tests add to it while it runs.

    Attributes:
        repos: repository -> revision -> path -> content.
        corrupt: by a file's true content, what the next downloads of it give instead, one after the other.
        gated: repositories that answer as those do whose terms nobody has accepted.
    """

    url: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    corrupt: dict[bytes, list[bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment of a process that takes this for the Hub; `huggingface_hub` reads it when it is imported."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, **ours}


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        store = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    store: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"] and len(parts) >= 6:
            files = self._files("/".join(parts[2:4]), unquote(parts[5]))
            if files is not None:
                entries = [_entry(path, content) for path, content in sorted(files.items())]
                folders = sorted({str(parent) for path in files for parent in Path(path).parents} - {"."})
                entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
                self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif parts[2:3] == ["resolve"] and len(parts) >= 5:
            revision, path = unquote(parts[3]), unquote("/".join(parts[4:]))
            files = self._files("/".join(parts[:2]), revision)
            if files is not None and path not in files:
                self._refuse(404, "EntryNotFound", "Entry not found")
            elif files is not None:
                content = files[path]
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                commit = hashlib.sha1(revision.encode()).hexdigest()
                if self.command == "GET" and self.store.corrupt.get(content):
                    content = self.store.corrupt[content].pop(0)
                self._send(content, {"ETag": etag, "X-Repo-Commit": commit})
        else:
            self._refuse(404, "NotFound", f"this Hub knows no {self.path}")

    def _files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The repository's files, or None once a refusal is sent."""
        if repo in self.store.gated:
            self._refuse(401, "GatedRepo", "Access to this model is restricted.")
        elif repo not in self.store.repos:
            # So the Hub answers who is not logged in, lest names of private repositories leak.
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in self.store.repos[repo]:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return self.store.repos[repo][revision]
        return None

    def _refuse(self, code: int, error: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(body, {"X-Error-Code": error, "X-Error-Message": message}, code)

    def _send(self, body: bytes, headers: dict[str, str], code: int = 200) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _entry(path: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    lfs = {"oid": digest, "size": len(content), "pointerSize": 134}
    return {"type": "file", "path": path, "size": len(content), "oid": digest[:40], "lfs": lfs}
