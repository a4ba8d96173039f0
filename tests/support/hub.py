"""A Hugging Face Hub on a free port of this machine, for the unmodified `huggingface_hub` and `datasets` clients.

Model repositories can be listed and read, at a branch, tag or commit. Dataset repositories can be created, gated,
uploaded to (small files in the commit, large ones as LFS objects, in one part or several), committed to, tagged, listed
and read in ranges. Faults can be set, and every request is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

WRITER = "hf_the_token_of_a_writer"
READER = "hf_the_token_of_a_reader"
"""The tokens that a Hub knows at first: both see every repository, the first may also write to those of "org"."""

ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Attributes:
        method: of the requests.
        path: regular expression that is searched for in their path.
        times: how many of them it happens to.
        status: answer with this code instead of doing anything.
        headers: of that answer.
        cut: read so many bytes of the body, then break the connection.
        hang: after `cut` bytes, set `reached` and wait until the client goes away.
        lose_answer: do what is asked for, then break the connection or answer with `status`.
        reached: set once the fault has happened.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False
    lose_answer: bool = False
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """A request that came in: its code is None where no answer was given, `received` the bytes of its body."""

    method: str
    path: str
    status: int | None
    received: int


@dataclass
class Dataset:
    """A repository, of a dataset or of a model.

    Attributes:
        private, gated: its settings.
        commits: files (path -> content) of every commit by its id, oldest first.
        messages: of the commits.
        main: id of the newest commit.
        tags: tag, or another name of a revision -> commit.
        objects: LFS objects by sha256, committed or not.
        past: what its settings have been, and how many objects and files it held, oldest first.
    """

    private: bool = False
    gated: str | bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    main: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    past: list[tuple[bool, str | bool, int]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        """Make `files` what main holds."""
        text = f"{self.main} {message} {len(self.commits)}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.main = dict(files), message, oid
        self.note()
        return oid

    def note(self) -> None:
        self.past.append((self.private, self.gated, len(self.objects) + len(self.commits.get(self.main, {})) - 1))

    def revision(self, name: str) -> str | None:
        """Id of the commit that a branch, tag or id means."""
        oid = self.main if name in ("main", "refs/heads/main") else self.tags.get(name, name)
        return oid if oid in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.main]


@dataclass
class Hub:
    """What the server holds; tests add to it while it runs.

    Attributes:
        models: model repositories by name.
        corrupt: by a file's true content, what the next downloads of it give instead, one after the other.
        download_seconds: that a file takes at least.
        datasets: dataset repositories by name.
        tokens: what the bearer of each token may do: "read" or "write".
        organisations: where a writer may create repositories.
        faults: what goes wrong next.
        answered: the requests that came in on behalf of the user.
        open: how many of them are still being answered.
        unknown: requests that this server does not know, method and path.
        part_size: LFS objects larger than this are uploaded in parts of it.
    """

    url: str = ""
    models: dict[str, Dataset] = field(default_factory=dict)
    corrupt: dict[bytes, list[bytes]] = field(default_factory=dict)
    download_seconds: float = 0.0
    datasets: dict[str, Dataset] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=lambda: {WRITER: "write", READER: "read"})
    organisations: set[str] = field(default_factory=lambda: {"org"})
    faults: list[Fault] = field(default_factory=list)
    answered: list[Request] = field(default_factory=list)
    open: int = 0
    unknown: list[str] = field(default_factory=list)
    part_size: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """Environment of a process that takes this for the Hub; `huggingface_hub` reads it when it is imported."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        if token is not None:
            ours["HF_TOKEN"] = token
        return {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, **ours}

    def create(self, name: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> Dataset:
        """A dataset repository as the Hub makes it: with one commit, which holds .gitattributes."""
        dataset = self.datasets[name] = Dataset(private=private)
        dataset.commit({".gitattributes": ATTRIBUTES, **(files or {})}, "initial commit")
        return dataset

    def model(self, name: str, files: Mapping[str, bytes]) -> Dataset:
        """A model repository with one commit."""
        model = self.models[name] = Dataset()
        model.commit(dict(files), "initial commit")
        return model

    def downloads(self, path: str) -> int:
        """How often a file was given to somebody."""
        return sum(request.method == "GET" and request.path.endswith(f"/{path}") for request in self.requests)

    @property
    def requests(self) -> list[Request]:
        """All requests, once none is being answered: a client knows its answer before this server is done with it."""
        deadline = time.monotonic() + 30
        while self.open and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.answered

    def uploads(self) -> list[Request]:
        """The requests that carried a large file or a part of one."""
        return [request for request in self.requests if request.method == "PUT" and "/objects/" in request.path]

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Let the next requests of a kind go wrong; see `Fault`."""
        fault = Fault(method, path, **how)
        self.faults.append(fault)
        return fault


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        store = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def for_this_process(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub that this process takes for the real one, as one with its `environment` does from its start."""
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "harnesses"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        # They know the endpoint of their day.
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
        huggingface_hub.HfFileSystem.clear_instance_cache()
        assert not hub.unknown


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


# What the client asks for once a day by itself, whatever it is used for.
_CLIENT_NEWS = ["api", "agent-harnesses"]

_NO_REPO = (401, "RepoNotFound", "Repository not found")


class _Handler(BaseHTTPRequestHandler):
    store: Hub
    protocol_version = "HTTP/1.1"
    # Many small answers: without it each waits for the client's acknowledgement.
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        self.status: int | None = None
        self.received = 0
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.store.lock:
            self.store.open += 1
        try:
            fault = self._fault(url.path)
            if fault is not None and not fault.lose_answer and self._go_wrong(fault):
                return
            body = self._read(int(self.headers.get("Content-Length") or 0))
            if self.command == "GET" and "/resolve/" in url.path:
                time.sleep(self.store.download_seconds)
            self.muted = fault is not None
            with self.store.lock:
                try:
                    self._route(url.path, body)
                except _RefusalError as refusal:
                    self._refuse(refusal.status, refusal.code, refusal.message)
            if fault is not None:
                self.muted = False
                self._go_wrong(fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.store.lock:
                if url.path.strip("/").split("/") != _CLIENT_NEWS:
                    self.store.answered.append(Request(self.command, url.path, self.status, self.received))
                self.store.open -= 1

    def _fault(self, path: str) -> Fault | None:
        with self.store.lock:
            for fault in self.store.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _go_wrong(self, fault: Fault) -> bool:
        if fault.status is not None:
            self._read(int(self.headers.get("Content-Length") or 0) - self.received)
            self._send(json.dumps({"error": "it went wrong"}).encode(), fault.headers, fault.status)
            fault.reached.set()
            return True
        if fault.cut is not None:
            self._read(fault.cut)
        fault.reached.set()
        if fault.hang:
            while self.rfile.read1(1):  # until the client is gone
                pass
        self.close_connection = True
        return True

    def _read(self, length: int) -> bytes:
        content = self.rfile.read(length) if length > 0 else b""
        self.received += len(content)
        return content

    def _route(self, path: str, body: bytes) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._model("/".join(parts[2:4]), parts[4:])
        elif parts[:1] == ["datasets"] and parts[3:4] == ["resolve"] and len(parts) >= 6:
            self._resolve(self.store.datasets, "/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        elif parts[:1] == ["datasets"] and parts[2:3] and parts[2].endswith(".git"):
            self._lfs_batch("/".join([parts[1], parts[2].removesuffix(".git")]), json.loads(body))
        elif parts[:1] == ["objects"]:
            self._object(parts, body)
        elif parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self._dataset("/".join(parts[2:4]), parts[4:], body)
        elif parts[:2] == ["api", "repos"] and parts[2:] == ["create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._json(_validate_yaml(json.loads(body)["content"]))
        elif parts == _CLIENT_NEWS:
            self._json({"standardEnvVars": [], "harnesses": {}})
        elif parts == ["api", "whoami-v2"]:
            if self._role() is None:
                raise _RefusalError(401, "", "Invalid credentials in Authorization header")
            self._json({"type": "user", "name": "somebody", "orgs": [{"name": "org"}]})
        elif parts[2:3] == ["resolve"] and len(parts) >= 5:
            self._resolve(self.store.models, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._unknown()

    def _unknown(self) -> None:
        self.store.unknown.append(f"{self.command} {self.path}")
        raise _RefusalError(404, "NotFound", f"this Hub knows no {self.path}")

    def _role(self) -> str | None:
        """What the bearer may do: None without a token."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.store.tokens:
            raise _RefusalError(401, "", "Invalid credentials in Authorization header")
        return self.store.tokens[token]

    def _model(self, name: str, verb: list[str]) -> None:
        match [self.command, *verb]:
            case ["GET"] | ["GET", "revision", _]:
                model, oid = self._commit(name, verb[1] if verb else "main", self.store.models)
                blobs = "blobs" in self.query
                siblings = [_sibling(path, content, blobs) for path, content in model.commits[oid].items()]
                facts = {"_id": oid, "id": name, "sha": oid, "private": model.private, "gated": model.gated}
                self._json(facts | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
            case _:
                self._unknown()

    def _resolve(self, repositories: dict[str, Dataset], name: str, revision: str, path: str) -> None:
        repository, oid = self._commit(name, revision, repositories)
        if repository.gated and self._role() is None:
            raise _RefusalError(401, "GatedRepo", "Access to this repository is restricted.")
        self._file(repository.commits[oid], path, oid)

    def _repository(self, name: str, repositories: dict[str, Dataset] | None = None) -> Dataset:
        role = self._role()
        dataset = (self.store.datasets if repositories is None else repositories).get(name)
        if dataset is None or (dataset.private and role is None):
            raise (
                _RefusalError(*_NO_REPO) if role is None else _RefusalError(404, "RepoNotFound", "Repository not found")
            )
        return dataset

    def _writable(self, name: str) -> Dataset:
        dataset = self._repository(name)
        if self._role() != "write" or name.split("/")[0] not in self.store.organisations:
            raise _RefusalError(403, "", f"You don't have the rights to write to {name}")
        return dataset

    def _commit(self, name: str, revision: str, repositories: dict[str, Dataset] | None = None) -> tuple[Dataset, str]:
        dataset = self._repository(name, repositories)
        oid = dataset.revision(revision)
        if oid is None:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return dataset, oid

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        role = self._role()
        if role is None:
            raise _RefusalError(401, "", "Invalid username or password.")
        if role != "write" or wanted["organization"] not in self.store.organisations:
            raise _RefusalError(403, "", f"You don't have the rights to create {wanted['type']} {name}")
        if name in self.store.datasets:
            raise _RefusalError(409, "", "You already created this dataset repo")
        self.store.create(name, private=wanted.get("visibility") == "private")
        self._json({"url": f"{self.store.url}/datasets/{name}", "name": name})

    def _dataset(self, name: str, verb: list[str], body: bytes) -> None:
        match [self.command, *verb]:
            case ["GET"] | ["GET", "revision", _]:
                dataset, oid = self._commit(name, verb[1] if verb else "main")
                siblings = [{"rfilename": path} for path in dataset.commits[oid]]
                facts = {"_id": oid, "id": name, "sha": oid, "private": dataset.private, "gated": dataset.gated}
                self._json(facts | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
            case ["GET", "tree", revision, *folders]:
                dataset, oid = self._commit(name, revision)
                recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
                self._json(_tree(dataset.commits[oid], "/".join(folders), recursive=recursive))
            case ["POST", "paths-info", revision]:
                dataset, oid = self._commit(name, revision)
                asked = parse_qs(body.decode()).get("paths", [])
                entries = _tree(dataset.commits[oid], "", recursive=True)
                self._json([entry for entry in entries if entry["path"] in asked])
            case ["GET", "refs"]:
                dataset = self._repository(name)
                tags = [
                    {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in dataset.tags.items()
                ]
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": dataset.main}
                self._json({"branches": [main], "converts": [], "tags": tags})
            case ["PUT", "settings"]:
                dataset, wanted = self._writable(name), json.loads(body)
                dataset.gated = wanted.get("gated", dataset.gated)
                if "visibility" in wanted:
                    dataset.private = wanted["visibility"] == "private"
                dataset.note()
                self._json({"private": dataset.private, "gated": dataset.gated})
            case ["POST", "preupload", revision]:
                self._writable(name)
                dataset, oid = self._commit(name, revision)
                files = [_upload_mode(dataset.commits[oid], file["path"]) for file in json.loads(body)["files"]]
                self._json({"files": files})
            case ["POST", "commit", "main"]:
                self._post_commit(name, body)
            case ["POST", "tag", revision]:
                dataset, (_, oid) = self._writable(name), self._commit(name, revision)
                tag = json.loads(body)["tag"]
                if tag in dataset.tags:
                    raise _RefusalError(409, "", f"Tag reference exists: {tag}")
                dataset.tags[tag] = oid
                self._send(b"", {}, 200)
            case _:
                self._unknown()

    def _post_commit(self, name: str, body: bytes) -> None:
        dataset = self._writable(name)
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, dataset.main):
            raise _RefusalError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(dataset.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in dataset.objects:
                    raise _RefusalError(400, "", f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = dataset.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise _RefusalError(404, "EntryNotFound", "A file with this name doesn't exist")
                del files[value["path"]]
            else:
                raise _RefusalError(400, "", f"this Hub knows no {line['key']}")
        oid = dataset.commit(files, header["summary"])
        url = f"{self.store.url}/datasets/{name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _lfs_batch(self, name: str, wanted: dict[str, Any]) -> None:
        dataset = self._writable(name)
        objects = []
        for file in wanted["objects"]:
            answer: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
            url = f"{self.store.url}/objects/{name}/{file['oid']}"
            # The signature stands for what a real storage puts there, and nobody may print.
            signed = "?X-Amz-Signature=a-secret-signature"
            if file["oid"] not in dataset.objects:
                upload: dict[str, Any] = {"href": url + signed}
                size = self.store.part_size
                if size is not None and file["size"] > size:
                    count = -(-file["size"] // size)
                    urls = {str(number): f"{url}/{number}{signed}" for number in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(size), **urls}
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, parts: list[str], body: bytes) -> None:
        dataset, oid = self.store.datasets["/".join(parts[1:3])], parts[3]
        if self.command == "PUT" and len(parts) == 5:
            dataset.parts[oid, int(parts[4])] = body
            self._send(b"", {"ETag": hashlib.md5(body).hexdigest()})
            return
        if self.command == "POST":
            numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
            body = b"".join(dataset.parts.pop((oid, number)) for number in numbers)
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusalError(400, "", "sha256 does not match")
        dataset.objects[oid] = body
        dataset.note()
        self._send(b"", {})

    def _file(self, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        content = files[path]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET" and self.store.corrupt.get(content):
            content = self.store.corrupt[content].pop(0)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.command == "GET":
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            if first >= len(content):
                raise _RefusalError(416, "", "Range not satisfiable")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(content[first : last + 1], headers, 206)
        else:
            self._send(content, headers)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(json.dumps({"error": message}).encode(), headers, status)

    def _send(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        if getattr(self, "muted", False):
            return
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(path: str) -> bool:
    return path.endswith((".parquet", ".safetensors", ".bin", ".pt", ".pth"))


def _upload_mode(files: dict[str, bytes], path: str) -> dict[str, Any]:
    mode = "lfs" if _is_large(path) else "regular"
    oid = None
    if path in files:
        oid = hashlib.sha256(files[path]).hexdigest() if mode == "lfs" else git_hash(files[path])
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(files: dict[str, bytes], folder: str, *, recursive: bool = True) -> list[dict[str, Any]]:
    """Files and folders below a folder, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    if folder and not below:
        raise _RefusalError(404, "EntryNotFound", f"{folder} does not exist")
    entries = [
        _entry(path, content)
        for path, content in sorted(below.items())
        if recursive or "/" not in path.removeprefix(prefix)
    ]
    folders = sorted({str(parent) for path in below for parent in Path(path).parents} - {"."})
    return entries + [
        {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        for path in folders
        if path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))
    ]


def _sibling(path: str, content: bytes, blobs: bool) -> dict[str, Any]:
    """A file as the facts about its repository list it; its digest only where it is asked for."""
    sibling: dict[str, Any] = {"rfilename": path}
    if blobs:
        entry = _entry(path, content)
        sibling |= {"size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            sibling["lfs"] = {"sha256": entry["lfs"]["oid"], **entry["lfs"]}
    return sibling


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if _is_large(path):
        pointer = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry |= {"oid": hashlib.sha256(content).hexdigest()[:40], "lfs": pointer}
    return entry


def _validate_yaml(card: str) -> dict[str, Any]:
    """As the Hub checks a card: its YAML must be a mapping."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        fine = found is None or isinstance(yaml.safe_load(found[1]), dict)
    except yaml.YAMLError:
        fine = False
    return {"errors": [] if fine else [{"message": "metadata is no valid YAML"}], "warnings": []}
