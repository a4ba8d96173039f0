"""`verify` says whether what was regenerated is the published dataset, and what is different if it is not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

import chexmask_u as cu
from chexmask_u import cli, verify
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.manifests import csv_table
from chexmask_u.model.checkpoint import save_model
from chexmask_u.releases.export import export
from chexmask_u.settings import ExportSettings, VerifySettings
from chexmask_u.steps.mask import organ_rle
from chexmask_u.verify import joined
from chexmask_u.verify.compare import Comparison, Draws, Pairs, mask_dice
from chexmask_u.verify.joined import Missing, join
from chexmask_u.verify.records import Records
from chexmask_u.verify.verdict import offset, spread
from tests.support import invented_runs
from tests.support import published_drawings as drawings
from tests.support.official_layouts import PUBLISHED_FILES
from tests.support.published_drawings import Cells, Row

CHEXPERT, MIMIC = "chexpert", "mimic-cxr-jpg"


@pytest.fixture(scope="session")
def predicted(tmp_path_factory) -> dict[str, list[Row]]:
    folder, model = tmp_path_factory.mktemp("drawings"), drawings.narrow()
    return {source: drawings.make(folder / source, source, model) for source in (CHEXPERT, MIMIC)}


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


def test_a_release_is_compared_like_its_run(predicted, run, tmp_path):
    invented_runs.make_release(run, str(tmp_path / "release"))
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT])
    settings = VerifySettings(published=(csv,), release=str(tmp_path / "release/v1.0.0"), published_samples=10)
    released, ran = verify.verify(settings), compare(csv, run)
    assert released["of"]["version"] == "v1.0.0"
    assert released["sources"] == ran["sources"]
    assert released["movers"] == ran["movers"]


def test_our_own_export_has_the_same_numbers_to_their_rounding(predicted, run, tmp_path):
    invented_runs.make_release(run, str(tmp_path / "release"))
    export(
        ExportSettings(release=str(tmp_path / "release/v1.0.0"), output=str(tmp_path / "csvs"), format="chexmask-csv")
    )
    for folder in ("OriginalResolution", "Preprocessed"):
        csvs = tuple(str(tmp_path / "csvs" / folder / name) for name in ("CheXpert.csv", "MIMIC-CXR-JPG.csv"))
        report = verify.verify(VerifySettings(published=csvs, run=run))
        for found in report["sources"].values():
            assert found["sentence"].startswith("the same numbers, to the rounding")
            assert found["within_rounding"] == 1
            assert found["dice"]["heart"]["least"] == 1


def test_means_that_were_cut_instead_of_rounded_are_known(predicted, run, tmp_path):
    def cut(row: Row) -> Cells:
        return replace(drawings.preprocessed(row), mean=np.floor(row.published_mean))

    found = of(compare(drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], cut), run))
    assert found["verdict"] == "same"
    assert found["offset"] == pytest.approx((-0.5, -0.5), abs=0.45)
    assert any(reason.startswith("found in all: an offset of (-0.") for reason in found["reasons"])


@pytest.mark.parametrize(
    ("cells", "reading"), [(drawings.without_crop, "crop_ignored"), (drawings.as_whole_image, "crop_unknown")]
)
def test_a_border_crop_that_the_published_mapping_forgot_is_found_and_known(predicted, run, tmp_path, cells, reading):
    found = of(compare(drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC], cells), run))
    assert found["verdict"] == "same"
    assert found["readings"][reading] >= 10
    assert "once the fault of the published mapping is taken back" in found["sentence"]
    assert any(f"found in {found['readings'][reading]} images: mapped" in reason for reason in found["reasons"])
    # Once it is taken back, what is left is the draws.
    assert found["difference"]["50%"] < 2


def test_padding_with_its_sides_exchanged_is_found_and_known(predicted, run, tmp_path):
    def exchanged(row: Row) -> Cells:
        box = row.letterbox
        return drawings.original(replace(row, letterbox=replace(box, pad_left=box.pad_top, pad_top=box.pad_left)))

    found = of(compare(drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], exchanged), run))
    assert found["verdict"] == "same"
    # Every fourth drawing is square.
    assert found["readings"] == {"as_said": 3, "padding_swapped": 9}


# --- not the same -----------------------------------------------------------------------------------------------------


def shifted_rows(by: int):
    """Image i's landmarks and masks come from image i - by."""

    def change(rows: list[Cells]) -> list[Cells]:
        return [replace(rows[(i - by) % len(rows)], image_id=row.image_id) for i, row in enumerate(rows)]

    return change


