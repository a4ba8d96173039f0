"""A release reaches the Hub as it is, once, in one commit and under its tag, or not at all; with the real clients."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import cli, record, sources
from chexmask_u.releases import publish as publishing
from chexmask_u.releases.release import MARKER
from chexmask_u.releases.validate import validate
from tests.support import hub, invented_runs
from tests.support.invented_runs import Records

REPO = "org/masks"


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> Path:
    """v1.0.0, v1.1.0 with other numbers and a record less, v1.1.1 that says the same in other words; drawn data."""
    folder = tmp_path_factory.mktemp("releases")
    first = {"synthetic": Records(range(30), {30: "damaged"}), "chestx-ray8": Records(range(7), size=(300, 200))}
    second = first | {"synthetic": Records(range(1, 12), {30: "damaged"})}
    for number, kinds in enumerate((first, second)):
        run = invented_runs.make_run(folder / f"run{number}", kinds, seed=number)
        invented_runs.make_release(run, str(folder), rows_per_shard=10)
    run = invented_runs.make_run(folder / "run2", second | {"synthetic": Records(range(1, 12), {30: "empty"})}, seed=1)
    invented_runs.make_release(run, str(folder), rows_per_shard=10)
    return folder


@pytest.fixture
def v1(releases) -> str:
    return str(releases / "v1.0.0")


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub.for_this_process(monkeypatch, tmp_path) as served:
        yield served


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def line(self) -> str:
        """The one line that a refused command says of itself."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("chexmask-u: ")]
        return line


@pytest.fixture
def publish(capfd):
    def run(folder: str | Path, *flags: str) -> Said:
        capfd.readouterr()
        code = cli.main(["publish", str(folder), "--repo", REPO, "--json", *flags])
        said = Said(code, *capfd.readouterr())
        for secret in (hub.WRITER, hub.READER, "a-secret-signature"):
            assert secret not in said.out + said.err
        return said

    return run


def files_of(folder: str | Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def holds(dataset: hub.Dataset, folder: str | Path, revision: str = "main") -> bool:
    files = dict(dataset.commits[dataset.revision(revision)])
    return files.pop(".gitattributes") == hub.ATTRIBUTES and files == files_of(folder)


def parquet(folder: str | Path) -> int:
    return sum(name.endswith(".parquet") for name in files_of(folder))


def test_a_release_arrives_byte_for_byte_in_one_commit_with_its_tag(server, publish, v1):
    said = publish(v1)
    assert said.code == cli.DONE, said.err
    dataset = server.datasets[REPO]
    assert list(dataset.messages.values())[1:] == ["v1.0.0: 37 records of chestx-ray8, synthetic"]
    assert holds(dataset, v1, "v1.0.0")
    assert dataset.tags == {"v1.0.0": dataset.main}
    assert (dataset.private, dataset.gated) == (False, False)
    assert len(server.uploads()) == parquet(v1)


def test_main_shows_the_newest_version_and_tags_keep_the_others(server, publish, releases):
    versions = ("v1.0.0", "v1.1.0", "v1.1.1")
    for version in versions:
        assert publish(releases / version).code == cli.DONE
    dataset = server.datasets[REPO]
    assert len(dataset.commits) == 1 + len(versions)
    for version in versions:
        assert holds(dataset, releases / version, version)
    assert holds(dataset, releases / "v1.1.1")
    # Otherwise nothing would have had to be deleted.
    assert files_of(releases / "v1.0.0").keys() - files_of(releases / "v1.1.0").keys()
    sent = Counter(request.path for request in server.uploads())
    assert set(sent.values()) == {1}
    again = publish(releases / "v1.0.0")
    assert (again.code, again.result["status"]) == (cli.DONE, "published before")
    assert holds(dataset, releases / "v1.1.1")


def test_published_again_nothing_happens(server, publish, v1):
    publish(v1)
    before = len(server.requests)
    said = publish(v1)
    assert said.result["status"] == "published before"
    assert {request.method for request in server.requests[before:]} == {"GET"}


def test_datasets_loads_exactly_the_tagged_version_streaming_or_not(server, publish, releases, tmp_path):
    for version in ("v1.0.0", "v1.1.0"):
        publish(releases / version)
    script = textwrap.dedent(
        f"""
        import datasets
        for version, count in (("v1.0.0", 30), ("v1.1.0", 11)):
            for config in ("synthetic", "synthetic-masks", "failures"):
                local = datasets.load_dataset({str(releases)!r} + "/" + version, config, split="train")
                eager = datasets.load_dataset({REPO!r}, config, revision=version, split="train")
                streamed = datasets.load_dataset({REPO!r}, config, revision=version, split="train", streaming=True)
                assert eager.features == local.features
                assert eager.to_list() == local.to_list() == list(streamed), (version, config)
                assert len(eager) == (1 if config == "failures" else count)
        """
    )
    environment = server.environment(tmp_path / "home")
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)


