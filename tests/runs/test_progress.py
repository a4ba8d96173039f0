"""What a maintainer sees of a run while it works: the bar in the terminal, and metrics for Prometheus."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter

from chexmask_u.runs.cluster import progress
from chexmask_u.runs.progress import Totals, bar


def exported(ray) -> dict[str, list[float]]:
    """Our metrics as Prometheus would scrape them from the node, by name and label, from each worker."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    found: dict[str, list[float]] = {}
    for name, labels, value in re.findall(r"^ray_chexmask_u_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        reason = re.search(r'reason="(\w+)"', labels)
        found.setdefault(name + (f" {reason[1]}" if reason else ""), []).append(float(value))
    return found


def test_metrics_and_bar_show_speed_idle_share_failures_and_what_is_left(local_ray, capsys):
    @local_ray.remote
    def work(tally, failures):
        tally.add(4, failures, busy_seconds=3.0, idle_seconds=1.0)

    # A unit that no other test of the same Ray counts.
    with progress(total=20, done=10, unit="radiograph") as tally:
        local_ray.get([work.remote(tally, {"damaged": 1}), work.remote(tally, {"damaged": 1, "empty": 1})])
        while tally.totals().units < 8:
            time.sleep(0.05)
        # Workers report their metrics from time to time.
        deadline = time.monotonic() + 60
        while "radiographs_failed_total empty" not in (metrics := exported(local_ray)):
            assert time.monotonic() < deadline, metrics
            time.sleep(0.2)
        assert metrics["radiographs_done_total"] == [8]
        assert metrics["radiographs_left"] == [2]
        assert metrics["radiographs_failed_total damaged"] == [2]
        assert metrics["radiographs_failed_total empty"] == [1]
        assert metrics["radiographs_per_second"][0] > 0
        assert 0.25 in metrics["network_idle_share"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "18/20" in last
    assert "3 failed, network idle 25%" in last


def test_a_retried_block_does_not_carry_the_bar_beyond_its_end(local_ray, capsys):
    with progress(total=10, done=0) as tally:
        tally.add(8)
        tally.add(8)
    assert "10/10" in capsys.readouterr().err.splitlines()[-1]
    assert Totals().idle_share is None


def test_a_resumed_run_shows_the_failures_of_its_earlier_attempts_too(capsys):
    totals = Totals(units=3, failures=Counter(empty=1))
    with bar(lambda: totals, total=20, done=10, verb="generate", unit="image", failed=4):
        pass
    last = capsys.readouterr().err.splitlines()[-1]
    assert "13/20" in last
    assert "5 failed" in last
