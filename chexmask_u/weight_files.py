"""Weight files: which one a source names, on disk or at one commit on the Hugging Face Hub, and the network in it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from chexmask_u import storage
from chexmask_u.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from chexmask_u.model.network import BaseNetwork, Network

DEMO = "demo"

# In a folder that has several, the earlier one is taken.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

CONFIG = "config.json"

_ANY_SUFFIX = f"{', '.join(WEIGHT_SUFFIXES[:-1])} or {WEIGHT_SUFFIXES[-1]}"

_HUB_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:/(?P<path>[^@]*))?(?:@(?P<revision>.+))?")


@dataclass(frozen=True)
class WeightFile:
    """One weight file, by the source that named it and by what stays the same whatever that source names later.

    Attributes:
        source: as it was given.
        file: its path in the repository, or its absolute path on disk; for the demonstration its name.
        repo, commit: of the Hub; None for a file on disk.
        config: path of the config.json beside it, as `file`; None where there is none, or it was read before.
        sha256: digest that its content must have; None accepts any.
        cached: whether the Hub could not be asked, so that files beside it are looked for in the cache alone.
    """

    source: str
    file: str
    repo: str | None = None
    commit: str | None = None
    config: str | None = None
    sha256: str | None = None
    cached: bool = False

    @property
    def uri(self) -> str:
        """A source that names this very file, on any machine and at any time."""
        if self.source == DEMO:
            return DEMO
        return self.file if self.repo is None else f"hf://{self.repo}/{self.file}@{self.commit}"

    def facts(self) -> dict[str, str | None]:
        """What runs and releases say of it; folders of this machine are nobody's business."""
        file = self.file if self.repo is not None else PurePosixPath(self.file).name
        return {"source": self.source, "commit": self.commit, "file": file}

    def known(self, sha256: str) -> WeightFile:
        """The same for other machines: what was checked here is told there by the digest alone."""
        return replace(self, config=None, sha256=sha256)

    def fetch(self) -> tuple[Path, str]:
        """A copy on this machine, from the Hub at most once, and its sha256.

        Raises:
            CheckpointError: if it cannot be had or read, or has another digest than it must.
        """
        path = self._copy(self.file)
        try:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{self.source}: {path} cannot be read ({error.strerror})") from error
        if self.sha256 in (None, digest):
            return path, digest
        if self.repo is None:
            raise CheckpointError(f"{self.source}: sha256 of {path} is {digest}, not {self.sha256}, as it was before")
        problem = f"{self.source}: the downloaded {self.file} has sha256 {digest}, not {self.sha256}"
        try:
            # The client would link to its copy again; it keys it by the digest that the copy should have.
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{problem}; remove {path} ({error.strerror}), and try again") from error
        raise CheckpointError(f"{problem}; it was removed, try again")

    def read_config(self) -> dict[str, Any]:
        """What the config.json beside it says; nothing where there is none.

        Raises:
            CheckpointError: if it cannot be had, or is no JSON object.
        """
        if self.config is None:
            return {}
        path = self._copy(self.config)
        try:
            config = json.loads(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{self.source}: {path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise CheckpointError(f"{self.source}: {self.config} is no JSON; mend or remove it") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.source}: {self.config} is no JSON object; mend or remove it")
        return config

    def beside(self, name: str) -> Path | None:
        """A copy of the file of that name in the folder of the weights, or None if there is none.

        Raises:
            CheckpointError: if the Hub does not answer.
        """
        return self._other(str(PurePosixPath(self.file).with_name(name)))

    def page(self) -> Path | None:
        """A copy of the page about the weights, likewise: on the Hub that of the repository."""
        return self._other("README.md") if self.repo is not None else self.beside("README.md")

    def _other(self, name: str) -> Path | None:
        if self.repo is None:
            path = self._copy(name)
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, name, revision=self.commit, local_files_only=self.cached))
        except Exception as error:  # as in `_copy`
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            raise CheckpointError(f"{self.source}: {_hub_problem(error)}") from error

    def _copy(self, name: str) -> Path:
        if self.source == DEMO:
            return Path(str(resources.files("chexmask_u") / "weights" / name))
        if self.repo is None:
            return Path(name)
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, name, revision=self.commit))
        except Exception as error:  # the client lets errors of its HTTP library through, whichever that is
            raise CheckpointError(f"{self.source}: {_hub_problem(error)}") from error


