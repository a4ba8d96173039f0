"""What `read` makes of image files, against recipes computed here step by step."""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from chexmask_u import record
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.steps.read import read
from tests.support.mutants import mutate

FRAME = 1024


def manifest(uris: list[str], source: str = "folder") -> pa.Table:
    ids = [f"{source}/{index}" for index in range(len(uris))]
    empty = [None] * len(uris)
    columns = [ids, uris, [source] * len(uris), ids, empty, empty, empty, empty]
    return pa.table(dict(zip(record.MANIFEST.names, columns, strict=True)), schema=record.MANIFEST)


def read_rows(uris: list[str], source: str = "folder", **settings: Any) -> list[dict[str, Any]]:
    result = read(manifest(uris, source), **settings)
    assert result.schema == record.READ
    return result.to_pylist()


def read_file(path: Path, source: str = "folder") -> dict[str, Any]:
    return read_rows([str(path)], source)[0]


def image_of(row: dict[str, Any]) -> NDArray[np.uint8]:
    assert row["status"] == "ok", row["error"]
    assert row["reason"] is None
    return np.frombuffer(row["image"], np.uint8).reshape(FRAME, FRAME)


def recipe(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Centred square, the odd pixel to the right and bottom; then bilinear to 1024."""
    height, width = grey.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(
        grey, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=(0,)
    )
    return np.asarray(cv2.resize(square, (FRAME, FRAME), interpolation=cv2.INTER_LINEAR), np.uint8)


def texture(height: int, width: int, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Structure at many scales, so that no shift or transposition goes unseen, and JPEG keeps it."""
    noise = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2, channels))
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    image = np.clip(smooth * 256, 0, 255).astype(np.uint8)
    return image[..., 0] if channels == 1 else image


def png_bytes(image: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg_bytes(image: NDArray[Any], *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG with a whole JPEG inside its EXIF segment, as cameras and some viewers write."""
    body = b"Exif\0\0" + jpeg_bytes(texture(30, 40, seed=5))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, scanlines: bytes) -> bytes:
    """An 8-bit grey PNG that may declare another size than its data have; every checksum is right."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(scanlines)) + png_chunk(b"IEND", b"")


def declare_size(jpeg: bytes, width: int, height: int) -> bytes:
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


# Preparation


SIZES = [
    *[(1, 1), (1, 2), (2, 1), (1, 700), (700, 1), (9, 10), (31, 32), (333, 500), (500, 333), (301, 200)],
    *[(1023, 1024), (1024, 1025), (1025, 1022), (2047, 2048), (2000, 3000), (3000, 2000), (1, 9_999)],
]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_is_padded_to_a_centred_square_and_resized(tmp_path: Path, height: int, width: int) -> None:
    grey = texture(height, width)
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(grey))
    row = read_file(path)
    assert (image_of(row) == recipe(grey)).all()
    assert (row["height"], row["width"]) == (height, width)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_of_1024_keeps_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), texture(FRAME, FRAME))
    assert (image_of(read_file(path)) == cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).all()


def _write_8_bit(folder: Path, name: str) -> Path:
    grey, colour = texture(211, 300), texture(211, 300, 3)
    pil = Image.fromarray(colour)
    alpha = Image.fromarray(texture(211, 300, seed=2))
    path = folder / name
    writers = {
        "grey.png": lambda: cv2.imwrite(str(path), grey),
        "colour.png": lambda: cv2.imwrite(str(path), colour),
        "colour-alpha.png": lambda: cv2.imwrite(str(path), np.dstack([colour, np.asarray(alpha)])),
        "grey-alpha.png": lambda: Image.merge("LA", [Image.fromarray(grey), alpha]).save(path),
        "palette.png": lambda: pil.quantize(200).save(path),
        "palette-transparent.png": lambda: pil.quantize(16).save(path, transparency=3),
        "bilevel.png": lambda: Image.fromarray(grey).convert("1").save(path),
        "grey.jpg": lambda: cv2.imwrite(str(path), grey),
        "colour.jpg": lambda: cv2.imwrite(str(path), colour),
        "cmyk.jpg": lambda: pil.convert("CMYK").save(path),
        "progressive.jpg": lambda: pil.save(path, progressive=True),
        "restart-markers.jpg": lambda: cv2.imwrite(str(path), grey, [cv2.IMWRITE_JPEG_RST_INTERVAL, 3]),
        "thumbnail.jpg": lambda: path.write_bytes(with_thumbnail(jpeg_bytes(grey))),
        "trailing-bytes.jpg": lambda: path.write_bytes(jpeg_bytes(grey) + b"trailer \xff\xda of a camera"),
        "trailing-bytes.png": lambda: path.write_bytes(png_bytes(grey) + b"trailer"),
        "png-named.jpg": lambda: path.write_bytes(png_bytes(grey)),
    }
    writers[name]()
    return path


