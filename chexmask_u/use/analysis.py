"""What researchers do with a released record: choose, weigh and judge its landmarks, rebuild its masks, draw it.

A `record` is a row of a landmark config as a mapping: of `datasets` in any format, of a pandas or Polars frame, or of
an Arrow table. Standard deviations are taken to the 1024 frame first, where images of any size compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS, ORGANS, REGIONS
from chexmask_u.calibration import row
from chexmask_u.calibration.calibration import Calibration, Of
from chexmask_u.images.preparation import ReadImage
from chexmask_u.pictures.contours import show_band, show_ellipses, show_image, show_nodes, show_outlines
from chexmask_u.pictures.scale import LIMITS, OUTLINES, UNIT, WORDS, Shown, pixel_scale, ticks_between
from chexmask_u.record import RADIUS_COVERAGE
from chexmask_u.steps.mask import organ_mask, rle_decode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Standard deviations below a pixel of the 1024 frame say more of rounding than of the network.
FLOOR = 1.0

# Letters of a record's id in the title of its picture, counted from the end.
_NAME_LENGTH = 60


def frame_landmarks(record: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of a record's landmarks, in pixels of the 1024 frame.

    Returns:
        Two float64 [120, 2], x then y.

    Raises:
        ValueError: if the record lacks a column, or its landmarks are not [120, 2].
    """
    letterbox = row.letterbox(record)
    mean, std = row.points(record, "landmarks_mean"), row.points(record, "landmarks_std")
    return letterbox.to_frame(mean), letterbox.spread_to_frame(std)


def landmark_uncertainty(record: Mapping[str, Any]) -> NDArray[np.float64]:
    """Standard deviation of each landmark, float64 [120], pixels of the 1024 frame: the mean of its two axes.

    It is the spread of the draws, which may be far less than the error; `landmark_radius` tells of that.
    Its mean over the landmarks is the record's ``uncertainty``.
    """
    return row.letterbox(record).spread_to_frame(row.points(record, "landmarks_std")).mean(axis=1)