def load_model(
    source: str | Path | WeightFile = DEMO, *, device: str | torch.device = "cpu", sha256: str | None = None
) -> Network:
    """Load HybridGNet in evaluation mode; input size and variant are read from the weights.

    Args:
        source: "demo" for the bundled demonstration weights (not the published ones, not for clinical use); a path to a
            ``.safetensors`` file, or to a ``.bin``, ``.pt`` or ``.pth`` file of PyTorch (read with ``weights_only``, so
            no code in it runs); a folder that holds one; or ``hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]``. Keys may
            share a prefix, and lie in a checkpoint under ``state_dict`` or ``model``. A ``config.json`` beside the file
            must agree with it. Or a `WeightFile`, from `find`.
        device: where the model is placed.
        sha256: digest that the weight file must have; None accepts any.

    Returns:
        The model, with the digest of its file in ``model.sha256``.

    Raises:
        CheckpointError: if the file is missing, damaged, has another digest, or its keys, sizes or config do not fit;
            or if the weights are a pixel network's.
    """
    model = load_network(source, device=device, sha256=sha256)
    return with_landmarks(model, source.source if isinstance(source, WeightFile) else str(source))


def with_landmarks(model: BaseNetwork, source: str) -> Network:
    """The model, which gives landmarks.

    Raises:
        CheckpointError: if it gives masks alone; `source` is what the message calls its weights.
    """
    from chexmask_u.model.network import Network

    if not isinstance(model, Network):
        raise CheckpointError(
            f"{source}: are weights of {model.family} (--variant {model.variant}), which gives masks and no landmarks; "
            "only `evaluate` and `experiment pixel` take them"
        )
    return model


def load_network(
    source: str | Path | WeightFile, *, device: str | torch.device = "cpu", sha256: str | None = None
) -> BaseNetwork:
    """What `load_model` does, of weights of a pixel network too.

    Raises:
        CheckpointError: if the file is missing, damaged, has another digest, or its keys, sizes or config do not fit.
    """
    from chexmask_u.model.checkpoint import read_model

    found = source if isinstance(source, WeightFile) else find(storage.as_text(source, "source"))
    path, digest = found.fetch()
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(f"{found.source}: sha256 is {digest}, expected {sha256}; fetch the weights again")
    model = read_model(path, found.source, found.read_config(), found.config or CONFIG)
    model.sha256 = digest
    return model.to(device)


def say_if_demonstration(source: str) -> None:
    """Tell on stderr whoever is about to work with the demonstration weights that they are no more than that."""
    if source == DEMO:
        print("Weights: the bundled demonstration, not the published ones, and not for clinical use", file=sys.stderr)


def find(source: str) -> WeightFile:
    """The weight file that a source names (see `load_model`), on the Hub at the commit that its revision stands for.

    Where a folder left a choice, stderr says which file was taken.

    Raises:
        CheckpointError: if there is none, or several, or the Hub cannot be asked and the cache cannot tell.
    """
    if source == DEMO:
        return WeightFile(DEMO, "demo.safetensors")
    if source.startswith("hf://"):
        return _find_on_hub(source)
    if source and storage.is_local(source):
        path = Path(storage.normalise(source))
        if path.is_dir():
            return _find_in_folder(source, path)
        if path.suffix in WEIGHT_SUFFIXES:
            if not path.is_file():
                raise CheckpointError(
                    f"{source}: no such weight file; use 'demo' for the bundled weights{storage.nearest(source)}"
                )
            return _on_disk(source, path)
    raise CheckpointError(
        f"{storage.redact(source)}: weights must be 'demo', hf://ORG/REPO/FOLDER, or a {_ANY_SUFFIX} file or its folder"
        f"{storage.nearest(source) if source else ''}"
    )


def find_again(source: str, frozen: Mapping[str, Any] | None) -> WeightFile:
    """The weight file that a run goes on with: the one it was begun with, although the source may name another since.

    Args:
        source: as for `find`.
        frozen: `facts` and ``sha256`` of the file that the run was begun with; None if it is not begun. Where they name
            another source or no commit, the file is found as for a new run.

    Raises:
        CheckpointError: as `find` does.
    """
    if frozen is None or frozen.get("source") != source or frozen.get("commit") is None:
        return find(source)
    repo, _, revision = _parse(source)
    commit = frozen["commit"]
    if (now := _commit_now(repo, revision)) not in (None, commit):
        print(
            f"Weights: {source} is at commit {now} by now; the run goes on with commit {commit}, as it was begun",
            file=sys.stderr,
        )
    return WeightFile(source, frozen["file"], repo, commit, sha256=frozen["sha256"])


def _find_in_folder(source: str, folder: Path) -> WeightFile:
    try:
        # One level below, too: an error tells where the weights are.
        names = [path.relative_to(folder).as_posix() for depth in ("*", "*/*") for path in folder.glob(depth)]
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be listed ({error.strerror})") from error
    return _on_disk(source, folder / _choose(source, [name for name in names if (folder / name).is_file()], ""))


def _on_disk(source: str, path: Path) -> WeightFile:
    config = path.with_name(CONFIG)
    return WeightFile(source, str(path), config=str(config) if config.is_file() else None)


