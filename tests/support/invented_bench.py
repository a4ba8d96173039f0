"""A result of `bench` on a machine with an H100, invented: nobody ran it.

Its GPU's figures are quoted from a report of the network and of the pipeline on one H100 with 16 cores; those of a core
are the kept result's of two cores of another machine.
"""

from __future__ import annotations

from typing import Any

from chexmask_u.bench import read, report


def h100() -> dict[str, Any]:
    """The content of the JSON file."""
    drawn = {
        "JPEG, 1024 x 1024": (0.003, "chexpert", 250_000),
        read.TYPICAL: (0.022, "chexpert", 1_900_000),
        f"{read.TYPICAL}, cropped, through JPEG": (0.023, "mimic-cxr-jpg", 1_900_000),
        "PNG, 8 bit, 1024 x 1024": (0.0056, "chestx-ray8", 420_000),
        read.SLOWEST: (0.089, "padchest", 11_000_000),
        "DICOM, 12 bit, 3000 x 2500": (0.0076, "vindr-cxr", 15_000_000),
        "DICOM, JPEG 2000, 3000 x 2500": (0.918, "vindr-cxr", 8_000_000),
    }
    network = {
        (1, 50, "float32"): 9.3,
        (16, 50, "float32"): 1.29,
        (64, 50, "float32"): 1.13,
        (64, 50, "tf32"): 0.91,
        (64, 50, "bfloat16"): 0.78,
        (64, 10, "float32"): 1.06,
        (64, 200, "float32"): 1.41,
    }
    # All cores at once take a tenth longer each; the pipeline reaches 86% of that.
    reading = 1.1 * drawn[read.SLOWEST][0] / 16
    return {
        "format": report.FORMAT,
        "date": "2026-11-26T00:00:00+00:00",
        "device": {"kind": "cuda", "name": "invented H100", "gpus": 1, "cores": 16, "threads": 16},
        "settings": {"quick": False},
        "samples": report.SAMPLES,
        "weights": {"source": "invented", "input_size": 1024, "variant": "skip"},
        "complete": True,
        "rows": {
            "predict": [
                {"name": f"predict, batch {batch}, N = {samples}, {precision}", "seconds": milliseconds / 1e3}
                | {"batch": batch, "samples": samples, "precision": precision}
                for (batch, samples, precision), milliseconds in network.items()
            ],
            "read": [
                {"name": name, "seconds": seconds, "source": source, "file_bytes": file_bytes}
                for name, (seconds, source, file_bytes) in drawn.items()
            ],
            "mask": [{"name": f"masks, {read.TYPICAL}", "seconds": 0.0018}],
            "pipeline": [
                {"name": report.PREDICTION_BOUND, "seconds": 1 / 301, "reference_seconds": 1 / 776}
                | {"ratio": 776 / 301, "start_seconds": 34.0},
                {"name": report.READING_BOUND, "seconds": reading / 0.86, "reference_seconds": reading}
                | {"ratio": 1 / 0.86, "start_seconds": 30.0},
            ],
        },
    }
