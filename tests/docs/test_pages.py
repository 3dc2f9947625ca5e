"""The documentation: its programs check, its generated parts are up to date, its links and pictures exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import nsam
from nsam.dsl.codes import CODES
from nsam.dsl.functions import FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [
    "README.md",
    "docs/language.md",
    "docs/paper.md",
    "docs/architecture.md",
    "examples/adaptive/README.md",
    "examples/hope/README.md",
    "examples/zoo/README.md",
]
PAGES = [*WRITTEN, "docs/diagnostics.md"]
LARGEST_PICTURE = 300_000


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


PROGRAMS = [
    pytest.param(program, id=f"{page}-{i}")
    for page in WRITTEN
    for i, program in enumerate(blocks(page, "nsam"))
    if program.startswith("nsam 1")
]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_in_the_pages_are_right(program: str) -> None:
    assert nsam.loads(program).warnings == ()


def test_the_language_reference_has_programs() -> None:
    assert len([p for p in blocks("docs/language.md", "nsam") if p.startswith("nsam 1")]) >= 7


def test_excerpts_in_the_readme_are_the_shipped_program() -> None:
    shipped = text_of("examples/hope/hope.nsam")
    known = {" ".join(line.split("#")[0].split()) for line in shipped.split("\n")}
    excerpts = [program for program in blocks("README.md", "nsam") if not program.startswith("nsam 1")]
    assert excerpts
    for line in "\n".join(excerpts).split("\n"):
        code = " ".join(line.split("#")[0].split())
        assert code in known or code == "…", line


def test_diagnostics_are_up_to_date(generate: ModuleType) -> None:
    page = text_of("docs/diagnostics.md")
    assert page == generate.diagnostics_page(), "run: .venv/bin/python docs/generate.py"
    assert re.findall(r"^### (N\d+)", page, re.MULTILINE) == sorted(CODES)


def test_the_function_table_is_up_to_date(generate: ModuleType) -> None:
    page = text_of("docs/language.md")
    assert page == generate.with_generated(page), "run: .venv/bin/python docs/generate.py"
    for function in FUNCTIONS.values():
        assert function.operator is not None or function.name == "neg" or f"| `{function.name}(" in page


def test_a_page_without_the_place_for_its_table_is_refused(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match="has no"):
        generate.with_generated("# The language\n")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_are_images_of_a_reasonable_size() -> None:
    pictures = [*ROOT.glob("docs/pictures/*.png"), *ROOT.glob("examples/*/*.png")]
    assert pictures
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), picture
        assert len(content) < LARGEST_PICTURE, picture


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md"])
def test_python_in_the_readme_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    snippets = blocks(page, "python")
    assert snippets
    for snippet in snippets:
        # One thing is changed: the module runs uncompiled, so that the test needs no C++ compiler and no minute.
        plain = snippet.replace('"titans", dim=64)', '"titans", dim=64, compiled=False)', 1)
        exec(compile(plain, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_pages_exist(page: str) -> None:
    rooms = "dsl|compiler|backends|nsam|examples|scripts|docs|tests"
    for path in re.findall(rf"`((?:{rooms})/[\w./]+)`", text_of(page)):
        assert (ROOT / path).exists(), f"{page}: {path}"