def contour_spread(record: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviation of each landmark's draws across and along the mean contour, pixels of the 1024 frame.

    A mask or a measurement feels what lies across; along the contour, where annotators differ most, neither does. The
    contour's direction at a landmark is that from the landmark before it to the one behind it; see
    `model.spread.across_and_along` for the formula. A draw that lies far from all others counts as if it lay nearer,
    see `Prediction`: so these say more of the error than ``landmarks_std``.

    Returns:
        Across and along, float64 [120] each.

    Raises:
        ValueError: if the record has no ``landmarks_across``, as those of releases before schema 1.2.
    """
    letterbox = row.letterbox(record)
    across, along = (row.nodes(record, name) for name in ("landmarks_across", "landmarks_along"))
    return letterbox.spread_to_frame(across), letterbox.spread_to_frame(along)


def landmark_radius(
    record: Mapping[str, Any], of: Of = "landmark", calibration: Calibration | None = None
) -> NDArray[np.float64]:
    """Radius of each landmark with a coverage of 90%, float64 [120], pixels of the 1024 frame.

    Args:
        record: of a landmark config.
        of: the distance to the annotated "landmark" or "contour".
        calibration: to compute it with; without, it is what the release holds.

    Raises:
        ValueError: if the release was made without a calibration and none is given, or `calibration.radius` raises one.
    """
    if calibration is not None:
        return calibration.radius(record, RADIUS_COVERAGE, of).astype(np.float64)
    name = "landmarks_radius" if of == "landmark" else "contour_radius"
    letterbox = row.letterbox(record)
    if name not in record:
        raise ValueError(
            f"the record has no {name}: its release was made without a calibration; give one as"
            " calibration=chexmask_u.load_calibration(FILE)"
        )
    return row.nodes(record, name) * letterbox.scale


def trusted_landmarks(
    record: Mapping[str, Any],
    *,
    below: float | None = None,
    quantile: float | None = None,
    within: float | None = None,
    calibration: Calibration | None = None,
) -> NDArray[np.bool_]:
    """Which landmarks to keep, bool [120].

    Args:
        record: of a landmark config.
        below: keep landmarks whose standard deviation is below so many pixels of the 1024 frame. That is how far the
            draws lie apart, which may be far less than how far they lie from the truth.
        quantile: keep this share of the record's landmarks, those whose draws lie least apart, between 0 and 1. It
            keeps as many of an image where all are bad.
        within: keep landmarks whose radius is at most so many pixels of the 1024 frame, see `landmark_radius`.
        calibration: of `within`, for records of a release without radii.

    Raises:
        ValueError: unless exactly one of the three is given, the share is one and no distance is negative; or as
            `landmark_radius` does.
        TypeError: if it is no number, or the record is several.
    """
    if within is not None and below is None and quantile is None:
        return landmark_radius(record, calibration=calibration) <= row.distance(within, "within")
    if within is not None:
        raise ValueError("give only one of below, quantile and within")
    std = landmark_uncertainty(record)
    if below is not None and quantile is None:
        return std < row.distance(below, "below")
    if quantile is not None and below is None and 0 <= row.number(quantile, "quantile") <= 1:
        return std <= np.quantile(std, quantile)
    raise ValueError(
        "give either below or within (pixels of the 1024 frame) or quantile (share of the landmarks, 0 to 1)"
    )


def landmark_weights(
    record: Mapping[str, Any], *, per: Literal["landmark", "region", "organ"] = "landmark", floor: float = FLOOR
) -> NDArray[np.float64]:
    """Weights of the landmarks in a loss or a fit, float64 [120], mean 1: the inverse of their variance.

    A landmark's variance is the mean of its two axes', in the 1024 frame.

    Args:
        record: of a landmark config.
        per: the landmarks that share one weight, that of their mean variance: each alone, a stretch of a contour
            (`REGIONS`), or an organ.
        floor: smaller standard deviations count as this one, pixels of the 1024 frame; bounds the weights.

    Raises:
        ValueError: if `floor` is not positive or `per` is none of the three.
    """
    if not row.number(floor, "floor") > 0:
        raise ValueError(f"floor must be positive, not {floor}")
    spread = row.letterbox(record).spread_to_frame(row.points(record, "landmarks_std"))
    variance = np.maximum(np.square(spread).mean(axis=1), floor**2)
    if per == "landmark":
        groups: list[Any] = []
    elif per in ("region", "organ"):
        groups = [list(nodes) for nodes in REGIONS.values()] if per == "region" else list(LANDMARKS.values())
    else:
        raise ValueError(f"per must be 'landmark', 'region' or 'organ', not {per!r}")
    for nodes in groups:
        variance[nodes] = variance[nodes].mean()
    weights = 1 / variance
    return weights / weights.mean()


def region_uncertainty(record: Mapping[str, Any]) -> dict[str, float]:
    """Mean standard deviation of each organ and each region of its contour, pixels of the 1024 frame.

    The keys are the organs ("left_lung") and the names of `REGIONS` ("left_lung.costophrenic_angle").
    """
    return by_region(landmark_uncertainty(record))


def by_region(pixels: NDArray[Any]) -> dict[str, float]:
    """Mean of a number of each landmark [120] over each organ and region, as `region_uncertainty` names them."""
    organs = {organ: float(pixels[nodes].mean()) for organ, nodes in LANDMARKS.items()}
    return organs | {region: float(pixels[list(nodes)].mean()) for region, nodes in REGIONS.items()}


def record_masks(record: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Masks by organ, uint8 {0, 1} [height, width], original pixels.

    Args:
        record: of a mask config, whose run lengths are decoded, or of a landmark config, whose mean landmarks are
            filled; both give the same masks.

    Raises:
        ValueError: if it is of neither, or damaged.
    """
    height, width = (int(row.column(record, name)) for name in ("height", "width"))
    if ORGANS[0] in record:
        return {organ: rle_decode(str(row.column(record, organ)), height, width) for organ in ORGANS}
    landmarks = row.points(record, "landmarks_mean")
    return {organ: organ_mask(landmarks, organ, height, width) for organ in ORGANS}


def draw_record(
    record: Mapping[str, Any],
    image: ReadImage | NDArray[Any] | None = None,
    ax: Axes | None = None,
    *,
    radius: bool | Calibration = False,
    limits: tuple[float, float] = LIMITS,
) -> Axes:
    """Draw contours by organ, and at each landmark its spread or radius, coloured by it.

    Args:
        record: of a landmark config.
        image: as from `read_image`, which decodes whatever the dataset holds; or grey [height, width] or colour
            [height, width, 3], original pixels. Without, the contours stand alone.
        ax: to draw on; without, a new figure.
        radius: draw discs of the 90% radius that the release holds, or of a calibration given here; else ellipses of
            one standard deviation of the draws, which may be far less than the error.
        limits: pixels of the 1024 frame where the logarithmic colours begin and end; the same ones, which are those of
            a run's report too, make pictures comparable.

    Returns:
        The Axes, in original pixels; `.figure.savefig(...)` writes it.

    Raises:
        ValueError: if the image has not the size that the record gives, or there is no radius to be drawn.
        TypeError: if the image is a path or something else.
    """
    # Only who draws waits for pyplot.
    from matplotlib import pyplot

    if not (image is None or isinstance(image, ReadImage) or np.ndim(image) in (2, 3)):
        raise TypeError(
            "image must be what chexmask_u.read_image gives, or an array [height, width] or [height, width, 3], not"
            f" {row.named(image)}" + ("; read the file first" if isinstance(image, str | PathLike) else "")
        )
    height, width = (int(row.column(record, name)) for name in ("height", "width"))
    if image is not None:
        rows, columns = (image.height, image.width) if isinstance(image, ReadImage) else np.shape(image)[:2]
        if (rows, columns) != (height, width):
            raise ValueError(
                f"image has {rows} rows and {columns} columns, the record {height} and {width};"
                " give the file that the record was made of, as distributed"
            )
    mean = row.points(record, "landmarks_mean")
    shown: Shown = "radius" if radius else "std"
    if radius:
        pixels = landmark_radius(record, calibration=None if radius is True else radius)
    else:
        pixels = landmark_uncertainty(record)
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 7 * height / width + 0.5), layout="constrained")
    show_image(ax, image, height, width)
    if shown == "std":
        show_ellipses(ax, mean, row.points(record, "landmarks_std"), pixels, limits)
    else:
        show_band(ax, mean, pixels, row.letterbox(record).scale, height, width, limits)
        show_nodes(ax, mean, pixels, limits=limits)
    show_outlines(ax, mean)
    ax.set(aspect="equal", xlabel="x, original pixels", ylabel="y, original pixels")
    _describe(ax, record, shown, limits)
    return ax


def _describe(ax: Axes, record: Mapping[str, Any], shown: Shown, limits: tuple[float, float]) -> None:
    """Name the record, the organs and the colours of a picture."""
    name = str(record["record_id"]) if "record_id" in record else ""
    if len(name) > _NAME_LENGTH:
        name = f"…{name[1 - _NAME_LENGTH :]}"
    uncertainty = f"uncertainty {float(row.column(record, 'uncertainty')):.3g} px"
    # A "$" in an id is no formula.
    ax.set_title(f"{name}\n{uncertainty}" if name else uncertainty, loc="left", fontsize=10, parse_math=False)
    for organ, colour in OUTLINES.items():
        ax.plot([], [], color=colour, label=organ.replace("_", " "))
    beside: dict[str, Any] = {"bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "ncols": len(OUTLINES), "fontsize": 8}
    ax.legend(loc="lower right", handlelength=1.2, columnspacing=1, frameon=False, **beside)
    bar = ax.figure.colorbar(pixel_scale(limits), ax=ax, label=f"{WORDS[shown]}, {UNIT}", extend="both", shrink=0.8)
    ticks = ticks_between(limits)
    bar.ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    bar.ax.set_yticks([], minor=True)
