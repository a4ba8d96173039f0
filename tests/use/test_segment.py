"""One image, one picture: the same numbers as a run's, measurements that are true, and doubts in words."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

import chexmask_u as cu
from chexmask_u import record
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import prepare
from chexmask_u.images.spacing import Spacing
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.sources import synthetic
from chexmask_u.steps.mask import mask
from chexmask_u.steps.predict import Predictor
from chexmask_u.steps.read import read
from chexmask_u.use import doubts
from chexmask_u.use.measurements import measure
from tests.support import invented_calibrations
from tests.support.dicom_files import dataset, encode


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawing, one that is no square in a folder below, and what is no image."""
    folder = tmp_path_factory.mktemp("drawings")
    (folder / "below").mkdir()
    cv2.imwrite(str(folder / "a.png"), synthetic.draw(0, side=1024).image)
    cv2.imwrite(str(folder / "below" / "b.png"), synthetic.draw(1, side=1200).image[:, 100:1000])
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def shape() -> np.ndarray:
    """float32 [120, 2]: a drawn body's own landmarks, in the 1024 frame."""
    return synthetic.draw(0).landmarks


def records(folder: Path, tmp_path: Path, **predictor) -> dict[str, dict]:
    """Records of a folder by their ids, by the steps of the pipeline, one after the other."""
    listed = tmp_path / "m.parquet"
    list_folder(ManifestFolderSettings(uri=str(folder), output=str(listed)))
    rows = pa.parquet.read_table(listed).cast(record.MANIFEST)
    return {row["record_id"]: row for row in mask(Predictor(device="cpu", **predictor)(read(rows))).to_pylist()}


def test_an_image_gives_the_numbers_that_a_run_over_its_folder_gives(drawings, tmp_path):
    expected = records(drawings, tmp_path, samples=7, seed=3)["folder/a.png"]
    found = cu.segment(drawings / "a.png", n_samples=7, seed=3)
    assert found.record_id == "folder/a.png"
    for organ in cu.ORGANS:
        assert cu.rle_encode(found.masks[organ]) == expected[organ]
    np.testing.assert_allclose(found.landmarks, expected["landmarks_mean"], atol=0.01)
    np.testing.assert_allclose(found.std, expected["landmarks_std"], atol=0.01)
    assert found.uncertainty == pytest.approx(expected["uncertainty"], abs=1e-3)
    # The draws are those that mean and std are of.
    np.testing.assert_allclose(found.draws.mean(axis=0), found.landmarks, atol=0.01)
    np.testing.assert_allclose(found.draws.std(axis=0), found.std, atol=0.01)
    assert cu.region_uncertainty(found.record) == pytest.approx(cu.region_uncertainty(expected), abs=0.01)


def test_radius_and_score_are_those_of_the_weights_calibration(drawings, tmp_path):
    expected = records(drawings, tmp_path, samples=20, seed=3)["folder/a.png"]
    own = cu.load_calibration("demo")
    found = cu.segment(drawings / "a.png", n_samples=20, seed=3)
    scale = found.image.letterbox.scale
    np.testing.assert_allclose(found.radius * scale, own.radius(expected), rtol=1e-3)
    assert found.ood_score == pytest.approx(float(own.ood_score(expected)), abs=0.5)
    assert found.mean_radius == pytest.approx(float(own.radius(expected).mean()), rel=1e-3)
    # What a release gives, the functions on records take.
    assert cu.trusted_landmarks(found.record, within=found.mean_radius).any()
    np.testing.assert_allclose(
        cu.landmark_radius(found.record, "contour"), own.radius(expected, of="contour"), rtol=1e-3
    )
    assert f"radius {found.mean_radius:.0f} px, ood_score" in repr(found)

    bare = cu.segment(drawings / "a.png", n_samples=20, seed=3, calibration="none")
    assert (bare.radius, bare.ood_score, bare.mean_radius) == (None, None, None)
    np.testing.assert_array_equal(bare.landmarks, found.landmarks)
    # Its colours are of something else, and the words below say of what.
    assert (bare.picture()[-40:] != found.picture()[-40:]).any()
    with pytest.raises(InputError, match="belongs to the weights"):
        cu.segment(drawings / "a.png", calibration=invented_calibrations.calibration("0" * 64))


