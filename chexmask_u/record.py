"""What flows: the Arrow schema of a row after each step, the values of its status, and the schema version.

One row is one source image, from the manifest to the release. Each step adds columns and drops those it used up; a row
that fails keeps its place, with status "failed", a reason from `REASONS` and nulls where results would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS, ORGANS, RARE
from chexmask_u.errors import InputError

SCHEMA_VERSION = "1.2"
"""Of the columns: a larger second number adds some that rows of before have null, a larger first one changes others."""

OK = "ok"
FAILED = "failed"

REASONS: dict[str, str] = {
    "missing": "no object at the URI",
    "forbidden": "the storage refused access",
    "storage": "the storage failed, after retries",
    "empty": "the object holds no bytes",
    "unsupported": "the bytes are no PNG, JPEG or DICOM image, or of a form that is not read",
    "no_pixels": "the DICOM file holds no pixel data",
    "not_radiograph": "the DICOM file holds more than one frame, colour, or pixels that are no whole numbers",
    "damaged": "the image is truncated or its data are corrupt",
    "too_large": "the image declares more pixels, or its file holds more bytes, than the limit",
    "crashed": "the image ended the process that decodes it, twice",
    "timeout": "decoding took longer than its time limit",
    "out_of_memory": "decoding or predicting this one image takes more memory than there is for it",
    "size_mismatch": "the image does not have the height and width that the manifest says",
    "blank": "nothing is left of the image after its border is cropped",
    "internal": "a step failed in a way that nobody foresaw",
    "invalid_prediction": "the network gave values that are not finite, or far outside the image",
}
"""Every reason a row can fail for, and what it means."""


class ReadError(InputError):
    """An image that gives no record, with a reason from `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# The outer list is always 120 long but not of fixed size: of a sliced fixed-size list of fixed-size lists pyarrow 26
# takes and filters wrong rows, without an error, and that is how anybody reads a part of a Parquet file.
LANDMARK_ARRAY = pa.list_(pa.list_(pa.float32(), 2))
"""x then y of the 120 landmarks; `datasets` reads it as an array of 120 x 2."""

NODE_ARRAY = pa.list_(pa.float32(), N_LANDMARKS)

LATENT_ARRAY = pa.list_(pa.float32(), LATENT_SIZE)

LETTERBOX = pa.struct(
    [
        ("crop_left", pa.int32()),
        ("crop_top", pa.int32()),
        ("crop_width", pa.int32()),
        ("crop_height", pa.int32()),
        ("pad_left", pa.int32()),
        ("pad_top", pa.int32()),
        ("scale", pa.float64()),
    ]
)
"""How original pixels map to the 1024 frame: (pixel - crop + pad) * scale. See `chexmask_u.images.letterbox`."""

SPACING = pa.struct(
    [
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
        pa.field("element", pa.string()),
        pa.field("at_detector", pa.bool_()),
    ]
)
"""Millimetres per original pixel, where a DICOM file tells. See `chexmask_u.images.spacing`."""

MANIFEST = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("dice_rca_mean", pa.float32()),
        pa.field("dice_rca_max", pa.float32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
    ]
)
"""One row per source image. Height and width are what the source's tables say, null where they say nothing."""

REQUIRED_MANIFEST_COLUMNS = ("record_id", "uri", "source", "image_id")

_STATUS = [
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("error", pa.string()),
]

READ = pa.schema(
    [
        *MANIFEST,
        *_STATUS,
        pa.field("letterbox", LETTERBOX),
        pa.field("spacing", SPACING),
        # uint8 [1024, 1024] row-major; bytes rather than a tensor column, so that a failed row can hold null.
        pa.field("image", pa.large_binary()),
        pa.field("read_seconds", pa.float32()),
    ]
)

# float32 [N, noise_size] row-major, of the network that predicts; bytes for the same reason.
READY = pa.schema([*READ, pa.field("noise", pa.large_binary())])

PREDICTED = pa.schema(
    [
        *(field for field in READ if field.name not in ("image", "spacing")),
        # Pixels of the 1024 frame until `mask` maps them to original pixels.
        pa.field("landmarks_mean", LANDMARK_ARRAY),
        pa.field("landmarks_std", LANDMARK_ARRAY),
        pa.field("landmarks_xy", NODE_ARRAY),
        pa.field("landmarks_across", NODE_ARRAY),
        pa.field("landmarks_along", NODE_ARRAY),
        pa.field("uncertainty", pa.float32()),
        pa.field("latent_mean", LATENT_ARRAY),
        pa.field("latent_std", LATENT_ARRAY),
        pa.field("latent_uncertainty", pa.float32()),
        pa.field("device", pa.string()),
        pa.field("predict_seconds", pa.float32()),
    ]
)

RECORD = pa.schema(
    [
        *PREDICTED,
        *(pa.field(organ, pa.string()) for organ in ORGANS),
        pa.field("mask_seconds", pa.float32()),
    ]
)
"""A row as a run stores it: landmarks in original pixels, one run-length string per organ at original size."""

NODE_COLUMNS = tuple(field.name for field in PREDICTED if field.type == NODE_ARRAY)
"""What a prediction says of each landmark in one number."""

LANDMARK_RELEASE = pa.schema(
    [
        RECORD.field(name)
        for name in (
            "record_id",
            "source",
            "image_id",
            "height",
            "width",
            "landmarks_mean",
            "landmarks_std",
            "landmarks_xy",
            "landmarks_across",
            "landmarks_along",
            "uncertainty",
            "latent_mean",
            "latent_std",
            "latent_uncertainty",
            "dice_rca_mean",
            "dice_rca_max",
            "letterbox",
        )
    ]
)
"""A row of a release's landmark config: small, typed, free of masks."""

MASK_RELEASE = pa.schema([RECORD.field(name) for name in ("record_id", "height", "width", *ORGANS)])
"""A row of a release's mask config, joined to the landmarks by record_id."""

# Without the error's text, which may name a maintainer's storage.
FAILURE_RELEASE = pa.schema([RECORD.field(name) for name in ("record_id", "source", "image_id", "reason")])
"""A row of a release's list of images that gave no record."""

RELEASED: dict[str, pa.Schema] = {
    "landmarks": LANDMARK_RELEASE,
    "masks": MASK_RELEASE,
    "failures": FAILURE_RELEASE,
}
"""Schema of each kind of config that a release has."""

SINCE = {"landmarks_xy": "1.1", "landmarks_across": "1.2", "landmarks_along": "1.2"}
"""The schema that brought a column, where it is not the first."""

CALIBRATED = pa.schema(
    [
        pa.field("landmarks_radius", NODE_ARRAY),
        pa.field("contour_radius", NODE_ARRAY),
        pa.field("ood_score", pa.float32()),
    ]
)
"""What a calibration adds to the landmark configs of a release."""

RADIUS_COVERAGE = 0.9

ODD_SCORE = 99.0
"""The percentile of `ood_score` from which on a record is counted as unlike the known radiographs."""


def released(kind: str, schema_version: str = SCHEMA_VERSION, *, calibrated: bool = False) -> pa.Schema:
    """Columns of one kind of config in a release.

    Args:
        kind: a key of `RELEASED`.
        schema_version: of the release: an earlier one has fewer columns.
        calibrated: whether it was made with a calibration.
    """
    version = _numbers(schema_version)
    columns = [field for field in RELEASED[kind] if _numbers(SINCE.get(field.name, "1.0")) <= version]
    return pa.schema([*columns, *(CALIBRATED if calibrated and kind == "landmarks" else ())])


def _numbers(schema_version: str) -> tuple[int, ...]:
    return tuple(map(int, schema_version.split(".")))


@dataclass(frozen=True)
class Column:
    """What a released column means, in words for its users.

    Attributes:
        meaning: one phrase.
        unit: of its numbers; "" where it has none.
        shape: of one row's value; () for a single value.
    """

    meaning: str
    unit: str = ""
    shape: tuple[int, ...] = ()


_ORIGINAL = "pixels of the original image"
_FRAME = f"pixels of the {FRAME} frame"

COLUMNS: dict[str, Column] = {
    "record_id": Column("key of the record in every config: source, slash, image id"),
    "source": Column("dataset that the image is of"),
    "image_id": Column("the source's own id of the image"),
    "height": Column("of the original image as shown, after the orientation that EXIF data may ask for", "pixels"),
    "width": Column("of the original image as shown", "pixels"),
    "landmarks_mean": Column("mean of the draws; x then y of each landmark", _ORIGINAL, (N_LANDMARKS, 2)),
    "landmarks_std": Column(
        "standard deviation of the draws (ddof = 0), x then y: the predictive uncertainty. How far the draws lie apart,"
        " which may be far less than how far they lie from the truth",
        _ORIGINAL,
        (N_LANDMARKS, 2),
    ),
    "landmarks_xy": Column(
        "covariance of x and y of the draws (ddof = 0); null in records of runs that were begun before schema 1.1",
        "pixels² of the original image",
        (N_LANDMARKS,),
    ),
    "landmarks_across": Column(
        "standard deviation of the draws across the mean contour, which a mask feels; a draw farther from the others"
        f" than {RARE:g} median distances counts as if it lay so far; null in records of runs that were begun before"
        " schema 1.2",
        _ORIGINAL,
        (N_LANDMARKS,),
    ),
    "landmarks_along": Column("likewise along the contour", _ORIGINAL, (N_LANDMARKS,)),
    "uncertainty": Column("mean over landmarks and axes of the standard deviation: compare images by this one", _FRAME),
    "latent_mean": Column("mean of the latent posterior", "latent units", (LATENT_SIZE,)),
    "latent_std": Column("sigma of the latent posterior", "latent units", (LATENT_SIZE,)),
    "latent_uncertainty": Column("mean of latent_std", "latent units"),
    "dice_rca_mean": Column(
        "Dice RCA (Mean) of the image's CheXmask row: of the published mask, not of this one; null where it has none",
        "0 to 1",
    ),
    "dice_rca_max": Column("Dice RCA (Max) of the same row", "0 to 1"),
    "letterbox": Column(
        "how the image became the 1024 frame: frame = (original - crop + pad) * scale, on each axis",
        "original pixels; scale: frame pixels per original pixel",
    ),
    **{
        organ: Column(
            f"mask of the {organ.replace('_', ' ')}: row-major runs, 1-based 'start length start length ...'",
            _ORIGINAL,
        )
        for organ in ORGANS
    },
    "landmarks_radius": Column(
        f"distance within which the annotated landmark lies for {RADIUS_COVERAGE:.0%} of the landmarks, on images as"
        " those of the calibration; null where there is no landmarks_across",
        _ORIGINAL,
        (N_LANDMARKS,),
    ),
    "contour_radius": Column(
        f"distance within which the annotated contour passes for {RADIUS_COVERAGE:.0%} of the landmarks, likewise",
        _ORIGINAL,
        (N_LANDMARKS,),
    ),
    "ood_score": Column(
        f"percentile among known frontal chest radiographs, by posterior and spread: beyond {ODD_SCORE:.0f} the image"
        " is unlike nearly all of them; null where there is no landmarks_across",
        "0 to 100",
    ),
    "reason": Column("why the image gave no record"),
}
"""What every column of a release means: the one place that knows their units."""