def in_shifted_pixels(rows: list[Cells]) -> list[Cells]:
    """Likewise, but with each image's own size."""
    shifted = shifted_rows(1)(rows)
    return [replace(row, width=own.width, height=own.height) for row, own in zip(shifted, rows, strict=True)]


def each(change):
    return lambda rows: [change(row) for row in rows]


def shifted_heart(rows: list[Cells]) -> list[Cells]:
    return [replace(row, mean=row.mean + np.where(np.arange(120) < 94, 0, 60)[:, None]) for row in rows]


FAULTS = {
    "row before": (drawings.preprocessed, shifted_rows(1), "the image one row before it"),
    "row after": (drawings.preprocessed, shifted_rows(-1), "the image one row after it"),
    "shuffled": (drawings.preprocessed, shifted_rows(5), "no nearer to their own image's record"),
    "axes": (
        drawings.original,
        each(lambda row: replace(row, mean=row.mean[:, ::-1], std=row.std[:, ::-1])),
        "x and y are exchanged",
    ),
    "original landmarks, sizes of the frame": (
        drawings.original,
        each(lambda row: replace(row, width=1024, height=1024)),
        "in the pixels of the other frame",
    ),
    "shift that is no crop": (
        drawings.preprocessed,
        each(lambda row: replace(row, mean=row.mean + np.array([40, -25]))),
        "shifted as a whole, by (+40",
    ),
    "spread": (
        drawings.original,
        each(lambda row: replace(row, std=row.std * 1.6)),
        "have the published means, but not the standard deviations: ours are 0.6",
    ),
    "spread of the other frame": (
        lambda row: replace(drawings.original(row), std=row.published_std),
        list,
        "the published ones are in the pixels of the other frame than the means",
    ),
    "spread's axes": (
        drawings.original,
        each(lambda row: replace(row, std=row.std[:, ::-1])),
        "but not the standard deviations: x and y are exchanged in Landmarks (Std)",
    ),
    "row before, with its size": (drawings.original, shifted_rows(1), "the image one row before it"),
    "row after, with its size": (drawings.original, shifted_rows(-1), "the image one row after it"),
    "lungs": (
        drawings.preprocessed,
        each(lambda row: replace(row, mean=np.roll(row.mean, 50, axis=0), std=np.roll(row.std, 50, axis=0))),
        "other weights, another node order, or rows of other images",
    ),
    "masks": (
        drawings.preprocessed,
        each(lambda row: replace(row, masks=row.masks | {"heart": row.masks["left_lung"]})),
        "have the published landmarks, but not the masks (median Dice: heart 0.",
    ),
    "heart": (
        drawings.preprocessed,
        shifted_heart,
        "other weights, or images that were prepared otherwise",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(predicted, run, tmp_path, fault):
    cells, change, words = FAULTS[fault]
    report = compare(drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], cells, change), run)
    assert report["verdict"] == "different"
    assert words in of(report)["sentence"]


