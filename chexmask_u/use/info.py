"""What a bug report asks for: versions, devices, weights, sources with their terms; and whether weights are sane."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import statistics
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from chexmask_u import sources, storage
from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS
from chexmask_u.model.predict import Prediction, predict
from chexmask_u.result import DONE, INCOMPLETE, Result
from chexmask_u.runs.identity import library_versions
from chexmask_u.settings import InfoSettings
from chexmask_u.sources import synthetic
from chexmask_u.steps.predict import Predictor
from chexmask_u.weight_files import DEMO, WeightFile, find, load_model

# What lies beside weights that have one.
CALIBRATION = "calibration.json"

NONE, NOT_TOLD, NOT_KNOWN = "none", "not told", "not known (the Hub did not answer)"

# Drawings that the weights are checked on, as the demo has them; few, and different enough.
DRAWINGS = 4
SEED = 0

# Draws an image, as a run has them.
SAMPLES = 50

# Predictions that are timed, and seconds after which no other is begun: dropout takes eight an image on two cores.
REPEATS = 3
SECONDS = 10.0

# As a run gives them to a GPU; a CPU computes image by image anyway.
GPU_BATCH = 16

# Pixels of the 1024 frame that a mean landmark may lie outside of it: drawings go up to the edge.
MARGIN = FRAME / 20

# Least height and width of an organ, in pixels of the 1024 frame: no patient's is so small.
LEAST_ORGAN = FRAME / 12

# Mean standard deviation of an image in pixels of the 1024 frame. Of five trainings, with KL weights from 6e-4 to 1e-2,
# drawings have 2 to 22.
UNCERTAINTY = (0.05, 100.0)

# Mean distance in pixels of the 1024 frame of a drawing's landmarks from where they were drawn, of the demonstration
# weights, which were trained on others like it and reach 7 to 20.
DEMO_ERROR = 30.0


def run(settings: InfoSettings) -> dict[str, Any]:
    """What there is, without starting Ray.

    Returns:
        Versions by name; ``devices``, ``weights``, ``sources`` and, if it was asked for, ``check`` (see `check`).

    Raises:
        CheckpointError: if there are no such weights.
    """
    found = find(settings.weights)
    model = load_model(found)
    local = settings.weights != DEMO and storage.is_local(settings.weights)
    facts: dict[str, Any] = library_versions() | {
        "devices": devices(),
        "weights": {
            **found.facts(),
            # Folders of a machine are nobody's business.
            "source": PurePosixPath(settings.weights).name if local else settings.weights,
            "sha256": model.sha256,
            "variant": model.variant,
            "input_size": model.input_size,
            "licence": _licence(found),
            "calibration": _calibration(found),
        },
        "sources": {
            source.name: {
                "title": source.title,
                "policy": source.policy,
                "licence": source.licence,
                "terms": source.terms_url,
                "preparation": source.describe("published"),
            }
            for source in sources.PUBLISHED.values()
        },
    }
    if settings.weights == DEMO:
        facts["demo weights"] = f"{model.variant}, input {model.input_size}, sha256 {model.sha256}"
    if settings.check:
        facts["check"] = check(settings.weights, str(model.sha256), settings.device)
    return facts


def devices() -> dict[str, Any]:
    """What this machine computes with, as torch sees it."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "compile": _compiling(),
    }


def _compiling() -> str:
    """Whether torch can compile the network here, and if not, what it lacks; no compiler is started."""
    if not torch.cuda.is_available():
        return "not on a CPU"
    if importlib.util.find_spec("triton") is None:
        return "not possible: no Triton"
    compilers = (os.environ.get("CC") or "gcc", "cc", "clang")
    if not any(map(shutil.which, compilers)):
        return "not possible: no C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "not possible: no Python headers"
    return "possible"


def _licence(found: WeightFile) -> str:
    from huggingface_hub.repocard import metadata_load

    try:
        card = found.page()
        told = card and (metadata_load(card) or {}).get("license")
    except Exception:  # of the Hub's client or of YAML; the weights are there, and a report goes on without
        return NOT_KNOWN if found.repo is not None else NOT_TOLD
    return str(told) if told else NOT_TOLD


def _calibration(found: WeightFile) -> str:
    try:
        return CALIBRATION if found.beside(CALIBRATION) is not None else NONE
    except Exception:  # as above
        return NOT_KNOWN


