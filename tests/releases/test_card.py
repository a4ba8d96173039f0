"""A release explains itself: to `datasets` and the Hub, to people, to catalogues; and loads as anybody would."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from itertools import chain
from pathlib import Path

import cv2
import datasets
import matplotlib
import matplotlib.pyplot as plt
import mlcroissant
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard
from PIL import Image

from chexmask_u import record, sources
from chexmask_u.errors import InputError
from chexmask_u.releases import card as cards
from chexmask_u.releases.release import MARKER, Release
from chexmask_u.releases.validate import validate
from chexmask_u.runs import sample
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import BIN_EDGES, summarise
from tests.support import invented_runs
from tests.support import real_release as drawn

matplotlib.use("Agg")

CONFIGS = [*chain.from_iterable((source, f"{source}-masks") for source in drawn.SOURCES), "failures"]


@pytest.fixture(scope="module")
def released(tiny_weights, tmp_path_factory, local_ray) -> Path:
    return drawn.make(tmp_path_factory.mktemp("card"), tiny_weights)


@pytest.fixture(scope="module")
def marker(released) -> dict:
    return json.loads((released / MARKER).read_text())


@pytest.fixture(scope="module")
def card(released) -> DatasetCard:
    return DatasetCard.load(released / "README.md")


def load(folder: Path, config: str, cache: Path, **options):
    return datasets.load_dataset(str(folder), config, split="train", cache_dir=str(cache), **options)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_the_card_promises_of_a_config_is_what_datasets_finds(released, tmp_path, config):
    """Without the card's word, `datasets` infers features, rows and sizes from the files."""
    bare = Path(shutil.copytree(released, tmp_path / "bare"))
    text = (bare / "README.md").read_text()
    (bare / "README.md").write_text(re.sub(r"dataset_info:.*?\n---\n", "---\n", text, flags=re.DOTALL))
    inferred = load(bare, config, tmp_path / "inferred").info
    promised = datasets.load_dataset_builder(str(released), config, cache_dir=str(tmp_path / "promised")).info
    assert promised.features == inferred.features
    assert promised.splits["train"].num_examples == inferred.splits["train"].num_examples
    assert promised.splits["train"].num_bytes == inferred.splits["train"].num_bytes
    assert promised.download_size == inferred.download_size
    streamed = load(released, config, tmp_path, streaming=True)
    assert streamed.features == inferred.features
    assert len(list(streamed)) == inferred.splits["train"].num_examples


def test_without_a_config_the_first_source_loads_and_a_local_folder_takes_a_revision(released, tmp_path):
    rows = datasets.load_dataset(str(released), split="train", revision="v1.0.0", cache_dir=str(tmp_path))
    assert set(rows["source"]) == {"chestx-ray8"}


def test_records_reach_pandas_polars_and_torch_with_the_same_numbers(released, tmp_path):
    records = load(released, "chexpert", tmp_path)
    (part,) = (released / "chexpert").glob("landmarks-00000-*")
    expected = np.array(pq.read_table(part)["landmarks_std"].to_pylist(), np.float32)
    assert expected.shape == (5, 120, 2)
    rows = len(expected)
    frame = records.to_pandas()[:rows]
    np.testing.assert_array_equal(np.stack([np.stack(std) for std in frame["landmarks_std"]]), expected)
    for from_polars in (records.to_polars(), polars.read_parquet(released / "chexpert" / "landmarks-*.parquet")):
        np.testing.assert_array_equal(np.array(from_polars["landmarks_std"].to_list(), np.float32)[:rows], expected)
    tensor = records.with_format("torch")[:rows]["landmarks_std"]
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    batch = next(iter(torch.utils.data.DataLoader(records.with_format("torch"), batch_size=rows)))
    np.testing.assert_array_equal(batch["landmarks_std"], expected)


def test_the_cards_snippets_run_as_they_stand(released, card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    snippets = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    assert len(snippets) == 3
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet.replace("ORG/NAME", str(released)), "card", "exec"), names)
    assert names["heart"].shape == (names["masks"][0]["height"], names["masks"][0]["width"])
    assert names["weights"].mean() == pytest.approx(1)
    assert (tmp_path / "record.png").stat().st_size > 10_000
    plt.close("all")


def test_every_column_is_explained_and_has_the_shape_that_the_card_gives(released, card):
    for kind, schema in record.RELEASED.items():
        (part, *_) = released.rglob(f"{kind}-*.parquet")
        table = pq.read_table(part)
        for field in schema:
            column = record.COLUMNS[field.name]
            assert f"| `{field.name}` |" in card.content
            assert column.meaning in card.content
            if field.type != record.LETTERBOX and table[field.name].null_count < len(table):
                assert np.array(table[field.name].drop_null().to_pylist()).shape[1:] == column.shape


