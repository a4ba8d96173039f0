import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from matplotlib.colors import to_hex

import chexmask_u as cu
from chexmask_u import record
from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.model.predict import Prediction
from chexmask_u.pictures.scale import gradient, hexes
from chexmask_u.runs import summary as summaries
from chexmask_u.runs.page import Picture, render_html, to_picture
from chexmask_u.runs.summary import QUANTILES, chosen_rows, summarise
from tests.support import invented_calibrations

# A 500 x 400 crop of a larger image: every part of the mapping matters.
LETTERBOX = Letterbox(30, 20, 500, 400, 0, 50, FRAME / 500)
RUN: dict[str, Any] = {
    "settings": {"output": "s3://bucket/run", "samples": 50, "sources": ["A", "B"], "resume": None},
    "manifest": {"uri": "s3://bucket/m.parquet", "sha256": "ab" * 32, "rows": 3},
    "weights": {"source": "demo", "sha256": "cd" * 32, "variant": "skip", "input_size": 1024},
    "versions": {"chexmask_u": "0.1.0"},
}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def batches_are_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run of many rows, where pyarrow 26 filters landmarks wrongly."""
    for scan in (summaries._SCAN, summaries._SCAN_FULL_ROWS):
        monkeypatch.setitem(scan, "batch_size", 3)


def ok(record_id: str, source: str, uncertainty: float, device: str = "cpu") -> dict[str, Any]:
    """A row with the right lung twice and the heart half as unsure as the left lung; landmark i lies at (i, 2i)."""
    std = np.full((N_LANDMARKS, 2), 1.0)
    std[LANDMARKS["right_lung"]], std[LANDMARKS["heart"]] = 2, 0.5
    std *= uncertainty / std.mean()
    frame = np.stack([np.arange(N_LANDMARKS), 2 * np.arange(N_LANDMARKS)], axis=1)
    return {
        "record_id": record_id,
        "uri": f"file:///{record_id}",
        "source": source,
        "image_id": record_id,
        "height": 600,
        "width": 700,
        "status": record.OK,
        "letterbox": LETTERBOX.to_row(),
        "read_seconds": 0.5,
        "landmarks_mean": LETTERBOX.to_original(frame).tolist(),
        "landmarks_std": LETTERBOX.spread_to_original(std).tolist(),
        "uncertainty": uncertainty,
        "latent_mean": [0.0] * 64,
        "latent_std": [0.3] * 64,
        "latent_uncertainty": 0.3,
        "device": device,
        "predict_seconds": 0.25,
        **dict.fromkeys(ORGANS, "1 2"),
        "mask_seconds": 0.125,
    }


def failed(record_id: str, source: str, reason: str, error: str = "no") -> dict[str, Any]:
    return {
        "record_id": record_id,
        "uri": f"file:///{record_id}",
        "source": source,
        "image_id": record_id,
        "status": record.FAILED,
        "reason": reason,
        "error": error,
        "read_seconds": 0.5,
        "mask_seconds": 0.0,
    }


def store(folder: Path, *parts: list[dict[str, Any]]) -> ds.Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts):
        pq.write_table(pa.Table.from_pylist(rows, schema=record.RECORD), folder / f"{number}.parquet")
    return ds.dataset(str(folder), format="parquet")


def pictures(records: ds.Dataset, summary: dict[str, Any]) -> list[Picture]:
    ranks = {chosen["record_id"]: chosen["rank"] for chosen in summary["contact_sheet"]}
    rows = chosen_rows(records, list(ranks)).to_pylist()
    return [to_picture(row, np.zeros((FRAME, FRAME), np.uint8), ranks[row["record_id"]]) for row in rows]


def page(records: ds.Dataset) -> str:
    """By way of JSON, as when a stored report.json is rendered again."""
    summary = summarise(records)
    timed = {**summary, "seconds": 12.0, "images_per_second": 3.5, "network_idle_share": 0.123, "attempts": 1}
    stored = json.loads(json.dumps(timed, allow_nan=False))
    return render_html(stored, RUN, pictures(records, summary))


def test_summary_adds_up(tmp_path: Path) -> None:
    values = np.arange(1.0, 101.0, dtype=np.float32)
    rows = [
        ok(f"r{value:03.0f}", "B" if value % 4 else "A", float(value), "gpu" if value > 90 else "cpu")
        for value in values
    ]
    bad = [failed(f"d{n:02d}", "A", "damaged", "x" * 10_000) for n in range(15)] + [failed("m", "B", "missing")]
    summary = summarise(store(tmp_path, bad + rows[:60], rows[60:]))

    assert (summary["images"], summary["ok"], summary["failed"]) == (116, 100, 16)
    assert summary["sources"] == {
        "A": {"images": 40, "ok": 25, "failed": 15},
        "B": {"images": 76, "ok": 75, "failed": 1},
    }
    assert list(summary["failures"]) == ["damaged", "missing"]
    damaged = summary["failures"]["damaged"]
    assert (damaged["images"], damaged["meaning"]) == (15, record.REASONS["damaged"])
    assert [example["record_id"] for example in damaged["examples"]] == [f"d{n:02d}" for n in range(10)]
    assert all(len(example["error"]) <= 500 for example in damaged["examples"])

    assert summary["stages"]["read"] == {"seconds": 58.0, "images": 116, "milliseconds_per_image": 500.0}
    assert summary["stages"]["predict"] == {"seconds": 25.0, "images": 100, "milliseconds_per_image": 250.0}
    assert summary["stages"]["mask"] == {"seconds": 12.5, "images": 100, "milliseconds_per_image": 125.0}
    assert summary["devices"]["gpu"] == {"images": 10, "predict_seconds": 2.5}

    overall, of_a = summary["uncertainty"]["overall"], summary["uncertainty"]["sources"]["A"]
    assert overall["quantiles"] == {str(q): pytest.approx(np.quantile(values, q)) for q in QUANTILES}
    assert (overall["min"], overall["max"], overall["mean"]) == (1, 100, pytest.approx(50.5))
    assert sum(overall["histogram"]) == 100
    assert of_a["mean"] == pytest.approx(52)
    # In the 1024 frame, though the run stores original pixels; nodes: 44 at 2, 50 at 1, 26 at 0.5.
    left_lung = 52 * 120 / (44 * 2 + 50 + 26 * 0.5)
    assert [of_a["organ_std"][organ] for organ in ORGANS] == pytest.approx([2 * left_lung, left_lung, left_lung / 2])
    assert of_a["latent_uncertainty_mean"] == pytest.approx(0.3)

    chosen = [(picked["record_id"], picked["rank"]) for picked in summary["contact_sheet"]]
    assert [rank for _, rank in chosen] == ["surest"] * 3 + ["median"] * 3 + ["least sure"] * 3
    assert [name for name, _ in chosen] == [f"r{n:03d}" for n in (1, 2, 3, 49, 50, 51, 98, 99, 100)]


def seen(name: str, source: str, prediction: Prediction, index: int, away: float = 0.0) -> dict[str, Any]:
    """A row of one image of a prediction, whose posterior lies so far away from where it was."""
    std = prediction.landmarks_std[index]
    return ok(name, source, float(std.mean())) | {
        "landmarks_mean": LETTERBOX.to_original(prediction.landmarks_mean[index]).tolist(),
        "landmarks_std": LETTERBOX.spread_to_original(std).tolist(),
        "landmarks_across": LETTERBOX.spread_to_original(prediction.landmarks_across[index]).tolist(),
        "landmarks_along": LETTERBOX.spread_to_original(prediction.landmarks_along[index]).tolist(),
        "latent_mean": (prediction.latent_mean[index] + away).tolist(),
        "latent_std": prediction.latent_std[index].tolist(),
    }


def test_records_unlike_known_radiographs_are_counted_and_the_farthest_are_shown(tmp_path: Path) -> None:
    calibration = invented_calibrations.calibration("a" * 64, 120)
    some = invented_calibrations.predictions(np.random.default_rng(3), 14)
    usual = [seen(f"u{n:02d}", "A", some, n) for n in range(10)]
    far = [seen(f"f{n}", "B", some, 10 + n, away=20.0 + 10 * n) for n in range(4)]
    # One that failed stands before the others, and one of before the column says nothing.
    rows = [failed("d", "A", "damaged"), *usual[:5], *far, *usual[5:], ok("old", "A", 3.0)]
    records = store(tmp_path, rows[:6], rows[6:])
    summary = json.loads(json.dumps(summarise(records, calibration.known), allow_nan=False))
    told = summary["ood"]
    of_a = sum(float(calibration.ood_score(row)) > record.ODD_SCORE for row in usual)
    assert (told["images"], told["beyond"]) == (14, 4 + of_a)
    assert told["sources"]["B"] == {"images": 4, "beyond": 4}
    odd = [one for one in summary["contact_sheet"] if one["rank"] == "least usual"]
    assert [one["record_id"] for one in odd] == ["f3", "f2", "f1"]
    assert all(one["ood_score"] > record.ODD_SCORE for one in odd)

    blank = np.zeros((FRAME, FRAME), np.uint8)
    html = render_html(summary, RUN, [to_picture(row, blank, "least usual", calibration) for row in far])
    assert f"{4 + of_a}</strong> of 14 records lie beyond the 99th percentile of the 120 frontal radiographs" in html
    assert "90% radius of a landmark" in html
    assert html.count("<title>") == 1 + 4 * N_LANDMARKS
    assert "Nothing here tells" in page(records)


def test_the_same_pixels_have_the_same_colour_in_two_reports_and_in_a_picture_of_the_record(tmp_path: Path) -> None:
    """Beside surer records or less sure ones, and on the Axes that a researcher draws."""
    row = ok("a", "A", 8.0)
    pages = [page(store(tmp_path / str(other), [row, ok("b", "A", other)])) for other in (0.5, 300.0)]
    first, second = (re.findall(r"linear-gradient\(.*?\)", html) for html in pages)
    assert first == second
    assert len(first) == 1
    dots = [set(re.findall(r'<circle class="node".*?fill="(#\w+)"', html)) for html in pages]
    axes = cu.draw_record(row)
    drawn = {to_hex(colour) for colour in axes.collections[0].get_edgecolor()}
    assert len(drawn) == 3
    assert all(drawn < found for found in dots)
    # One draw has no spread at all, and that is sure, not unknown.
    assert hexes([0.0, np.nan]) == [gradient()[0], gradient()[-1]]
    plt.close(axes.figure)


def test_summary_does_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    rows = [ok(f"r{n}", "A", 5.0 if n % 2 else float(n + 1)) for n in range(30)]
    rows += [failed(f"f{n}", "B", "missing") for n in range(20)]
    summary = summarise(store(tmp_path / "a", rows))
    shuffled = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    again = summarise(store(tmp_path / "b", shuffled[:13], shuffled[13:]))
    # Sums of floats may differ in the last bit.
    assert json.dumps(again["contact_sheet"]) == json.dumps(summary["contact_sheet"])
    assert again["failures"] == summary["failures"]
    assert again["uncertainty"]["overall"]["histogram"] == summary["uncertainty"]["overall"]["histogram"]


@pytest.mark.parametrize("count", range(1, 13))
def test_contact_sheet_shows_each_record_once(tmp_path: Path, count: int) -> None:
    # All tie, so only the ids tell them apart.
    records = store(tmp_path, [ok(f"r{n}", "A", 2.0) for n in range(count)])
    chosen = [picked["record_id"] for picked in summarise(records)["contact_sheet"]]
    assert len(set(chosen)) == len(chosen) == min(count, 9)


def test_pictures_are_in_the_frame_and_in_the_order_asked(tmp_path: Path) -> None:
    others = [ok(f"d{n}", "B", 5.0 + n) for n in range(7)]
    records = store(tmp_path, [ok("b", "A", 3.0), failed("c", "A", "blank")], [*others, ok("a", "B", 4.0)])
    rows = chosen_rows(records, ["a", "absent", "b", "a"])
    assert rows.schema.equals(record.RECORD)
    assert rows["record_id"].to_pylist() == ["a", "b"]
    picture = to_picture(rows.to_pylist()[0], np.zeros((FRAME, FRAME), np.uint8), "surest")
    np.testing.assert_allclose(picture.landmarks[:3], [[0, 0], [1, 2], [2, 4]], atol=1e-3)
    assert picture.pixels.mean() == pytest.approx(picture.uncertainty, rel=1e-5)
    assert picture.uncertainty == 4
    assert chosen_rows(records, []).num_rows == 0


def test_page_asks_for_nothing_and_escapes_everything(tmp_path: Path) -> None:
    sources = [HOSTILE, "$x^2$ & co"]
    rows = [ok(f"{HOSTILE}{n}", sources[n % 2], 1.5**n) for n in range(10)]
    html = page(store(tmp_path, [*rows, failed(f'"{HOSTILE}', sources[0], "internal", f"'{HOSTILE}")]))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;9" in html
    assert "$x^2$ &amp; co" in html
    assert html.count("data:image/jpeg;base64,") == 9
    links = re.findall(r"""(?:src|href|action|url\()\s*[=(]?\s*["']?([^"'\s>)]+)""", html)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links), links
    assert "@import" not in html
    assert "network idle 12 %" in html
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", html), re.IGNORECASE)


def test_page_of_demo_weights_warns(tmp_path: Path) -> None:
    records = store(tmp_path, [ok("a", "A", 3.0)])
    assert "not for clinical use" in page(records)
    published = {**RUN, "weights": {**RUN["weights"], "source": "hf://mcosarinsky/CheXmask-U/v1_skip"}}
    assert "not for clinical use" not in render_html(summarise(records), published, [])


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="no records"),
        pytest.param([failed("a", "A", "missing"), failed("b", "B", "new_reason")], id="all failed"),
        pytest.param([ok("a", "A", 3.0)], id="one record"),
        pytest.param([ok("a", "A", 0.0), ok("b", "A", 0.0)], id="no spread, as with one draw"),
        pytest.param([ok("a", "A", 1e-6), ok("b" * 5000, "B" * 300, 1e5)], id="extremes"),
    ],
)
def test_page_of_unusual_runs(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    html = page(store(tmp_path, rows))
    assert html.rstrip().endswith("</html>")
    n_ok = sum(row["status"] == record.OK for row in rows)
    assert html.count("<figure>") == n_ok
    assert ("No image gave a record" in html) == (n_ok == 0)
    assert ("Incomplete run" in html) == (len(rows) < RUN["manifest"]["rows"])
