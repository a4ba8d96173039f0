"""What researchers do with a record: trust, weigh, judge, rebuild, draw, and find its image."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest

import chexmask_u as cu
from chexmask_u.images.letterbox import prepare
from chexmask_u.sources import synthetic
from chexmask_u.steps.mask import organ_rle
from tests.support.chosen_releases import draw, letterbox

matplotlib.use("Agg")

HEIGHT, WIDTH = 700, 500


@pytest.fixture
def record() -> dict:
    """A row of a cropped image that is smaller than the frame, as `datasets` gives it."""
    drawn = draw("a.png", HEIGHT, WIDTH, seed=1, crop=(20, 50, 460, 600))
    scale = drawn.letterbox.scale
    return {
        "record_id": "hospital/a.png",
        "source": "hospital",
        "image_id": "a.png",
        "height": HEIGHT,
        "width": WIDTH,
        "landmarks_mean": drawn.mean.tolist(),
        "landmarks_std": drawn.std.tolist(),
        "uncertainty": float(drawn.std.mean() * scale),
        "letterbox": drawn.letterbox.to_row(),
    }


def spread(record: dict, frame_px: np.ndarray) -> dict:
    """The record with these standard deviations [120], pixels of the 1024 frame, on both axes."""
    std = np.repeat(frame_px[:, None], 2, axis=1) / record["letterbox"]["scale"]
    return record | {"landmarks_std": std.tolist()}


def forms(record: dict) -> dict[str, object]:
    """One record as every library hands it out."""
    import datasets

    table = pa.Table.from_pylist([record])
    dataset = datasets.Dataset(table)
    return {
        "arrow": table.to_pylist()[0],
        "datasets": dataset[0],
        "numpy": dataset.with_format("numpy")[0],
        "torch": dataset.with_format("torch")[0],
        "pandas": table.to_pandas().iloc[0],
        "datasets to pandas": dataset.to_pandas().iloc[0].to_dict(),
        "polars": polars.from_arrow(table).row(0, named=True),
    }


def test_a_record_of_any_library_gives_the_same_numbers(record):
    for name, form in forms(record).items():
        mean, std = cu.frame_landmarks(form)
        # torch holds float32.
        np.testing.assert_allclose(mean, cu.frame_landmarks(record)[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(std, cu.frame_landmarks(record)[1], rtol=1e-5, err_msg=name)
        for organ, mask in cu.record_masks(form).items():
            assert mask.shape == (HEIGHT, WIDTH)
            assert mask.sum() == pytest.approx(cu.record_masks(record)[organ].sum(), rel=0.01), name


def test_the_frame_is_the_one_that_the_image_was_prepared_to():
    """A bright dot at a landmark lies in the prepared image where the frame says."""
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[100:600, 60:440] = 40
    image[298:303, 198:203] = 255
    prepared, box = prepare(image, crop_border=True)
    row = {"landmarks_mean": [[200.5, 300.5]] * 120, "landmarks_std": [[2.0, 3.0]] * 120, "letterbox": box.to_row()}
    mean, std = cu.frame_landmarks(row)
    y, x = np.argwhere(prepared == 255).mean(axis=0) + 0.5
    np.testing.assert_allclose(mean[0], [x, y], atol=0.5)
    np.testing.assert_allclose(std[0], np.array([2, 3]) * 1024 / 500)


def test_the_mean_over_the_landmarks_is_the_records_uncertainty(record):
    assert cu.landmark_uncertainty(record).mean() == pytest.approx(record["uncertainty"])


def test_landmarks_are_trusted_by_pixels_of_the_frame_and_not_of_the_image(record):
    std = np.linspace(1, 12, 120)
    row = spread(record, std)
    np.testing.assert_array_equal(cu.trusted_landmarks(row, below=5), std < 5)
    large = row | {"letterbox": letterbox(4 * HEIGHT, 4 * WIDTH).to_row()}
    assert cu.trusted_landmarks(large, below=5).sum() > cu.trusted_landmarks(row, below=5).sum()
    np.testing.assert_array_equal(cu.trusted_landmarks(row, quantile=0.25), np.arange(120) < 30)
    for wrong in ({}, {"below": 1, "quantile": 0.5}, {"quantile": 1.5}):
        with pytest.raises(ValueError, match="either below"):
            cu.trusted_landmarks(row, **wrong)


def test_a_landmark_that_is_unsure_along_one_axis_has_the_mean_variance_of_both(record):
    std = np.full((120, 2), 5.0)
    std[0] = 0, 10
    row = record | {"landmarks_std": (std / record["letterbox"]["scale"]).tolist()}
    weights = cu.landmark_weights(row)
    assert weights[1] / weights[0] == pytest.approx(2)


def test_weights_are_inverse_variances_with_mean_one_and_a_bound(record):
    std = np.full(120, 2.0)
    std[list(cu.REGIONS["left_lung.apex"])] = 8
    std[0] = 0
    row = spread(record, std)
    weights = cu.landmark_weights(row)
    assert weights.mean() == pytest.approx(1)
    assert weights[60] / weights[cu.REGIONS["left_lung.apex"][0]] == pytest.approx(16)
    assert weights[0] / weights[60] == pytest.approx(4)  # as if it were 1 pixel
    by_region = cu.landmark_weights(row, per="region")
    for nodes in cu.REGIONS.values():
        assert len(set(by_region[list(nodes)].round(12))) == 1
    assert by_region[cu.REGIONS["left_lung.apex"][0]] == by_region.min()
    by_organ = cu.landmark_weights(row, per="organ")
    assert [len(set(by_organ[nodes].round(12))) for nodes in cu.LANDMARKS.values()] == [1, 1, 1]
    assert by_organ[0] > by_organ[60]
    with pytest.raises(ValueError, match="floor"):
        cu.landmark_weights(row, floor=0)
    with pytest.raises(ValueError, match="per must be"):
        cu.landmark_weights(row, per="lung")


def test_regions_are_judged_by_their_own_landmarks(record):
    std = np.full(120, 3.0)
    std[list(cu.REGIONS["heart.left_border"])] = 30
    judged = cu.region_uncertainty(spread(record, std))
    assert judged["heart.left_border"] == pytest.approx(30)
    assert judged["heart.right_border"] == pytest.approx(3)
    assert judged["heart"] == pytest.approx(3 + 27 * 7 / 26)
    assert judged["right_lung"] == pytest.approx(3)


def test_every_landmark_is_in_one_region_of_its_organ():
    assert sorted(node for nodes in cu.REGIONS.values() for node in nodes) == list(range(120))
    for name, nodes in cu.REGIONS.items():
        organ = cu.LANDMARKS[name.split(".")[0]]
        assert all(organ.start <= node < organ.stop for node in nodes)
        steps = np.diff(nodes) % (organ.stop - organ.start)
        assert (steps == 1).all(), name


def check_regions(landmarks: np.ndarray) -> dict[str, float]:
    """How often what a region's name says is true; landmarks [shapes, 120, 2], y down, right lung at small x."""
    found = {}
    parts = {name: landmarks[:, list(nodes)] for name, nodes in cu.REGIONS.items()}
    for organ, outward in (("right_lung", -1), ("left_lung", 1)):
        lung = landmarks[:, cu.LANDMARKS[organ]]
        centre = lung.mean(axis=1)
        of = {name.split(".")[1]: part for name, part in parts.items() if name.startswith(f"{organ}.")}
        found[f"{organ} apex holds the top"] = (of["apex"][..., 1].min(1) == lung[..., 1].min(1)).mean()
        angle = of["costophrenic_angle"]
        found[f"{organ} angle holds the bottom"] = (angle[..., 1].max(1) == lung[..., 1].max(1)).mean()
        found[f"{organ} angle is lateral"] = (outward * (angle.mean(1) - centre)[:, 0] > 0).mean()
        found[f"{organ} lateral is lateral"] = (outward * (of["lateral"] - centre[:, None])[..., 0] > 0).mean()
        found[f"{organ} mediastinum is medial"] = (outward * (of["mediastinum"] - centre[:, None])[..., 0] < 0).mean()
        found[f"{organ} diaphragm is low"] = (of["diaphragm"][..., 1] > centre[:, None, 1]).mean()
        heart = landmarks[:, cu.LANDMARKS["heart"]]
        border = of["heart_border"]
        gap = np.linalg.norm(border[:, :, None] - heart[:, None], axis=3).min(2)
        far = np.linalg.norm(of["lateral"][:, :, None] - heart[:, None], axis=3).min(2)
        found[f"{organ} heart border is near the heart"] = (np.median(gap, 1) < np.median(far, 1) / 4).mean()
    x, y = landmarks[:, cu.LANDMARKS["heart"]].mean(axis=1).T
    found["heart right"] = (parts["heart.right_border"].mean(1)[:, 0] < x).mean()
    found["heart left"] = (parts["heart.left_border"].mean(1)[:, 0] > x).mean()
    found["heart upper"] = (parts["heart.upper_border"].mean(1)[:, 1] < y).mean()
    found["heart lower"] = (parts["heart.lower_border"].mean(1)[:, 1] > y).mean()
    return found


