"""`chexmask-u plan`: the forecast from a probe of this machine, or from a bench result of another."""

from __future__ import annotations

from chexmask_u.bench import elsewhere, forecast
from chexmask_u.result import Result
from chexmask_u.settings import PlanSettings


def verb(settings: PlanSettings) -> Result:
    """`chexmask-u plan`."""
    facts = forecast.run(settings) if settings.bench is None else elsewhere.run(settings)
    return Result(facts, forecast.render(facts))
