"""The documentation and README: the site is built strictly, asks nobody for anything, and what they show works."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import chexmask_u as cu
from chexmask_u import cli, record
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.sources import synthetic
from chexmask_u.steps.mask import mask
from chexmask_u.steps.predict import Predictor
from chexmask_u.steps.read import read
from tests.support import invented_calibrations, invented_runs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *sorted(ROOT.glob("docs/**/*.md"))]

# What a shell puts in place of the names that commands are shown with.
NAMES = {"$W": "demo", "$B": "s3://my-bucket"}


class Html(HTMLParser):
    """What a page points at, what it loads of itself, and where it can be pointed at."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        elif tag != "a":
            self.loaded += [said[name] for name in ("src", "href") if name in said]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # --quiet would hide the warnings from what counts them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page: away for page in pages if (away := [url for url in Html(page).loaded if "//" in url])} == {}


def test_lists_and_tables_are_not_taken_for_lines_of_a_paragraph(site: Path) -> None:
    """As Markdown takes them where no empty line stands before."""
    paragraphs = {page: re.findall(r"<p>(.*?)</p>", page.read_text("utf-8"), re.S) for page in site.rglob("*.html")}
    assert [
        (page, text) for page, texts in paragraphs.items() for text in texts if re.search(r"\n([-*|]|1\.) ", text)
    ] == []


def test_each_verb_has_a_page_that_names_all_its_flags(site: Path) -> None:
    for verb in cli.verbs():
        page = (site / "commands" / verb.words.split()[0] / "index.html").read_text("utf-8")
        missing = [option.name for option in verb.options() if option.name.startswith("-") and option.name not in page]
        assert missing == [], verb.words


def test_columns_and_public_names_are_all_there(site: Path) -> None:
    columns = (site / "columns" / "index.html").read_text("utf-8")
    kinds = (record.LANDMARK_RELEASE, record.CALIBRATED, record.MASK_RELEASE, record.FAILURE_RELEASE)
    assert [name for schema in kinds for name in schema.names if f">{name}</code>" not in columns] == []
    described = Html(site / "api" / "index.html").anchors
    assert [name for name in cu.__all__ if f"chexmask_u.{name}" not in described] == []


@pytest.mark.parametrize("page", PAGES[:3], ids=lambda page: page.name)
def test_links_of_the_repository_s_own_pages_lead_somewhere(page: Path, site: Path) -> None:
    """Those between the pages of docs/ are held by the build."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            assert (page.parent / path).exists(), link
            if anchor:
                assert anchor in Html(site / Path(path).relative_to("docs").with_suffix("") / "index.html").anchors


def blocks(page: Path, *languages: str) -> Iterator[str]:
    text = re.sub(r"^--8<--.*$", "", page.read_text("utf-8"), flags=re.MULTILINE)
    return (code for language, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language in languages)


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `chexmask-u` of each command that a page shows, or that one of jobs/ stands for."""
    for block in blocks(page, "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in NAMES.items():
                line = line.replace(name, value)
            for command in re.split(r"&&|;", line):
                words = shlex.split(command, comments=True)
                job = [word for word in words if re.fullmatch(r"jobs/\w+\.py", word)]
                if words[:1] == ["chexmask-u"]:
                    yield words[1:]
                elif job:
                    verb = {"benchmark": "bench"}.get(Path(job[0]).stem, Path(job[0]).stem)
                    yield [verb, *words[words.index(job[0]) + 1 :]]


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.stem)
def test_commands_that_pages_show_are_understood(page: Path) -> None:
    """Parsed and checked, as what is typed is: a flag that was renamed or a value that is refused fails here."""
    for words in commands(page):
        given = vars(cli.build_parser().parse_args(words))
        given["verb"].settings.from_mapping(given)


def test_the_python_of_the_pages_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two drawings and a release of them, in the order in which a reader comes by."""
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "chexmask-u-demo"
    synthetic.write_demo(demo, count=2)
    list_folder(ManifestFolderSettings(uri=str(demo / "images"), output="m.parquet", source="synthetic"))
    listed = pq.read_table("m.parquet").cast(record.MANIFEST)
    rows = mask(Predictor(device="cpu")(read(listed))).to_pylist()
    run = invented_runs.write_run(demo / "run", rows, weights="weights")
    calibration = invented_calibrations.calibration(hashlib.sha256(b"weights").hexdigest())
    Path("calibration.json").write_text(calibration.text)
    invented_runs.make_release(run, str(demo / "release"), calibration="calibration.json")
    names: dict[str, object] = {}
    for page in ("segment", "python", "dataset", "uncertainty"):
        for code in blocks(ROOT / "docs" / f"{page}.md", "python"):
            exec(compile(code, f"docs/{page}.md", "exec"), names)


def test_what_is_to_be_cited_is_the_same_wherever_it_is_told() -> None:
    told = (ROOT / "chexmask_u" / "templates" / "citations.bib").read_text("utf-8")
    for file in (told, (ROOT / "CITATION.cff").read_text("utf-8")):
        assert re.findall(r"^\s*version\W+([\d.]+)", file, re.M) == [cu.__version__]
        assert set(re.findall(r"10\.\d{4}/[\w.-]+|https://[\w./-]+", told)) <= set(
            re.findall(r"10\.\d{4}/[\w.-]+|https://[\w./-]+", file)
        )
