"""An S3 server for tests: moto as a process of its own, reached over HTTP as a real one is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import s3fs

from tests.ray_cluster import free_ports, stop_group

START_SECONDS = 120.0


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
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
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