def test_a_killed_publish_goes_on_without_sending_twice_what_arrived(server, publish, v1, tmp_path):
    hang = server.fail("PUT", "/objects/", cut=1000, hang=True)
    command = [sys.executable, "-m", "chexmask_u.cli", "publish", v1, "--repo", REPO]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=server.environment(tmp_path, hub.WRITER), stdout=log, stderr=log)
        assert hang.reached.wait(60)
        wait_until(lambda: len(server.datasets[REPO].objects) == parquet(v1) - 1)
        process.kill()
        process.wait()
    dataset = server.datasets[REPO]
    assert list(dataset.files) == [".gitattributes"]
    assert not dataset.tags
    said = publish(v1)
    assert said.code == cli.DONE
    assert holds(dataset, v1, "v1.0.0")
    assert len(dataset.commits) == 2
    # Once each, and the one that was cut once more.
    sent = Counter(request.path for request in server.uploads())
    assert sorted(sent.values()) == [1] * (parquet(v1) - 1) + [2]
    assert hub.WRITER not in (tmp_path / "log").read_text()


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "how",
    [{"cut": 1000}, {"status": 503}, {"status": 429, "headers": {"Retry-After": "0"}}, {"lose_answer": True}],
    ids=["a connection that breaks midway", "a server error", "too many requests", "a lost answer"],
)
def test_an_upload_that_fails_for_a_moment_is_tried_again(server, publish, v1, how):
    server.fail("PUT", "/objects/", **how)
    said = publish(v1)
    assert said.code == cli.DONE, said.err
    assert holds(server.datasets[REPO], v1, "v1.0.0")


def test_the_address_that_a_large_file_goes_to_is_not_logged_with_its_signature(server, publish, v1):
    logger, log = logging.getLogger("huggingface_hub"), io.StringIO()
    handler = logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        server.fail("PUT", "/objects/", status=503)
        assert publish(v1).code == cli.DONE
    finally:
        logger.removeHandler(handler)
    assert "503 thrown while requesting PUT" in log.getvalue()
    assert "Signature" not in log.getvalue()


def test_a_hub_that_is_busy_for_longer_is_told_of_once(server, publish, v1):
    """Its client has two lines for each of its attempts."""
    server.fail("POST", "/info/lfs/objects/batch", status=429, times=3, headers={"Retry-After": "0"})
    logger, log = logging.getLogger("huggingface_hub"), io.StringIO()
    handler = logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        said = publish(v1)
    finally:
        logger.removeHandler(handler)
    assert said.code == cli.DONE
    (line,) = log.getvalue().splitlines()
    assert "HTTP Error 429 thrown while requesting POST" in line


@pytest.mark.parametrize("path", ["/preupload/", "/info/lfs/objects/batch", "/tree/"])
def test_a_busy_hub_is_asked_again(server, publish, v1, path):
    fault = server.fail("GET" if path == "/tree/" else "POST", path, status=429, headers={"Retry-After": "0"})
    assert publish(v1).code == cli.DONE
    assert fault.reached.is_set()


def test_large_files_go_in_parts(server, publish, v1):
    server.part_size = 20_000
    server.fail("PUT", "/objects/.*/2$", status=500)
    assert publish(v1).code == cli.DONE
    assert holds(server.datasets[REPO], v1, "v1.0.0")
    assert len(server.uploads()) > parquet(v1) + 1


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/commit/main", {"status": 503}),
        ("/commit/main", {"cut": 10}),
        ("/tag/", {"status": 500}),
        ("/tag/", {"lose_answer": True}),
    ],
)
def test_what_stops_at_the_end_is_finished_by_the_same_command(server, publish, v1, path, how):
    server.fail("POST", path, **how)
    said = publish(v1)
    assert said.code == cli.INCOMPLETE
    assert "the same command goes on" in said.line
    dataset = server.datasets[REPO]
    # Either all of it is on main or nothing, and no tag without it.
    assert list(dataset.files) == [".gitattributes"] or holds(dataset, v1)
    sent = len(server.uploads())
    assert publish(v1).code == cli.DONE
    assert len(server.uploads()) == sent
    assert holds(dataset, v1, "v1.0.0")
    assert len(dataset.commits) == 2


