"""What a run, its report, its release and its card say of how images were prepared, and runs that do not say it yet."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import chexmask_u as cu
from chexmask_u import pipeline
from chexmask_u.errors import InputError
from chexmask_u.runs.identity import told_preparation
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings, ReleaseSettings
from chexmask_u.sources.synthetic import draw

MIMIC = "mimic-cxr-jpg"


def list_images(folder: Path, *sources: str) -> Path:
    """A manifest of one drawing, under the name of each source."""
    cv2.imwrite(str(folder / "drawing.png"), draw(3).image)
    rows = [
        {"record_id": f"{source}/a", "uri": str(folder / "drawing.png"), "source": source, "image_id": "a"}
        for source in sources
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def forget_preparation(run: str) -> None:
    """Leave a run as one is that was made before runs said how images were prepared, and without any JPEG."""
    path = Path(run) / "run.json"
    told = json.loads(path.read_text())
    del told["preparation"], told["numbers"]["preparation"], told["settings"]["preparation"]
    path.write_text(json.dumps(told))


def landmarks(run: str) -> dict[str, np.ndarray]:
    rows = Run(run).dataset().to_table(columns=["source", "landmarks_mean"]).to_pylist()
    return {row["source"]: np.array(row["landmarks_mean"]) for row in rows}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_weights, local_ray) -> dict[str, GenerateSettings]:
    """Finished runs over the same images by their preparation."""
    folder = tmp_path_factory.mktemp("prepared")
    settings = GenerateSettings(
        manifest=str(list_images(folder, "chexpert", MIMIC)), output=".", weights=str(tiny_weights), samples=4
    )
    made = {name: replace(settings, output=str(folder / name), preparation=name) for name in ("published", "lossless")}
    for each in made.values():
        assert pipeline.generate(each)["ok"] == 2
    return made


def test_the_network_sees_what_the_published_one_saw_unless_it_is_told_not_to(runs, tiny_weights):
    found = {name: landmarks(settings.output) for name, settings in runs.items()}
    image = draw(3).image
    again = cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_GRAYSCALE)
    model = cu.load_model(str(tiny_weights))
    for pixels, name, source in (
        (again, "published", MIMIC),
        (image, "published", "chexpert"),
        (image, "lossless", MIMIC),
        (image, "lossless", "chexpert"),
    ):
        expected = cu.predict(model, pixels[None], [f"{source}/a"], n_samples=4).landmarks_mean[0]
        assert np.abs(found[name][source] - expected).max() < 0.01
    assert np.abs(found["published"][MIMIC] - found["lossless"][MIMIC]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "words"), [("published", "through JPEG of quality 95"), ("lossless", "not through the published JPEG")]
)
def test_run_report_release_and_card_say_which_preparation_it_was(runs, tmp_path, name, words):
    run = Path(runs[name].output)
    pipeline.make_release(ReleaseSettings(run=str(run), output=str(tmp_path)))
    pages = [json.loads(file.read_text()) for file in (run / "run.json", run / "report.json")]
    pages.append(json.loads((tmp_path / "v1.0.0" / "release.json").read_text()))
    for page in pages:
        assert set(page["preparation"]) == {"chexpert", MIMIC}
        assert words in page["preparation"][MIMIC]
        assert "black border cropped" in page["preparation"][MIMIC]
        assert "JPEG" not in page["preparation"]["chexpert"]
    for text in ((run / "report.html").read_text(), (tmp_path / "v1.0.0" / "README.md").read_text()):
        assert pages[0]["preparation"][MIMIC] in text


def test_what_nobody_knows_of_padchest_is_said():
    told = told_preparation({}, ["padchest"])["padchest"]
    assert "was not published" in told


def test_an_older_run_of_mimic_goes_on_without_jpeg_alone(runs, tmp_path):
    older = replace(runs["lossless"], output=str(tmp_path / "run"))
    shutil.copytree(runs["lossless"].output, older.output)
    forget_preparation(older.output)
    asked = replace(older, preparation="published")
    with pytest.raises(
        InputError, match=r"--preparation was lossless, now published\); --preparation lossless goes on with it"
    ):
        pipeline.generate(asked)
    assert pipeline.generate(older)["already_done"] == 2
    released = pipeline.make_release(ReleaseSettings(run=older.output, output=str(tmp_path)))
    assert "not through the published JPEG" in released["preparation"][MIMIC]


@pytest.mark.slow
def test_an_older_run_of_other_sources_goes_on_as_it_was(tmp_path, tiny_weights, local_ray):
    settings = GenerateSettings(
        manifest=str(list_images(tmp_path, "chexpert", "padchest")),
        output=str(tmp_path / "run"),
        weights=str(tiny_weights),
        samples=2,
    )
    pipeline.generate(settings)
    forget_preparation(settings.output)
    first = pipeline.make_release(ReleaseSettings(run=settings.output, output=str(tmp_path / "releases")))
    assert pipeline.generate(settings)["already_done"] == 2
    # Nor are its numbers new to the next release, which says more of how they came about.
    marker = tmp_path / "releases" / "v1.0.0" / "release.json"
    told = json.loads(marker.read_text())
    del told["preparation"]
    marker.write_text(json.dumps(told))
    shutil.rmtree(settings.output)
    pipeline.generate(settings)
    second = pipeline.make_release(ReleaseSettings(run=settings.output, output=str(tmp_path / "releases")))
    assert (first["version"], second["version"]) == ("v1.0.0", "v1.0.1")
    assert second["numbers"]["preparation"] == "published"
