"""What the page's controls ask for: the numbers of `segment`, uncertainty that grows, and each visitor's own image."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.app import study
from chexmask_u.app.study import Choice
from chexmask_u.app.visitors import Visitors
from chexmask_u.cli import main
from chexmask_u.errors import InputError


@pytest.fixture(scope="module")
def model() -> cu.HybridGNet:
    return cu.load_model("demo")


@pytest.fixture(scope="module")
def calibration() -> cu.Calibration:
    return cu.load_calibration("demo")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The first sample drawing, as somebody would keep it."""
    path = tmp_path / study.sample(0).name
    cv2.imwrite(str(path), study.sample(0).image.image)
    return path


def test_numbers_are_those_of_segment_for_the_same_draws(file, model, calibration):
    expected = cu.segment(file, model, n_samples=9, seed=4)
    for case in (study.sample(0), study.opened(file, file.name, 10_000)):
        result = study.see(case, Choice(samples=9, seed=4), model, calibration).result
        for name in ("landmarks", "std", "draws", "radius"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        for organ in cu.ORGANS:
            np.testing.assert_array_equal(result.masks[organ], expected.masks[organ])
        assert (result.measurements, result.ood_score) == (expected.measurements, expected.ood_score)


def test_the_row_is_the_one_that_segment_writes(file, model, calibration, tmp_path):
    assert main(["segment", str(file), "--output", str(tmp_path / "out"), "--samples", "5"]) == 0
    (expected,) = csv.DictReader(io.StringIO((tmp_path / "out" / "measurements.csv").read_text()))
    seen = study.see(study.sample(0), Choice(samples=5), model, calibration)
    (row,) = csv.DictReader(io.StringIO(study.csv(seen).decode()))
    assert row | {"image": str(file)} == expected


def test_uncertainty_grows_most_where_the_image_is_covered(model):
    case = study.sample(0)
    seen = study.see(case, Choice(samples=30, side=300, x=300, y=700), model)
    covered = cu.landmark_uncertainty(seen.result.record)
    clean = cu.landmark_uncertainty(seen.before)
    hidden = seen.under()
    assert 5 < hidden.sum() < 60
    assert (covered[hidden] / clean[hidden]).mean() > 1.5 * (covered[~hidden] / clean[~hidden]).mean()
    as_it_is = study.see(case, Choice(samples=30), model)
    np.testing.assert_array_equal(seen.before["landmarks_std"], as_it_is.result.std)


def test_an_image_is_changed_where_and_as_much_as_the_controls_say():
    image = study.sample(0).image
    covered = study.changed(image, Choice(side=100, x=0, y=500)).image
    assert not covered[450:550, :50].any()
    np.testing.assert_array_equal(covered[:, 50:], image.image[:, 50:])
    grey = cu.ReadImage(np.full((1024, 1024), 128, np.uint8), 1024, 1024, image.letterbox)
    assert study.changed(grey, Choice(noise=20)).image.std() == pytest.approx(20, abs=0.5)
    # The same noise with the same seed: a slider that is moved back shows what was there.
    again, other = (study.changed(grey, Choice(noise=20, seed=seed)).image for seed in (0, 1))
    np.testing.assert_array_equal(again, study.changed(grey, Choice(noise=20)).image)
    assert (other != again).any()


def test_a_visitor_whose_image_was_dropped_is_told_so_and_never_shown_anothers(model):
    visitors = Visitors(most=2)
    for number, session in enumerate("abc"):
        visitors.put(session, study.sample(number))
    assert [visitors.get(session).case.name for session in "bc"] == ["drawing-2.png", "drawing-3.png"]
    with pytest.raises(InputError, match="open it once more"):
        visitors.get("a")
    visitors.put("a", study.sample(3))
    assert visitors.get("a").case.name == "drawing-4.png"
    visitors.leave("a")
    assert visitors.get("a").case.name == "drawing-1.png"
