"""cluster.yaml is what Ray accepts, and what a user who pays for it and answers for its data expects."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from chexmask_u.cli import main

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as `ray up` uses it, with Ray's defaults filled in."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    return prepared


def workers(cluster: dict[str, Any], kind: str) -> dict[str, Any]:
    node: dict[str, Any] = cluster["available_node_types"][kind]
    return node


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_ray_would_refuse_a_misspelt_field(cluster: dict[str, Any]) -> None:
    misspelt = copy.deepcopy(cluster)
    workers(misspelt, "gpu")["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(misspelt)


def test_every_worker_type_can_have_its_maximum(cluster: dict[str, Any]) -> None:
    assert cluster["max_workers"] == sum(workers(cluster, kind)["max_workers"] for kind in ("gpu", "decode"))


def test_nothing_but_ssh_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    assert not cluster["provider"].get("security_group", {}).get("IpPermissions")
    starts = [
        command
        for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert "--dashboard-host=127.0.0.1 " in starts[0]
    assert not any("0.0.0.0" in command for command in starts)


def test_every_node_asks_for_the_token(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in cluster["setup_commands"])


def test_the_example_command_is_one_that_generate_takes(capsys: pytest.CaptureFixture[str]) -> None:
    text = CLUSTER.read_text().replace("\\\n#       ", "")
    (example,) = (line for line in text.splitlines() if "jobs/generate.py" in line)
    flags = example.split("jobs/generate.py")[1].split()
    # It gets as far as looking for the manifest, on a storage without a network.
    flags[flags.index("--manifest") + 1] = "memory://nowhere.parquet"
    flags[flags.index("--output") + 1] = "memory://run"
    assert main(["generate", *flags]) == 2
    assert "no such manifest" in capsys.readouterr().err
