"""ChestX-ray8, in its extended release of 14 findings: frontal PNG files of the NIH Clinical Center."""

from __future__ import annotations

from chexmask_u.sources.base import Source, Table, by_pattern

SOURCE = Source(
    name="chestx-ray8",
    title="ChestX-ray8",
    citation=(
        "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and"
        " Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. IEEE CVPR 2017,"
        " pp. 3462-3471. https://doi.org/10.1109/CVPR.2017.369"
    ),
    licence="no restriction of use; cite the paper, link the download site, acknowledge the NIH Clinical Center",
    terms_url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    access="Download them from the NIH Clinical Center, which provides the data; no account is needed.",
    # The provider restricts no use and asks for attribution only.
    policy="open",
    id_column="Image Index",
    csv_name="ChestX-Ray8",
    expected_rows=112_120,
    layout="images_001..images_012/images/00000001_000.png, or all files in one folder",
    image_id=by_pattern(r"(?:^|/)(\d{8}_\d{3}\.png)$"),
    # Its columns "OriginalImage[Width" and "Height]" are the radiograph's size before the NIH made the PNG file.
    table=Table(r"Data_Entry_2017.*\.csv(\.gz)?", "Image Index", "View Position", ("PA", "AP"), optional=True),
    side=1024,
)
