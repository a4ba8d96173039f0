"""A real release of drawn images and tiny weights, as of three published sources and of `generate`'s demo."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import pipeline, storage
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings, ReleaseSettings
from chexmask_u.sources import synthetic

# One of each policy, of which the last has its black border cropped, and drawings.
PUBLISHED = ("chestx-ray8", "chexpert", "mimic-cxr-jpg")
SOURCES = (*PUBLISHED, "synthetic")


def make(folder: Path, weights: Path) -> Path:
    """Draw eight images of each source and four damaged files, run and release them; returns the release.

    The images of a source lie in `folder`/SOURCE/images, as `synthetic.write_demo` names them.
    """
    parts = []
    for seed, source in enumerate(SOURCES):
        synthetic.write_demo(folder / source, count=8, seed=seed)
        manifest = folder / f"{source}.parquet"
        images = str(folder / source / "images")
        list_folder(ManifestFolderSettings(uri=images, output=str(manifest), source=source))
        parts.append(pq.read_table(manifest))
    pq.write_table(pa.concat_tables(parts), folder / "manifest.parquet")
    settings = {"manifest": str(folder / "manifest.parquet"), "output": str(folder / "run"), "weights": str(weights)}
    pipeline.generate(GenerateSettings(**settings, samples=8))
    pipeline.make_release(ReleaseSettings(run=str(folder / "run"), output=str(folder / "release"), rows_per_shard=5))
    return Path(storage.join(str(folder), "release", "v1.0.0"))