def test_every_source_states_its_terms_in_the_card_and_in_its_license_file(released, card):
    for page in (card.content, (released / "LICENSE.md").read_text()):
        for name in drawn.PUBLISHED:
            source = sources.PUBLISHED[name]
            for text in (source.licence, source.terms_url, source.access, source.citation, *source.also_cite):
                assert text in page


def test_a_source_whose_terms_nobody_knows_is_closed_and_says_so(marker):
    """Here even one of which no image succeeded."""
    counts = marker["counts"] | {"hospital": {"ok": 0, "failed": 3}}
    pages = cards.pages(Release("", marker | {"counts": counts}))
    for page in (pages["README.md"], pages["LICENSE.md"]):
        assert b"### hospital\n\n- Terms: `chexmask_u` does not know them." in page
    assert b"I have accepted the terms of hospital" in pages["README.md"]
    assert b"| hospital | none | none | 0 | 3 | withheld |" in pages["README.md"]


def test_people_are_asked_to_accept_the_terms_of_closed_sources_alone(card):
    data = card.data.to_dict()
    assert (data["license"], data["license_link"]) == ("other", "LICENSE.md")
    asked = " ".join(data["extra_gated_fields"])
    assert "CheXpert" in asked
    assert "MIMIC-CXR-JPG" in asked
    assert "ChestX-ray8" not in asked
    assert sources.PUBLISHED["chexpert"].terms_url in data["extra_gated_prompt"]


def test_the_card_counts_what_the_release_holds(released, card, marker):
    assert "| ChestX-ray8 | `chestx-ray8` | `chestx-ray8-masks` | 8 | 4 | open |" in card.content
    assert "| damaged | 8 |" in card.content
    assert marker["weights"]["sha256"] in card.content
    assert marker["manifest"]["sha256"] in card.content
    assert f"numpy {np.__version__}" in card.content


def test_histogram_and_quantiles_are_those_of_the_records(released, card, marker):
    for source in drawn.SOURCES:
        parts = sorted((released / source).glob("landmarks-*"))
        values = np.concatenate([pq.read_table(part)["uncertainty"].to_numpy() for part in parts])
        expected, _ = np.histogram(np.clip(values, BIN_EDGES[0], BIN_EDGES[-1]), BIN_EDGES)
        counts = np.zeros_like(expected)
        for file in (file for file in marker["files"] if file["config"] == source):
            for index, images in file["uncertainty"].items():
                counts[int(index)] += images
        np.testing.assert_array_equal(counts, expected)
        (found,) = re.findall(rf"\| {source} \| 8 \| (\S+) \| (\S+) \| (\S+) \|", card.content)
        assert found == tuple(f"{value:#.3g}" for value in np.quantile(values, (0.05, 0.5, 0.95)))


