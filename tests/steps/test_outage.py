"""A storage that is out of reach stops the step; one that answers, whatever it says, makes rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pyarrow as pa
import pytest

from chexmask_u import record
from chexmask_u.errors import StoppedError
from chexmask_u.images import fetch as fetching
from chexmask_u.steps.outage import IN_A_ROW
from chexmask_u.steps.read import read

PNG = cv2.imencode(".png", np.full((40, 50), 90, np.uint8))[1].tobytes()
ROWS = 4 * IN_A_ROW


class Handler(BaseHTTPRequestHandler):
    """Answers as the path's first folder says: with an image, or with that status; counts the requests."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        kind = self.path.split("/")[1]
        self.send_response(206 if kind == "image" else int(kind))
        body = PNG if kind == "image" else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(fetching, "BACKOFF_SECONDS", (0.001, 0.001))
    Handler.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def rows(uris: list[str]) -> pa.Table:
    columns = {name: [None] * len(uris) for name in record.MANIFEST.names}
    columns |= {"record_id": uris, "uri": uris, "image_id": uris, "source": ["folder"] * len(uris)}
    return pa.table([pa.array(columns[f.name], f.type) for f in record.MANIFEST], schema=record.MANIFEST)


def test_a_storage_that_is_out_of_reach_stops_the_step_before_it_was_asked_for_every_image(address: str) -> None:
    with pytest.raises(StoppedError, match=rf"^{address} is out of reach: \d+ images in a row"):
        read(rows([f"{address}/503/{number}.png?token=secret" for number in range(ROWS)]))
    # An image is asked for at most twice, and as many are under way as make an outage.
    assert Handler.asked < 2 * ROWS


def test_images_that_are_missing_or_forbidden_are_rows_however_many(address: str) -> None:
    uris = [f"{address}/{404 if number % 2 else 403}/{number}.png" for number in range(ROWS)]
    assert set(read(rows(uris))["reason"].to_pylist()) == {"missing", "forbidden"}


def test_trouble_with_some_images_of_a_storage_that_answers_is_theirs(address: str) -> None:
    uris = [f"{address}/{'503' if number % 4 == 0 else 'image'}/{number}.png" for number in range(ROWS)]
    read_rows = read(rows(uris))
    assert read_rows["reason"].to_pylist() == ["storage" if number % 4 == 0 else None for number in range(ROWS)]


def test_a_disk_fails_file_by_file(tmp_path) -> None:
    missing = read(rows([str(tmp_path / f"{number}.png") for number in range(ROWS)]))
    assert set(missing["reason"].to_pylist()) == {"missing"}
