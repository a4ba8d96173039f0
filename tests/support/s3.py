"""An S3 server for tests: moto as a process of its own, reached over HTTP as a real one is, and its outages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import s3fs

from tests.support.ray_cluster import free_ports, stop_group

START_SECONDS = 300.0

# Moto would make an object of the half of a body that came before its sender died; S3 never does.
SERVE = """
import sys
from io import BytesIO
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

moto = DomainDispatcherApplication(create_backend_app)

def serve(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length:
        body = environ["wsgi.input"].read(length)
        if len(body) < length:
            start_response("400 Bad Request", [])
            return []
        environ["wsgi.input"] = BytesIO(body)
    return moto(environ, start_response)

run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True, request_handler=MotoRequestHandler)
"""

# Between the clients and the server: forwards bytes, so that its death cuts every connection and refuses new ones.
# While the file HOLD is there, a deletion of a pending checkpoint never ends, and the file HOLD.held says so.
GATE = """
import asyncio, sys
from pathlib import Path

port, server, hold = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

async def forward(source, target):
    try:
        while data := await source.read(2**16):
            if data.startswith(b"DELETE ") and b".pending.parquet" in data and hold.exists():
                hold.with_suffix(".held").touch()
                await asyncio.sleep(3600)
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()

async def connect(reader, writer):
    try:
        there = await asyncio.open_connection("127.0.0.1", server)
    except OSError:
        writer.close()
        return
    await asyncio.gather(forward(reader, there[1]), forward(there[0], writer))

async def main():
    async with await asyncio.start_server(connect, "127.0.0.1", port) as listening:
        await listening.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class S3Server:
    """A running server, one empty bucket on it, and the environment with which every S3 client finds both."""

    endpoint: str
    bucket: str
    env: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def filesystem(self) -> s3fs.S3FileSystem:
        """A client that needs nothing from this process's environment and sees what others wrote."""
        return s3fs.S3FileSystem(
            key=self.env["AWS_ACCESS_KEY_ID"],
            secret=self.env["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": self.env["AWS_DEFAULT_REGION"]},
            use_listings_cache=False,
        )


class Gate:
    """The way to a server, which can be cut: a process that forwards every connection."""

    def __init__(self, server: S3Server, hold: Path) -> None:
        (self.port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.hold = hold
        self.held = hold.with_suffix(".held")
        self._server_port = server.endpoint.rpartition(":")[2]
        self._process: subprocess.Popen[bytes] | None = None
        self.open()

    def open(self) -> None:
        """Let requests through."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", GATE, str(self.port), self._server_port, str(self.hold)], start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def cut(self) -> None:
        """SIGKILL: connections reset, whatever they were in the middle of, and no new ones."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def gate(server: S3Server, hold: Path) -> Iterator[Gate]:
    """A way to the server, open; clients that are to take it get its endpoint as AWS_ENDPOINT_URL."""
    way = Gate(server, hold)
    try:
        yield way
    finally:
        way.cut()


@contextmanager
def s3_server(bucket: str = "chexmask-u") -> Iterator[S3Server]:
    """Start a server on a free port of 127.0.0.1 with one bucket; it ends, and forgets, with the context."""
    # Clients find a server by the environment, but are kept by their arguments alone.
    s3fs.S3FileSystem.clear_instance_cache()
    (port,) = free_ports(1)
    server = S3Server(
        endpoint=f"http://127.0.0.1:{port}",
        bucket=bucket,
        env={
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Without it, clients ask 169.254.169.254 for credentials and wait.
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        env={**os.environ, **server.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _create_bucket(server, process)
        yield server
    finally:
        stop_group(process)
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def own_bucket(server: S3Server, name: str) -> Iterator[S3Server]:
    """An empty bucket more on a server that others use, too; clients are made anew for it, and forgotten after."""
    s3fs.S3FileSystem.clear_instance_cache()
    found = replace(server, bucket=name)
    found.filesystem().call_s3("create_bucket", Bucket=name)
    try:
        yield found
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def _create_bucket(server: S3Server, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            # s3fs's mkdir would name the region, which S3 refuses for us-east-1.
            server.filesystem().call_s3("create_bucket", Bucket=server.bucket)
            return
        except OSError as error:
            if process.poll() is not None:
                raise RuntimeError(f"moto's server ended with code {process.returncode}") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server.endpoint} did not answer in {START_SECONDS:.0f} s") from error
            time.sleep(0.2)
