"""The pages of a release for people and for the Hub: the dataset card, its chart, the terms, Croissant metadata."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import jinja2
import matplotlib.style
import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from chexmask_u import record, sources
from chexmask_u.anatomy import LANDMARKS, REGIONS
from chexmask_u.pictures.scale import WORDS
from chexmask_u.releases import croissant, loading
from chexmask_u.releases.release import Release, config
from chexmask_u.releases.sample import NAME, Sample
from chexmask_u.runs.figures import Palette, draw_histograms
from chexmask_u.runs.summary import BIN_EDGES

CHART = "uncertainty.png"

# Opaque, since the Hub shows a card on white or on near-black, as its reader likes.
_PAPER = "#ffffff"
_MARGIN = 40
_PALETTE = Palette(ink="#1f2328", muted="#59636e", line="#d1d9e0", bar="#3d7ea6")

CITATIONS: tuple[str, ...] = (
    "Cosarinsky M, Gaggion N, Echeveste R, Ferrante E. CheXmask-U: Quantifying uncertainty in landmark-based anatomical"
    " segmentation for X-ray images. MIDL 2026, PMLR 315:2192-2207. https://proceedings.mlr.press/v315/cosarinsky26a.html",
    "Gaggion N, Mosquera C, Mansilla L, et al. CheXmask: a large-scale dataset of anatomical segmentation masks for"
    " multi-center chest x-ray images. Scientific Data 11:511, 2024. https://doi.org/10.1038/s41597-024-03358-1",
    "Gaggion N, Mansilla L, Mosquera C, Milone DH, Ferrante E. Improving anatomical plausibility in medical image"
    " segmentation via hybrid graph neural networks: applications to chest x-ray analysis. IEEE Transactions on Medical"
    " Imaging 42(2):546-556, 2023. https://doi.org/10.1109/TMI.2022.3224660",
)
"""Beside the release itself: the method's paper, the data set whose scores are carried over, the network's paper."""

_SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)


def pages(release: Release, sample: Sample | None = None) -> dict[str, bytes]:
    """The files of a release that are no data, by name; the same release gives the same bytes.

    Args:
        release: that they are of; its pages are not asked for.
        sample: the picture of a record that release.json names.
    """
    title = f"CheXmask-U {release.version}"
    samples = release.content["numbers"]["samples"]
    description = (
        "Landmarks of both lungs and the heart on frontal chest radiographs with their uncertainty: mean and standard"
        f" deviation over {samples} stochastic decodings of HybridGNet, and masks. No images."
    )
    terms = {name: sources.get(name) for name in release.counts}
    uncertainty = _uncertainty(release)
    common = {"release": release.content, "title": title, "sources": terms}
    citation = f"{title}. Dataset of landmarks with uncertainty, made with chexmask_u {_code(release)}."
    pictures = {CHART: _chart(uncertainty)} | ({NAME: sample.jpeg} if sample else {})
    return {
        **pictures,
        "LICENSE.md": _render("license.md.j2", **common),
        "README.md": _render(
            "card.md.j2",
            **common,
            yaml=_yaml(release, title, terms),
            description=description,
            citations=[citation, *CITATIONS],
            chart=CHART,
            picture=NAME,
            shown=WORDS,
            bibtex=_bibtex(release),
            from_bucket=loading.line(f"s3://BUCKET/FOLDER/{release.version}", release.sources[0]),
            documentation=_documentation(),
            uncertainty=uncertainty["sources"],
            first_source=release.sources[0],
            config=config,
            columns={kind: _columns(release.schema(kind)) for kind in record.RELEASED},
            landmarks={organ: f"{part.start}-{part.stop - 1}" for organ, part in LANDMARKS.items()},
            regions=REGIONS,
            reasons=record.REASONS,
            calibration=release.calibration,
            odd=sum(file.odd or 0 for file in release.files),
            odd_score=record.ODD_SCORE,
            outside=sum(file.outside or 0 for file in release.files),
        ),
        croissant.NAME: croissant.render(release, title, description, " ".join([citation, *CITATIONS])).encode(),
    }


def _bibtex(release: Release) -> str:
    """Entries of this release, and of what it is made of, which the documentation has too."""
    name = f"chexmasku{release.version.replace('.', '')}"
    own = (
        f"@misc{{{name},\n"
        f"  title        = {{{{CheXmask-U}} {release.version}: landmarks with their uncertainty}},\n"
        f"  howpublished = {{Dataset, made with chexmask\\_u {_code(release)}}},\n"
        f"  note         = {{sha256 of the manifest {release.content['manifest']['sha256'][:12]}, of the weights"
        f" {release.content['weights']['sha256'][:12]}}}\n"
        "}\n"
    )
    return f"{own}\n{_template('citations.bib')}".rstrip()


def _documentation() -> str | None:
    """Where the software's documentation is to be read, as its package says; None if it says nothing."""
    try:
        urls = metadata("chexmask-u").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Documentation")


