"""A release -> a dataset on the Hugging Face Hub: its files in one commit, then its tag, under each source's terms.

The Hub's main branch shows the newest version and nothing else; earlier ones stay under their tags.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx2
import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from chexmask_u import sources, storage
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.releases import versions
from chexmask_u.releases.release import MARKER, Release
from chexmask_u.releases.validate import validate
from chexmask_u.result import BAD_INPUT, DONE, Result
from chexmask_u.runs.job import check_places
from chexmask_u.settings import PublishSettings

# Files of a release on other storage lie here for a while before they are sent; one shard may be larger than this.
STAGED_BYTES = 1 << 30

# What the Hub itself, or a person on its website, puts into a new repository.
_OF_A_NEW_REPOSITORY = {".gitattributes", "README.md"}

_CONFLICT = (409, 412)
_PASSING = (408, 429)

# How the Hub's client says that it tries again.
_ATTEMPT = re.compile(r"\[Retry \d+/\d+\]")

_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")


@dataclass(frozen=True)
class File:
    """One file of a release.

    Attributes:
        path: below the release, and in the repository.
        size: bytes.
        digests: its sha256, and its git id where it is small enough to have been read; the Hub knows it by one of them.
        content: its bytes, unless it is data.
    """

    path: str
    size: int
    digests: frozenset[str]
    content: bytes | None = None


@dataclass(frozen=True)
class Repository:
    """A repository as it is: its newest commit, the commits of its tags, its files with the Hub's digest of each."""

    head: str
    private: bool
    gated: str | bool
    tags: dict[str, str]
    files: dict[str, str]


def publish(settings: PublishSettings) -> dict[str, Any]:
    """Publish a release, or say what would be sent.

    Nothing is sent before the release is found valid and its terms, its version and the repository are found right.
    Files go to the root of the repository as they are. What an interrupted attempt sent is not sent again.

    Returns:
        What was done, ready for JSON. With `dry_run`, what would be done, and under "refused" why it would not.

    Raises:
        InputError: if the release is not whole, may not be published so, or the Hub refuses it.
        StoppedError: if the Hub failed, could not be reached, or somebody else changed the repository meanwhile.
    """
    check_places({"the release": settings.release})
    release = validate(storage.normalise(settings.release))
    files = _list(release)
    plan = {
        "repo": settings.repo,
        "version": release.version,
        "message": _message(release),
        "terms": {source: policy(source, settings) for source in release.counts},
        "bytes": sum(file.size for file in files),
    }
    refused = _refusal(release, settings)
    if settings.dry_run:
        return plan | _rehearse(release, files, settings, refused)
    if refused:
        raise InputError(refused)
    if huggingface_hub.get_token() is None:
        raise InputError(
            f"{settings.repo}: no Hugging Face token; set HF_TOKEN to one that may write there, or run `hf auth login`"
        )
    with _explained(settings.repo), tempfile.TemporaryDirectory(prefix="chexmask-u-") as staging:
        return plan | _publish(release, files, settings, Path(staging))


def policy(source: str, settings: PublishSettings) -> str:
    """How what derives from a source may be published: "open", "gated" or "withheld"."""
    known = sources.get(source)
    return known.policy if source in sources.PUBLISHED else settings.accepted_terms().get(source, known.policy)