def test_the_picture_is_of_a_source_that_may_be_shown_and_of_the_record_that_it_names(released, card, marker):
    """Of the sources here one is open, one gated, one withheld, and one drawn."""
    chosen = marker["sample"]
    assert (chosen["source"], chosen["shown"]) == ("chestx-ray8", "std")
    assert f"`{chosen['record_id']}`, the record of median uncertainty of ChestX-ray8" in card.content
    parts = [pq.read_table(part) for part in sorted((released / "chestx-ray8").glob("landmarks-*"))]
    ranked = sorted((row["uncertainty"], row["record_id"]) for part in parts for row in part.to_pylist())
    assert chosen["record_id"] == ranked[len(ranked) // 2][1]
    drawn = cv2.imread(str(released / "sample.jpg"), cv2.IMREAD_GRAYSCALE)

    def likeness(path: Path) -> float:
        """Of an image of the source, where the picture would have it."""
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        height, width = (round(side * 960 / max(image.shape)) for side in image.shape)
        left = max(0, (drawn.shape[1] - width) // 2)
        shown = cv2.resize(drawn[46 : 46 + height, left : left + width], (64, 64), interpolation=cv2.INTER_AREA)
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        return float(np.corrcoef(shown.ravel(), small.ravel())[0, 1])

    images = sorted((released.parents[1] / "chestx-ray8" / "images").glob("drawing-*"))
    assert max(images, key=likeness).name == chosen["record_id"].partition("/")[2]


def test_without_its_source_the_release_shows_no_picture(released, tmp_path):
    """Others' images are not looked for: the run keeps that of one source that may be shown."""
    made = invented_runs.make_release(str(released.parents[1] / "run"), str(tmp_path), exclude=("chestx-ray8",))
    assert "sample" not in made
    assert not Path(made["folder"], "sample.jpg").exists()
    assert "sample.jpg" not in Path(made["folder"], "README.md").read_text()


def test_no_image_of_a_closed_source_is_ever_chosen(tmp_path):
    closed = {name: invented_runs.Records() for name in ("mimic-cxr-jpg", "padchest", "hospital")}
    run = invented_runs.make_run(tmp_path / "run", closed)
    assert sample.choose(Run(run).dataset(), closed) is None
    drawn = invented_runs.make_run(tmp_path / "drawn", {**closed, "synthetic": invented_runs.Records()})
    assert sample.choose(Run(drawn).dataset(), [*closed, "synthetic"])["source"] == "synthetic"


def test_the_card_cites_the_release_the_papers_and_the_software(card):
    (entries,) = re.findall(r"```bibtex\n(.*?)```", card.content, re.DOTALL)
    kinds = re.findall(r"^@(\w+)\{(\w+),", entries, re.MULTILINE)
    assert [kind for kind, _ in kinds] == ["misc", "inproceedings", "article", "article", "software"]
    assert len({key for _, key in kinds}) == len(kinds)
    assert entries.count("{") == entries.count("}")
    assert "10.1038/s41597-024-03358-1" in entries


def test_the_chart_shows_on_dark_and_light_pages_and_says_nothing_of_when_and_where(released):
    with Image.open(released / "uncertainty.png") as chart:
        chart.load()
        assert chart.mode == "RGB"
        assert not chart.text
        pixels = np.asarray(chart)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    assert (pixels < 128).any()


def test_croissant_reads_the_records_and_knows_every_file(released, marker):
    dataset = mlcroissant.Dataset(jsonld=str(released / "croissant.json"))
    (warning,) = dataset.metadata.ctx.issues.warnings
    # A date would make the same run give other bytes.
    assert "datePublished" in warning
    described = {file.id: file.sha256 for file in dataset.metadata.file_objects}
    assert described == {file["path"]: file["sha256"] for file in marker["files"]}
    assert sorted(record_set.id for record_set in dataset.metadata.record_sets) == sorted(CONFIGS)
    rows = list(dataset.records("chexpert"))
    part = pq.read_table(next((released / "chexpert").glob("landmarks-00000-*"))).to_pylist()
    assert len(rows) == 8
    assert [row["chexpert/record_id"].decode() for row in rows[:5]] == [row["record_id"] for row in part]
    np.testing.assert_array_equal(np.array(rows[0]["chexpert/landmarks_mean"]), part[0]["landmarks_mean"])
    assert rows[0]["chexpert/letterbox"]["chexpert/letterbox/scale"] == part[0]["letterbox"]["scale"]


@pytest.mark.parametrize("page", ["README.md", "LICENSE.md", "uncertainty.png", "sample.jpg", "croissant.json"])
def test_an_edited_page_is_found(released, tmp_path, page):
    copy = Path(shutil.copytree(released, tmp_path / "v1.0.0"))
    content = bytearray((copy / page).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / page).write_bytes(content)
    assert hashlib.sha256(content).hexdigest() != hashlib.sha256((released / page).read_bytes()).hexdigest()
    with pytest.raises(InputError, match=page):
        validate(str(copy))


def test_the_notebook_runs(released, tmp_path, monkeypatch, capsys):
    """On the release that a demo leaves, by the names that stand in it."""
    notebook = json.loads((Path(__file__).parents[2] / "notebooks" / "uncertainty.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    demo = tmp_path / "chexmask-u-demo"
    demo.mkdir()
    (demo / "release").symlink_to(released.parent)
    for name in ("images", "landmarks.npz"):
        (demo / name).symlink_to(released.parents[1] / "synthetic" / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    # In its own folder it finds the same.
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    opened: dict = {}
    exec(compile("".join(cells[0]["source"]), "notebook", "exec"), opened)
    assert opened["records"]["record_id"] == names["records"]["record_id"]
    monkeypatch.chdir(tmp_path / "notebooks" / "..")
    said = capsys.readouterr().out
    assert "8 records with an image, 0 without; 4 images without a record" in said
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert len(figures) == 5
    # Both pictures of the first figure have an image below their contours.
    assert [len(axes.images) for axes in figures[0].axes[:2]] == [1, 1]
    plt.close("all")


def test_the_card_and_the_run_s_report_have_one_median(tmp_path: Path) -> None:
    run = invented_runs.make_run(tmp_path / "run", {"a": invented_runs.Records(range(7)), "b": invented_runs.Records()})
    invented_runs.make_release(run, str(tmp_path / "releases"), rows_per_shard=3)
    card = (tmp_path / "releases" / "v1.0.0" / "README.md").read_text()
    reported = summarise(Run(run).dataset())["uncertainty"]["sources"]
    content = json.loads((tmp_path / "releases" / "v1.0.0" / "release.json").read_text())
    assert content["uncertainty"] == {source: reported[source]["quantiles"] for source in "ab"}
    for source in "ab":
        low, median, high = (f"{reported[source]['quantiles'][q]:#.3g}" for q in ("0.05", "0.5", "0.95"))
        assert f"| {source} | {reported[source]['images']} | {low} | {median} | {high} |" in card
