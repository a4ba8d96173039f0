"""Keys, signatures and passwords in URLs: whatever goes wrong or right, they are neither printed nor stored."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chexmask_u import cli, record, storage
from chexmask_u.manifests.check import ManifestFacts
from chexmask_u.runs.identity import freeze
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.steps.read import read
from tests.steps.test_read import manifest

SECRET = "s3cr3t/Val+ue"

URLS = [
    f"https://user:{SECRET.replace('/', '')}@host.org/images/a.png",
    f"s3://{SECRET.replace('/', '')}@bucket/key",
    f"https://b.s3.amazonaws.com/a.png?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://host.org/a.png?X-Amz-Security-Token={SECRET}&x=1",
    f"https://account.blob.core.windows.net/c/a.png?sv=2024&sig={SECRET}",
    f"https://storage.googleapis.com/b/a.png?GoogleAccessId={SECRET}&Expires=1&Signature={SECRET}",
    f"https://host.org/a.png?token={SECRET}",
    f"https://host.org/a.png?size=3&api_key={SECRET}&password={SECRET}",
    f"https://user:p@ss'w{SECRET.replace('/', '')}@host.org/images/a.png",
    f"https://host.org/a.png?jwt={SECRET}&pwd={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_loses_its_secrets_and_nothing_else(url: str) -> None:
    for text in (f"{url}: cannot be opened", f'"{url}"', f"url='{url}')", json.dumps({"a": url})):
        assert "s3cr3t" not in storage.redact(text)
        assert storage.redact(text).endswith(text.rpartition(url)[2])
    assert storage.redact(url).split("?")[0].rpartition("@")[2] in url


@pytest.mark.parametrize(
    "text",
    [
        "/data/what? a=b.png",
        "s3://bucket/images/a@b.png: is no JSON; choose another --output",
        "https://host.org/a.png?versionId=abc&width=3",
        "hf://mcosarinsky/CheXmask-U/v1_skip@main",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert storage.redact(text) == text


class Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403 if "forbidden" in self.path else 410)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_error_of_a_row_does_not_tell_its_presigned_url(server: str) -> None:
    uris = [f"http://{server}/{name}.png?X-Amz-Signature=s3cr3t&token=s3cr3t" for name in ("forbidden", "gone")]
    rows = read(manifest(uris)).to_pylist()
    assert [row["reason"] for row in rows] == ["forbidden", "storage"]
    for row in rows:
        assert row["error"]
        assert "s3cr3t" not in row["error"]


@pytest.mark.parametrize("flag", ["--manifest", "--output"])
@pytest.mark.parametrize("form", ["http://user:s3cr3t@{}/m.parquet", "http://{}/m.parquet?X-Amz-Signature=s3cr3t"])
def test_no_error_message_echoes_a_secret(
    server: str, flag: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"--manifest": str(tmp_path / "none.parquet"), "--output": str(tmp_path / "run")}
    places[flag] = form.format(server)
    flags = [word for pair in places.items() for word in pair]
    assert cli.main(["generate", *flags, "--json"]) == cli.BAD_INPUT
    said = capsys.readouterr()
    assert said.err.startswith("chexmask-u: ")
    assert "s3cr3t" not in said.err + said.out


def test_run_json_holds_no_secret(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    settings = GenerateSettings(
        manifest="https://user:s3cr3t@host/m.parquet", output=run.url, weights="https://host/w.pt?token=s3cr3t"
    )
    facts = ManifestFacts(uri=str(settings.manifest), sha256="0" * 64, rows=1, sources={"folder": 1})
    freeze(run, settings, facts, {"source": settings.weights, "sha256": "1"})
    text = (tmp_path / "run" / "run.json").read_text()
    assert "s3cr3t" not in text
    assert json.loads(text)["settings"]["samples"] == 50
    assert record.SCHEMA_VERSION in text
