"""VinDr-CXR: DICOM files of two hospitals in Hanoi, all of them frontal."""

from __future__ import annotations

from chexmask_u.sources.base import PHYSIONET_ACCESS, PHYSIONET_CITATION, Source, by_pattern

SOURCE = Source(
    name="vindr-cxr",
    title="VinDr-CXR",
    dicom=True,
    dicom_standard=False,
    full_range=True,
    citation=(
        "Nguyen HQ, Lam K, Le LT, et al. VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations."
        " Scientific Data 9:429, 2022. https://doi.org/10.1038/s41597-022-01498-w"
    ),
    also_cite=(
        "Nguyen HQ, Pham HH, Le LT, Dao M, Lam K. VinDr-CXR: An open dataset of chest X-rays with radiologist"
        " annotations (version 1.0.0). PhysioNet, 2021. https://doi.org/10.13026/3akn-b287",
        PHYSIONET_CITATION,
    ),
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    terms_url="https://physionet.org/content/vindr-cxr/",
    access=PHYSIONET_ACCESS,
    # PhysioNet's guidance: what derives from credentialed data is shared on PhysioNet under the same agreement.
    policy="withheld",
    id_column="image_id",
    csv_name="VinDr-CXR",
    expected_rows=18_000,
    unknown_steps="whether values were rounded or cut to 8 bits was not published",
    layout="train|test/IMAGE_ID.dicom",
    image_id=by_pattern(r"(?:^|/)([^./][^/]*)\.dicom$"),
)
