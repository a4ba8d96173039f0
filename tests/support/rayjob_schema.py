"""The fields of KubeRay's RayJob, as its API's reference names them (ray.io/v1, KubeRay 1.6); pods are Kubernetes's."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_NUMBER: dict[str, Any] = {"type": "number"}
_SWITCH: dict[str, Any] = {"type": "boolean"}
_OBJECT: dict[str, Any] = {"type": "object"}
_WORDS: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}


def _record(required: tuple[str, ...] = (), **fields: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


_POD = _record(("spec",), metadata=_OBJECT, spec=_OBJECT)

_HEAD = _record(
    ("template",),
    template=_POD,
    headService=_OBJECT,
    enableIngress=_SWITCH,
    resources=_WORDS,
    labels=_WORDS,
    rayStartParams=_WORDS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)

_WORKERS = _record(
    ("groupName", "template", "minReplicas", "maxReplicas"),
    suspend=_SWITCH,
    groupName=_TEXT,
    replicas=_WHOLE,
    minReplicas=_WHOLE,
    maxReplicas=_WHOLE,
    idleTimeoutSeconds=_WHOLE,
    resources=_WORDS,
    labels=_WORDS,
    rayStartParams=_WORDS,
    template=_POD,
    scaleStrategy=_OBJECT,
    numOfHosts=_WHOLE,
)

_AUTOSCALER = _record(
    resources=_OBJECT,
    image=_TEXT,
    imagePullPolicy={"enum": ["Always", "Never", "IfNotPresent"]},
    securityContext=_OBJECT,
    idleTimeoutSeconds=_WHOLE,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)

_CLUSTER = _record(
    ("headGroupSpec",),
    authOptions=_record(mode={"enum": ["disabled", "token"]}, secretName=_TEXT, enableK8sTokenAuth=_SWITCH),
    suspend=_SWITCH,
    managedBy=_TEXT,
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_WORDS,
    enableInTreeAutoscaling=_SWITCH,
    gcsFaultToleranceOptions=_OBJECT,
    headGroupSpec=_HEAD,
    rayVersion=_TEXT,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)

_SPEC = _record(
    activeDeadlineSeconds=_WHOLE,
    backoffLimit=_WHOLE,
    rayClusterSpec=_CLUSTER,
    submitterPodTemplate=_POD,
    metadata=_WORDS,
    clusterSelector=_WORDS,
    submitterConfig=_record(backoffLimit=_WHOLE),
    managedBy=_TEXT,
    deletionStrategy=_OBJECT,
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    jobId=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=_TEXT,
    entrypointNumCpus=_NUMBER,
    entrypointNumGpus=_NUMBER,
    ttlSecondsAfterFinished=_WHOLE,
    shutdownAfterJobFinishes=_SWITCH,
    suspend=_SWITCH,
)

RAY_JOB = _record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_OBJECT,
    spec=_SPEC,
)
"""JSON Schema of a RayJob, strict: a misspelt field is refused, as an API server with field validation does."""
