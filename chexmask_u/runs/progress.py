"""How far a run is: what workers did, added up on the cluster, shown as a progress bar and exported as Ray metrics."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BAR_SECONDS = 0.5
# Into a log a bar would write a line each time.
LOG_SECONDS = 5.0

# Of the speed that is exported; a batch on a slow machine takes seconds.
SPEED_SECONDS = 60.0


@dataclass
class Totals:
    """Sums over all workers since the run started.

    Attributes:
        units: done, images or batches; a retried block counts twice.
        failures: images by the reason why they failed.
        busy_seconds, idle_seconds: that replicas of the network predicted, and waited for images between two batches.
    """

    units: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0

    @property
    def idle_share(self) -> float | None:
        """Share of the replicas' time, from their first batch to their last, that they waited; None before a second."""
        seconds = self.busy_seconds + self.idle_seconds
        return self.idle_seconds / seconds if self.idle_seconds else None


@dataclass(frozen=True)
class Tally:
    """What workers add to; it travels to them by pickling."""

    actor: Any

    def add(
        self,
        units: int,
        failures: Mapping[str, int] | None = None,
        *,
        busy_seconds: float = 0.0,
        idle_seconds: float = 0.0,
    ) -> None:
        """Add to the totals, without waiting; arguments as in `Totals`."""
        self.actor.add.remote(units, dict(failures or {}), busy_seconds, idle_seconds)

    def totals(self) -> Totals:
        import ray

        totals: Totals = ray.get(self.actor.get.remote(), timeout=60)
        return totals


class _Adder:
    """The actor behind a Tally; Ray's metrics have names that begin with ray_chexmask_u_."""

    def __init__(self, unit: str, left: int) -> None:
        from ray.util import metrics

        self.totals = Totals()
        self.left = left
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        name = f"chexmask_u_{unit}"
        self.done_metric = metrics.Counter(f"{name}_done", f"{unit} done since the run started")
        self.failed_metric = metrics.Counter(f"{name}_failed", f"{unit} that failed, by reason", ("reason",))
        self.left_metric = metrics.Gauge(f"{name}_left", f"{unit} that are still to be done")
        self.speed_metric = metrics.Gauge(f"{name}_per_second", f"{unit} a second over the last minute")
        self.idle_metric = metrics.Gauge(
            "chexmask_u_network_idle_share", "share of the time that replicas of the network waited for images"
        )
        self.left_metric.set(left)

    def add(self, units: int, failures: dict[str, int], busy_seconds: float, idle_seconds: float) -> None:
        totals = self.totals
        totals.units += units
        totals.failures.update(failures)
        totals.busy_seconds += busy_seconds
        totals.idle_seconds += idle_seconds
        now = time.monotonic()
        self.recent.append((now, totals.units))
        while len(self.recent) > 2 and self.recent[1][0] < now - SPEED_SECONDS:
            self.recent.popleft()
        then, before = self.recent[0]
        self.done_metric.inc(units)
        for reason, count in failures.items():
            self.failed_metric.inc(count, {"reason": reason})
        self.left_metric.set(max(0, self.left - totals.units))
        self.speed_metric.set((totals.units - before) / max(now - then, 1e-9))
        if totals.idle_share is not None:
            self.idle_metric.set(totals.idle_share)

    def get(self) -> Totals:
        return self.totals


@contextmanager
def progress(total: int, done: int, verb: str = "generate", unit: str = "image") -> Iterator[Tally]:
    """Show units done, units/s, the time left and what fails, every few seconds; yields what workers add to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    from tqdm import tqdm

    plural = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    # On the driver's own machine: any other may be taken away in mid-run, and the end of a run asks for the totals.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    adder = ray.remote(_Adder).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    tally = Tally(adder.remote(plural, total - done))
    stop = threading.Event()
    interval = BAR_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    bar = tqdm(total=total, initial=done, unit=unit, mininterval=0, miniters=1, desc=verb, file=sys.stderr)

    def update() -> None:
        totals = tally.totals()
        notes = [f"{sum(totals.failures.values()):,} failed"] if totals.failures else []
        if totals.idle_share is not None:
            notes.append(f"network idle {totals.idle_share:.0%}")
        bar.set_postfix_str(", ".join(notes), refresh=False)
        # A retried block is counted twice here, so the bar is held at its end; the report counts records.
        bar.update(min(done + totals.units, total) - bar.n)
        if sys.stderr.isatty():
            # The clock goes on before the first batch is done.
            bar.refresh()

    def watch() -> None:
        while not stop.wait(interval):
            try:
                update()
            except Exception:
                # A busy cluster answers later; of one that is gone the run itself tells.
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield tally
        stop.set()
        thread.join()
        update()
    finally:
        stop.set()
        bar.close()