@pytest.mark.parametrize(
    "name",
    [
        *["grey.png", "colour.png", "colour-alpha.png", "grey-alpha.png", "palette.png", "palette-transparent.png"],
        *["bilevel.png", "grey.jpg", "colour.jpg", "cmyk.jpg", "progressive.jpg", "restart-markers.jpg"],
        *["thumbnail.jpg", "trailing-bytes.jpg", "trailing-bytes.png", "png-named.jpg"],
    ],
)
def test_8_bit_images_become_grey_as_opencv_reads_them(tmp_path: Path, name: str) -> None:
    path = _write_8_bit(tmp_path, name)
    expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert expected is not None
    assert (image_of(read_file(path)) == recipe(expected)).all()


def test_colour_is_weighted_as_television_does(tmp_path: Path) -> None:
    blue_green_red = texture(80, 90, 3)
    path = tmp_path / "colour.png"
    path.write_bytes(png_bytes(blue_green_red))
    grey = np.rint(blue_green_red @ np.array([0.114, 0.587, 0.299])).astype(np.uint8)
    # OpenCV's PNG reader works in fixed point and rounds down.
    assert np.abs(image_of(read_file(path)).astype(int) - recipe(grey)).max() <= 2


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (100, 4195), (1000, 1010), (0, 255)])
def test_16_bit_images_are_scaled_from_their_extremes(tmp_path: Path, low: int, high: int) -> None:
    values = np.random.default_rng(1).integers(low, high + 1, (97, 130)).astype(np.uint16)
    values.flat[:2] = low, high
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(values))
    grey = np.rint((values.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    assert np.abs(image_of(read_file(path)).astype(int) - recipe(grey)).max() <= 1


def test_16_bit_colour_becomes_grey_and_is_scaled(tmp_path: Path) -> None:
    values = (texture(97, 130, 3).astype(np.uint16) + 20) * 12
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(values))
    grey = values @ np.array([0.114, 0.587, 0.299])
    scaled = np.rint((grey - grey.min()) * 255 / (grey.max() - grey.min())).astype(np.uint8)
    assert np.abs(image_of(read_file(path)).astype(int) - recipe(scaled)).max() <= 2


def _hot(values: NDArray[Any], pixels: dict[tuple[int, int], int]) -> NDArray[Any]:
    hot = values.copy()
    for at, value in pixels.items():
        hot[at] = value
    return hot


STRAYS = {
    "a hot pixel": {(300, 200): 65535},
    "a dead pixel": {(300, 200): 0},
    "both": {(0, 0): 65535, (1023, 700): 0},
    "many": {(row, 7 * row % 1024): 9_000 + 800 * (row % 70) for row in range(700)},
    "a line": {(row, 512): 65535 for row in range(1024)},
}


def _deep_png(values: NDArray[Any], kind: int, depth: int, *extra: bytes) -> bytes:
    """A PNG of colour type `kind` with 8 or 16 bits a value, of values [H, W, channels], and further chunks."""
    rows = values.astype(f">u{depth // 8}").reshape(len(values), -1).view(np.uint8)
    scanlines = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], len(values), depth, kind, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + png_chunk(b"IEND", b"")