def _refusal(release: Release, settings: PublishSettings) -> str | None:
    """Why the terms of its sources forbid to publish a release so, and what the choices are; None if they do not."""
    terms = {source: policy(source, settings) for source in release.counts}
    accepted = settings.accepted_terms()
    for source in accepted:
        if source in sources.PUBLISHED:
            title = sources.get(source).title
            return f"--accept-terms {source}: the terms of {title} are its providers', not yours to accept for others"
        if source not in terms:
            return f"--accept-terms {source}: the release holds no such source"
    withheld = [source for source, known in terms.items() if known == "withheld"]
    credentialed = [source for source in withheld if source in sources.PUBLISHED]
    if credentialed:
        without = " ".join(f"--exclude {source}" for source in credentialed)
        return (
            f"{settings.repo}: {', '.join(credentialed)} may not be published on the Hub"
            f" ({sources.get(credentialed[0]).licence}: what derives from it is shared under the same agreement)."
            f" Release again with {without}, and share the rest through PhysioNet under that agreement"
        )
    if withheld:
        return (
            f"{settings.repo}: nobody has said under which terms {', '.join(withheld)} may be published. Only who may"
            f" decide it for that data can: say --accept-terms {withheld[0]}=open or {withheld[0]}=gated; or release"
            f" again with --exclude {withheld[0]}"
        )
    return None


def _needing_gate(release: Release, settings: PublishSettings) -> list[str]:
    return [source for source in release.counts if policy(source, settings) == "gated"]


def _refuse_open(release: Release, settings: PublishSettings, gated: str | bool) -> None:
    """Refuse to send a source behind no gate that must have one."""
    needs = _needing_gate(release, settings)
    if needs and not gated:
        raise InputError(
            f"{settings.repo}: {', '.join(needs)} may be published behind a gate only, where each user accepts the"
            f" source's terms, and the repository has none. Say --gated auto or --gated manual to set one up, or"
            f" release again with {' '.join(f'--exclude {source}' for source in needs)}"
        )


def _publish(release: Release, files: list[File], settings: PublishSettings, staging: Path) -> dict[str, Any]:
    api = HfApi()
    repo, version = settings.repo, release.version
    before = _look(api, repo)
    _refuse_open(release, settings, settings.gated or (before is not None and before.gated))
    if before is not None and version in before.tags:
        commit = _check_tag(api, settings, before, files, version)
        return _result(api, _prepare(api, settings, before), settings, "published before", commit)
    if before is not None:
        _check_place(release, settings, before)
    repository = _prepare(api, settings, before)
    commit = repository.head
    if not _holds(repository.files, files):
        commit = _commit(api, release, files, settings, repository, staging)
    try:
        api.create_tag(repo, tag=version, revision=commit, repo_type="dataset", tag_message=_message(release))
    except HfHubHTTPError as error:
        tagged = _look(api, repo) if error.response.status_code in _CONFLICT else None
        if tagged is None or tagged.tags.get(version) != commit:
            raise
    return _result(api, repository, settings, "published", commit)


def _check_tag(api: HfApi, settings: PublishSettings, before: Repository, files: list[File], version: str) -> str:
    """The version is there, which is fine if it is this very release; returns its commit."""
    if not _holds(_files_at(api, settings.repo, before.tags[version]), files):
        raise InputError(
            f"{settings.repo}: holds another {version}, and a published version never changes; release this run as the"
            " version that follows"
        )
    return before.tags[version]


def _result(api: HfApi, repository: Repository, settings: PublishSettings, status: str, commit: str) -> dict[str, Any]:
    return {
        "status": status,
        "commit": commit,
        "url": f"{api.endpoint}/datasets/{settings.repo}",
        "private": repository.private,
        "gated": repository.gated,
    }


def _check_place(release: Release, settings: PublishSettings, before: Repository) -> None:
    """The repository holds the version before this one, or nothing yet, and is as private as wanted."""
    if settings.private and not before.private:
        raise InputError(f"{settings.repo}: is public; make it private in its settings, or leave --private out")
    published = _released(settings.repo, before)
    known = _OF_A_NEW_REPOSITORY
    if published is not None:
        known = known | {MARKER, *published.paths}
    if foreign := sorted(set(before.files) - known):
        raise InputError(
            f"{settings.repo}: holds files of no release, such as {foreign[0]}; publish to a repository of its own"
        )
    if published is None or published.version == release.version:
        return
    if versions.parse(release.version) < versions.parse(published.version):
        raise InputError(
            f"{settings.repo}: shows {published.version}, which is newer than {release.version}; publish versions"
            " in their order"
        )
    change = versions.change(published, release)
    least = versions.after(published.version, change)
    if versions.parse(release.version) < versions.parse(least):
        raise InputError(
            f"{settings.repo}: shows {published.version}; what follows is at least {least}, since"
            f" {versions.MEANING[change]}; release again as that, not as {release.version}"
        )