@pytest.mark.parametrize("how", [{"lose_answer": True}, {"lose_answer": True, "status": 500}])
def test_a_commit_whose_answer_is_lost_counts(server, publish, v1, how):
    """The Hub has been seen to answer 500 to commits that it made."""
    server.fail("POST", "/commit/main", **how)
    assert publish(v1).code == cli.DONE
    assert len(server.datasets[REPO].commits) == 2
    assert holds(server.datasets[REPO], v1, "v1.0.0")


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(server, publish, releases, monkeypatch):
    publish(releases / "v1.0.0")
    dataset = server.datasets[REPO]
    preupload = huggingface_hub.HfApi.preupload_lfs_files

    def meanwhile(self, *args, **kwargs):
        if "notes.txt" not in dataset.files:
            dataset.commit(dataset.files | {"notes.txt": b"mine"}, "by hand")
        return preupload(self, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", meanwhile)
    said = publish(releases / "v1.1.0")
    assert said.code == cli.INCOMPLETE
    assert "somebody else changed it meanwhile" in said.line
    assert dataset.files["notes.txt"] == b"mine"
    assert dataset.tags.keys() == {"v1.0.0"}
    # The file is of no release, and a data file among them would be loaded with the rest.
    assert "holds files of no release, such as notes.txt" in publish(releases / "v1.1.0").line


def test_a_tag_is_never_moved_or_used_again(server, publish, releases, tmp_path):
    publish(releases / "v1.0.0")
    other = invented_runs.make_run(tmp_path / "run", {"synthetic": Records(range(3))}, seed=5)
    invented_runs.make_release(other, str(tmp_path))
    before = len(server.requests)
    said = publish(tmp_path / "v1.0.0")
    assert said.code == cli.BAD_INPUT
    assert "holds another v1.0.0, and a published version never changes" in said.line
    assert {request.method for request in server.requests[before:]} == {"GET"}
    assert holds(server.datasets[REPO], releases / "v1.0.0", "v1.0.0")


def test_versions_go_up_by_what_changed(server, publish, releases, tmp_path):
    publish(releases / "v1.1.0")
    assert "publish versions in their order" in publish(releases / "v1.0.0").line
    # Other numbers under what is only the next patch: the folder it was released to knew of nothing before it.
    run = invented_runs.make_run(tmp_path / "run", {"synthetic": Records(range(3))}, seed=5)
    invented_runs.make_release(run, str(tmp_path), version="v1.1.1")
    said = publish(tmp_path / "v1.1.1")
    assert "what follows is at least v1.2.0, since its records or their numbers differ" in said.line
    assert server.datasets[REPO].tags.keys() == {"v1.1.0"}


def test_a_dry_run_shows_all_and_sends_nothing(server, publish, releases):
    flags = ("--dry-run",)
    said = publish(releases / "v1.0.0", *flags)
    assert said.code == cli.DONE
    assert not server.datasets
    result = said.result
    files = {file["path"]: file["bytes"] for file in result["files"]}
    assert files == {name: len(content) for name, content in files_of(releases / "v1.0.0").items()}
    assert all(file["send"] for file in result["files"])
    assert result["terms"] == {"chestx-ray8": "open", "synthetic": "open"}
    assert result["version"] == "v1.0.0"
    for name in files:
        assert name in said.out
    publish(releases / "v1.0.0")
    publish(releases / "v1.1.0")
    sent = len(server.requests)
    later = publish(releases / "v1.1.1", *flags).result
    assert {request.method for request in server.requests[sent:]} == {"GET"}
    send = {file["path"] for file in later["files"] if file["send"]}
    assert send >= {"release.json", "README.md", "failures/failures-00000-of-00001.parquet"}
    assert not any(re.search("landmarks|masks", name) for name in send)
    assert publish(releases / "v1.0.0", *flags).result["status"] == "published before"


def test_a_dry_run_needs_no_network_and_no_token(server, publish, v1, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    said = publish(v1, "--dry-run")
    assert said.code == cli.DONE
    assert said.result["asked"] is False
    assert len(said.result["files"]) == len(files_of(v1))


def test_a_dry_run_is_for_people_offline_too(server, publish, v1, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = publish(v1, "--dry-run")
    assert (said.code, said.result["asked"], said.result["status"]) == (cli.DONE, False, "would be published")
    said = publish(v1)
    assert said.code == cli.BAD_INPUT
    assert said.line.endswith("HF_HUB_OFFLINE is set, which forbids any connection to the Hub; unset it")


def test_a_dry_run_without_network_tells_that_a_gate_is_needed(server, publish, tmp_path, monkeypatch):
    folder = release_of(tmp_path, "chexpert")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "only if the repository has a gate, for chexpert" in publish(folder, "--dry-run").result["status"]
    assert publish(folder, "--dry-run", "--gated", "manual").result["status"] == "would be published"


def test_a_release_that_is_not_whole_is_not_sent(server, publish, v1, tmp_path):
    copy = shutil.copytree(v1, tmp_path / "v1.0.0")
    shard = copy / "synthetic" / "landmarks-00001-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    said = publish(copy)
    assert said.code == cli.BAD_INPUT
    assert "truncated or edited" in said.line
    assert not server.requests


@pytest.mark.parametrize(
    ("token", "words", "code"),
    [
        (None, "no Hugging Face token; set HF_TOKEN", cli.BAD_INPUT),
        ("hf_of_nobody", "the token is wrong or expired", cli.BAD_INPUT),
        (hub.READER, "may the token write there?", cli.BAD_INPUT),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_who_may_not_write_is_told_so_before_anything_is_sent(
    server, publish, v1, monkeypatch, token, words, code, exists
):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if exists:
        server.create(REPO)
    said = publish(v1)
    assert said.code == code
    assert words in said.line
    assert "hf_of_nobody" not in said.err
    assert not server.uploads()
    assert not server.datasets or list(server.datasets[REPO].files) == [".gitattributes"]


def test_an_organisation_that_is_not_mine_and_a_wrong_name_are_told(server, v1, capsys):
    assert cli.main(["publish", v1, "--repo", "elsewhere/masks"]) == cli.BAD_INPUT
    assert "is the organisation's name right" in capsys.readouterr().err
    assert cli.main(["publish", v1, "--repo", "masks"]) == cli.BAD_INPUT
    assert "--repo must be ORG/NAME" in capsys.readouterr().err
    assert not server.datasets


def test_a_hub_that_does_not_answer_is_told_in_one_line(server, publish, v1, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    said = publish(v1)
    assert said.code == cli.INCOMPLETE
    assert "http://127.0.0.1:9 does not answer" in said.line


def test_a_release_on_object_storage_is_published_as_it_is(server, publish, v1, monkeypatch):
    # Several are fetched at once as far as they fit; some do not fit alone.
    monkeypatch.setattr(publishing, "STAGED_BYTES", 40_000)
    memory = fsspec.filesystem("memory")
    memory.put(v1, "/bucket/v1.0.0", recursive=True)
    try:
        assert publish("memory://bucket/v1.0.0").code == cli.DONE
    finally:
        memory.rm("/bucket", recursive=True)
    assert sum("/preupload/" in request.path for request in server.requests) > 2
    assert holds(server.datasets[REPO], v1, "v1.0.0")


def test_a_repository_with_other_things_in_it_is_left_alone(server, publish, v1):
    server.create(REPO, {"README.md": b"made on the website", "synthetic/landmarks-9.parquet": b"somebody's"})
    said = publish(v1)
    assert "holds files of no release, such as synthetic/landmarks-9.parquet" in said.line
    del server.datasets[REPO].files["synthetic/landmarks-9.parquet"]
    assert publish(v1).code == cli.DONE
    assert holds(server.datasets[REPO], v1, "v1.0.0")


def release_of(folder: Path, *names: str) -> Path:
    run = invented_runs.make_run(folder / "run", {name: Records(range(3)) for name in names})
    invented_runs.make_release(run, str(folder))
    return folder / "v1.0.0"


@pytest.mark.parametrize("name", ["mimic-cxr-jpg", "vindr-cxr"])
@pytest.mark.parametrize("flags", [(), ("--gated", "manual"), ("--private",)])
def test_what_physionet_gives_under_agreement_never_goes_to_the_hub(server, publish, tmp_path, name, flags):
    folder = release_of(tmp_path, name, "synthetic")
    said = publish(folder, *flags)
    assert said.code == cli.BAD_INPUT
    assert name in said.line
    assert f"--exclude {name}" in said.line
    assert "PhysioNet" in said.line
    assert "synthetic" not in said.line
    accepted = publish(folder, "--accept-terms", f"{name}=open", *flags)
    assert accepted.code == cli.BAD_INPUT
    assert "not yours to accept" in accepted.line
    assert not server.requests
    assert publish(folder, "--dry-run", *flags).code == cli.BAD_INPUT
    # What the first refusal proposes does it.
    invented_runs.make_release(str(tmp_path / "run"), str(tmp_path / "rest"), exclude=(name,))
    assert publish(tmp_path / "rest" / "v1.0.0", *flags).code == cli.DONE
    assert not any(name in path for path in server.datasets[REPO].files)


@pytest.mark.parametrize("exists", [False, True])
def test_a_gated_source_goes_behind_a_gate_only(server, publish, tmp_path, exists):
    folder = release_of(tmp_path, "chexpert")
    if exists:
        server.create(REPO)
    said = publish(folder)
    assert said.code == cli.BAD_INPUT
    assert "chexpert may be published behind a gate only" in said.line
    assert "--gated auto" in said.line
    assert {request.method for request in server.requests} == {"GET"}
    assert publish(folder, "--gated", "manual").code == cli.DONE
    dataset = server.datasets[REPO]
    assert (dataset.private, dataset.gated) == (False, "manual")
    # The gate stays, so later versions need not ask for it.
    small = invented_runs.make_run(tmp_path / "run2", {"chexpert": Records(range(3))}, seed=1)
    invented_runs.make_release(small, str(tmp_path))
    assert publish(tmp_path / "v1.1.0").code == cli.DONE


def test_there_is_no_moment_in_which_gated_files_are_open(server, publish, tmp_path):
    folder = release_of(tmp_path, "padchest")
    assert publish(folder, "--gated", "auto").code == cli.DONE
    past = server.datasets[REPO].past
    assert past[0] == (True, False, 0)
    assert past[-1][:2] == (False, "auto")
    assert past[-1][2] > 0
    for private, gated, held in past:
        assert gated or (private and held == 0)
        # Nor does anybody see half of it.
    assert {held for private, _, held in past if private} == {0}


def test_a_gate_that_the_hub_does_not_set_stops_all(server, publish, tmp_path):
    folder = release_of(tmp_path, "padchest")
    server.fail("PUT", "/settings", status=200)
    said = publish(folder, "--gated", "auto")
    assert "the Hub set no gate" in said.line
    assert not server.uploads()
    assert server.datasets[REPO].private


def test_a_private_repository_is_made_and_a_public_one_is_not_taken_for_it(server, publish, v1):
    assert publish(v1, "--private").code == cli.DONE
    assert {private for private, _, _ in server.datasets[REPO].past} == {True}
    server.create(REPO)
    said = publish(v1, "--private")
    assert "is public; make it private" in said.line
    assert not server.datasets[REPO].tags


def test_my_own_data_need_my_word(server, publish, tmp_path):
    folder = release_of(tmp_path, "my-hospital")
    said = publish(folder)
    assert "--accept-terms my-hospital=open" in said.line
    assert not server.requests
    assert "may be published behind a gate only" in publish(folder, "--accept-terms", "my-hospital=gated").line
    assert "the release holds no such source" in publish(folder, "--accept-terms", "other=open").line
    assert "--accept-terms must be" in publish(folder, "--accept-terms", "my-hospital").line
    assert publish(folder, "--accept-terms", "my-hospital=open").code == cli.DONE


def test_every_published_source_has_terms_and_unknown_ones_are_withheld():
    assert {name: source.policy for name, source in sources.PUBLISHED.items()} == {
        "chestx-ray8": "open",
        "chexpert": "gated",
        "mimic-cxr-jpg": "withheld",
        "padchest": "gated",
        "vindr-cxr": "withheld",
    }
    assert sources.get("anything-else").policy == "withheld"


# All that a release may say of an image, and how: numbers, ids, sizes and run lengths.
ALLOWED = {
    "landmarks": "record_id source image_id height width landmarks_mean landmarks_std landmarks_xy landmarks_across"
    " landmarks_along uncertainty latent_mean latent_std latent_uncertainty dice_rca_mean dice_rca_max letterbox",
    "masks": "record_id height width right_lung left_lung heart",
    "failures": "record_id source image_id reason",
}


def test_no_pixels_reports_labels_or_patient_attributes_are_in_a_release(v1):
    content = validate(v1).content
    for file in content["files"]:
        table = pq.read_table(Path(v1, file["path"]))
        assert table.schema.names == ALLOWED[file["kind"]].split()
        for name in table.schema.names:
            check_values(name, table[name])
        metadata = pq.read_metadata(Path(v1, file["path"])).metadata or {}
        assert metadata.keys() <= {b"ARROW:schema"}
    suffixes = {Path(name).suffix for name in files_of(v1)}
    assert suffixes <= {".parquet", ".json", ".md", ".png"}


def leaves(type_: pa.DataType) -> list[pa.DataType]:
    if not pa.types.is_nested(type_):
        return [type_]
    return [leaf for index in range(type_.num_fields) for leaf in leaves(type_.field(index).type)]


def check_values(name: str, column: pa.ChunkedArray) -> None:
    for leaf in leaves(column.type):
        assert pa.types.is_floating(leaf) or pa.types.is_int32(leaf) or pa.types.is_string(leaf), (name, leaf)
        if pa.types.is_string(leaf):
            for value in column.to_pylist():
                if name in ("right_lung", "left_lung", "heart"):
                    assert re.fullmatch(r"(\d+ \d+( \d+ \d+)*)?", value)
                elif name == "reason":
                    assert value in record.REASONS
                else:
                    assert re.fullmatch(r"[\w./-]{1,200}", value)


@pytest.mark.parametrize(
    ("name", "values"),
    [("patient_age", pa.array([61] * 7)), ("image", pa.array([b"\x89PNG"] * 7)), ("report", pa.array(["normal"] * 7))],
)
def test_a_release_with_another_column_is_refused_and_not_sent(server, publish, v1, tmp_path, name, values):
    copy = shutil.copytree(v1, tmp_path / "v1.0.0")
    shard = copy / "chestx-ray8" / "landmarks-00000-of-00001.parquet"
    pq.write_table(pq.read_table(shard).append_column(name, values), shard)
    marker = json.loads((copy / MARKER).read_text())
    for file in marker["files"]:
        if file["path"].startswith("chestx-ray8/landmarks"):
            file |= {"bytes": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    (copy / MARKER).write_text(json.dumps(marker))
    said = publish(copy)
    assert said.code == cli.BAD_INPUT
    assert "its columns are not those of schema" in said.line
    assert not server.requests


def test_a_file_that_changes_meanwhile_does_not_reach_main(server, publish, v1, tmp_path, monkeypatch):
    copy = shutil.copytree(v1, tmp_path / "v1.0.0")
    preupload = huggingface_hub.HfApi.preupload_lfs_files

    def meanwhile(self, *args, **kwargs):
        shard = copy / "synthetic" / "masks-00000-of-00003.parquet"
        shard.write_bytes(shard.read_bytes()[::-1])
        return preupload(self, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", meanwhile)
    said = publish(copy)
    assert said.code == cli.BAD_INPUT
    assert "masks-00000-of-00003.parquet: changed since it was found valid" in said.line
    assert list(server.datasets[REPO].files) == [".gitattributes"]


def test_a_gate_that_somebody_took_down_is_noticed_and_put_up_again(server, publish, tmp_path):
    folder = release_of(tmp_path, "padchest")
    publish(folder, "--gated", "auto")
    server.datasets[REPO].gated = False
    assert "may be published behind a gate only" in publish(folder).line
    assert publish(folder, "--gated", "auto").result["status"] == "published before"
    assert server.datasets[REPO].gated == "auto"


def test_a_name_that_is_taken_by_what_one_may_not_see(server, publish, v1):
    server.fail("POST", "/api/repos/create", status=409)
    assert "exists, and the token may not see it" in publish(v1).line
