"""Manifest of a published source: its images joined by id with their CheXmask rows, and all that did not match."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chexmask_u import record, sources, storage
from chexmask_u.errors import InputError, did_you_mean
from chexmask_u.manifests import parquet, source_table
from chexmask_u.manifests.chexmask_csv import MAX, MEAN, among, read_rows
from chexmask_u.manifests.distribution import almost_images, kinds_of_files, list_distribution
from chexmask_u.manifests.problems import PROBLEMS, ProblemLog
from chexmask_u.manifests.reach import missing
from chexmask_u.result import Result
from chexmask_u.settings import ManifestSourceSettings
from chexmask_u.sources.base import Source


@dataclass(frozen=True)
class JoinReport:
    """What a join found.

    Attributes:
        manifest, problems: where they were written.
        source: name of the source.
        rows: rows of the manifest.
        expected_rows: rows of the source in the whole CheXmask data set.
        images: image files of the source below --images.
        other_views: of those, the ones that the source's table says are neither PA nor AP.
        other_frontal: frontal views that the CheXmask data set left out, and so the manifest.
        passed_over: files that are no images of the source, as far as their path tells.
        passed_over_kinds: how many of those have each of the commonest suffixes.
        csv_rows: rows of the CSV; None without one.
        table: the source's own table that was used, or None.
        counts: problems by kind; all of `problems.PROBLEMS`, also where there are none.
    """

    manifest: str
    problems: str
    source: str
    rows: int
    expected_rows: int | None
    images: int
    other_views: int
    other_frontal: int
    passed_over: int
    passed_over_kinds: dict[str, int]
    csv_rows: int | None
    table: str | None
    counts: dict[str, int]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def build(settings: ManifestSourceSettings) -> JoinReport:
    """Write the manifest of one published source, sorted by record id, and beside it what did not match.

    With a CSV, an image needs a row in it, since the CheXmask data set is what is regenerated. What is ambiguous (an id
    of two files, or of rows that differ) is left out and listed, never chosen. Without a CSV, every frontal image that
    the CheXmask data set took is a row without scores, and with `all_frontal` the others are, too. What the source's
    table lists and nobody downloaded is listed, too.

    Raises:
        InputError: if the images, the CSV or the table cannot be read or are not this source's, nothing matches, or a
            URL's scheme is unknown.
    """
    source = _published(settings.source)
    output = storage.normalise(settings.output)
    parquet.check_name(output)
    problems_uri = storage.normalise(settings.problems or re.sub(r"\.parquet$", "", output) + ".problems.csv")
    root = storage.normalise(settings.images)
    files = list_distribution(source, settings.images)
    table_uri = settings.table or (storage.join(root, files.tables[0]) if files.tables else None)
    own = source_table.read(source, source.table, table_uri) if source.table and table_uri else None
    if own is not None:
        _check_table(str(table_uri), own, files.images, settings.images)
    log = ProblemLog()
    lost = [(source.image_id(path) or "", f"{path}: {why}") for path, why in files.lost.items()]
    log.add("not_followed", [image_id for image_id, _ in lost], [detail for _, detail in lost])

    almost = almost_images(source, files.others)
    images, repeated = _one_file_each(files.images, log)
    other = pa.chunked_array([], pa.string()) if own is None else own.filter(pc.invert(own["frontal"]))["id"]
    other_views = among(images["id"], other)
    rows = None
    if settings.chexmask is None:
        images = _frontal_images(source, images, own, log)
        images, other_frontal = (images, 0) if settings.all_frontal else _taken_images(settings, images, None)
        joined = images
        for name in ("mean", "max", "height", "width"):
            joined = joined.append_column(name, pa.nulls(len(images), pa.float64()))
    else:
        rows = read_rows(source, settings.chexmask, own, settings.preprocessed)
        images, other_frontal = _taken_images(settings, images, rows)
        joined = _join(
            settings,
            rows,
            images,
            repeated,
            other,
            log,
            almost,
            views_known=own is not None or not source_table.is_needed(source),
        )
    if own is not None:
        _log_without_file(own, files.images, rows, almost, log)
    joined = _with_sizes(source, joined, own, log, flag=rows is not None and not settings.preprocessed)
    uris = pa.array([storage.join(root, path) for path in joined["path"].to_pylist()], pa.string())
    joined = joined.append_column("uri", uris)
    if settings.check:
        joined = _reachable(settings.images, joined, log)
    table = _manifest_rows(source, joined)
    draft = parquet.draft([table], output, overwrite=settings.overwrite)
    # The manifest comes last: where it is, its list of problems is too.
    log.write(table, problems_uri)
    draft.write()
    return JoinReport(
        manifest=output,
        problems=problems_uri,
        source=source.name,
        rows=len(table),
        expected_rows=source.expected_rows,
        images=len(files.images),
        other_views=pc.sum(other_views).as_py() or 0,
        other_frontal=other_frontal,
        passed_over=len(files.others),
        passed_over_kinds=kinds_of_files(files.others),
        csv_rows=None if rows is None else len(rows),
        table=table_uri if own is not None else None,
        counts=log.counts(),
    )


def _published(name: str) -> Source:
    if name not in sources.PUBLISHED:
        raise InputError(
            f"source {name!r} is not one of {', '.join(sources.PUBLISHED)}{did_you_mean(name, sources.PUBLISHED)};"
            " `chexmask-u manifest folder` lists others"
        )
    return sources.PUBLISHED[name]


def _check_table(uri: str, own: pa.Table, images: pa.Table, root: str) -> None:
    """Raise InputError if the source's own table lists none of the images."""
    if not len(images) or pc.any(among(images["id"], own["id"])).as_py():
        return
    raise InputError(
        f"{uri}: lists none of the {len(images):,} images below {root} (such as {images['id'][0].as_py()!r}) in its"
        f" {len(own):,} rows; give the table of the same distribution, as downloaded"
    )


