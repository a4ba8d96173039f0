"""PadChest: PNG files of the Hospital San Juan, whose views only the label table tells."""

from __future__ import annotations

from chexmask_u.sources.base import Source, Table, by_pattern

SOURCE = Source(
    name="padchest",
    title="PadChest",
    crop_border=True,
    full_range=True,
    # The published script is empty.
    unknown_steps="how 16 bits became 8, and what the prepared image was saved as, was not published",
    citation=(
        "Bustos A, Pertusa A, Salinas J-M, de la Iglesia-Vayá M. PadChest: A large chest x-ray image dataset with"
        " multi-label annotated reports. Medical Image Analysis 66:101797, 2020."
        " https://doi.org/10.1016/j.media.2020.101797"
    ),
    licence="PadChest Dataset Research Use Agreement (research only)",
    terms_url="https://bimcv.cipf.es/bimcv-projects/padchest/",
    access="Register with BIMCV, accept the Research Use Agreement and download them; they may not be passed on.",
    # Each user agrees to research use and may not pass the images on; who wants what derives from them accepts the
    # same behind the gate.
    policy="gated",
    id_column="ImageID",
    csv_name="Padchest",
    max_first=True,
    # By difference: 657,566 in all; the published analysis counts the 96,184 that have scores.
    expected_rows=96_287,
    layout="NAME.png, in one folder or in those of its archives, 0..54",
    image_id=by_pattern(r"(?:^|/)([^./][^/]*\.png)$"),
    # AP_horizontal is another class of the table: its PA and AP rows alone come to CheXmask's total, but for 10.
    table=Table(r"PADCHEST_chest_x_ray_images_labels_160K.*\.csv(\.gz)?", "ImageID", "Projection", ("PA", "AP")),
)
