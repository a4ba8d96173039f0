"""One driver at a time on one output: who is refused, who may take over, and when."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chexmask_u import storage
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.runs import identity, lock
from chexmask_u.runs.lock import LOCK, held
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from tests.support.s3 import S3Server, own_bucket

HOLDER = """
import sys, time
from chexmask_u.runs.lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def server(s3: S3Server) -> Iterator[S3Server]:
    with own_bucket(s3, "lock") as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    server = request.getfixturevalue("server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return f"{server.url}/{tmp_path.name}/run"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.3, "EXPIRY": 1.5, "SETTLE": 0.3, "WATCH": 0.1}.items():
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def start_holder(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def owner_file(url: str) -> dict[str, object] | None:
    return Run(url).read_json(LOCK)


def elsewhere(url: str) -> None:
    """Change the owner file into one of another machine."""
    Run(url).write(LOCK, json.dumps(owner_file(url) | {"machine": "another", "host": "node-7"}))


def test_a_second_driver_is_refused_in_one_line_that_says_who_and_what_to_do(url: str) -> None:
    holder = start_holder(url)
    try:
        with pytest.raises(InputError) as caught, held(url):
            pytest.fail("two drivers")
    finally:
        holder.communicate("\n")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    since = time.strftime("%Y-%m-%d", time.gmtime())
    for words in (url, f"process {holder.pid}", socket.gethostname(), since, f"delete {storage.join(url, 'run.lock')}"):
        assert words in message
    # It ended as it should, and left nothing.
    assert owner_file(url) is None
    with held(url):
        assert owner_file(url)["pid"] == os.getpid()
    assert owner_file(url) is None


def test_after_kill_9_the_next_driver_of_the_machine_goes_on_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "EXPIRY_SECONDS", 600)
    holder = start_holder(url)
    holder.kill()
    holder.communicate()
    assert owner_file(url)["pid"] == holder.pid
    start = time.monotonic()
    with held(url):
        assert owner_file(url)["pid"] == os.getpid()
    assert time.monotonic() - start < 10


def test_an_id_that_another_process_has_by_now_is_no_owner(url: str) -> None:
    with held(url):
        entry = owner_file(url)
    Run(url).write(LOCK, json.dumps(entry | {"process_started": "1"}))
    with held(url):
        pass


def test_a_dead_driver_of_another_machine_is_waited_for_and_then_taken_over(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(url):
        entry = owner_file(url)
    Run(url).write(LOCK, json.dumps(entry))
    elsewhere(url)
    start = time.monotonic()
    with held(url):
        assert time.monotonic() - start >= 1.5
        assert "node-7" in capsys.readouterr().err


def test_a_living_driver_of_another_machine_is_known_by_its_heartbeat(url: str) -> None:
    with held(url):
        entry = owner_file(url)
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.3):
            count += 1
            # Its clock is years behind, which is no reason to take it for dead.
            Run(url).write(LOCK, json.dumps(entry | {"machine": "another", "beat": count, "since": "1999"}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        time.sleep(0.5)
        with pytest.raises(InputError, match="is being written by"), held(url):
            pytest.fail("two drivers")
    finally:
        over.set()
        thread.join()


def test_of_many_who_see_a_dead_owner_at_the_same_time_one_takes_over(url: str) -> None:
    Run(url).write(LOCK, "{}")
    outcomes: list[str] = []
    over = threading.Event()

    def come() -> None:
        try:
            with held(url):
                outcomes.append("held")
                over.wait(20)
        except InputError as error:
            outcomes.append(str(error))

    crowd = [threading.Thread(target=come) for _ in range(5)]
    for one in crowd:
        one.start()
    deadline = time.monotonic() + 20
    while len(outcomes) < len(crowd):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    over.set()
    for one in crowd:
        one.join()
    assert outcomes.count("held") == 1
    assert sum("is being written by" in outcome for outcome in outcomes) == 4


def test_a_driver_whose_run_was_taken_over_stops(url: str) -> None:
    def drive() -> None:
        with held(url):
            entry = owner_file(url)
            Run(url).write(LOCK, json.dumps(entry | {"token": "other", "pid": 1, "host": "node-7"}))
            time.sleep(20)

    # As a driver has it, whose shell may have Ctrl-C ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(StoppedError, match="taken over by process 1 on node-7"):
        drive()
    # The other one's file is not touched.
    assert owner_file(url)["token"] == "other"


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(url: str) -> None:
    run = Run(url)
    Run(storage.join(url, "images")).write("a.png", "an image")
    with pytest.raises(InputError, match=r"is not empty and holds no run.*'images'.*choose another --output") as caught:
        identity.check_same(run, GenerateSettings(), {}, None)
    assert len(str(caught.value).splitlines()) == 1
    assert run.names() == ["images"]


def test_an_empty_folder_and_one_where_a_driver_died_early_are_free(url: str, tmp_path: Path) -> None:
    run = Run(url)
    assert not identity.check_same(run, GenerateSettings(), {}, None)
    run.write(LOCK, "{}")
    run.write(".DS_Store", "")
    assert not identity.check_same(run, GenerateSettings(), {}, None)