def _log_without_file(
    own: pa.Table, images: pa.Table, rows: pa.Table | None, almost: dict[str, str], log: ProblemLog
) -> None:
    """Log the frontal views of the source's table that have no image; of rows of the CSV, that is said already."""
    listed = pc.unique(own.filter(own["frontal"])["id"])
    known = images["id"] if rows is None else pa.chunked_array([*images["id"].chunks, *rows["id"].chunks])
    absent = listed.filter(pc.invert(pc.is_in(listed, value_set=known.combine_chunks()))).to_pylist()
    log.add("no_file", absent, [_no_file(image_id, almost) for image_id in absent])


def _no_file(image_id: str, almost: dict[str, str]) -> str:
    return f"no file of this id below --images{almost.get(image_id, '')}"


def _one_file_each(images: pa.Table, log: ProblemLog) -> tuple[pa.Table, pa.Array]:
    """Images without those whose id several files have, and the ids of those."""
    counted = pc.value_counts(images["id"])
    repeated = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    if not len(repeated):
        return images, repeated
    clashes = images.filter(pc.is_in(images["id"], repeated))
    folders: dict[str, list[str]] = {}
    for image_id, path in zip(clashes["id"].to_pylist(), clashes["path"].to_pylist(), strict=True):
        folders.setdefault(image_id, []).append(path)
    details = []
    for paths in folders.values():
        # The first folder tells two copies of a distribution apart; deeper ones may hold a patient's number.
        first = sorted({path.split("/", 1)[0] if "/" in path else "." for path in paths})
        details.append(f"{len(paths)} files below {', '.join(first)}; keep one of them")
    log.add("two_files", list(folders), details)
    return images.filter(pc.invert(pc.is_in(images["id"], repeated))), repeated


def _frontal_images(source: Source, images: pa.Table, own: pa.Table | None, log: ProblemLog) -> pa.Table:
    """Without a CSV, the source's table alone tells frontal views, unless there is no need to."""
    if own is None:
        if not source_table.is_needed(source):
            return images
        raise InputError(
            f"{source.title}: no table {source_table.official_name(source)} below --images, and no --chexmask, to tell"
            " frontal views from others; give --table or --chexmask"
        )
    known = among(images["id"], own["id"])
    log.add("not_in_table", images.filter(pc.invert(known))["id"], "not in the source's table")
    return images.filter(among(images["id"], own.filter(own["frontal"])["id"]))


def _taken_images(settings: ManifestSourceSettings, images: pa.Table, rows: pa.Table | None) -> tuple[pa.Table, int]:
    """Images that the CheXmask data set took, by their id or because a row names them, and how many it did not."""
    in_chexmask = sources.get(settings.source).in_chexmask
    taken = pa.chunked_array([[in_chexmask(image_id) for image_id in images["id"].to_pylist()]], pa.bool_())
    kept = images.filter(taken if rows is None else pc.or_(taken, among(images["id"], rows["id"])))
    if len(images) and not len(kept):
        remedy = "--all-frontal lists them" if rows is None else "and no row of --chexmask names one"
        raise InputError(f"--images {settings.images}: CheXmask took none of its {len(images):,} views; {remedy}")
    return kept, len(images) - len(kept)


