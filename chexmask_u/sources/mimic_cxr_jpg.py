"""MIMIC-CXR-JPG 2.x: JPEG files of Beth Israel Deaconess Medical Center, whose views only the metadata table tells."""

from __future__ import annotations

from chexmask_u.sources.base import PHYSIONET_ACCESS, PHYSIONET_CITATION, Source, Table, by_pattern

SOURCE = Source(
    name="mimic-cxr-jpg",
    title="MIMIC-CXR-JPG",
    crop_border=True,
    # The published script wrote its prepared images with OpenCV's default and read them again for inference.
    jpeg_quality=95,
    citation=(
        "Johnson AEW, Pollard TJ, Greenbaum NR, et al. MIMIC-CXR-JPG, a large publicly available database of labeled"
        " chest radiographs. arXiv:1901.07042, 2019. https://doi.org/10.48550/arXiv.1901.07042"
    ),
    also_cite=(
        "Johnson A, Lungren M, Peng Y, Lu Z, Mark R, Berkowitz S, Horng S. MIMIC-CXR-JPG - chest radiographs with"
        " structured labels (version 2.1.0). PhysioNet, 2024. https://doi.org/10.13026/jsn5-t979",
        PHYSIONET_CITATION,
    ),
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    terms_url="https://physionet.org/content/mimic-cxr-jpg/",
    access=PHYSIONET_ACCESS,
    # PhysioNet's guidance: what derives from credentialed data is shared on PhysioNet under the same agreement.
    policy="withheld",
    id_column="dicom_id",
    csv_name="MIMIC-CXR-JPG",
    expected_rows=243_334,
    layout="files/p10/p10000032/s50414267/DICOM_ID.jpg",
    image_id=by_pattern(r"(?:^|/)([0-9a-f]{8}(?:-[0-9a-f]{8}){4})\.jpg$"),
    table=Table(
        r"mimic-cxr-2\.\d+\.\d+-metadata\.csv(\.gz)?", "dicom_id", "ViewPosition", ("PA", "AP"), "Rows", "Columns"
    ),
)