@pytest.mark.parametrize("by", [(1, 1), (1.2, 0), (0, -1.6), (-1.6, -1.6)])
def test_an_offset_of_all_images_that_cutting_does_not_make_is_told(predicted, run, tmp_path, by):
    def moved(row: Row) -> Cells:
        return drawings.preprocessed(replace(row, published_mean=row.published_mean + np.array(by)))

    found = of(compare(drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC], moved), run))
    assert found["verdict"] == "different"
    assert "but with an offset of (" in found["sentence"]
    assert "px in all images" in found["sentence"]
    assert found["offset"] == pytest.approx(by, abs=0.5)
    assert not any("cut to whole numbers" in reason for reason in found["reasons"])


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("shift", [in_shifted_pixels, shifted_rows(1), shifted_rows(-1)])
def test_where_chunks_of_rows_end_changes_nothing(predicted, run, tmp_path, monkeypatch, rows, shift):
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], change=shift)
    whole = compare(csv, run)
    readings = of(whole)["readings"]
    assert readings.get("row_before", 0) + readings.get("row_after", 0) >= 10
    # A row has some 20 kB.
    monkeypatch.setattr(csv_table, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(joined, "CHUNK", rows)
    assert compare(csv, run) == whole


def test_landmarks_of_the_frame_with_original_sizes_are_named(predicted, run, tmp_path):
    def mixed(row: Row) -> Cells:
        return replace(drawings.original(row), mean=np.rint(row.published_mean), std=row.published_std)

    report = compare(drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC], mixed), run)
    assert report["verdict"] == "different"
    assert "in the pixels of the other frame" in of(report)["sentence"]


def test_without_sizes_the_landmarks_tell_the_frame(predicted, run, tmp_path):
    for cells, frame in ((drawings.original, "original"), (drawings.preprocessed, "1024")):
        change = each(lambda row: replace(row, width=0, height=0))
        found = of(compare(drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], cells, change), run))
        assert (found["verdict"], found["frame"]) == ("same", frame)


def test_other_weights_are_no_pattern_and_far_from_chance(predicted, run, tmp_path):
    model = drawings.narrow()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.parameters():
            values.mul_(1 + 0.03 * torch.randn(values.shape, generator=generator))
    images = np.stack([cu.read_image(str(row.uri)).image for row in predicted[CHEXPERT]])
    names = [row.image_id for row in predicted[CHEXPERT]]
    other = cu.predict(model, images, names, drawings.SAMPLES, seed=1)
    rows = [
        replace(row, published_mean=mean, published_std=std)
        for row, mean, std in zip(predicted[CHEXPERT], other.landmarks_mean, other.landmarks_std, strict=True)
    ]
    found = of(compare(drawings.write_csv(tmp_path / "a.csv", CHEXPERT, rows, drawings.preprocessed), run))
    assert found["verdict"] == "different"
    assert "times as far as draws and rounding explain, without a pattern: other weights" in found["sentence"]


# --- what is missing, and other forms ---------------------------------------------------------------------------------


def test_what_is_missing_on_either_side_is_counted_and_no_difference(predicted, tmp_path, capsys):
    rows = predicted[CHEXPERT]
    unfinished = drawings.write_run(tmp_path / "run", {CHEXPERT: rows[2:]}, missing=5, failed=[rows[11].image_id])
    csv = drawings.write_csv(
        tmp_path / "a.csv", CHEXPERT, rows, change=lambda cells: [*cells[:10], cells[11], cells[4]]
    )
    arguments = ["verify", "--published", csv, "--run", unfinished, "--published-samples", "10", "--json"]
    assert cli.main(arguments) == cli.DONE
    *lines, last = capsys.readouterr().out.strip().splitlines()
    report = json.loads(last)
    missing = of(report)["missing"]
    assert of(report)["images"] == 8
    counts = ("published", "without_record", "failed", "without_row", "repeated")
    assert [missing[kind] for kind in counts] == [12, 2, 1, 1, 1]
    assert missing["examples"]["without_record"] == [row.image_id for row in rows[:2]]
    assert missing["examples"]["without_row"] == [rows[10].image_id]
    text = "\n".join(lines)
    assert "incomplete: 10 of 15 records, which are compared" in text
    assert "2 published, not regenerated" in text