def _join(
    settings: ManifestSourceSettings,
    rows: pa.Table,
    images: pa.Table,
    repeated: pa.Array,
    other: pa.ChunkedArray,
    log: ProblemLog,
    almost: dict[str, str],
    *,
    views_known: bool,
) -> pa.Table:
    """Rows of the CSV with the path of their image, matched by id; what does not match goes to the log."""
    unnamed = pc.equal(rows["id"], "")
    if nameless := pc.sum(unnamed).as_py():
        log.add("no_id", [""] * nameless, "a row whose id is empty")
    named = rows.filter(pc.invert(unnamed))
    # An id of two files is logged as that; its row lacks no image.
    unique = _one_row_each(named, log)
    unique = unique.filter(pc.invert(pc.is_in(unique["id"], value_set=repeated)))
    at = pc.index_in(unique["id"], value_set=images["id"].combine_chunks())
    there = pc.is_valid(at)
    joined = unique.filter(there).append_column("path", images["path"].take(at.drop_null()))
    if not len(joined):
        raise InputError(_no_match(settings, named, images, len(repeated)))
    absent = unique.filter(pc.invert(there))["id"].to_pylist()
    log.add("missing_image", absent, [_no_file(image_id, almost) for image_id in absent])
    # Views that the data set never took need no row.
    rowless = pc.invert(pc.or_(among(images["id"], named["id"]), among(images["id"], other)))
    hint = "" if views_known else "; perhaps another view, since the source's table was not found (--table)"
    log.add("missing_row", images.filter(rowless)["id"], f"no row of this id in the CSV{hint}")
    lateral = among(joined["id"], other)
    log.add("other_view", joined.filter(lateral)["id"], "neither PA nor AP by the source's table")
    joined = joined.filter(pc.invert(lateral))
    if not len(joined):
        raise InputError(f"{settings.chexmask}: by the source's table, none of its images is a PA or AP view")
    scored = pc.and_(pc.is_valid(joined["mean"]), pc.is_valid(joined["max"]))
    log.add("no_scores", joined.filter(pc.invert(scored))["id"], f"no {MEAN} or no {MAX}")
    swapped = joined.filter(pc.fill_null(pc.less(joined["max"], joined["mean"]), False))
    details = [
        f"max {high:.6g} < mean {low:.6g}"
        for high, low in zip(swapped["max"].to_pylist(), swapped["mean"].to_pylist(), strict=True)
    ]
    log.add("max_below_mean", swapped["id"], details)
    return joined


def _one_row_each(rows: pa.Table, log: ProblemLog) -> pa.Table:
    """Rows without repetitions: one of those that are alike, none of those that differ."""
    counted = pc.value_counts(rows["id"])
    repeated = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    if not len(repeated):
        return rows
    again = pc.is_in(rows["id"], value_set=repeated)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows.filter(again).to_pylist():
        groups.setdefault(row["id"], []).append(row)
    alike = {name: group for name, group in groups.items() if all(row == group[0] for row in group)}
    differing = {name: group for name, group in groups.items() if name not in alike}
    log.add("duplicate_row", list(alike), [f"{len(group)} rows, all alike" for group in alike.values()])
    log.add("conflicting_rows", list(differing), [f"{len(group)} rows that differ" for group in differing.values()])
    kept = pa.Table.from_pylist([group[0] for group in alike.values()], schema=rows.schema)
    return pa.concat_tables([rows.filter(pc.invert(again)), kept])


def _no_match(settings: ManifestSourceSettings, rows: pa.Table, images: pa.Table, repeated: int) -> str:
    if repeated:
        return (
            f"--images {settings.images}: {repeated:,} image ids have several files each, and no other matches"
            f" {settings.chexmask}; point --images at one copy of the distribution"
        )
    if not len(rows):
        return f"{settings.chexmask}: holds no row with an id; give the CSV of {settings.source} as published"
    # Both are public ids of data sets, never a stranger's file name: `Source.image_id` made one of them.
    return (
        f"none of the {len(images):,} images below {settings.images} (such as {images['id'][0].as_py()!r}) has a row"
        f" in {settings.chexmask} (such as {rows['id'][0].as_py()[:80]!r}); check that both are of {settings.source}"
        " and that --images is the whole distribution"
    )


