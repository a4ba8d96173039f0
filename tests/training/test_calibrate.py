"""`chexmask-u calibrate`, from images to a calibration and on to a release, on drawings and small random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.anatomy import ORGANS
from chexmask_u.calibration import fit, worth
from chexmask_u.cli import main
from chexmask_u.training import calibrate, examples, odd, shifts
from chexmask_u.training.augmented import augmented_features

QUICK = ["--samples", "3", "--batch-size", "4"]


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What the verb tells programs, once it is done."""
    code = main([*map(str, words), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which it refuses."""
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module", autouse=True)
def few_resamplings() -> Iterator[None]:
    """Of what an interval is made takes half of a calibration's time; here it has to be one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "_RESAMPLINGS", 50)
        yield


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven drawings with masks of the lungs and the heart alone."""
    import cv2

    folder = tmp_path_factory.mktemp("site")
    drawn = examples.drawn(11, 5, 1024)
    for index in range(len(drawn)):
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"person-{index}.png"), drawn.images[index])
        for organ in ORGANS:
            (folder / "masks" / organ).mkdir(parents=True, exist_ok=True)
            mask = cu.organ_mask(drawn.landmarks[index] * 1024, organ, 1024, 1024)
            cv2.imwrite(str(folder / "masks" / organ / f"person-{index}.png"), 255 * mask)
    return folder


@pytest.fixture(scope="module")
def made(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "calibration.json"
    words = ["--weights", str(tiny_weights), "--drawings", "21", "--augmentations", "1", "--output", str(file)]
    assert main(["calibrate", *words, *QUICK]) == 0
    return file


def test_what_was_made_of_drawings_is_read_and_names_them(made: Path, tiny_weights: Path) -> None:
    calibration = cu.load_calibration(str(made))
    assert calibration.about["images"] == {"drawings": {"images": 21, "masks_alone": 0}}
    assert calibration.about["images_that_count"] == {"landmark": 14, "contour": 14}
    kinds = calibration.about["trials"]["landmark"]["kinds"]
    assert set(kinds) == {"clean", *shifts.SHIFTS}
    for of in ("landmark", "contour"):
        found = calibration.about["trials"][of]["kinds"]["clean"]["coverages"]["0.9"]
        assert found["interval"][0] <= found["coverage"] <= found["interval"][1]
        assert found["coverage"] > 0.8
    gain = calibration.about["augmentations"]
    assert gain["variants"] == 1
    for name in ("without", "with"):
        assert gain[name]["contour"]["kinds"]["clean"]["coverages"]["0.9"]["coverage"] > 0.8
    model = cu.load_model(str(tiny_weights))
    drawn = examples.held_out(2, 1, 1024)
    prediction = cu.predict(model, drawn.images, drawn.names, n_samples=3)
    for images in (None, drawn.images):
        contour, landmark = (calibration.radius(prediction, of=of, images=images) for of in ("contour", "landmark"))
        assert (contour <= landmark).all()
    assert (landmark != calibration.radius(prediction)).any()
    looking = calibration.about["trials_with_images"]["landmark"]["kinds"]["clean"]
    assert looking["coverages"]["0.9"]["coverage"] > 0.8
    assert calibration.ood_score(prediction).shape == (2,)


def test_evaluate_sets_spread_and_radius_against_both_errors(
    made: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", tiny_weights, "--drawings", 4, "--seed", 3, *QUICK]
    summary = told(capsys, "evaluate", *words, "--calibration", made, "--shifts")
    assert set(summary["shifts"]) == {*shifts.SHIFTS, "all"}
    assert {tuple(found) for found in summary["shifts"].values()} == {("landmark", "contour")}
    found = summary["trust"]
    assert set(found) == {"landmark", "contour"}
    for measures in found.values():
        assert set(measures) == {"std", "spread", "across", "radius", "radius_with_images"}
        for one in measures.values():
            assert one["r_interval"][0] <= one["r"] <= one["r_interval"][1]
            assert one["ause"] >= 0
        shares = [one["coverage"] for one in measures["radius"]["coverages"].values()]
        assert shares == sorted(shares)
    plain = told(capsys, "evaluate", *words)
    assert set(plain["trust"]["landmark"]) == {"std", "spread", "across"}
    assert "shifts" not in plain
    # What a radius is worth on the images as they are does not depend on what else is asked.
    assert plain["trust"]["landmark"]["std"] == found["landmark"]["std"]


def test_another_site_needs_masks_alone_and_is_told_what_is_not_checked(
    made: Path, masks: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--weights", tiny_weights, "--data", masks, *QUICK]
    site = told(capsys, *words, "--start", made, "--output", tmp_path / "site.json")
    assert site["started_from"] == cu.load_calibration(str(made)).digest
    assert site["images_that_count"]["contour"] == 11
    assert not site["landmark_checked"]
    assert site["assumes"].startswith("The coverage of the contour radius is promised for")
    text = calibrate.table(cu.load_calibration(str(tmp_path / "site.json")))
    (line,) = [line for line in text.splitlines() if line.startswith("  landmark:")]
    assert "stretched as the contour's" in line
    assert "For the landmark radius none is promised" in " ".join(text.split())
    assert "segment and release need" not in text
    line = refused(capsys, "calibrate", "--start", made, "--data", masks, "--output", tmp_path / "x.json", *QUICK)
    assert "belongs to the weights" in line


def test_masks_alone_promise_a_contour_and_too_few_of_them_are_told_what_is_missing(
    masks: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "few.json"
    assert main(["calibrate", "--weights", str(tiny_weights), "--data", str(masks), "--output", str(file), *QUICK]) == 0
    text = capsys.readouterr().out
    assert "contour: 7 images count, enough for a coverage of 0.5, 0.8;" in text
    assert text.endswith("  contour: segment and release need radii of 90%, and its radius takes 3 more images\n")
    assert "  landmark: no radius, since no image has such an annotation\n" in text
    assert "The coverage of the contour radius is promised" in text
    line = refused(
        capsys, "segment", masks / "images", "--weights", tiny_weights, "--calibration", file, "--output", "x"
    )
    assert "takes at least 9 annotated images, and the calibration has 7" in line


@pytest.mark.parametrize(("images", "known"), [(1, 0), (5, 0), (11, 0), (13, 0), (14, 0), (6, 4), (5, 5)])
def test_so_many_more_images_as_are_told_are_enough_and_one_less_is_not(images: int, known: int) -> None:
    """Of `images` `known` are of a dataset whose trained images are for the expected error."""

    def that_count(more: int) -> int:
        return images + more - -(-(images - known + more) // 3) if images > known else images + more

    more = fit.further_images(images, that_count(0), 0.9)
    assert that_count(more) >= 9
    if not known:
        assert more == 0 or that_count(more - 1) < 9


def test_images_that_the_weights_were_trained_on_are_refused_or_left_out(
    masks: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = tmp_path / "run" / "model.safetensors"
    beside.parent.mkdir()
    beside.write_bytes(tiny_weights.read_bytes())
    split = beside.with_name("split.csv")
    split.write_text("name,part\n" + "".join(f"person-{index},train\n" for index in range(8)))
    words = ["calibrate", "--weights", beside, "--data", masks, "--output", tmp_path / "c.json", *QUICK]
    line = refused(capsys, *words)
    assert "8 of 11 images, such as" in line
    assert f"--split {split}" in line
    found = told(capsys, *words, "--split", split)
    assert sum(counts["images"] for counts in found["images"].values()) == 3
    assert sum(found["trained_images_for_the_shape"].values()) == 8
    split.write_text("name,part\n" + "".join(f"person-{index},train\n" for index in range(11)))
    assert "no annotated image that the weights were not trained on" in refused(capsys, *words, "--split", split)


def test_what_cannot_be_used_is_one_line(
    masks: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--weights", tiny_weights, "--data", masks, *QUICK]
    start = ["--start", "demo", "--augmentations", "2"]
    assert "knows nothing of them" in refused(capsys, *words, "--output", tmp_path / "c.json", *start)
    line = refused(capsys, *words, "--output", tmp_path / "c.json", "--leave-out", "left_lung.heart_bordr")
    assert "did you mean 'left_lung.heart_border'" in line
    assert "must be a .json file" in refused(capsys, *words, "--output", tmp_path / "folder")
    (tmp_path / "other.json").write_text("{}")
    assert "is no calibration" in refused(capsys, *words, "--output", tmp_path / "other.json")
    (tmp_path / "empty").mkdir()
    line = refused(capsys, *words, "--output", tmp_path / "c.json", "--known", tmp_path / "empty")
    assert "holds no image" in line


def test_variants_of_an_image_are_turned_back_before_their_landmarks_are_compared() -> None:
    """Not turned back, they would lie tens of pixels apart far from the middle."""
    drawn = examples.drawn(1, 4, 1024)
    model = cu.load_model("demo")
    found = augmented_features(model, drawn, count=3, samples=4, seed=0, batch_size=4)
    assert found.shape == (1, 120, 2)
    assert 1 < np.exp(found).mean() < 12


def test_the_trial_of_odd_images_tells_them_and_raises_few_false_alarms() -> None:
    """Grey means of 165 squares in place of a network."""

    def features(images: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
        assert len(images) == len(names)
        squares = np.stack(images)[:, :1023, :1020].reshape(-1, 11, 93, 15, 68)
        return squares.mean(axis=(2, 4)).reshape(-1, 165) / 255

    drawn, others = examples.drawn(8, 4, 1024), examples.drawn(20, 5, 1024)
    usual, known = (features(some.images, some.names) for some in (drawn, others))
    found = odd.trial(drawn, usual, known, features)
    assert found["images"] == 8
    assert found["false_alarms"] <= 2
    assert set(found["kinds"]) == {*shifts.ALTERATIONS, "black", "white", "noise", "checkerboard", "hand", "slice"}
    for kind, one in found["kinds"].items():
        assert one["interval"][0] <= one["auc"] <= one["interval"][1], kind
    for kind in ("inverted", "upside down", "turned left", "turned right", "right half hidden", "hand"):
        assert found["kinds"][kind]["auc"] > 0.8, kind
    # Fewer than can tell what is usual.
    assert odd.trial(drawn, usual, known[:5], features) is None


@pytest.mark.parametrize("kind", shifts.SHIFTS)
def test_a_shift_takes_the_landmarks_with_it_and_is_the_same_every_time(kind: str) -> None:
    """Bright spots stay under their landmarks, where the shift leaves them bright."""
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(300, 700, (120, 2)).astype(np.float32)
    image = np.zeros((1024, 1024), np.uint8)
    for x, y in landmarks:
        image[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = 255
    moved_image, moved = shifts.shifted(kind, "a/b", image, landmarks)
    assert moved_image.shape == image.shape
    assert moved_image.dtype == np.uint8
    grey = moved_image[moved[:, 1].astype(int), moved[:, 0].astype(int)]
    assert (grey > 150).mean() > 0.7
    if kind == "squares":
        moved_image, _ = shifts.shifted(kind, "a/b", np.full_like(image, 200), landmarks)
        assert 0.005 < (moved_image == 0).mean() < 0.3
        return
    again, _ = shifts.shifted(kind, "a/b", image, landmarks)
    np.testing.assert_array_equal(again, moved_image)
    assert (moved_image != image).any() or kind == "gamma"