def test_of_few_draws_there_are_no_radii(drawings, capsys):
    """Of six draws those asked for 90% hold little more than 80% of the landmarks."""
    # Each number of draws is told of once in a process, and no other test takes six.
    assert cu.segment(drawings / "a.png", n_samples=6).radius is None
    assert "is of 50 draws of an image, and of 6 its radii are too short; take --samples 20" in capsys.readouterr().err
    with pytest.raises(InputError, match="of 6 its radii are too short"):
        cu.segment(drawings / "a.png", n_samples=6, calibration="demo")


def test_what_is_no_radiograph_is_asked_about(tmp_path):
    tiles = np.indices((512, 512)).sum(axis=0) // 32 % 2 * 255
    cv2.imwrite(str(tmp_path / "tiles.png"), tiles.astype(np.uint8))
    found = cu.segment(tmp_path / "tiles.png", n_samples=20)
    assert found.ood_score > 99
    assert found.warnings[0].startswith("not a frontal radiograph? it is unlike nearly all known ones")


def test_an_image_of_a_folder_below_is_named_as_the_manifest_names_it(drawings, tmp_path):
    expected = records(drawings, tmp_path, samples=3)["folder/below/b.png"]
    found = cu.segment(drawings / "below" / "b.png", n_samples=3, record_id="folder/below/b.png")
    assert (found.image.height, found.image.width) == (1200, 900)
    assert {organ: cu.rle_encode(found.masks[organ]) for organ in cu.ORGANS} == {
        organ: expected[organ] for organ in cu.ORGANS
    }


def test_a_notebook_shows_an_image_and_one_line(drawings):
    model = cu.load_model("demo")
    found = cu.segment(drawings / "a.png", model, n_samples=4)
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == found.picture().shape
    assert "\n" not in repr(found)
    assert "'folder/a.png', 1024 x 1024 pixels, cardiothoracic ratio 0." in repr(found)
    labels = found.label_map
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert ((labels == 3) == (found.masks["heart"] > 0)).all()


def test_what_gives_no_record_is_named_with_its_reason(drawings):
    with pytest.raises(cu.ReadError, match=r"bad\.png: not a PNG, JPEG or DICOM file") as caught:
        cu.segment(drawings / "bad.png")
    assert caught.value.reason == "unsupported"
    for door in (cu.segment, cu.read_image):
        with pytest.raises(cu.ReadError, match=r"bda\.png: there is no such file; did you mean 'bad\.png'\?$"):
            door(drawings / "bda.png")


def boxes(heart: tuple[float, float]) -> np.ndarray:
    """Landmarks [120, 2] of two lungs of 100 x 300 at x = 100 and 400, and a heart from x to x, 200 high."""
    found = np.zeros((cu.N_LANDMARKS, 2))
    spans = {"right_lung": (100, 200), "left_lung": (400, 500), "heart": heart}
    for organ, nodes in cu.LANDMARKS.items():
        left, right = spans[organ]
        top, bottom = (300, 500) if organ == "heart" else (100, 400)
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        count = nodes.stop - nodes.start
        # All nodes beyond the corners lie on the last one.
        found[nodes] = corners[np.minimum(np.arange(count), 3)]
    return found


