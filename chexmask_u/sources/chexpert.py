"""CheXpert: JPEG files of Stanford Hospital, whose names tell frontal from lateral views."""

from __future__ import annotations

import re

from chexmask_u.sources.base import Source

# The full-size distribution's training archives hold the patients without a `train` folder around them.
_PATH = re.compile(
    r"(?:^|/)(?:(?P<split>train|valid|test)|CheXpert-v1\.0 batch \d+ \(train \d+\))"
    r"/(?P<rest>patient\d+/study\d+/view\d+_frontal\.jpg)$"
)


def image_id(path: str) -> str | None:
    """Split, patient, study and view of a path with any prefix, such as CheXpert-v1.0-small."""
    found = _PATH.search(path)
    return f"{found['split'] or 'train'}/{found['rest']}" if found else None


def in_chexmask(image_id: str) -> bool:
    """CheXmask took the first view of a study, where that is frontal, and no second one."""
    return image_id.endswith("/view1_frontal.jpg")


def row_id(value: str) -> str:
    """The same of a CSV's `Path`, which in CheXpert's own tables carries the distribution's folder in front."""
    return image_id(value) or value


SOURCE = Source(
    name="chexpert",
    title="CheXpert",
    citation=(
        "Irvin J, Rajpurkar P, Ko M, et al. CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and"
        " Expert Comparison. AAAI 2019, 33(01):590-597. https://doi.org/10.1609/aaai.v33i01.3301590"
    ),
    licence="Stanford University Dataset Research Use Agreement (non-commercial research)",
    terms_url="https://stanfordmlgroup.github.io/competitions/chexpert/",
    access="Register with Stanford, accept the Research Use Agreement and download them; they may not be passed on.",
    # Each user signs for non-commercial research and may not pass the images on; who wants what derives from them
    # accepts the same behind the gate.
    policy="gated",
    id_column="Path",
    csv_name="CheXpert",
    expected_rows=187_825,
    layout="train|valid/patient00001/study1/view1_frontal.jpg",
    image_id=image_id,
    in_chexmask=in_chexmask,
    row_id=row_id,
)
