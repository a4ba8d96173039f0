"""The calibration of the bundled weights: its card says what its file says, and odd images have the highest scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.calibration.worth import coverage_words, with_interval
from chexmask_u.images.corruptions import ALTERATIONS
from chexmask_u.training.shifts import no_chests

CARD = Path(cu.__file__).parent / "weights" / "README.md"


@pytest.mark.parametrize(
    ("of", "trials", "row"),
    [
        ("landmark", "trials", "| radius |"),
        ("landmark", "trials_with_images", "| with the image |"),
        ("contour", "trials", "| radius |"),
        ("contour", "trials_with_images", "| with the image |"),
    ],
)
def test_the_card_has_the_figures_of_the_file(of: str, trials: str, row: str) -> None:
    found = cu.load_calibration("demo").about[trials][of]["kinds"]["clean"]
    rows = [line for line in CARD.read_text().splitlines() if line.startswith(row)]
    line = rows[of == "contour"].replace(" px", "")
    for measure in ("r", "rho", "ause"):
        assert with_interval(found[measure], found[f"{measure}_interval"]) in line
    for share in found["coverages"].values():
        assert coverage_words(share).removesuffix(" px") in line


def test_whatever_is_no_frontal_radiograph_was_told_apart_but_for_mirrored_ones() -> None:
    odd = cu.load_calibration("demo").about["odd_images"]
    assert {kind for kind, one in odd["kinds"].items() if one["auc"] < 0.99} == {"mirrored"}
    assert odd["false_alarms"] <= 0.03 * odd["images"]


def test_images_without_a_chest_lie_beyond_the_99th_percentile() -> None:
    shown = [(kind, image) for kind, image in no_chests(1, seed=5) if kind != "slice"]
    images = np.stack([image for _, image in shown])
    scores = cu.load_calibration("demo").ood_score(
        cu.predict(cu.load_model("demo"), images, [kind for kind, _ in shown], n_samples=20)
    )
    assert (scores > 99).all(), dict(zip([kind for kind, _ in shown], scores, strict=True))


def test_a_radiograph_turned_or_half_hidden_is_less_usual_than_it_was(shared: Path) -> None:
    image = cu.read_image(str(sorted((shared / "data" / "field" / "images").iterdir())[3])).image
    altered = {kind: alter(image) for kind, alter in ALTERATIONS.items() if kind != "mirrored"}
    images = np.stack([image, *(np.ascontiguousarray(one) for one in altered.values())])
    scores = cu.load_calibration("demo").ood_score(
        cu.predict(cu.load_model("demo"), images, ["image", *altered], n_samples=20)
    )
    assert (scores[1:] > max(95, scores[0])).all(), dict(zip(["image", *altered], scores, strict=True))
