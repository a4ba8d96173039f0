"""Interleaved timing: two alternatives take turns, so that whatever else the machine does slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2

Row = dict[str, Any]
"""name, seconds, reference_seconds (medians), ratio (of the two), repeats."""


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one core; the other libraries that are measured here start no threads."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def compare(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time `ours` against `reference`, turn by turn, after one round that does not count.

    Args:
        name: what is measured.
        ours, reference: the alternatives.
        repeats: how often each has its turn.
        clock: in seconds; `time.thread_time` counts what this thread computes, however busy the machine is.

    Returns:
        A row: medians in seconds, and their ratio, below 1 where ours is faster.
    """
    seconds: list[float] = []
    reference_seconds: list[float] = []
    pair = [(ours, seconds), (reference, reference_seconds)]
    for turn in range(repeats + 1):
        # Each goes first every other time.
        for call, results in pair if turn % 2 else reversed(pair):
            start = clock()
            call()
            if turn:
                results.append(clock() - start)
    ours_median, reference_median = statistics.median(seconds), statistics.median(reference_seconds)
    return {
        "name": name,
        "seconds": ours_median,
        "reference_seconds": reference_median,
        "ratio": ours_median / reference_median,
        "repeats": repeats,
    }


def as_text(rows: list[Row]) -> str:
    """A table of rows, in milliseconds."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':{width}}      ms  reference  ratio"]
    for row in rows:
        times = f"{1e3 * row['seconds']:8.2f}  {1e3 * row['reference_seconds']:9.2f}  {row['ratio']:5.2f}"
        lines.append(f"{row['name']:{width}}{times}")
    return "\n".join(lines)
