"""Files that people have and that went wrong here, where they are at hand; other tests make files of these kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chexmask_u.images.decode import decode
from chexmask_u.record import ReadError


@pytest.fixture
def cases(shared: Path) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip(f"the cases are not at {shared / 'cases'}")
    return shared / "cases"


def grey(path: Path) -> NDArray[np.uint8]:
    return decode(path.read_bytes(), max_side=4000)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("voi-lut-too-short/short_16_OW.dcm", "holds 3000 of 4096 entries"),
        ("blank-by-its-header/window_one.dcm", "0028,1050"),
        ("blank-by-its-header/slope_zero.dcm", "0028,1053"),
    ],
)
def test_a_header_at_fault_is_named(cases: Path, name: str, told: str) -> None:
    with pytest.raises(ReadError, match=told) as caught:
        grey(cases / name)
    assert caught.value.reason == "damaged"


@pytest.mark.parametrize(
    "name", ["window-of-width-zero/window_zero.dcm", "sequence-of-length-zero/sq_zero_then_item.dcm"]
)
def test_the_same_drawing_gives_the_same_picture(cases: Path, name: str) -> None:
    assert (grey(cases / name) == grey(cases / "sequence-of-length-zero" / "plain.dcm")).all()


def test_a_hot_pixel_changes_itself_alone(cases: Path) -> None:
    folder = cases / "sixteen-bit-hot-pixel"
    assert (grey(folder / "onehot.png") != grey(folder / "clean.png")).sum() == 1
    # As published: eight greys for the chest.
    assert decode((folder / "onehot.png").read_bytes(), max_side=4000, full_range=True).mean() < 3