def _prepare(api: HfApi, settings: PublishSettings, before: Repository | None) -> Repository:
    """The repository to send to: a new one has its gate before others can see it, and before it holds anything."""
    repo = settings.repo
    if before is None:
        try:
            api.create_repo(repo, repo_type="dataset", private=bool(settings.private or settings.gated))
        except HfHubHTTPError as error:
            if error.response.status_code in _CONFLICT:
                raise InputError(f"{repo}: exists, and the token may not see it; choose another --repo") from None
            raise
    if settings.gated and (before is None or before.gated != settings.gated):
        api.update_repo_settings(repo, repo_type="dataset", gated=cast("Literal['auto', 'manual']", settings.gated))
    now = _look(api, repo)
    if now is None or (settings.gated and now.gated != settings.gated):
        raise InputError(f"{repo}: the Hub set no gate; set it in the repository's settings, and publish again")
    if before is None and now.private and not settings.private:
        api.update_repo_settings(repo, repo_type="dataset", private=False)
        now = _look(api, repo)
        if now is None or (settings.gated and now.gated != settings.gated):
            raise InputError(f"{repo}: the Hub dropped the gate; set it in the repository's settings")
    return now


def _commit(
    api: HfApi,
    release: Release,
    files: list[File],
    settings: PublishSettings,
    repository: Repository,
    staging: Path,
) -> str:
    """Send what is not there yet and commit all of it at once; returns the commit, which holds the release."""
    repo = settings.repo
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for batch in _batches(files, local=storage.local_folder(release.url) is not None):
        additions = [_addition(release, file, staging) for file in batch]
        api.preupload_lfs_files(repo, additions, repo_type="dataset")
        for file, addition in zip(batch, additions, strict=True):
            if addition.upload_info.sha256.hex() not in file.digests:
                raise InputError(f"{release.path(file.path)}: changed since it was found valid; release again")
            # What went as a large file is let go of; a small one goes within the commit.
            if isinstance(addition.path_or_fileobj, str):
                addition.path_or_fileobj = Path(addition.path_or_fileobj).read_bytes()
        for staged in staging.iterdir():
            staged.unlink()
        operations += additions
    gone = set(repository.files) - {file.path for file in files} - _OF_A_NEW_REPOSITORY
    operations += [CommitOperationDelete(path, is_folder=False) for path in sorted(gone)]
    try:
        commit = api.create_commit(
            repo, operations, commit_message=_message(release), repo_type="dataset", parent_commit=repository.head
        ).oid
    except (HfHubHTTPError, httpx2.TransportError):
        # The answer can be lost, or be a failure, although the commit was made.
        now = _look(api, repo)
        if now is None or not _holds(now.files, files):
            raise
        commit = now.head
    if not _holds(_files_at(api, repo, commit), files):
        raise InputError(f"{repo}: commit {commit} does not hold the release as it was sent; it gets no tag")
    return commit


def _batches(files: Sequence[File], local: bool) -> Iterator[list[File]]:
    """All files that are on this machine; of others, as many as may be staged at once."""
    batch: list[File] = []
    for file in files:
        if batch and not local and sum(file.size for file in [*batch, file]) > STAGED_BYTES:
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _addition(release: Release, file: File, staging: Path) -> CommitOperationAdd:
    if file.content is not None:
        return CommitOperationAdd(file.path, file.content)
    local = storage.local_folder(release.url)
    if local is not None:
        return CommitOperationAdd(file.path, local / file.path)
    staged = staging / file.path.replace("/", "--")
    fs, path = storage.filesystem(release.path(file.path))
    print(f"publish: fetching {file.path} ({file.size / 1e6:,.1f} MB)", file=sys.stderr)
    try:
        fs.get_file(path, str(staged))
    except OSError as error:
        raise StoppedError(f"{release.path(file.path)}: cannot be fetched ({storage.explain(error)})") from error
    return CommitOperationAdd(file.path, staged)