def test_transparency_and_colour_profiles_change_no_grey(tmp_path: Path) -> None:
    grey = texture(211, 300)
    deep = grey.astype(np.uint16) * 16 + 300
    scaled = cv2.normalize(deep, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    clear = png_chunk(b"tRNS", struct.pack(">H", int(deep[3, 3])))
    gamma = png_chunk(b"gAMA", struct.pack(">I", 100_000)) + png_chunk(b"sRGB", b"\0")
    opacity = texture(211, 300, seed=2)
    files = {
        "grey and alpha": (_deep_png(np.dstack([grey, opacity]), 4, 8), grey),
        "grey and no opacity": (_deep_png(np.dstack([grey, opacity * 0]), 4, 8), grey),
        "grey and alpha of 16 bits": (_deep_png(np.dstack([deep, opacity.astype(np.uint16) * 257]), 4, 16), scaled),
        "one grey clear": (_deep_png(deep, 0, 16, clear), scaled),
        "gamma": (_deep_png(grey, 0, 8, gamma), grey),
        "gamma of 16 bits": (_deep_png(deep, 0, 16, gamma), scaled),
        "significant bits": (_deep_png(deep, 0, 16, png_chunk(b"sBIT", b"\x0c")), scaled),
    }
    path = tmp_path / "image.png"
    for name, (data, expected) in files.items():
        path.write_bytes(data)
        assert (image_of(read_file(path)) == recipe(expected)).all(), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    stored = texture(200, 300)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, options in (("image.png", {}), ("image.jpg", {"quality": 100})):
        Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
        row = read_file(tmp_path / name)
        assert (row["height"], row["width"]) == shown.shape
        assert np.abs(image_of(row).astype(int) - recipe(shown.copy())).max() < 10


@pytest.mark.parametrize("name", STRAYS)
def test_stray_pixels_of_16_bits_leave_the_others_as_they_are(tmp_path: Path, name: str) -> None:
    values = texture(FRAME, FRAME).astype(np.uint16) * 8 + 3000
    rows = {}
    for path, pixels in (("clean.png", values), ("hot.png", _hot(values, STRAYS[name]))):
        (tmp_path / path).write_bytes(png_bytes(pixels))
        rows[path] = read_file(tmp_path / path)
    clean, hot = image_of(rows["clean.png"]), image_of(rows["hot.png"])
    differing = np.argwhere(clean != hot)
    assert {tuple(at) for at in differing.tolist()} <= set(STRAYS[name])
    for at, value in STRAYS[name].items():
        assert hot[at] == (0 if value == 0 else 255)
    # As published: from the minimum to the maximum.
    published = cv2.normalize(_hot(values, STRAYS[name]), None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    bright = np.argwhere(published > 1)
    (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
    row = read_file(tmp_path / "hot.png", "padchest")
    assert (image_of(row) == recipe(published[top:bottom, left:right])).all()


@pytest.mark.parametrize("size", [2, 4])
def test_letters_burned_into_an_image_of_16_bits_leave_the_picture_its_greys(tmp_path: Path, size: float) -> None:
    values = texture(FRAME, FRAME).astype(np.uint16) * 8 + 3000
    # With soft edges, as letters have them.
    drawn = np.zeros((FRAME, FRAME), np.uint8)
    cv2.putText(drawn, "R AP", (60, 300), cv2.FONT_HERSHEY_SIMPLEX, size, 255, round(2.5 * size))
    letters = cv2.GaussianBlur(drawn.astype(np.float32) / 255, (0, 0), 1)
    marked = np.maximum(values, letters * 65535).astype(np.uint16)
    changed = marked != values
    assert 0.002 < changed.mean() < 0.018
    for path, pixels in (("clean.png", values), ("marked.png", marked)):
        (tmp_path / path).write_bytes(png_bytes(pixels))
    clean, shown = (image_of(read_file(tmp_path / path)).astype(int) for path in ("clean.png", "marked.png"))
    # Of soft edges some are as near as parts of a picture may be.
    assert np.ptp(shown[~changed]) > 0.45 * np.ptp(clean)
    assert (shown[letters > 0.5] == 255).all()


@pytest.mark.parametrize(("share", "bright"), [(0.01, 7000), (0.03, 65535), (0.3, 65535)])
def test_bright_parts_of_a_picture_are_no_strays(tmp_path: Path, share: float, bright: int) -> None:
    values = texture(FRAME, FRAME).astype(np.uint16) * 8
    values[: round(share * FRAME)] = bright
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(values))
    assert (image_of(read_file(path)) == cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)).all()


def test_what_little_differs_in_a_16_bit_image_is_the_picture(tmp_path: Path) -> None:
    values = np.full((FRAME, FRAME), 500, np.uint16)
    values[500:510, 500:510] = np.arange(1000, 1100).reshape(10, 10)
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(values))
    assert (image_of(read_file(path)) == cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)).all()


def test_a_constant_16_bit_image_is_black(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(np.full((40, 50), 777, np.uint16)))
    assert not image_of(read_file(path)).any()


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    stored = texture(200, 300)
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    row = read_file(path)
    assert (row["height"], row["width"]) == (300, 200)
    assert np.abs(image_of(row).astype(int) - recipe(np.rot90(stored, -1).copy())).max() < 10


