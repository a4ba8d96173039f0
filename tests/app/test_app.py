"""The page in a real browser: what a visitor brings, moves, hides and takes home, and what never leaves the machine."""

from __future__ import annotations

import importlib.util
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.images import bounds
from chexmask_u.sources import synthetic
from tests.app.conftest import MAX_SIDE, Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(site: Site, chromium: Any) -> Iterator[Any]:
    """Opens the page as another visitor."""
    contexts = []

    def another() -> Any:
        context = chromium.new_context(viewport={"width": 1400, "height": 1100})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: site.asked.add(request.url))
        page.goto(site.url)
        page.wait_for_selector("svg.chest")
        return page

    yield another
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two radiographs of sizes that are no square."""
    folder = tmp_path_factory.mktemp("drawings")
    files = [folder / "Ann + Bob (1).png", folder / "other.jpg"]
    cv2.imwrite(str(files[0]), synthetic.draw(1, side=1200).image[:, 100:1000])
    cv2.imwrite(str(files[1]), synthetic.draw(2, side=900).image[50:])
    return files


def bring(page: Any, file: Path) -> None:
    """Open a file, and wait for its picture."""
    page.set_input_files("input[type=file]", file)
    page.wait_for_function("name => document.querySelector('svg.chest title').textContent === name", arg=file.name)


def downloaded(page: Any, button: str) -> tuple[str, bytes]:
    """A file's name and content."""
    with page.expect_download() as download:
        page.get_by_role("button", name=f"↓ {button}", exact=True).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def seen(page: Any) -> np.ndarray:
    """The picture's pixels."""
    shot = page.locator("svg.chest").screenshot()
    return cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR).astype(int)


def paths(page: Any) -> str:
    """The contours on the page."""
    return page.eval_on_selector_all("svg.chest .contour", "all => all.map(one => one.getAttribute('d')).join()")


def black(pixels: np.ndarray) -> float:
    """Share of them."""
    return float((pixels < 12).all(axis=2).mean())


def first(page: Any) -> str:
    return page.locator("svg.chest .contour").first.get_attribute("d")


def test_a_visitor_takes_home_the_masks_that_segment_gives(visit: Any, drawings: list[Path], site: Site) -> None:
    page = visit()
    bring(page, drawings[0])
    assert site.left() == []
    expected = cu.segment(drawings[0])
    name, data = downloaded(page, "Masks")
    assert name == "Ann + Bob (1).masks.zip"
    archive = zipfile.ZipFile(io.BytesIO(data))
    for organ in cu.ORGANS:
        png = np.frombuffer(archive.read(f"Ann + Bob (1).{organ}.png"), np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), 255 * expected.masks[organ])
    _, table = downloaded(page, "CSV")
    header, row = (line.split(",") for line in table.decode().splitlines())
    assert float(row[header.index("uncertainty")]) == expected.uncertainty
    _, png = downloaded(page, "Picture")
    np.testing.assert_array_equal(
        cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB),
        expected.picture(),
    )


def test_contours_move_where_a_visitor_covers_the_picture_and_organs_can_be_hidden(visit: Any) -> None:
    page = visit()
    clean, contours = seen(page), paths(page)
    box = page.locator("svg.chest").bounding_box()
    page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"])
    page.get_by_text("under the square").wait_for()
    covered = seen(page)
    # Discs of the radii lie over most of the square.
    assert black(covered) > black(clean) + 0.01
    assert paths(page) != contours
    before, after = map(float, page.locator(".bar", has_text="under the square").inner_text().split()[3:6:2])
    assert after > 1.2 * before

    heart = page.get_by_role("button", name="heart", exact=True)
    heart.click()
    assert abs(seen(page) - covered).max() > 60
    noise = page.get_by_label("range slider for Noise, grey levels")
    noise.focus()
    noise.press("PageUp")
    page.wait_for_function("d => document.querySelector('svg.chest .contour').getAttribute('d') !== d", arg=first(page))
    # What was hidden stays so in the next picture.
    assert heart.get_attribute("aria-pressed") == "false"
    assert not page.locator("svg.chest .heart .draws").is_visible()
    assert abs(seen(page) - clean).max() > 60


def test_what_cannot_be_read_is_refused_in_the_words_of_read(visit: Any, tmp_path: Path, site: Site) -> None:
    page = visit()
    before = paths(page)
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    hostile.write_bytes(b"%PDF-1.7 and what follows")
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), np.zeros((10, MAX_SIDE + 1), np.uint8))
    heavy = tmp_path / "heavy.dcm"
    with heavy.open("wb") as file:
        file.truncate(bounds.max_bytes(MAX_SIDE) + 1)
    for path in (hostile, wide, heavy):
        with pytest.raises(cu.ReadError) as refusal:
            cu.read_image(path, max_side=MAX_SIDE)
        words = str(refusal.value).removeprefix(f"{path}: ")
        page.set_input_files("input[type=file]", path)
        said = page.get_by_role("alert").filter(has_text=words)
        said.wait_for()
        assert said.inner_text() == f"{path.name}: {words} ({refusal.value.reason})"
    assert paths(page) == before
    assert site.left() == []


def test_two_visitors_see_their_own_images(visit: Any, drawings: list[Path]) -> None:
    first, second = visit(), visit()
    for page, path in zip((first, second), drawings, strict=True):
        page.set_input_files("input[type=file]", path)
    for page, path in zip((first, second), drawings, strict=True):
        page.wait_for_function("name => document.querySelector('svg.chest title').textContent === name", arg=path.name)
    for page, path in zip((first, second), drawings, strict=True):
        table = downloaded(page, "CSV")[1].decode()
        assert f"folder/{path.name}" in table
        assert str(cu.segment(path).uncertainty) in table