def _list(release: Release) -> list[File]:
    """The files of a validated release, its marker last."""
    data = {file.path: File(file.path, file.bytes, frozenset([file.sha256])) for file in release.files}
    return [data.get(name) or _small_file(release, name) for name in [*release.paths, MARKER]]


def _small_file(release: Release, name: str) -> File:
    content = release.read(name)
    if content is None:
        raise InputError(f"{release.path(name)}: went missing since it was found valid; release again")
    return File(name, len(content), _digests(content), content)


def _digests(content: bytes) -> frozenset[str]:
    return frozenset(
        [hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()]
    )


def _look(api: HfApi, repo: str) -> Repository | None:
    """The repository as it is now; None if there is none, or none that the token may see."""
    try:
        info = api.dataset_info(repo)
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo, repo_type="dataset").tags}
    except RepositoryNotFoundError:
        return None
    head = str(info.sha)
    return Repository(head, bool(info.private), info.gated or False, tags, _files_at(api, repo, head))


def _files_at(api: HfApi, repo: str, revision: str) -> dict[str, str]:
    """Files of a revision with the Hub's digest: sha256 of large ones, the git id of others."""
    tree = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)
    }


def _released(repo: str, repository: Repository) -> Release | None:
    """The version that main shows, or None if it shows none."""
    if MARKER not in repository.files:
        return None
    folder = f"datasets/{repo}@{repository.head}"
    # Not `Release.open`, which would call a Hub that fails for a moment a folder that cannot be read.
    return Release(f"hf://{folder}", json.loads(HfFileSystem().cat_file(f"{folder}/{MARKER}")))


def _holds(present: dict[str, str], files: Sequence[File]) -> bool:
    """Whether a revision holds all files of a release and no other, but for the Hub's own."""
    return set(present) - {".gitattributes"} == {file.path for file in files} and all(
        present[file.path] in file.digests for file in files
    )


def _rehearse(release: Release, files: list[File], settings: PublishSettings, refused: str | None) -> dict[str, Any]:
    """What would be sent, as far as the Hub can be asked."""
    asked, repository, status = True, None, "would be published"
    try:
        if huggingface_hub.is_offline_mode():
            raise StoppedError("HF_HUB_OFFLINE is set")
        with _explained(settings.repo):
            api = HfApi()
            repository = _look(api, settings.repo)
            _refuse_open(release, settings, settings.gated or (repository is not None and repository.gated))
            if repository is not None and release.version in repository.tags:
                _check_tag(api, settings, repository, files, release.version)
                status = "published before"
            elif repository is not None:
                _check_place(release, settings, repository)
    except StoppedError:
        asked = False
        if not settings.gated and (needs := _needing_gate(release, settings)):
            status = f"would be published only if the repository has a gate, for {', '.join(needs)}"
    except InputError as error:
        refused = refused or str(error)
    present = repository.files if repository is not None else {}
    done = status == "published before"
    return {
        "status": "would be refused" if refused else status,
        "refused": refused,
        "asked": asked,
        "exists": repository is not None,
        "files": [
            {"path": file.path, "bytes": file.size, "send": not done and present.get(file.path) not in file.digests}
            for file in files
        ],
        "delete": sorted(set(present) - {file.path for file in files} - _OF_A_NEW_REPOSITORY) if not done else [],
    }