def test_regions_lie_where_their_names_say_in_drawings():
    shapes = np.stack([synthetic.draw(index, side=128).landmarks for index in range(40)])
    for claim, share in check_regions(shapes).items():
        assert share > 0.9, claim


def test_regions_lie_where_their_names_say_in_radiographs(shared):
    for claim, share in check_regions(np.load(shared / "data" / "jsrt" / "landmarks.npz")["landmarks"]).items():
        assert share > 0.9, claim


@pytest.mark.parametrize(
    "call",
    [
        *(cu.frame_landmarks, cu.landmark_uncertainty, cu.landmark_weights, cu.region_uncertainty, cu.record_masks),
        *(cu.draw_record, lambda record: cu.trusted_landmarks(record, below=5)),
    ],
)
def test_many_records_in_place_of_one_are_told_so(record, call):
    import datasets

    table = pa.Table.from_pylist([record, record])
    dataset = datasets.Dataset(table)
    many = [table, dataset, dataset.to_iterable_dataset(), table.to_pandas(), polars.from_arrow(table), [record]]
    for given in (*many, "records.parquet", np.zeros((120, 2)), None):
        with pytest.raises(TypeError, match=r"record must be one row of a release, not .*; give records\[0\]"):
            call(given)


def test_a_path_in_place_of_an_image_is_told_so(record):
    for path in ("x.png", Path("x.png")):
        with pytest.raises(TypeError, match=r"image must be what chexmask_u\.read_image gives.*x\.png.*read the file"):
            cu.draw_record(record, path)
    with pytest.raises(TypeError, match="not a dict"):
        cu.draw_record(record, {"height": 1})