def check(weights: str, sha256: str, device: str = "auto") -> dict[str, Any]:
    """Predict drawings whose landmarks are known, as a replica of a run does, and judge the numbers.

    Args:
        weights, sha256, device: as `Predictor` takes them.

    Returns:
        ``sane``; ``problems``, a line each; ``device``; ``milliseconds_per_image`` of ``batch`` images at once, with
        ``samples`` draws; ``drawings``; ``uncertainty`` (their mean) and ``mean_error`` (distance from where the
        landmarks were drawn, which only the demonstration weights are judged by), in pixels of the 1024 frame.

    Raises:
        InputError: if there is no such device.
    """
    predictor = Predictor(weights, sha256=sha256, samples=SAMPLES, device=device)
    on_gpu = predictor.model.device.type != "cpu"
    batch = GPU_BATCH if on_gpu else DRAWINGS
    drawings = [synthetic.draw(index, SEED, FRAME) for index in range(DRAWINGS)]
    images = np.resize(np.stack([drawing.image for drawing in drawings]), (batch, FRAME, FRAME))
    names = [f"drawing-{index:04d}" for index in range(batch)]
    # The first prediction warms up.
    prediction = predict(predictor.model, images, names, SAMPLES)
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        start = time.perf_counter()
        predict(predictor.model, images, names, SAMPLES)
        seconds.append(time.perf_counter() - start)
    truth = np.stack([drawing.landmarks for drawing in drawings])
    errors = np.linalg.norm(prediction.landmarks_mean[:DRAWINGS] - truth, axis=-1).mean(axis=1)
    problems = list(dict.fromkeys(problem for index in range(DRAWINGS) for problem in _problems(prediction, index)))
    if weights == "demo" and not errors.max() <= DEMO_ERROR:
        problems.append(f"landmarks lie {errors.max():.0f} px from where they were drawn, more than {DEMO_ERROR:.0f}")
    return {
        "sane": not problems,
        "problems": problems,
        "device": predictor.device_name,
        "milliseconds_per_image": 1000 * statistics.median(seconds) / batch,
        "batch": batch,
        "samples": SAMPLES,
        "drawings": DRAWINGS,
        "uncertainty": _number(prediction.landmarks_std[:DRAWINGS].mean()),
        "mean_error": _number(errors.mean()),
    }


def _number(value: np.floating[Any]) -> float | None:
    """For JSON, which knows finite numbers alone."""
    return float(value) if np.isfinite(value) else None


def _problems(prediction: Prediction, index: int) -> list[str]:
    """What cannot be of a chest's landmarks; nothing where all is as it may be."""
    mean, std = prediction.landmarks_mean[index], prediction.landmarks_std[index]
    if not all(np.isfinite(values).all() for values in (mean, std, prediction.latent_mean[index])):
        return ["landmarks or latents are not finite numbers"]
    problems = []
    if mean.min() < -MARGIN or mean.max() > FRAME + MARGIN:
        problems.append(f"landmarks lie outside the image, by more than {MARGIN:.0f} px of the {FRAME} frame")
    centre = {organ: mean[LANDMARKS[organ]].mean(axis=0) for organ in ORGANS}
    if not centre["right_lung"][0] < centre["heart"][0] < centre["left_lung"][0]:
        problems.append("the heart does not lie between the right lung, on the image's left, and the left one")
    for organ in ORGANS:
        if np.ptp(mean[LANDMARKS[organ]], axis=0).min() < LEAST_ORGAN:
            problems.append(f"the {organ.replace('_', ' ')} is less than {LEAST_ORGAN:.0f} px wide or high")
    low, high = UNCERTAINTY
    if not low <= std.mean() <= high:
        problems.append(f"the mean standard deviation is not from {low:g} to {high:g} px of the {FRAME} frame")
    return problems


def render(facts: Mapping[str, Any]) -> str:
    """The result of `run` as lines for a person."""
    machine, weights = facts["devices"], facts["weights"]
    lines = [f"{name}: {version}" for name, version in facts.items() if isinstance(version, str)]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in machine["gpus"])
    lines += [
        f"platform: {machine['platform']}",
        f"CPUs: {machine['cpus']}, of which torch uses {machine['threads']}",
        f"GPUs: {gpus or NONE}; compiling the network: {machine['compile']}",
        f"Weights: {weights['source']}" + (f", commit {weights['commit']}" if weights["commit"] else ""),
        *(f"  {name.replace('_', ' ')}: {weights[name]}" for name in ("file", "sha256", "variant", "input_size")),
        *(f"  {name}: {weights[name]}" for name in ("licence", "calibration")),
        "Sources, and the terms of what derives from them:",
    ]
    for name, source in facts["sources"].items():
        lines += [f"  {name}: {source['policy']}; {source['licence']}", f"    {source['terms']}"]
    return "\n".join([*lines, *_checked(facts["check"])] if "check" in facts else lines)


def _checked(found: Mapping[str, Any]) -> list[str]:
    verdict = "sane" if found["sane"] else "NOT SANE: do not use these weights before it is known why"
    measured = (found["uncertainty"], found["mean_error"])
    numbers = [f"{value:.3g} px" if value is not None else "no number" for value in measured]
    return [
        f"Check on {found['drawings']} drawings: {verdict}",
        *(f"  {problem}" for problem in found["problems"]),
        f"  mean standard deviation {numbers[0]}, mean error {numbers[1]} of the {FRAME} frame",
        f"  {found['milliseconds_per_image']:.1f} ms an image on {found['device']}, {found['batch']} at once, "
        f"{found['samples']} draws",
    ]


def verb(settings: InfoSettings) -> Result:
    """`chexmask-u info`."""
    facts = run(settings)
    return Result(facts, render(facts), DONE if facts.get("check", {"sane": True})["sane"] else INCOMPLETE)