def test_measurements_are_those_of_the_contours_and_their_intervals_those_of_the_draws():
    draws = np.stack([boxes((250, 350 + grown)) for grown in range(101)])
    measured = measure(boxes((250, 400)), draws, Spacing(x=0.2, y=0.5, element="PixelSpacing", at_detector=False))
    ratio = measured["cardiothoracic_ratio"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((150 / 400, 105 / 400, 195 / 400))
    assert measured["right_lung_width_px"].value == 100
    assert measured["right_lung_area_px2"].value == 100 * 300
    # Rows are farther apart than columns.
    assert measured["right_lung_width_mm"].value == pytest.approx(100 * 0.2)
    assert measured["right_lung_area_mm2"].value == pytest.approx(100 * 0.2 * 300 * 0.5)
    heart = measured["heart_area_px2"]
    assert (heart.value, heart.low, heart.high) == pytest.approx((150 * 200, 105 * 200, 195 * 200))
    assert not [name for name in measure(boxes((250, 400)), draws) if "mm" in name]


def test_a_dicom_file_is_measured_in_millimetres_and_says_by_what(tmp_path):
    pixels = synthetic.draw(0, side=512).image
    path = tmp_path / "film.dcm"
    path.write_bytes(encode(dataset(pixels, ImagerPixelSpacing=[0.5, 0.5])))
    found = cu.segment(path, n_samples=2)
    assert str(found.spacing) == "ImagerPixelSpacing, at the detector"
    width = found.measurements
    assert width["heart_width_mm"].value == pytest.approx(0.5 * width["heart_width_px"].value)


def implausible(landmarks: np.ndarray, height: int = 1024, width: int = 1024) -> list[str]:
    _, letterbox = prepare(np.zeros((height, width), np.uint8))
    return doubts.implausible(landmarks, letterbox, height, width)


def test_a_body_is_plausible_at_any_size_and_its_faults_are_named(shape):
    assert implausible(shape) == []
    assert implausible(shape / 4, 256, 256) == []
    lungs = slice(0, cu.LANDMARKS["left_lung"].stop)
    right, left, heart = (cu.LANDMARKS[organ] for organ in cu.ORGANS)

    def changed(nodes: slice, points: np.ndarray) -> list[str]:
        other = shape.copy()
        other[nodes] = points
        return implausible(other)

    mirrored = shape * (-1, 1) + (1024, 0)
    assert "implausible: the right lung lies on the right of the image" in implausible(mirrored)
    assert "implausible: the lungs overlap" in changed(left, shape[left] - (250, 0))
    assert "implausible: the heart does not lie between the lungs" in changed(heart, shape[heart] - (250, 0))
    assert any("cover" in line for line in changed(lungs, shape[lungs] / 4 + 300))
    assert any("ratio" in line for line in changed(heart, shape[heart] / 4 + 400))
    assert any("several times" in line for line in changed(right, shape[right] / 3))
    # A figure of eight.
    crossed = shape[right][[*range(22), *range(43, 21, -1)]]
    assert "implausible: the contour of the right lung crosses itself" in changed(right, crossed)
    outside = shape - (0, shape[:, 1].min() + 1)
    assert any("lie outside the image" in line for line in implausible(outside))


def test_pixels_that_are_not_square_are_told_of() -> None:
    for x, y, too in ((0.4, 0.8, "wide"), (0.8, 0.4, "narrow")):
        (line,) = doubts.out_of_proportion(Spacing(x=x, y=y, element="PixelSpacing", at_detector=False))
        assert f"pixels of {x} x {y} mm (PixelSpacing)" in line
        assert f"too {too}" in line
    for spacing in (None, Spacing(x=0.143, y=0.144, element="PixelSpacing", at_detector=False)):
        assert not doubts.out_of_proportion(spacing)


def test_unsure_regions_are_named_in_words():
    regions = dict.fromkeys([*cu.ORGANS, *cu.REGIONS], 2.0)
    assert doubts.unsure(regions) == []
    regions |= {"left_lung.costophrenic_angle": 38.4, "left_lung.diaphragm": 26.0}
    regions |= {name: 60.0 for name in regions if name.startswith("heart")}
    assert doubts.unsure(regions) == [
        "left lung unsure: costophrenic angle (38 px), diaphragm (26 px)",
        "heart unsure: everywhere (60 px)",
    ]
    assert doubts.unsure(regions, "radius") == []
    assert doubts.unsure(regions, "radius", 55) == ["heart unsure: everywhere (radius 60 px)"]
    assert doubts.unsure(regions, above=30) == [
        "left lung unsure: costophrenic angle (38 px)",
        *doubts.unsure(regions)[1:],
    ]
