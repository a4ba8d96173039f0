"""A release as Croissant metadata (JSON-LD), which dataset catalogues and loaders read.

Written by hand rather than with `mlcroissant`, which is a test's dependency only. The format:
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from chexmask_u import record
from chexmask_u.releases.release import File, Release

NAME = "croissant.json"

# The context that every Croissant 1.1 file opens with.
_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject"),
    *("fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
    *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
    *("source", "subField", "transform"),
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}

_DATA_TYPES = {
    pa.string(): "sc:Text",
    pa.int32(): "cr:Int32",
    pa.float32(): "cr:Float32",
    pa.float64(): "cr:Float64",
}


def render(release: Release, title: str, description: str, cite_as: str) -> str:
    """The JSON-LD of a release: each Parquet file with its sha256, and each config's fields with their units.

    Paths are relative to the release's folder, so that it may lie anywhere.

    Args:
        release: that is described; its pages are not asked for.
        title, description, cite_as: as on the card.
    """
    metadata = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": title,
        "description": description,
        "version": release.version.removeprefix("v"),
        "license": "LICENSE.md",
        "citeAs": cite_as,
        "distribution": [_file(file) for file in release.files]
        + [_file_set(config, glob(files[0])) for config, files in release.configs.items()],
        "recordSet": [_record_set(config, release.schema(files[0].kind)) for config, files in release.configs.items()],
    }
    return json.dumps(metadata, indent=1) + "\n"


def glob(file: File) -> str:
    """Pattern of all files of the config that `file` is of."""
    return f"{file.path.rsplit('/', 1)[0]}/{file.kind}-*.parquet"


def _file(file: File) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": file.sha256,
    }


def _file_set(config: str, glob: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{config}-files",
        "name": f"{config}-files",
        "encodingFormat": "application/x-parquet",
        "includes": glob,
    }


def _record_set(config: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "key": {"@id": f"{config}/record_id"},
        "field": [_field(config, field) for field in schema],
    }


def _field(config: str, field: pa.Field) -> dict[str, Any]:
    column = record.COLUMNS[field.name]
    described = {
        "@type": "cr:Field",
        "@id": f"{config}/{field.name}",
        "name": field.name,
        "description": column.meaning + (f" ({column.unit})" if column.unit else ""),
        "source": {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": field.name}},
    }
    if pa.types.is_struct(field.type):
        # Croissant has no type for a struct column: it reads each member from the same column.
        return described | {"subField": [_member(config, field.name, member) for member in field.type]}
    innermost = field.type
    while pa.types.is_list(innermost) or pa.types.is_fixed_size_list(innermost):
        innermost = innermost.value_type
    described["dataType"] = _DATA_TYPES[innermost]
    if column.shape:
        described |= {"isArray": True, "arrayShape": ",".join(map(str, column.shape))}
    return described


def _member(config: str, parent: str, member: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{config}/{parent}/{member.name}",
        "name": member.name,
        "dataType": _DATA_TYPES[member.type],
        "source": {
            "fileSet": {"@id": f"{config}-files"},
            "extract": {"column": parent},
            "transform": {"jsonPath": member.name},
        },
    }
