"""Storage that misbehaves, over HTTP: what passes is waited for, what stays is a reason, and nothing is cut short."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs
from fsspec.implementations.http import HTTPFileSystem

from chexmask_u.images import fetch as fetching
from chexmask_u.images.fetch import fetch
from chexmask_u.record import ReadError

CONTENT = bytes(range(256)) * 40
LIMIT = 1_000_000

S3_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


class Storage(ThreadingHTTPServer):
    """Serves objects by range as S3 and web servers do, once the troubles listed for it are used up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.troubles: list[str] = []
        self.ranges: list[str | None] = []
        self.sent = 0
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are a part of the play."""


class Handler(BaseHTTPRequestHandler):
    server: Storage
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        trouble = self.server.troubles.pop(0) if self.server.troubles else ""
        if trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif trouble == "hang":
            self.server.over.wait(60)
            self.close_connection = True
        elif trouble.isdecimal():
            self.answer(int(trouble), f"<Error><Code>{S3_CODES[int(trouble)]}</Code></Error>".encode())
        else:
            start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            if start >= len(self.server.content):
                self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            else:
                self.answer(206, self.server.content[start : end + 1], cut=trouble == "cut")

    def answer(self, status: int, body: bytes, cut: bool = False) -> None:
        # Before the client has it, and goes on.
        self.server.sent += len(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def storage() -> Iterator[Storage]:
    server = Storage()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["s3", "http"])
def uri(request: pytest.FixtureRequest, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> str:
    """One object on the misbehaving storage, by S3's protocol and by plain HTTP."""
    # A client is made anew for each test's server; waiting is shortened, asking again is as users have it.
    s3fs.S3FileSystem.clear_instance_cache()
    HTTPFileSystem.clear_instance_cache()
    monkeypatch.setattr(fetching, "BACKOFF_SECONDS", (0.02, 1.0))
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 4.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.5)
    monkeypatch.setattr("chexmask_u.storage.filesystems.HTTP_SECONDS", 0.5)
    for name, value in {
        "AWS_ENDPOINT_URL": storage.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/image.png" if request.param == "s3" else f"{storage.address}/bucket/image.png"


@pytest.mark.parametrize(
    "troubles", [["500", "500"], ["503", "503"], ["429"], ["reset", "reset"], ["cut", "cut"], ["hang"]]
)
def test_trouble_that_passes_is_waited_for(uri: str, storage: Storage, troubles: list[str]) -> None:
    storage.troubles = list(troubles)
    assert fetch(uri, max_bytes=LIMIT) == CONTENT
    assert len(storage.ranges) == len(troubles) + 1


@pytest.mark.parametrize(("status", "reason"), [("403", "forbidden"), ("404", "missing")])
def test_what_will_not_change_is_asked_for_once(uri: str, storage: Storage, status: str, reason: str) -> None:
    storage.troubles = [status] * 50
    with pytest.raises(ReadError) as caught:
        fetch(uri, max_bytes=LIMIT)
    assert caught.value.reason == reason
    assert len(storage.ranges) == 1


@pytest.mark.parametrize("trouble", ["500", "reset"])
def test_trouble_that_stays_is_a_reason_after_a_bounded_number_of_requests(
    uri: str, storage: Storage, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The S3 client's own ten take a minute.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 0.5)
    storage.troubles = [trouble] * 100
    with pytest.raises(ReadError) as caught:
        fetch(uri, max_bytes=LIMIT)
    assert caught.value.reason == "storage"
    assert 2 <= len(storage.ranges) <= 60


def test_no_more_of_an_object_is_fetched_than_may_be(uri: str, storage: Storage) -> None:
    assert fetch(uri, max_bytes=len(CONTENT)) == CONTENT
    storage.sent = 0
    with pytest.raises(ReadError, match="more than 100 bytes") as caught:
        fetch(uri, max_bytes=100)
    assert caught.value.reason == "too_large"
    assert storage.sent <= 101


def test_a_file_of_50_gb_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with path.open("wb") as file:
        file.truncate(50 * 10**9)
    start = time.perf_counter()
    with pytest.raises(ReadError) as caught:
        fetch(str(path), max_bytes=LIMIT)
    assert caught.value.reason == "too_large"
    assert time.perf_counter() - start < 5


def test_an_object_without_bytes_is_empty(uri: str, storage: Storage) -> None:
    storage.content = b""
    with pytest.raises(ReadError) as caught:
        fetch(uri, max_bytes=LIMIT)
    assert caught.value.reason == "empty"