def _message(release: Release) -> str:
    return f"{release.version}: {release.records:,} records of {', '.join(release.counts)}"


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with a remedy, and keep its own warnings few and unsigned."""
    filters = {handler: _ToldOnce() for handler in logging.getLogger("huggingface_hub").handlers}
    for handler, told_once in filters.items():
        handler.addFilter(told_once)
    try:
        yield
    except (InputError, StoppedError):
        raise
    except Exception as error:
        told = _tell(repo, _origin(error))
        if told is None:
            raise
        # Its cause would show the addresses that uploads went to.
        raise told from None
    finally:
        for handler, told_once in filters.items():
            handler.removeFilter(told_once)


class _ToldOnce(logging.Filter):
    """Lets each warning through once, without the queries of addresses, where a storage's signatures stand.

    The client gives two lines for each of five attempts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _QUERY.sub(r"\1", record.getMessage()), ()
        is_new = record.msg not in self.said and not _ATTEMPT.search(record.msg)
        self.said.add(record.msg)
        return is_new


def _origin(error: BaseException) -> BaseException:
    """The first exception of a chain that says what the Hub answered, or the exception itself."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, HfHubHTTPError | httpx2.TransportError):
            return link
        link = link.__cause__
    return error


def _tell(repo: str, error: BaseException) -> InputError | StoppedError | None:
    """What an exception of the Hub's client means to who publishes; None if it is none of its."""
    endpoint = huggingface_hub.constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return InputError("HF_HUB_OFFLINE is set, which forbids any connection to the Hub; unset it")
    if isinstance(error, HFValidationError):
        return InputError(f"--repo {repo}: must be ORG/NAME, in letters, digits, '-', '_' and '.'")
    if isinstance(error, httpx2.TransportError):
        return StoppedError(f"{endpoint} does not answer ({type(error).__name__})")
    if not isinstance(error, HfHubHTTPError):
        return InputError(f"{repo}: {storage.explain(error)}") if isinstance(error, ValueError) else None
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message") or error.server_message or ""
    answer = _QUERY.sub(r"\1", f"the Hub answered {status}" + (f", {said.splitlines()[0]}" if said else ""))
    if not str(error.response.url).startswith(endpoint):
        return StoppedError(f"{repo}: {answer.replace('the Hub', 'the storage behind the Hub')}")
    if status in _CONFLICT:
        return StoppedError(
            f"{repo}: somebody else changed it meanwhile, and nothing of it was changed here ({answer})"
        )
    if status in _PASSING or status >= 500:
        return StoppedError(f"{repo}: {answer}")
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return InputError(f"{repo}: {answer}; the token is wrong or expired: set HF_TOKEN, or run `hf auth login`")
    if status in (401, 403, 404):
        return InputError(
            f"{repo}: {answer}; is the organisation's name right, and may the token write there?"
            f" {endpoint}/settings/tokens says what it may"
        )
    return InputError(f"{repo}: {answer}")


def verb(settings: PublishSettings) -> Result:
    """`chexmask-u publish`."""
    facts = publish(settings)
    if not settings.dry_run:
        text = f"{facts['repo']} {facts['version']}: {facts['status']}, {facts['url']}/tree/{facts['version']}"
        seen = ["private: only its members can load it"] if facts["private"] else []
        seen += [f"gated: {facts['gated']}"] if facts["gated"] else []
        return Result(facts, "\n  ".join([text, *seen]))
    lines = [f"{facts['repo']}: {facts['status']}; commit {facts['message']!r}, tag {facts['version']}"]
    if not facts["asked"]:
        lines.append("  (the Hub does not answer, so what is there already is not known)")
    lines += [f"  terms of {source}: {policy}" for source, policy in facts["terms"].items()]
    for file in facts["files"]:
        lines.append(f"  {'send' if file['send'] else 'is there':8}  {file['bytes']:>14,}  {file['path']}")
    lines += [f"  {'delete':8}  {'':14}  {path}" for path in facts["delete"]]
    sent = sum(file["bytes"] for file in facts["files"] if file["send"])
    lines.append(f"{sent:,} of {facts['bytes']:,} bytes would be sent")
    refused = facts["refused"]
    return Result(facts, "\n".join(lines), BAD_INPUT if refused else DONE, problem=refused or "")