def _bordered(top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
    """A radiograph of 200 x 150 inside a border of 0s and 1s, with black pixels within."""
    inner = np.maximum(texture(200, 150), 2)
    inner[50:60, 50:60] = 0
    image = np.random.default_rng(0).integers(0, 2, (200 + top + bottom, 150 + left + right), np.uint8)
    image[top : top + 200, left : left + 150] = inner
    return image


@pytest.mark.parametrize("border", [(0, 0, 0, 0), (7, 20, 31, 4), (1, 0, 0, 0), (0, 0, 0, 300), (500, 1, 2, 3)])
@pytest.mark.parametrize("source", ["mimic-cxr-jpg", "padchest", "chexpert", "chestx-ray8", "vindr-cxr", "folder"])
def test_only_mimic_and_padchest_lose_their_border(
    tmp_path: Path, source: str, border: tuple[int, int, int, int]
) -> None:
    image = _bordered(*border)
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(image))
    row = read_file(path, source)
    top, _, left, _ = border
    cropped = source in ("mimic-cxr-jpg", "padchest")
    kept = image[top : top + 200, left : left + 150] if cropped else image
    expected = recipe(kept)
    if source == "mimic-cxr-jpg":
        expected = cv2.imdecode(cv2.imencode(".jpg", expected)[1], cv2.IMREAD_GRAYSCALE)
    assert (image_of(row) == expected).all()
    assert (row["height"], row["width"]) == image.shape
    letterbox = row["letterbox"]
    assert (letterbox["crop_top"], letterbox["crop_left"]) == ((top, left) if cropped else (0, 0))
    assert (letterbox["crop_height"], letterbox["crop_width"]) == kept.shape


@pytest.mark.parametrize(("height", "width"), [(1, 9), (9, 1), (9, 2), (2, 9), (1, 1)])
def test_the_border_of_a_line_of_pixels_is_cropped(tmp_path: Path, height: int, width: int) -> None:
    image = np.zeros((height, width), np.uint8)
    image[height // 3 : 2 * height // 3 + 1, width // 3 : 2 * width // 3 + 1] = 200
    kept = image[image.max(axis=1) > 1][:, image.max(axis=0) > 1]
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(image))
    assert (image_of(read_file(path, "padchest")) == recipe(kept)).all()


# Damage


def _truncations(whole: dict[str, bytes]) -> dict[str, bytes]:
    cuts = {}
    for name, data in whole.items():
        positions = np.linspace(8, len(data) - 20, 25, dtype=int).tolist() + [len(data) - n for n in (12, 4, 3, 2, 1)]
        cuts |= {f"{name} cut at {position} of {len(data)}": data[:position] for position in positions}
    return cuts