def _with_sizes(source: Source, joined: pa.Table, own: pa.Table | None, log: ProblemLog, *, flag: bool) -> pa.Table:
    """`joined` with the sizes that the source gives of its files, else those of the CSV; with `flag`, faults logged."""
    csv_height, csv_width = joined["height"], joined["width"]
    if source.side is not None:
        height = width = pa.chunked_array([pa.array([source.side] * len(joined), pa.int32())])
    elif own is not None and source.table is not None and source.table.height_column is not None:
        at = pc.index_in(joined["id"], value_set=own["id"].combine_chunks())
        height, width = own["height"].take(at), own["width"].take(at)
    else:
        height = width = pa.chunked_array([pa.nulls(len(joined), pa.int32())])
    if flag:
        unsized = joined.filter(pc.is_null(csv_height))
        filled = pc.is_valid(height.filter(pc.is_null(csv_height))).to_pylist()
        log.add(
            "no_size",
            unsized["id"],
            ["taken from the source" if there else "not known before reading" for there in filled],
        )
        differs = pc.fill_null(pc.or_(pc.not_equal(csv_height, height), pc.not_equal(csv_width, width)), False)
        sizes = (column.filter(differs).to_pylist() for column in (csv_height, csv_width, height, width))
        details = [
            f"CSV {h}x{w}, source {own_h}x{own_w} (height x width)" for h, w, own_h, own_w in zip(*sizes, strict=True)
        ]
        log.add("size_mismatch", joined.filter(differs)["id"], details)
    joined = joined.set_column(joined.schema.get_field_index("height"), "height", pc.coalesce(height, csv_height))
    return joined.set_column(joined.schema.get_field_index("width"), "width", pc.coalesce(width, csv_width))


def _manifest_rows(source: Source, joined: pa.Table) -> pa.Table:
    ids = joined["id"]
    rows = pa.table(
        {
            "record_id": pc.binary_join_element_wise(source.name, ids, "/"),
            "uri": joined["uri"],
            "source": pa.array([source.name] * len(joined), pa.string()),
            "image_id": ids,
            "dice_rca_mean": joined["mean"],
            "dice_rca_max": joined["max"],
            "height": joined["height"],
            "width": joined["width"],
        }
    )
    return rows.sort_by("record_id").cast(record.MANIFEST)


def _reachable(images: str, joined: pa.Table, log: ProblemLog) -> pa.Table:
    """`joined` without the images that the storage does not give."""
    found = missing(joined["uri"].to_pylist(), images)
    faults = [(i, *problem) for i, problem in zip(joined["id"].to_pylist(), found, strict=True) if problem is not None]
    for kind in sorted({kind for _, kind, _ in faults}):
        ids, details = zip(*((image_id, detail) for image_id, this, detail in faults if this == kind), strict=True)
        log.add(kind, ids, details)
    kept = joined.filter(pa.array([problem is None for problem in found], pa.bool_()))
    if len(joined) and not len(kept):
        reason = Counter(detail for _, _, detail in faults).most_common(1)[0][0]
        raise InputError(f"--images {images}: none of {len(joined):,} images can be opened ({reason})")
    return kept


def verb(settings: ManifestSourceSettings) -> Result:
    """`chexmask-u manifest SOURCE`."""
    report = build(settings)
    expected = "" if report.expected_rows is None else f" (the CheXmask data set has {report.expected_rows:,})"
    lines = [f"{report.manifest}: {report.rows:,} rows of {sources.get(report.source).title}{expected}"]
    if report.other_frontal:
        left_out = "frontal views that the CheXmask data set left out, and so this"
        remedy = "" if settings.chexmask else "; --all-frontal lists them"
        lines.append(f"  passed over: {report.other_frontal:,} ({left_out}{remedy})")
    lines += [f"  {kind}: {count:,} ({PROBLEMS[kind]})" for kind, count in report.counts.items() if count]
    if report.passed_over:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.passed_over_kinds.items())
        lines.append(
            f"  other files, passed over (no image of the source, by their paths): {report.passed_over:,} ({kinds})"
        )
    return Result(report.asdict(), "\n".join([*lines, f"Problems: {report.problems}"]))
