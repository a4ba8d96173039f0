"""A radius holds what it promises, of predictions and records alike, and refuses what it cannot promise."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.calibration import fit
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.calibration.conformal import Scores, images_needed
from chexmask_u.calibration.expected import Expected
from chexmask_u.calibration.known import Known, Part
from chexmask_u.calibration.seen import Seen
from chexmask_u.calibration.worth import contour_errors, covered, trust
from chexmask_u.errors import InputError
from tests.support import invented_calibrations

SHA256 = "a" * 64


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return invented_calibrations.calibration(SHA256)


def record_of(prediction: cu.Prediction, index: int, scale: float) -> dict[str, object]:
    """As a release holds it, of an image with 1 / scale as many pixels."""
    return {
        "landmarks_mean": (prediction.landmarks_mean[index] / scale - 7).tolist(),
        "landmarks_std": (prediction.landmarks_std[index] / scale).tolist(),
        "landmarks_across": (prediction.landmarks_across[index] / scale).tolist(),
        "landmarks_along": (prediction.landmarks_along[index] / scale).tolist(),
        "latent_mean": prediction.latent_mean[index].tolist(),
        "latent_std": prediction.latent_std[index].tolist(),
        "letterbox": {
            "crop_left": 0,
            "crop_top": 0,
            "crop_width": 2000,
            "crop_height": 2000,
            "pad_left": 7,
            "pad_top": 7,
            "scale": scale,
        },
    }


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_further_images_are_covered_as_often_as_was_promised(coverage: float) -> None:
    """Over many calibrations of ten images whose landmarks err together; landmarks alone would promise too much."""
    rng = np.random.default_rng(3)
    covered, naive = [], []
    for _ in range(400):
        ratios = rng.exponential(1, (11, 120)) * np.exp(rng.normal(0, 1, (11, 1)))
        covered.append((ratios[10] <= Scores.of(ratios[:10]).at(coverage)).mean())
        naive.append((ratios[10] <= np.quantile(ratios[:10], coverage)).mean())
    assert np.mean(covered) > coverage
    assert np.mean(naive) < np.mean(covered)


def test_images_and_not_landmarks_decide_which_coverage_there_is() -> None:
    assert [images_needed(coverage) for coverage in (0.5, 0.9, 0.95, 0.99)] == [1, 9, 19, 99]
    nine, eight = (Scores.of(np.random.default_rng(0).exponential(1, (count, 120))) for count in (9, 8))
    assert np.isfinite(nine.at(0.9))
    with pytest.raises(InputError, match=r"at least 9 annotated images.* has 8"):
        eight.at(0.9)


def test_the_expected_error_finds_what_the_errors_depend_on() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(0, 0.5, (200, 120, 3))
    rate = rng.normal(2, 0.4, 120)
    errors = np.exp(rate + features @ [0.8, 0.0, 0.3]) * rng.gamma(2, 0.5, (200, 120))
    errors[:50, 94:] = np.nan
    found = Expected.fit(features, errors)
    np.testing.assert_allclose(found.weights, [0.8, 0.0, 0.3], atol=0.03)
    assert np.corrcoef(np.array(found.rates), rate)[0, 1] > 0.95


def test_a_radius_of_held_out_images_covers_and_ranks(calibration: Calibration) -> None:
    rng = np.random.default_rng(11)
    prediction = invented_calibrations.predictions(rng, 200)
    errors = invented_calibrations.errors(rng, prediction)
    for coverage in (0.5, 0.9):
        radius = calibration.radius(prediction, coverage)
        assert radius.shape == (200, 120)
        assert radius.dtype == np.float32
        assert abs((errors <= radius).mean() - coverage) < 0.06
    assert trust(calibration.radius(prediction), errors)["r"] > 0.3
    assert (calibration.radius(prediction, of="contour") <= calibration.radius(prediction)).all()


def test_a_record_has_the_radius_and_score_of_its_prediction(calibration: Calibration) -> None:
    prediction = invented_calibrations.predictions(np.random.default_rng(5), 3)
    record = record_of(prediction, 1, 1024 / 2000)
    assert calibration.radius(record).shape == (120,)
    np.testing.assert_allclose(calibration.radius(record), calibration.radius(prediction)[1], rtol=1e-4)
    np.testing.assert_allclose(calibration.ood_score(record), calibration.ood_score(prediction)[1], atol=0.1)
    within = cu.trusted_landmarks(record, within=30, calibration=calibration)
    np.testing.assert_array_equal(within, calibration.radius(record) <= 30)
    with pytest.raises(ValueError, match="no landmarks_radius"):
        cu.trusted_landmarks(record, within=30)


def test_odd_images_are_told_from_usual_ones_that_were_held_out() -> None:
    rng = np.random.default_rng(2)
    usual, odd = rng.standard_t(8, (600, 165)), rng.normal(0, 1, (50, 165))
    odd[:, ::8] += 6
    known = Known.fit(usual[:300])
    assert (known.score(odd) > 99).all()
    assert (known.score(usual[300:]) > 99).mean() < 0.04
    # Nor does a spread as of no other image's, for its evenness, make up for a posterior that is far out.
    even = odd.copy()
    even[:, 128:] = np.median(usual[:, 128:], axis=0)
    assert (known.score(even) > 90).all()
    far = known.score(odd * 3)
    assert (far > known.score(odd)).all()
    assert (far <= 100).all()


def test_a_calibration_says_the_same_once_it_is_written(calibration: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(calibration.text)
    again = cu.load_calibration(str(file))
    assert again.digest == calibration.digest
    prediction = invented_calibrations.predictions(np.random.default_rng(5), 2)
    np.testing.assert_array_equal(again.radius(prediction, 0.8), calibration.radius(prediction, 0.8))


def test_a_site_that_errs_twice_as_far_needs_masks_alone_to_say_so(calibration: Calibration) -> None:
    """Started elsewhere: the contour's radius is checked there, the landmark's is stretched with it and says so."""
    there = invented_calibrations.measured(np.random.default_rng(9), 40, "site")
    there.errors["contour"].update({kind: 2 * values for kind, values in there.errors["contour"].items()})
    contour = fit.radius(there, "contour", there.annotated("contour"), start=calibration.contour)
    assert contour is not None
    assert contour.checked
    assert contour.scores.images == 40
    assert 1.6 < contour.scores.at(0.9) / calibration.contour.scores.at(0.9) < 2.4
    landmark = fit.stretched(calibration.landmark, calibration.contour, contour)
    assert not landmark.checked
    assert 1.6 < landmark.scores.at(0.9) / calibration.landmark.scores.at(0.9) < 2.4


def test_images_that_were_trained_on_shape_the_radius_and_never_scale_it() -> None:
    rng = np.random.default_rng(4)
    held_out, trained = invented_calibrations.measured(rng, 15), invented_calibrations.measured(rng, 40)
    for values in trained.errors.values():
        # Much nearer than on images that are new to the network.
        values.update({kind: 0.2 * errors for kind, errors in values.items()})
    rows = held_out.annotated("landmark")
    alone, shaped = (fit.radius(held_out, "landmark", rows, trained=one) for one in (None, trained))
    assert (alone.scores.images, shaped.scores.images) == (10, 15)
    seen = held_out.seen["clean"].spread_features()
    radii = [one.scores.at(0.8) * one.expected(seen) for one in (alone, shaped)]
    assert 0.6 < radii[1].mean() / radii[0].mean() < 1.6


def test_contours_are_measured_along_their_edges() -> None:
    annotated = np.zeros((1, 120, 2))
    for nodes, count in ((slice(0, 44), 44), (slice(44, 94), 50)):
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        annotated[0, nodes] = 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    annotated[0, 94:] = np.nan
    # Half a node further along the ring, and 10 pixels outside.
    moved = annotated.copy()
    angle = np.linspace(0, 2 * np.pi, 44, endpoint=False) + np.pi / 44
    moved[0, :44] = 110 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = contour_errors(moved, annotated)
    np.testing.assert_allclose(found[0, :44], 10, atol=0.5)
    np.testing.assert_allclose(found[0, 44:94], 0, atol=1e-9)
    assert np.isnan(found[0, 94:]).all()


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, float("nan")])
def test_a_coverage_that_is_none_is_refused(calibration: Calibration, coverage: float) -> None:
    prediction = invented_calibrations.predictions(np.random.default_rng(5), 1)
    with pytest.raises(InputError, match="between 0 and 1"):
        calibration.radius(prediction, coverage)


def test_what_a_radius_cannot_be_of_is_refused_in_one_line(calibration: Calibration, tmp_path: Path) -> None:
    prediction = invented_calibrations.predictions(np.random.default_rng(5), 1)
    record = record_of(prediction, 0, 1.0)
    with pytest.raises(ValueError, match="no landmarks_across"):
        calibration.radius({name: value for name, value in record.items() if name != "landmarks_across"})
    with pytest.raises(
        ValueError, match=r"landmarks_across of the record is null: .* before schema 1\.2, .* `chexmask-u generate`"
    ):
        calibration.radius(record | {"landmarks_across": None})
    with pytest.raises(ValueError, match="NaN"):
        calibration.radius(record | {"landmarks_std": [[float("nan"), 1.0]] * 120})
    with pytest.raises(TypeError, match=r"coverage must be a number between 0 and 1, not '0\.9'"):
        calibration.radius(record, "0.9")
    with pytest.raises(InputError, match="'landmark' or 'contour'"):
        calibration.radius(record, of="mask")
    with pytest.raises(InputError, match=r"0\.99 takes at least 99"):
        calibration.radius(record, 0.99)
    with pytest.raises(InputError, match="belongs to the weights"):
        calibration.check_weights("b" * 64, "here")
    with pytest.raises(InputError, match=re.escape("nowhere.json: no such file")):
        cu.load_calibration(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match=r"nowhere: .*or name a calibration, which ends in \.json"):
        cu.load_calibration(str(tmp_path / "nowhere"))
    for text in ("no JSON", "{}", json.dumps({**json.loads(calibration.text), "format": 9})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=re.escape("bad.json: is")):
            cu.load_calibration(str(tmp_path / "bad.json"))


def test_features_of_the_image_that_tell_errors_make_a_radius_that_ranks_better_and_covers_as_well() -> None:
    """An edge somewhere else, half of the time, and errors three times as large there."""
    rng = np.random.default_rng(8)
    seen, errors = {}, {}
    for kind in ("clean", "shifted"):
        prediction = invented_calibrations.predictions(rng, 60)
        astray = rng.integers(0, 2, (60, 120, 1)).astype(float)
        seen[kind] = replace(Seen.of(prediction), further=np.concatenate([astray, rng.normal(size=(60, 120, 2))], -1))
        errors[kind] = invented_calibrations.errors(rng, prediction) * (1 + 2 * astray[..., 0])
    measured = fit.Measured([f"there/{index}" for index in range(60)], seen, {"landmark": errors})
    looking, blind = (fit.trial(one, "landmark")["kinds"]["clean"] for one in (measured, measured.spread_alone()))
    assert looking["r"] > blind["r"] + 0.1
    assert looking["ause"] < blind["ause"]
    assert looking["std"] == blind["std"]
    for one in (looking, blind):
        assert 0.88 < one["coverages"]["0.9"]["coverage"] < 0.97
    assert looking["coverages"]["0.9"]["mean_radius"] < blind["coverages"]["0.9"]["mean_radius"]


def test_a_calibration_of_before_images_were_looked_at_is_read_and_says_what_it_lacks(
    calibration: Calibration, tmp_path: Path
) -> None:
    """One distribution of all features was all that it knew of usual images."""
    prediction = invented_calibrations.predictions(np.random.default_rng(5), 2)
    content = json.loads(calibration.text)
    part = Part.fit(
        Seen.of(invented_calibrations.predictions(np.random.default_rng(6), 40)).image_features(), 0, 160, 4, 1.0
    )
    known = {name: value for name, value in asdict(part).items() if name not in ("weight", "start", "usual")}
    content["known"] = {**known, "distances": list(range(40))}
    (tmp_path / "old.json").write_text(
        json.dumps({name: one for name, one in content.items() if name != "with_images"})
    )
    old = cu.load_calibration(str(tmp_path / "old.json"))
    np.testing.assert_array_equal(old.radius(prediction), calibration.radius(prediction))
    expected = part.distance(Seen.of(prediction).image_features())
    np.testing.assert_allclose(old.known.distance(Seen.of(prediction).image_features()), expected)
    images = np.zeros((2, 1024, 1024), np.uint8)
    with pytest.raises(InputError, match="no landmark radius that looks at images: leave them out"):
        old.radius(prediction, images=images)


def test_spread_and_correlation_of_kinds_together_are_resampled_by_image() -> None:
    """The same images five times tell no more than once."""
    rng = np.random.default_rng(0)
    uncertainty = rng.gamma(2, 1, (20, 120)) * rng.gamma(4, 0.25, (20, 1))
    errors = uncertainty * rng.exponential(1, (20, 120))
    once, again = trust(uncertainty, errors), trust(np.tile(uncertainty, (5, 1)), np.tile(errors, (5, 1)), kinds=5)
    assert again["r"] == pytest.approx(once["r"])
    np.testing.assert_allclose(again["r_interval"], once["r_interval"])
    shares = covered(errors, uncertainty), covered(np.tile(errors, (5, 1)), np.tile(uncertainty, (5, 1)), 5)
    for name in ("coverage", "interval", "mean_radius"):
        np.testing.assert_allclose(shares[0][name], shares[1][name])


def test_what_does_not_vary_tells_nothing() -> None:
    errors = np.random.default_rng(0).exponential(5, (20, 120))
    told = trust(np.full_like(errors, 0.1), errors)
    assert told["r"] is None
    assert told["rho"] is None


def test_a_file_of_another_kind_is_told_to_be_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"manifest\.parquet: a calibration ends in \.json, not \.parquet; `chexmask-u"
    ):
        cu.load_calibration(str(tmp_path / "manifest.parquet"))
    (tmp_path / "weights.v2").mkdir()
    with pytest.raises(InputError, match=r"weights\.v2.*name a calibration"):
        cu.load_calibration(str(tmp_path / "weights.v2"))
