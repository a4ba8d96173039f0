"""deploy/: what Kubernetes and KubeRay accept, and what the image and the jobs have to say alike."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from chexmask_u.cli import build_parser
from tests.support.rayjob_schema import RAY_JOB

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
JOBS = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
KUBERNETES = "1.33"


@pytest.fixture(params=JOBS, ids=lambda path: path.stem)
def job(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(request.param.read_text())
    return loaded


def groups(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The head's group, then those of the workers."""
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"]["containers"][0] for group in groups(job)]


def validate(job: dict[str, Any]) -> None:
    """Refuse what KubeRay's or Kubernetes's schema refuses."""
    jsonschema.validate(job, RAY_JOB)
    for group in groups(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pinned() -> dict[str, str]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return {re.split(r"[=\[]", line)[0]: line.rpartition("==")[2] for line in listed}


def test_both_schemas_accept_a_job(job: dict[str, Any]) -> None:
    validate(job)


def test_a_misspelt_field_would_be_refused(job: dict[str, Any]) -> None:
    misspelt = copy.deepcopy(job)
    misspelt["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        validate(misspelt)
    misspelt = copy.deepcopy(job)
    containers(misspelt)[0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resource"):
        validate(misspelt)


def test_the_command_is_one_that_the_command_line_takes(job: dict[str, Any]) -> None:
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    chosen, unknown = build_parser().parse_known_args(arguments)
    assert program == "chexmask-u"
    assert not unknown
    options = vars(chosen)
    verb = options.pop("verb")
    options.pop("parser")
    verb.settings.from_mapping(options)
    assert not any(word.startswith(("/", "./")) for word in arguments), "workers would not find a local path"


def test_a_cluster_has_room_for_every_replica_and_runs_no_task_on_its_head(job: dict[str, Any]) -> None:
    head, *workers = groups(job)
    assert head["rayStartParams"]["num-cpus"] == "0"
    gpus = sum(
        group["maxReplicas"] * container["resources"]["limits"].get("nvidia.com/gpu", 0)
        for group, container in zip(workers, containers(job)[1:], strict=True)
    )
    wanted = re.search(r"--replicas (\d+)", job["spec"]["entrypoint"])
    assert gpus == (int(wanted[1]) if wanted else 0)
    assert all(group["minReplicas"] == 0 for group in workers)


def test_nobody_without_the_token_gets_in_and_nothing_runs_as_root(job: dict[str, Any]) -> None:
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert all(group["template"]["spec"]["securityContext"]["runAsNonRoot"] for group in groups(job))
    assert "\nUSER 1000\n" in DOCKERFILE


def test_nodes_have_one_image_and_the_ray_that_is_pinned(job: dict[str, Any]) -> None:
    assert len({container["image"] for container in containers(job)}) == 1
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned()["ray"]


def test_the_image_takes_its_torch_from_the_pin() -> None:
    expression = re.search(r"sed -n '[^']+' pyproject.toml", DOCKERFILE)
    assert expression
    found = subprocess.run(shlex.split(expression[0]), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found == f"torch=={pinned()['torch']}\n"