def _find_on_hub(source: str) -> WeightFile:
    from huggingface_hub import HfApi, constants

    repo, place, revision = _parse(source)
    offline = constants.is_offline_mode()
    try:
        # It keeps what the revision stands for in the cache, for when there is no network.
        commit = HfApi().resolve_revision(repo, revision=revision, local_files_only=offline).resolved
        listed = _files_at(repo, commit)
        files = _cached_files(repo, commit) if listed is None else listed
    except Exception as error:  # the client lets errors of its HTTP library through, whichever that is
        raise CheckpointError(f"{source}: {_hub_problem(error)}") from error
    file = _choose(source, files, place, " in the cache of this machine" if listed is None else "")
    config = str(PurePosixPath(file).with_name(CONFIG))
    beside = config if config in files else None
    return WeightFile(source, file, repo, commit, beside, files[file], cached=listed is None)


def _parse(source: str) -> tuple[str, str, str | None]:
    """Repository, folder or file in it ("" for its root) and revision of an hf:// source."""
    match = _HUB_URI.fullmatch(source)
    if match is None:
        raise CheckpointError(f"{source}: expected hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]")
    return match["repo"], (match["path"] or "").strip("/"), match["revision"]


def _files_at(repo: str, commit: str) -> dict[str, str | None] | None:
    """Files of a commit with the sha256 that the Hub has of the large ones; None if the Hub cannot be asked."""
    from huggingface_hub import HfApi, constants

    patience = constants.HF_HUB_ETAG_TIMEOUT
    try:
        siblings = HfApi().model_info(repo, revision=commit, files_metadata=True, timeout=patience).siblings or []
    except Exception as error:
        if not _is_away(error):
            raise
        return None
    return {file.rfilename: file.lfs.sha256 if file.lfs is not None else None for file in siblings}


def _cached_files(repo: str, commit: str) -> dict[str, str | None]:
    """Files of a commit that the cache holds."""
    from huggingface_hub import snapshot_download

    # With no pattern the cache need not hold all of the commit.
    folder = Path(snapshot_download(repo, revision=commit, allow_patterns=[], local_files_only=True))
    return {path.relative_to(folder).as_posix(): None for path in folder.rglob("*") if path.is_file()}


def _commit_now(repo: str, revision: str | None) -> str | None:
    """The commit that a revision stands for at this moment, or None where the Hub does not say."""
    from huggingface_hub import HfApi, constants

    try:
        return HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
    except Exception:
        # Nothing hangs on it.
        return None


def _choose(source: str, names: Iterable[str], place: str, where: str = "") -> str:
    """The weight file at a place: that file, or the one in that folder.

    Args:
        names: paths of all files, from the same root as `place`.
        place: a file or folder, "" for the root.
        where: what an error adds of the place.
    """
    names = sorted(names)
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    if place in weights:
        return place
    here = [name for name in weights if PurePosixPath(name).parent == PurePosixPath(place)]
    if not here:
        raise CheckpointError(f"{source}: {_why_none(names, weights, place, where)}")
    suffix = next(suffix for suffix in WEIGHT_SUFFIXES if any(name.endswith(suffix) for name in here))
    taken = [name for name in here if name.endswith(suffix)]
    if len(taken) > 1:
        raise CheckpointError(f"{source}: several {suffix} files, name one: {', '.join(taken)}")
    if passed_over := [name for name in here if name not in taken]:
        print(f"Weights: {source}: takes {taken[0]}, not {', '.join(passed_over)}", file=sys.stderr)
    return taken[0]


def _why_none(names: list[str], weights: list[str], place: str, where: str) -> str:
    if place and not any(name.startswith(f"{place}/") for name in names):
        problem = f"there is no {place}{where}"
        below = weights
    else:
        problem = f"no {_ANY_SUFFIX} file is there{where}"
        below = [name for name in weights if name.startswith(f"{place}/" if place else "")]
    folders = sorted({str(PurePosixPath(name).parent) for name in below} - {"."})
    return f"{problem}; name one of its folders with weights: {', '.join(folders)}" if folders else problem


def _is_away(error: Exception) -> bool:
    """Whether an error says that the Hub cannot be asked, and nothing of what was asked for."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.is_server_error
    return isinstance(error, httpx2.TransportError | OfflineModeIsEnabled)


def _hub_problem(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    if isinstance(error, GatedRepoError):
        return "access must be asked for on the repository's page, and then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository on the Hub, or it is private and needs `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, RevisionResolutionError | LocalEntryNotFoundError):
        offline = constants.is_offline_mode()
        reason = "HF_HUB_OFFLINE is set" if offline else storage.explain(error.__cause__ or error)
        return (
            f"the Hub cannot be reached ({reason}), and the cache of this machine does not hold it; "
            "check the connection, or name a local file"
        )
    return f"the Hub did not give it ({storage.explain(error)}); check the connection, or name a local file"