def test_masks_are_the_same_from_runs_and_from_landmarks(record):
    landmarks = np.array(record["landmarks_mean"])
    runs = {organ: organ_rle(landmarks, organ, HEIGHT, WIDTH) for organ in cu.ORGANS}
    from_runs = cu.record_masks({"record_id": "x", "height": HEIGHT, "width": WIDTH, **runs})
    for organ, mask in cu.record_masks(record).items():
        assert mask.any()
        np.testing.assert_array_equal(from_runs[organ], mask)


def test_a_row_of_another_config_is_told_from_a_record(record):
    with pytest.raises(ValueError, match="no landmarks_std"):
        cu.landmark_uncertainty({"letterbox": record["letterbox"]})
    with pytest.raises(ValueError, match=r"landmarks_mean must be \[120, 2\]"):
        cu.frame_landmarks(record | {"landmarks_mean": record["landmarks_mean"][:50]})


def test_a_drawing_shows_each_landmark_at_its_place_in_the_size_of_its_spread(record):
    axes = cu.draw_record(record)
    (ellipses,) = axes.collections
    np.testing.assert_allclose(ellipses.get_offsets(), record["landmarks_mean"])
    np.testing.assert_allclose(
        np.stack([ellipses.get_widths(), ellipses.get_heights()], axis=1), 2 * np.array(record["landmarks_std"])
    )
    assert axes.get_ylim() == (HEIGHT, 0)
    assert axes.get_title(loc="left").startswith("hospital/a.png")
    plt.close(axes.figure)


