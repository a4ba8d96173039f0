"""`verify` says whether what was regenerated is the published dataset, and what is different if it is not."""

from __future__ import annotations

import pytest

from chexmask_u import verify
from chexmask_u.settings import VerifySettings
from tests.support import published_drawings as drawings
from tests.support.published_drawings import Row

CHEXPERT, MIMIC = "chexpert", "mimic-cxr-jpg"


@pytest.fixture(scope="session")
def predicted(tmp_path_factory) -> dict[str, list[Row]]:
    folder = tmp_path_factory.mktemp("drawings")
    return {source: drawings.make(folder / source, source) for source in (CHEXPERT, MIMIC)}


@pytest.fixture(scope="session")
def run(predicted, tmp_path_factory) -> str:
    return drawings.write_run(tmp_path_factory.mktemp("run") / "run", predicted)


def compare(csv: str, run: str, **settings) -> dict:
    return verify.verify(VerifySettings(published=(csv,), run=run, published_samples=drawings.SAMPLES, **settings))


def of(report: dict) -> dict:
    """What is said of the one source."""
    return next(iter(report["sources"].values()))


# --- the same ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [drawings.original, drawings.preprocessed])
@pytest.mark.parametrize("source", [CHEXPERT, MIMIC])
def test_other_draws_of_the_same_network_are_the_same(predicted, run, tmp_path, source, cells):
    csv = drawings.write_csv(tmp_path / "a.csv", source, predicted[source], cells)
    report = compare(csv, run)
    found = of(report)
    assert (report["verdict"], found["verdict"]) == ("same", "same"), found["sentence"]
    assert found["frame"] == ("original" if cells is drawings.original else "1024")
    assert found["images"] == len(predicted[source])
    assert found["within_expected"] > 0.95
    assert 0.2 < found["within_rounding"] < 1
    assert found["difference"]["50%"] < 3 * found["expected"]["50%"]
    assert found["spread"]["median"] == pytest.approx(1, abs=0.15)
    assert all(dice["images"] == len(predicted[source]) for dice in found["dice"].values())
    assert found["dice"]["right_lung"]["median"] > 0.97
    assert any(reason.startswith("lookup") for reason in found["reasons"])
    # Runs that say nothing of it were made without.
    assert any(reason.startswith("JPEG") for reason in found["reasons"]) == (source == MIMIC)