def _damaged() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes and the reason that the row must give."""
    grey = texture(120, 150)
    png, jpeg = png_bytes(grey), jpeg_bytes(grey)
    progressive = jpeg_bytes(grey, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    whole = {"png": png, "jpeg": jpeg, "progressive": progressive, "thumbnail": with_thumbnail(jpeg)}
    files = {name: (data, "damaged") for name, data in _truncations(whole).items()}
    data_start = png.index(b"IDAT") + 4
    for position in range(data_start, len(png) - 16, (len(png) - data_start) // 20):
        flipped = png[:position] + bytes([png[position] ^ 0x40]) + png[position + 1 :]
        files[f"png with byte {position} flipped"] = flipped, "damaged"
    line = b"\0" + bytes(100)
    return files | {
        "no bytes": (b"", "empty"),
        "text": (b"<html>404: there is nothing here</html>", "unsupported"),
        "zeros": (bytes(5000), "unsupported"),
        "gif": (b"GIF89a" + bytes(100), "unsupported"),
        "jpeg of 12 bits": (jpeg.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"), "unsupported"),
        "lossless jpeg": (jpeg.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc3\0\x0b\x08"), "unsupported"),
        "first bytes of a png": (png[:8], "damaged"),
        "first bytes of a jpeg": (jpeg[:3], "damaged"),
        "png of no size": (raw_png(0, 0, b""), "damaged"),
        "png of no height": (raw_png(100, 0, b""), "damaged"),
        "jpeg of no size": (declare_size(jpeg, 0, 0), "damaged"),
        "png with half the lines": (raw_png(100, 100, line * 50), "damaged"),
        "png without data": (raw_png(100, 100, b""), "damaged"),
        "png bomb": (raw_png(60_000, 60_000, bytes(60_001)), "too_large"),
        "jpeg bomb": (declare_size(jpeg, 60_000, 60_000), "too_large"),
        "png line that pads to a bomb": (raw_png(60_000, 1, bytes(60_001)), "too_large"),
        "png column that pads to a bomb": (raw_png(1, 60_000, b"\0\0" * 60_000), "too_large"),
        "jpeg line that pads to a bomb": (declare_size(jpeg, 60_000, 1), "too_large"),
        "png of the largest size there is": (raw_png(2**31 - 1, 2**31 - 1, b""), "too_large"),
    }


def test_each_damaged_file_fails_with_its_reason_and_spares_its_neighbours(tmp_path: Path) -> None:
    damaged = list(_damaged().items())
    assert len(damaged) > 150
    good = []
    for index in range(10):
        path = tmp_path / f"good-{index}"
        image = texture(130 + index, 140, seed=index)
        path.write_bytes(png_bytes(image) if index % 2 else jpeg_bytes(image))
        good.append(str(path))
    alone = {uri: read_rows([uri])[0] for uri in good}

    (tmp_path / "folder.png").mkdir()
    bad = [(str(tmp_path / "folder.png"), "missing", "folder"), (str(tmp_path / "vanished.png"), "missing", "vanished")]
    bad.append((str(tmp_path / "good-0" / "below-a-file.png"), "missing", "below a file"))
    bad.append(("nosuch://bucket/image.png", "storage", "unknown scheme"))
    for index, (name, (data, reason)) in enumerate(damaged):
        path = tmp_path / f"bad-{index}"
        path.write_bytes(data)
        bad.append((str(path), reason, name))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for first in range(0, len(bad), 20):
        part = bad[first : first + 20]
        uris = [uri for pair in zip((entry[0] for entry in part), good * 2, strict=False) for uri in pair]
        batch = manifest(uris)
        rows = read(batch)
        assert rows["record_id"].to_pylist() == batch["record_id"].to_pylist()
        assert rows["uri"].to_pylist() == uris
        by_uri = {row["uri"]: row for row in rows.to_pylist()}
        for uri, reason, name in part:
            row = by_uri[uri]
            assert (row["status"], row["reason"]) == ("failed", reason), f"{name}: {row['reason']}, {row['error']}"
            assert row["error"], name
            assert "\n" not in row["error"], name
            assert row["image"] is None, name
            assert row["letterbox"] is None, name
        for uri in set(good) & by_uri.keys():
            assert by_uri[uri]["image"] == alone[uri]["image"]
            assert by_uri[uri]["letterbox"] == alone[uri]["letterbox"]
    # 60,000 x 60,000 pixels would take 3.4 GiB.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 300
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"II*\0" + bytes(99), "TIFF"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\3\4" + bytes(99), "ZIP"),
        (b"Doe, Jane", "by its first bytes"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_name(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(data)
    row = read_file(path)
    assert (row["reason"], told in row["error"], "Jane" in row["error"]) == ("unsupported", True, False)


def test_the_limit_on_size_is_the_users(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    path.write_bytes(raw_png(15_000, 1, bytes(15_001)))
    (refused,) = read_rows([str(path)], max_side=14_999)
    assert refused["reason"] == "too_large"
    assert "15000 x 1" in refused["error"]
    assert "--max-side" in refused["error"]
    (taken,) = read_rows([str(path)], max_side=15_000)
    assert taken["status"] == "ok"


def test_a_failed_row_keeps_the_size_that_the_sources_table_gave(tmp_path: Path) -> None:
    batch = manifest([str(tmp_path / "vanished.png")])
    batch = batch.set_column(6, "height", pa.array([300], pa.int32()))
    batch = batch.set_column(7, "width", pa.array([200], pa.int32()))
    (row,) = read(batch).to_pylist()
    assert (row["status"], row["height"], row["width"]) == ("failed", 300, 200)


def test_an_image_that_is_all_border_is_blank(tmp_path: Path) -> None:
    path = tmp_path / "black.png"
    path.write_bytes(png_bytes(np.ones((50, 60), np.uint8)))
    row = read_file(path, "mimic-cxr-jpg")
    assert (row["status"], row["reason"]) == ("failed", "blank")
    assert read_file(path, "folder")["status"] == "ok"


def test_a_batch_without_rows_stays_empty() -> None:
    assert read(manifest([])).num_rows == 0


def test_whatever_the_bytes_a_row_ends_ok_or_with_a_known_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(2024)
    grey = texture(60, 70)
    exif = io.BytesIO()
    Image.fromarray(grey).save(exif, "JPEG", exif=Image.Exif().tobytes(), dpi=(72, 72), icc_profile=b"profile" * 20)
    seeds = [png_bytes(grey), png_bytes(grey.astype(np.uint16) * 9), jpeg_bytes(grey), exif.getvalue()]
    seeds += [with_thumbnail(jpeg_bytes(texture(60, 70, 3))), jpeg_bytes(grey, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]
    uris = []
    for index in range(400):
        path = tmp_path / str(index)
        path.write_bytes(mutate(seeds[index % len(seeds)], seeds[int(rng.integers(len(seeds)))], rng))
        uris.append(str(path))
    rows = [row for first in range(0, len(uris), 50) for row in read_rows(uris[first : first + 50], max_side=2000)]
    assert len(rows) == len(uris)
    for row in rows:
        assert row["status"] == "ok" or row["reason"] in set(record.REASONS) - {"internal"}, row["error"]
    reasons = [row["reason"] for row in rows]
    # The mutants are neither all alike nor all spared.
    assert "unsupported" in reasons
    assert reasons.count("damaged") > 100
    assert reasons.count(None) > 20


# Names


STRANGE_NAMES = [
    *["two words.png", "a#b.png", "100%.png", "a%20b.png", "ünïcødé 胸.png", "[abc].png", "*.png", "what?.png"],
    *["a::b.png", "~user.png", "{x},y=z&w.png", "quote'\".png", "back\\slash.png", " spaces .png", "a.b.PNG"],
]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_names_are_taken_literally_in_manifest_and_read(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "the images [x]*? #1%20 ü::"
    (folder / "sub folder%2F").mkdir(parents=True)
    content = {}
    for index, name in enumerate([*STRANGE_NAMES, *(f"sub folder%2F/{name}" for name in STRANGE_NAMES)]):
        grey = texture(40, 50, seed=index)
        (folder / name).write_bytes(png_bytes(grey))
        content[name] = recipe(grey)
    output = tmp_path / "list #1%20 [y] ::.parquet"
    list_folder(ManifestFolderSettings(uri=f"{prefix}{folder}", output=f"{prefix}{output}"))
    listed = pq.ParquetFile(output).read()
    rows = read(listed).to_pylist()
    assert [row["image_id"] for row in rows] == sorted(content)
    for row in rows:
        assert (image_of(row) == content[row["image_id"]]).all(), row["image_id"]
    again = read_rows([f"{prefix}{folder}/{row['image_id']}" for row in rows])
    assert [row["image"] for row in again] == [row["image"] for row in rows]


# Size


@pytest.mark.parametrize(
    ("height", "width", "remedy"),
    [
        (200, 300, None),
        (None, 300, None),
        (200, None, None),
        (300, 200, "swap"),
        (201, 300, "correct"),
        (None, 299, "correct"),
    ],
)
def test_an_image_of_another_size_than_the_manifest_says_fails(
    tmp_path: Path, height: int | None, width: int | None, remedy: str | None
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(texture(200, 300)))
    batch = manifest([str(path)])
    for column, (name, value) in enumerate((("height", height), ("width", width)), start=6):
        batch = batch.set_column(column, name, pa.array([value], pa.int32()))
    (row,) = read(batch).to_pylist()
    if remedy is None:
        assert (row["status"], row["height"], row["width"]) == ("ok", 200, 300)
        return
    assert (row["status"], row["reason"], row["image"]) == ("failed", "size_mismatch", None)
    assert "300 x 200" in row["error"]
    assert f"{width or 300} x {height or 200}" in row["error"]
    assert remedy in row["error"]
    # As the manifest has it: that is what has to be looked up.
    assert (row["height"], row["width"]) == (height, width)


def test_a_checksum_fails_wherever_it_stands(tmp_path: Path) -> None:
    png = png_bytes(texture(50, 60))
    text = png_chunk(b"tEXt", b"Comment\0nothing")
    header_end = 8 + 25
    for data in (png[:header_end] + text + png[header_end:], png[:-12] + text + png[-12:]):
        path = tmp_path / "image.png"
        path.write_bytes(data)
        assert read_file(path)["status"] == "ok"
        path.write_bytes(data.replace(b"nothing", b"Nothing"))
        row = read_file(path)
        assert (row["reason"], "checksum" in row["error"]) == ("damaged", True)