def test_a_radius_is_drawn_where_the_release_or_a_calibration_has_one(record):
    original = np.linspace(4, 60, 120, dtype=np.float32)
    axes = cu.draw_record(record | {"landmarks_radius": original}, radius=True)
    assert "90% radius" in axes.figure.axes[1].get_ylabel()
    (band,) = axes.images
    alpha = np.asarray(band.get_array())[..., 3]
    zoom = len(alpha) / HEIGHT
    # As far as a landmark's radius its disc reaches, and the farthest one's no farther.
    points = np.array(record["landmarks_mean"])
    reach = np.linalg.norm(points[:, None] - np.argwhere(alpha)[None, ::97, ::-1] / zoom, axis=2) - original[:, None]
    assert reach.min(axis=0).max() < 2
    x, y = points[119] + (0, original[119] - 2)
    assert alpha[round(y * zoom), round(x * zoom)]
    plt.close(axes.figure)
    with pytest.raises(ValueError, match="no landmarks_radius: its release was made without a calibration"):
        cu.draw_record(record, radius=True)


def test_surer_landmarks_have_another_colour_and_own_axes_are_used(record):
    _, mine = plt.subplots()
    axes = cu.draw_record(spread(record, np.linspace(1, 50, 120)), np.zeros((HEIGHT, WIDTH), np.uint8), mine)
    assert axes is mine
    colours = axes.collections[0].get_edgecolor()
    assert np.linalg.norm(colours[0] - colours[-1]) > 0.5
    plt.close(axes.figure)