def test_landmarks_without_a_spread_are_held_against_single_draws(predicted, run, tmp_path):
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], spread=False)
    found = of(compare(csv, run))
    assert found["verdict"] == "same"
    assert found["spread"] is None
    assert "no Landmarks (Std), so spreads were not compared" in found["sentence"]
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], change=shifted_heart, spread=False)
    found = of(compare(csv, run))
    assert found["verdict"] == "different"
    assert "so it may be CheXmask's own, which another network made" in found["sentence"]


def test_a_run_that_says_how_its_images_were_prepared_is_believed(predicted, run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    frozen = json.loads((copy / "run.json").read_text())
    frozen["numbers"]["preparation"] = "published"
    frozen["preparation"] = {MIMIC: "black border cropped, through JPEG of quality 95 and back"}
    (copy / "run.json").write_text(json.dumps(frozen))
    csv = drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC])
    assert cli.main(["verify", "--published", csv, "--run", str(copy), "--published-samples", "10"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "prepared: black border cropped, through JPEG of quality 95 and back" in printed
    assert "compressed once more" not in printed


def test_images_of_another_size_are_not_compared_in_pixels(predicted, run, tmp_path, capsys):
    half = each(lambda row: replace(row, width=row.width // 2, height=row.height // 2, mean=row.mean // 2))
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], change=half)
    assert cli.main(["verify", "--published", csv, "--run", run]) == cli.BAD_INPUT
    assert "of 12 images the size is not the one that Height and Width say" in capsys.readouterr().err
    swapped = each(lambda row: replace(row, width=row.height, height=row.width))
    csv = drawings.write_csv(tmp_path / "b.csv", CHEXPERT, predicted[CHEXPERT], change=swapped)
    found = of(compare(csv, run))
    assert (found["verdict"], found["missing"]["size_swapped"]) == ("same", 9)


def test_the_folder_holds_the_report_and_those_that_differ_most_on_their_images(predicted, run, tmp_path, capsys):
    def one_off(rows: list[Cells]) -> list[Cells]:
        return [*rows[:3], replace(rows[3], mean=rows[3].mean + np.array([0, 30])), *rows[4:]]

    csvs = [drawings.write_csv(tmp_path / f"{source}.csv", source, predicted[source]) for source in (CHEXPERT, MIMIC)]
    csvs[0] = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, predicted[CHEXPERT], change=one_off)
    output = tmp_path / "out"
    flags = [*(part for csv in csvs for part in ("--published", csv)), "--published-samples", "10"]
    for _ in range(2):
        assert cli.main(["verify", *flags, "--run", run, "--output", str(output), "--movers", "4"]) == cli.DONE
    report = json.loads((output / "verify.json").read_text())
    assert list(report["sources"]) == [CHEXPERT, MIMIC]
    first = report["movers"][0]
    assert (first["image"], first["reading"]) == (predicted[CHEXPERT][3].image_id, "shifted")
    assert first["pixels"] == pytest.approx(30 * predicted[CHEXPERT][3].letterbox.scale, abs=4)
    table = (output / "movers.csv").read_text().splitlines()
    assert (table[0], len(table)) == ("source,image,organ,pixels,reading", 5)
    picture = cv2.imread(str(output / "movers.png"), cv2.IMREAD_GRAYSCALE)
    # Blank panels are white; a drawing fills them with grey.
    assert np.mean((picture > 30) & (picture < 220)) > 0.3
    assert "differ most" in capsys.readouterr().out


def test_a_sample_of_images_is_predicted_without_ray(predicted, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    save_model(drawings.narrow(), weights := str(tmp_path / "w.safetensors"))
    csv = drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC])
    folder = predicted[MIMIC][0].uri.parents[4]
    flags = ["--published", csv, "--images", str(folder), "--weights", weights, "--samples", "10", "--probe", "10"]
    assert cli.main(["verify", *flags, "--published-samples", "10", "--json"]) == cli.DONE
    found = of(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert (found["verdict"], found["images"]) == ("same", 10)
    assert found["missing"]["without_record"] == 2


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_with_its_remedy(predicted, run, tmp_path, capsys):
    rows = predicted[CHEXPERT]
    csv = drawings.write_csv(tmp_path / "a.csv", CHEXPERT, rows)
    few = drawings.write_csv(tmp_path / "few.csv", CHEXPERT, rows[:3])
    others = drawings.write_csv(
        tmp_path / "others.csv",
        CHEXPERT,
        rows,
        change=each(lambda row: replace(row, image_id=row.image_id.replace("patient0", "patient9"))),
    )
    vindr = tmp_path / "vindr.csv"
    vindr.write_text(Path(csv).read_text().replace("Path,", "image_id,", 1))
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    alien = rows[0].image_id
    for flags, words in (
        (["--published", few, "--run", run], "3 images have a row and a record; a comparison takes at least 8"),
        (["--published", others, "--run", run], f"(such as {alien!r})"),
        (["--published", str(vindr), "--run", run], "is of vindr-cxr, and run"),
        (["--published", f"mimic-cxr-jpg={csv}", "--run", run], "has the id column of CheXpert, not 'dicom_id'"),
        (["--published", csv, "--published", csv, "--run", run], "is a second CSV of chexpert"),
        (["--published", str(tmp_path / "text.csv"), "--run", run], "its columns do not tell its source"),
        (["--published", str(tmp_path / "none.csv"), "--run", run], "no such file"),
        (["--published", csv, "--run", str(tmp_path / "empty")], "holds no run (no run.json)"),
        (["--published", csv, "--release", str(tmp_path / "empty")], "is no release"),
        (["--published", csv], "give one of --run, --release and --images"),
        (["--published", csv, "--images", str(tmp_path)], "--images needs --weights"),
        (["--published", csv, "--run", run, "--weights", "demo"], "--weights goes with --images"),
        (["--published", str(tmp_path), "--run", run], "is a folder; expected a CheXmask CSV"),
        (["--published", csv, "--images", str(tmp_path / "empty"), "--weights", "demo"], "holds no image of CheXpert"),
        (["--published", csv, "--run", run, "--output", str(tmp_path)], "holds no verification"),
    ):
        assert cli.main(["verify", *flags]) == cli.BAD_INPUT, words
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("chexmask-u: "), error
        assert words in error


def test_a_source_that_cannot_be_compared_does_not_hide_another(predicted, run, tmp_path):
    fine = drawings.write_csv(tmp_path / "a.csv", MIMIC, predicted[MIMIC])
    few = drawings.write_csv(tmp_path / "few.csv", CHEXPERT, predicted[CHEXPERT][:3])
    report = verify.verify(VerifySettings(published=(few, fine), run=run, published_samples=10))
    assert [found["verdict"] for found in report["sources"].values()] == ["unusable", "same"]
    assert report["verdict"] == "unusable"
    wrong = drawings.write_csv(tmp_path / "b.csv", MIMIC, predicted[MIMIC], drawings.preprocessed, shifted_rows(1))
    assert verify.verify(VerifySettings(published=(few, wrong), run=run))["verdict"] == "different"


def test_there_is_something_to_compare_and_something_to_compare_it_with():
    with pytest.raises(InputError, match="--published is needed"):
        VerifySettings(run="run")


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_dice_of_run_lengths_is_that_of_the_masks(seed):
    rng = np.random.default_rng(seed)
    masks = [cv2.blur(rng.integers(0, 255, (40, 30), np.uint8), (5, 5)) > 120 for _ in range(2)]
    expected = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert mask_dice(*(cu.rle_encode(mask) for mask in masks)) == pytest.approx(expected)
    assert mask_dice(cu.rle_encode(masks[0]), cu.rle_encode(masks[0])) == 1
    assert (mask_dice("", ""), mask_dice("1 2", ""), mask_dice("3 2 1 1", "1 2"), mask_dice("x", "1 2")) == (
        1,
        0,
        None,
        None,
    )


def invented(seed: int, crop: int = 0, anisotropy: float = 0.0, images: int = 200) -> Pairs:
    """Two sets of 50 draws of the same landmarks; without `crop`, which is up to so many pixels, in the published."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(200, 800, (images, 120, 2))
    sigma = 8 * np.exp(anisotropy * rng.standard_normal((images, 120, 1)) * np.array([1, -1]))

    def drawn() -> tuple[np.ndarray, np.ndarray]:
        # An image's latents move all its nodes.
        draws = rng.standard_normal((50, images, 1, 2)) + rng.standard_normal((50, images, 120, 2))
        points = centre + sigma * draws / np.sqrt(2)
        return points.mean(axis=0), points.std(axis=0)

    crops = rng.integers(1, crop + 1, (images, 2)).astype(float) if crop else np.zeros((images, 2))
    (mean, std), (published, published_std) = drawn(), drawn()
    published = np.rint(published - crops[:, None])
    sizes = np.full((images, 2), 1024.0)
    nothing, ones = np.zeros((images, 2)), np.ones(images)
    return Pairs(mean, std, published, published_std.round(2), crops, nothing, ones, sizes)


def compared(pairs: Pairs) -> Comparison:
    comparison = Comparison("original", Draws(50, 50))
    comparison.add(pairs, pairs.take(np.r_[0, np.arange(len(pairs) - 1)]))
    return comparison


def test_small_crops_that_the_published_mapping_forgot_are_no_untold_offset():
    pairs = invented(0, crop=3)
    comparison = compared(pairs)
    # They are too small for an image alone to tell them from the draws.
    assert comparison.images.count("as_said") > 150
    assert offset(comparison).told
    assert not offset(compared(replace(pairs, crop=np.zeros_like(pairs.crop)))).told


@pytest.mark.parametrize(("by", "told"), [(1, False), (0.7, False), (0, True), (-0.5, True), (-1.3, False)])
def test_200_images_tell_an_offset_of_less_than_a_pixel(by, told):
    pairs = invented(2)
    assert offset(compared(replace(pairs, published_mean=pairs.published_mean + by))).told == told


@pytest.mark.parametrize("images", [8, 12, 200])
def test_the_noise_of_50_draws_is_no_offset_and_no_exchange(images):
    for seed in range(5):
        comparison = compared(invented(seed, images=images))
        assert offset(comparison).told
        assert not spread(comparison).exchanged


def test_an_exchange_of_spreads_is_told_where_axes_differ_and_not_claimed_where_they_do_not():
    for anisotropy in (0.0, 0.3):
        pairs = invented(1, anisotropy=anisotropy)
        assert not spread(compared(pairs)).exchanged
        exchanged = replace(pairs, published_std=pairs.published_std[..., ::-1])
        assert spread(compared(exchanged)).exchanged == (anisotropy > 0)


def test_real_published_rows_are_read_whatever_is_missing_in_them(shared):
    """154 rows of CheXmask itself: beside records of the same landmarks they do not differ, and nor do masks."""
    for source, name in PUBLISHED_FILES.items():
        csv = str(shared / "data" / "chexmask_published" / name)
        rows = pa.Table.from_batches(cu.read_published(csv))
        records = Records.empty(len(rows))
        records.row = {image_id: index for index, image_id in enumerate(rows["image_id"].to_pylist())}
        records.mean[:] = np.stack(list(to_landmarks(rows["landmarks_mean"])))
        records.std[:], records.scale[:], records.size[:] = 5, 1, 1024
        missing, comparison, overlaps = Missing(), Comparison("1024", Draws(50, 50)), []
        for chunk in join(csv, source, records, missing):
            comparison.add(chunk.pairs, chunk.before)
            for mean, masks, size in zip(chunk.pairs.mean, chunk.masks, chunk.sizes, strict=True):
                if size.all():
                    overlaps += [mask_dice(organ_rle(mean, organ, 1024, 1024), masks[organ]) for organ in masks]
        assert comparison.images.count("as_said") == missing.published == len(rows)
        assert missing.without_record == missing.without_row == missing.without_landmarks == 0
        assert (comparison.largest, set(overlaps)) == (0, {1.0})
        assert spread(comparison) is None
