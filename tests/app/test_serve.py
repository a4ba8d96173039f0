"""Before the page is served: what is wrong is said in one line; and the Space that serves it elsewhere."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import urllib.request

import pytest
import yaml

from chexmask_u import cli
from tests.app.conftest import OWN_WORDS

NEEDS_GRADIO = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["app", *words]) == cli.BAD_INPUT
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    return told.err


@NEEDS_GRADIO
def test_a_port_in_use_bad_weights_and_an_address_elsewhere_are_refused_in_one_line(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"--port {port}: is in use" in refusal(capsys, "--port", port)
    assert "no such weight file" in refusal(capsys, "--port", port, "--weights", "nowhere.pt")
    assert "--host 192.0.2.1" in refusal(capsys, "--host", "192.0.2.1", "--port", port)
    assert "--port must be from 1 to 65535" in refusal(capsys, "--port", "70000")


def test_without_gradio_it_is_told_how_to_install_it(tmp_path):
    """In a process of its own, which is kept from finding it."""
    code = "import sys; sys.modules['gradio'] = None; from chexmask_u.cli import main; sys.exit(main(['app']))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (cli.BAD_INPUT, "")
    assert told.stderr == ('chexmask-u: the page needs gradio: pip install -e ".[app]" in the project\'s folder\n')


def test_a_space_goes_into_a_folder_of_its_own(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    told = refusal(capsys, "--space", str(tmp_path))
    assert "is not empty and holds no Space" in told
    assert "choose another --space" in told
    space = str(tmp_path / "space")
    assert "put the weights on the Hub" in refusal(capsys, "--space", space, "--weights", "mine.pt")
    assert "must be a local folder" in refusal(capsys, "--space", "s3://bucket/space")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_written_space_serves_the_page_with_its_own_copy_of_the_package(site):
    with urllib.request.urlopen(site.url) as answer:
        assert OWN_WORDS in answer.read().decode()
        assert "default-src 'self'" in answer.headers["content-security-policy"]


@NEEDS_GRADIO
def test_a_space_says_what_it_needs_and_is_written_whole_again(tmp_path):
    space = tmp_path / "space"
    assert cli.main(["app", "--space", str(space)]) == cli.DONE
    front = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    needed = (space / "requirements.txt").read_text().splitlines()
    assert f"gradio=={front['sdk_version']}" in needed
    assert any(line.startswith("torch==") for line in needed)
    assert not any("pytest" in line for line in needed)
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    # The Hub takes no more.
    assert len(front["short_description"]) <= 60

    mark = space / "space.json"
    mark.write_text(mark.read_text().replace('"app.py",', '"app.py", "chexmask_u/module_of_an_earlier_version.py",'))
    (space / "chexmask_u" / "module_of_an_earlier_version.py").write_text("")
    before = sorted(path for path in space.rglob("*") if "earlier" not in path.name)
    assert cli.main(["app", "--space", str(space)]) == cli.DONE
    assert sorted(space.rglob("*")) == before