def test_an_image_lies_under_its_landmarks_whether_it_was_prepared_or_not(record):
    """Of both, the pixel that is drawn at a point of the original image is the one that the image has there."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = ((x // 50 + y // 50) % 2 * 200 + 20).astype(np.uint8)
    image[:50], image[-50:], image[:, :20], image[:, -20:] = 0, 0, 0, 0
    prepared, box = prepare(image, crop_border=True)
    row = record | {"letterbox": box.to_row()}
    for given in (image, cu.ReadImage(prepared, HEIGHT, WIDTH, box)):
        axes = cu.draw_record(row, given)
        (shown,) = axes.images
        left, right, bottom, top = shown.get_extent()
        pixels = np.asarray(shown.get_array())
        for at_x, at_y in ((75, 75), (125, 75), (425, 625), (275, 325), (224, 374)):
            column = int((at_x + 0.5 - left) / (right - left) * pixels.shape[1])
            line = int((at_y + 0.5 - top) / (bottom - top) * pixels.shape[0])
            assert abs(int(pixels[line, column]) - int(image[at_y, at_x])) < 20, (at_x, at_y)
        plt.close(axes.figure)


def test_an_image_of_another_size_is_not_drawn_over(record):
    with pytest.raises(ValueError, match="1024 rows and 1024 columns, the record 700 and 500"):
        cu.draw_record(record, np.zeros((1024, 1024), np.uint8))


@pytest.fixture
def chexpert(tmp_path) -> tuple[list[dict], Path]:
    """Four records, of which one has no image and one has two; and an image and a file that are of no record."""
    root = tmp_path / "CheXpert-v1.0"
    paths = [f"train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2, 3, 4)]
    records = [{"record_id": f"chexpert/{path}", "source": "chexpert", "image_id": path} for path in paths]
    for path in (paths[0], paths[1], paths[3], f"copy/{paths[3]}", "valid/patient64541/study1/view1_frontal.jpg"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "train.csv").touch()
    return records, root


def test_records_are_paired_with_images_by_the_sources_names_and_nothing_is_dropped(chexpert):
    records, root = chexpert
    pairs = cu.pair_images(records, str(root))
    one, two, three, four = (row["record_id"] for row in records)
    assert pairs.paths == {row["record_id"]: str(root / row["image_id"]) for row in records[:2]}
    assert set(pairs.paths) == {one, two}
    assert pairs.without_image == [three]
    assert pairs.without_record == ["valid/patient64541/study1/view1_frontal.jpg"]
    assert pairs.ambiguous == {four: [f"copy/{records[3]['image_id']}", records[3]["image_id"]]}
    assert pairs.passed_over == 1
    assert str(pairs).startswith(
        "2 records with an image, 1 without; 1 images without a record; 1 records with several"
    )


def test_records_of_any_library_are_paired_alike(chexpert):
    import datasets

    records, root = chexpert
    table = pa.Table.from_pylist(records)
    dataset = datasets.Dataset(table)
    every = [table, dataset, dataset.with_format("numpy"), dataset.to_iterable_dataset(), pd.DataFrame(records)]
    for form in (*every, polars.DataFrame(records), iter(records)):
        assert cu.pair_images(form, str(root)) == cu.pair_images(records, str(root))


def test_records_of_an_own_source_are_found_by_their_path(tmp_path):
    (tmp_path / "ward").mkdir()
    for name in ("ward/a.png", "b.jpg", "notes.txt"):
        (tmp_path / name).touch()
    rows = [{"record_id": f"mine/{name}", "source": "mine", "image_id": name} for name in ("ward/a.png", "c.png")]
    pairs = cu.pair_images(rows, str(tmp_path))
    assert pairs.paths == {"mine/ward/a.png": str(tmp_path / "ward/a.png")}
    assert (pairs.without_image, pairs.without_record, pairs.passed_over) == (["mine/c.png"], ["b.jpg"], 1)


def test_records_that_cannot_be_paired_are_refused(chexpert, tmp_path):
    records, root = chexpert
    with pytest.raises(ValueError, match="of one source, not of 2"):
        cu.pair_images([*records, {"record_id": "a/b", "source": "a", "image_id": "b"}], str(root))
    with pytest.raises(ValueError, match="of one source, not of 0"):
        cu.pair_images([], str(root))
    with pytest.raises(ValueError, match="occurs twice"):
        cu.pair_images([*records, records[0]], str(root))
    with pytest.raises(ValueError, match="no such folder"):
        cu.pair_images(records, str(tmp_path / "elsewhere"))


def test_several_records_and_words_for_numbers_are_refused_by_what_is_wanted(record):
    import datasets

    several = datasets.Dataset.from_list([record, record])
    for form in (several[:2], several.with_format("numpy")[:2], several.with_format("torch")[:2]):
        with pytest.raises(TypeError, match=r"record must be one row of a release.*records\[0\]"):
            cu.trusted_landmarks(form, below=5)
    for words in ({"below": "5"}, {"quantile": "0.5"}, {"below": [5, 6]}, {"within": "10"}):
        with pytest.raises(TypeError, match=f"{next(iter(words))} must be a number, not "):
            cu.trusted_landmarks(record | {"landmarks_radius": [1.0] * 120}, **words)
    with pytest.raises(ValueError, match="below must be a number, not NaN"):
        cu.trusted_landmarks(record, below=float("nan"))
    for words in ({"below": -0.5}, {"within": -1}, {"within": float("-inf")}):
        with pytest.raises(ValueError, match=f"{next(iter(words))} must be a number of pixels, 0 or more, not -"):
            cu.trusted_landmarks(record | {"landmarks_radius": [1.0] * 120}, **words)
    assert not cu.trusted_landmarks(record | {"landmarks_radius": [1.0] * 120}, within=0).any()
    assert cu.trusted_landmarks(record, below=np.float32(1000)).all()
