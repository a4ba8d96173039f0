"""`chexmask-u segment`: files, folders and patterns in, pictures, masks and tables out, and one line for each fault."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.cli import main
from chexmask_u.errors import InputError
from chexmask_u.sources import synthetic
from chexmask_u.use.inputs import find


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "ward").mkdir()
    cv2.imwrite(str(folder / "a.png"), synthetic.draw(0, side=512).image)
    cv2.imwrite(str(folder / "ward" / "b <i>.jpg"), synthetic.draw(1, side=512).image)
    (folder / "ward" / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*arguments: object) -> int:
    return main(["segment", *map(str, arguments), "--samples", "20"])


def rows(output: Path) -> dict[str, dict[str, str]]:
    with (output / "measurements.csv").open() as file:
        return {row["record_id"]: row for row in csv.DictReader(file)}


class Page(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_a_folder_gives_pictures_masks_rows_and_a_page(images, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    output = tmp_path / "out"
    assert run(images, "--output", output, "--label-map", "--preview", "--json") == 1

    alone = cu.segment(images / "ward" / "b <i>.jpg", n_samples=20, record_id="folder/ward/b <i>.jpg")
    for organ in cu.ORGANS:
        mask = cv2.imread(str(output / "ward" / f"b <i>.{organ}.png"), cv2.IMREAD_UNCHANGED)
        assert (mask == 255 * alone.masks[organ]).all()
    labels = cv2.imread(str(output / "ward" / "b <i>.labels.png"), cv2.IMREAD_UNCHANGED)
    assert (labels == alone.label_map).all()
    overlay = cv2.imread(str(output / "ward" / "b <i>.overlay.png"))[..., ::-1].astype(int)
    # Another batch moves landmarks by less than is seen.
    assert np.abs(overlay - alone.picture()).mean() < 0.1

    found = rows(output)
    assert list(found) == ["folder/a.png", "folder/ward/b <i>.jpg", "folder/ward/cut.png"]
    row = found["folder/ward/b <i>.jpg"]
    ratio = alone.measurements["cardiothoracic_ratio"]
    told = [float(row[f"cardiothoracic_ratio{part}"]) for part in ("", "_low", "_high")]
    assert told == pytest.approx([ratio.value, ratio.low, ratio.high])
    assert (row["status"], row["height"], row["heart_width_mm"]) == ("ok", "512", "")
    assert float(row["mean_radius"]) == pytest.approx(alone.mean_radius, rel=1e-2)
    assert float(row["ood_score"]) == pytest.approx(alone.ood_score, abs=1)
    failed = found["folder/ward/cut.png"]
    assert (failed["status"], failed["reason"]) == ("failed", "damaged")

    details = json.loads((output / "measurements.json").read_text())
    assert details["calibration"]["sha256"] == cu.load_calibration("demo").digest
    assert details["images"][1]["radius"]["heart"] > details["images"][1]["uncertainty"]
    assert [one["status"] for one in details["images"]] == ["ok", "ok", "failed"]
    assert details["images"][1]["measurements"]["heart_width_px"]["unit"] == "px"
    assert (output / details["images"][1]["files"]["overlay"]).is_file()

    page = Page((output / "preview.html").read_text())
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert page.tags.count("img") == 2
    assert {"ward/b <i>.jpg", "ward/cut.png", "damaged"} <= set(page.text)
    assert "i" not in page.tags

    printed = capsys.readouterr()
    assert f"Preview: {output / 'preview.html'}" in printed.out
    assert json.loads(printed.out.splitlines()[-1])["failed"] == 1
    assert [line for line in printed.err.splitlines() if "cut.png" in line] == [
        f"{images}/ward/cut.png: the data end before the image does (damaged)"
    ]


def test_the_same_command_again_takes_none_of_its_own_pictures_for_images(images, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes((images / "a.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(".", "--output", "out") == 0
    assert run(".", "--output", "out") == 0
    assert list(rows(tmp_path / "out")) == ["folder/a.png"]


def test_a_folder_holds_one_call(images, tmp_path, capsys):
    output = tmp_path / "out"
    first, second = images / "a.png", tmp_path / "b.png"
    second.write_bytes(first.read_bytes())
    (tmp_path / "kept.png").write_bytes(b"")
    assert run(first, "--output", output, "--label-map", "--preview") == 0
    (output / "mine.png").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    capsys.readouterr()
    assert run(second, "--output", output) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"holds what an earlier call made of other images (1, such as {first}); choose another --output" in said
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    pictures = {f"{organ}.png" for organ in ("overlay", "right_lung", "left_lung", "heart")}
    tables = {"measurements.csv", "measurements.json", "mine.png"}
    assert run(second, "--output", output, "--overwrite") == 0
    assert {path.name for path in output.iterdir()} == {f"b.{name}" for name in pictures} | tables
    assert run(first, second, "--output", output) == 0
    assert list(rows(output)) == ["folder/a.png", "folder/b.png"]
    details = json.loads((output / "measurements.json").read_text())
    details["images"][1]["files"]["heart"] = "../kept.png"
    (output / "measurements.json").write_text(json.dumps(details))
    assert run(second, "--output", output, "--overwrite") == 0
    assert (tmp_path / "kept.png").exists()


def test_a_folder_of_failures_alone_is_told_apart(images, tmp_path, capsys):
    assert run(images / "ward" / "cut.png", tmp_path / "gone.png", "--output", tmp_path / "out") == 2
    assert [row["reason"] for row in rows(tmp_path / "out").values()] == ["damaged", "missing"]
    assert "0 of 2 images" in capsys.readouterr().out


def names(*given: object, output: object = "/nowhere") -> list[str]:
    return [one.image_id for one in find([str(one) for one in given], str(output)).images]


def test_files_folders_and_patterns_name_images_as_a_manifest_does(images, monkeypatch):
    assert names(images) == ["a.png", "ward/b <i>.jpg", "ward/cut.png"]
    assert names(images / "ward" / "cut.png") == ["cut.png"]
    assert names(images / "*" / "*.png") == ["ward/cut.png"]
    assert names(images / "**" / "*.png") == ["a.png", "ward/cut.png"]
    # Each image once.
    assert names(images, images / "a.png", images / "a*") == ["a.png", "ward/b <i>.jpg", "ward/cut.png"]
    monkeypatch.chdir(images)
    assert names("ward") == ["b <i>.jpg", "cut.png"]
    # It is not left out in silence.
    Path("ward", "lost.png").symlink_to("nowhere.png")
    assert names("ward") == ["b <i>.jpg", "cut.png", "lost.png"]
    Path("ward", "lost.png").unlink()


def test_files_of_other_names_are_told_and_taken_where_that_is_asked_for(images, tmp_path, capsys):
    export = tmp_path / "export"
    (export / "series").mkdir(parents=True)
    for name in ("1.2.840.1", "1.2.840.2", "series/7.ima"):
        (export / name).write_bytes((images / "a.png").read_bytes())
    (export / ".DS_Store").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no \.png.* file; --any-name takes files whatever their names"):
        names(export)
    with pytest.raises(InputError, match=r"export/\*: matches no \.png.* file; --any-name takes"):
        names(export / "*")
    assert [one.image_id for one in find([str(export / "*")], "/nowhere", any_name=True).images] == [
        "1.2.840.1",
        "1.2.840.2",
    ]
    (export / "a.png").write_bytes((images / "a.png").read_bytes())
    output = tmp_path / "out"
    assert run(export, "--output", output, "--samples", "2", "--json") == 0
    printed = capsys.readouterr()
    assert "Other files, passed over (not named as PNG, JPEG or DICOM): 3; --any-name takes files" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["passed_over"] == 3
    assert run(export, "--output", output, "--samples", "2", "--any-name") == 0
    assert "Other files" not in capsys.readouterr().err
    assert len(rows(output)) == 4
    assert (output / "1.2.840.1.heart.png").exists()
    assert (output / "series" / "7.heart.png").exists()


def test_a_link_to_a_folder_that_is_gone_is_named(images, tmp_path, capsys):
    (tmp_path / "ward").symlink_to(tmp_path / "unmounted")
    (tmp_path / "a.png").write_bytes((images / "a.png").read_bytes())
    output = tmp_path / "out"
    assert run(tmp_path, "--output", output, "--calibration", "none", "--json") == 0
    printed = capsys.readouterr()
    assert f"{tmp_path}/ward: a link that leads nowhere; not followed" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["lost"] == {f"{tmp_path}/ward": "a link that leads nowhere"}
    assert rows(output)["folder/a.png"]["mean_radius"] == ""
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"holds no .*; ward is a link that leads nowhere"):
        names(tmp_path, output=output)


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(tmp_path):
    (tmp_path / "scan[1].png").write_bytes(b"")
    assert names(tmp_path / "scan[1].png") == ["scan[1].png"]


def test_urls_are_listed_and_no_secret_becomes_a_name():
    store = fsspec.filesystem("memory")
    store.pipe({"/segment/x/1.png": b"", "/segment/x/y/2.dcm": b"", "/segment/x/y/2.txt": b""})
    assert names("memory://segment/x") == ["1.png", "y/2.dcm"]
    assert names("memory://segment/x/*/*.dcm") == ["y/2.dcm"]
    assert names("https://host.invalid/films/3.png?X-Amz-Signature=secret") == ["3.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{images}/*.dcm"], r"\*\.dcm: matches no \.png"),
        (["{empty}"], "empty: holds no .png"),
        (["{images}/a.png", "{other}/a.png"], "its files would have the names of those of"),
        (["{images}/a.png", "{other}/a.jpg"], "its files would have the names of those of"),
        (["nope://bucket/x.png"], "unknown scheme nope://"),
        (["{images}/A.PNG"], r"/A\.PNG: no such file; did you mean 'a\.png'\?$"),
        (["{images}/wrad"], r"/wrad: no such file or folder; did you mean 'ward'\?$"),
        (["{images}/wrad/cut.png"], r"cut\.png: no such file; there is no folder .*/wrad; did you mean 'ward'\?$"),
    ],
)
def test_what_names_no_images_is_told_in_one_line(images, tmp_path, given, said):
    (tmp_path / "empty").mkdir()
    places = {"images": images, "empty": tmp_path / "empty", "other": tmp_path}
    with pytest.raises(InputError, match=said) as caught:
        names(*(one.format(**places) for one in given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "{images}"], "is not empty and holds no segmentations"),
        (["--output", "{images}/notes.txt/out"], "cannot be written"),
        (["--output", "out", "--source", "No Source"], "cannot name a dataset config"),
        (["--output", "out", "--unsure", "nan"], "--unsure must be more than 0"),
        (["--output", "out", "--calibration", "gone.json"], "gone.json: no such file"),
        (["--output", "out", "--weights", "gone.pt"], "no such weight file"),
    ],
)
def test_bad_usage_is_one_line_before_any_work(images, capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(images / "a.png", *(one.format(images=images) for one in arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chexmask-u: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_all_pictures_share_one_scale_of_colours(images):
    """The same std has the same colour beside any others: the bar below the picture is the same to the pixel."""
    sure, unsure = (cu.segment(images / "a.png", n_samples=count) for count in (1, 5))
    bars = [found.picture()[-62:, -270:] for found in (sure, unsure)]
    assert sure.std.max() == 0 < unsure.std.max()
    np.testing.assert_array_equal(*bars)