def _code(release: Release) -> str:
    return str(release.content["versions"]["chexmask_u"])


def _yaml(release: Release, title: str, terms: Mapping[str, sources.Source]) -> str:
    """What `datasets` and the Hub read, as they write it themselves."""
    # They take seconds to import, and only a release needs them.
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    configs, infos = MetadataConfigs(), DatasetInfosDict()
    for name, parts in release.configs.items():
        configs[name] = {"data_files": [{"split": "train", "path": croissant.glob(parts[0])}]}
        size = sum(part.arrow_bytes or 0 for part in parts)
        infos[name] = DatasetInfo(
            features=Features.from_arrow_schema(release.schema(parts[0].kind)),
            splits=SplitDict(
                {"train": SplitInfo("train", num_bytes=size, num_examples=sum(part.rows for part in parts))}
            ),
            download_size=sum(part.bytes for part in parts),
            dataset_size=size,
        )
    configs[config(release.sources[0], "landmarks")]["default"] = True
    data = DatasetCardData(
        pretty_name=title,
        # The Hub has no name for several terms at once.
        license="other",
        license_name="terms-of-the-sources",
        license_link="LICENSE.md",
        annotations_creators=["machine-generated"],
        task_categories=["image-segmentation", "keypoint-detection"],
        tags=["medical", "chest-x-ray", "anatomical-landmarks", "uncertainty", "croissant"],
        size_categories=[next((name for limit, name in _SIZE_CATEGORIES if release.records < limit), "1M<n<10M")],
        **_gate(terms),
    )
    configs.to_dataset_card_data(data)
    infos.to_dataset_card_data(data)
    return str(data.to_yaml()).rstrip()


def _gate(terms: Mapping[str, sources.Source]) -> dict[str, Any]:
    """What the Hub asks of people who want access, where a source's terms are not open."""
    closed = [source for source in terms.values() if source.policy != "open"]
    if not closed:
        return {}
    agreements = [
        f"{source.title}: {source.licence}, {source.terms_url}" if source.licence else source.title for source in closed
    ]
    return {
        "extra_gated_heading": "Access under the terms of the source datasets",
        "extra_gated_prompt": (
            "These numbers derive from images that people may use under their providers' terms only, and stand under"
            " the same: " + "; ".join(agreements) + ". They are for research and not for clinical use."
        ),
        "extra_gated_fields": {
            "Name": "text",
            "Affiliation": "text",
            **{f"I have accepted the terms of {source.title} with its provider": "checkbox" for source in closed},
            "I will not pass these data on, nor try to identify anybody": "checkbox",
        },
    }


def _columns(schema: pa.Schema) -> list[dict[str, str]]:
    return [{"name": field.name, "type": _type(field), **vars(record.COLUMNS[field.name])} for field in schema]


def _type(field: pa.Field) -> str:
    """As a researcher would write it: float32 [120, 2]."""
    if pa.types.is_struct(field.type):
        return "struct"
    innermost = field.type
    while pa.types.is_list(innermost) or pa.types.is_fixed_size_list(innermost):
        innermost = innermost.value_type
    name = {pa.float32(): "float32"}.get(innermost, str(innermost))
    shape = record.COLUMNS[field.name].shape
    return f"{name} {list(shape)}" if shape else name


def _uncertainty(release: Release) -> dict[str, Any]:
    """The shards' histograms summed by source and the run's own quantiles, as `figures.draw_histograms` takes them."""
    counts = {source: np.zeros(len(BIN_EDGES) - 1, int) for source in release.sources}
    for file in release.files:
        for index, images in (file.uncertainty or {}).items():
            counts[file.config][int(index)] += images
    return {
        "bin_edges": BIN_EDGES.tolist(),
        "sources": {
            source: {
                "images": int(histogram.sum()),
                "histogram": histogram.tolist(),
                "quantiles": release.content["uncertainty"][source],
            }
            for source, histogram in counts.items()
        },
    }


def _chart(uncertainty: Mapping[str, Any]) -> bytes:
    """One histogram per source, as PNG; without a date or a user's own style, so that the same counts give the same."""
    with matplotlib.style.context("default"):
        figure = draw_histograms(uncertainty, _PALETTE)
        assert figure is not None, "a release holds at least one record"
        drawn, framed = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=200, facecolor=_PAPER)
    # The chart has no margin of its own, and a page may be dark around it.
    ImageOps.expand(Image.open(drawn).convert("RGB"), border=_MARGIN, fill=_PAPER).save(framed, "PNG")
    return framed.getvalue()


@cache
def _environment() -> jinja2.Environment:
    # Markdown, not HTML: nothing is to be escaped.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["digits"] = "{:#.3g}".format
    return environment


def _template(name: str) -> str:
    return (resources.files("chexmask_u") / "templates" / name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> bytes:
    return _environment().get_template(template).render(**values).encode()
