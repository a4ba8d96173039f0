"""How far a run is: what its workers did, added up, and shown as a progress bar."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

BAR_SECONDS = 0.5
# Into a log a bar would write a line each time.
LOG_SECONDS = 5.0


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


@contextmanager
def bar(totals: Callable[[], Totals], total: int, done: int, verb: str, unit: str, failed: int = 0) -> Iterator[None]:
    """Show units done, units/s, the time left and what fails, every few seconds.

    Args:
        totals: tells what was done since the run started; it may fail, and is asked again later.
        total: units of the whole run.
        done: of these, the units that were done before it started.
        verb, unit: what the bar is called, and what it counts.
        failed: of those that were done before, how many failed.
    """
    from tqdm import tqdm

    stop = threading.Event()
    interval = BAR_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    line = tqdm(total=total, initial=done, unit=unit, mininterval=0, miniters=1, desc=verb, file=sys.stderr)

    def update() -> None:
        now = totals()
        all_failed = failed + sum(now.failures.values())
        notes = [f"{all_failed:,} failed"] if all_failed else []
        if now.idle_share is not None:
            notes.append(f"network idle {now.idle_share:.0%}")
        line.set_postfix_str(", ".join(notes), refresh=False)
        # A retried block is counted twice here, so the bar is held at its end; the report counts records.
        line.update(min(done + now.units, total) - line.n)
        if sys.stderr.isatty():
            # The clock goes on before the first batch is done.
            line.refresh()

    def watch() -> None:
        while not stop.wait(interval):
            try:
                update()
            except Exception:
                # A busy cluster answers later; of one that is gone the run itself tells.
                continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with closing(line):
        try:
            yield
        finally:
            stop.set()
            # Ray's core crashes a process that leaves it while a thread is still asking.
            thread.join()
        update()
