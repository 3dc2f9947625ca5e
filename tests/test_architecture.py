"""How the rooms depend on each other, and that none of them knows a shipped program by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("dsl", "compiler", "backends", "nsam")
"""Each room may import from itself and from those before it."""
UNKNOWN = {"dsl": {"networkx", "torch"}, "compiler": {"lark", "torch"}, "backends": {"lark"}}
"""Packages that a room does not know."""


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def modules(path: Path) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in a file, inside functions too, relative imports resolved."""
    package = path.parent.relative_to(ROOT).parts
    package = package if package[0] == "nsam" else ("nsam", *package)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield ".".join(base), node.lineno
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def room_of(module: str) -> str | None:
    """The room that a module belongs to; `nsam` for the public package itself."""
    parts = module.split(".")
    if parts[0] != "nsam":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "nsam"


def foreign_imports(path: Path) -> list[str]:
    """Imports of a room that comes after the file's own."""
    room = path.relative_to(ROOT).parts[0]
    allowed = ROOMS[: ROOMS.index(room) + 1]
    found = []
    for module, line in modules(path):
        other = room_of(module)
        # `import nsam.dsl.x` names the package `nsam` on the way; only what is inside it counts.
        if other is not None and other not in allowed:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    assert sources(room)
    assert [found for path in sources(room) for found in foreign_imports(path)] == []


@pytest.mark.parametrize("room", UNKNOWN)
def test_rooms_do_not_know_what_is_not_theirs(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(room)
        for module, line in modules(path)
        if module.split(".")[0] in UNKNOWN[room]
    ]
    assert found == []


def test_an_import_inside_a_function_is_seen(tmp_path: Path) -> None:
    """The scan itself: it must not look at the top of a file only."""
    text = "def f():\n    from nsam.backends import torch\n    import torch.nn\n"
    names = {
        alias.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names
    }
    assert names == {"torch", "torch.nn"}
    path = ROOT / "dsl" / "parser.py"
    assert any(module == "nsam.dsl.syntax" or module.startswith("nsam.dsl.") for module, _ in modules(path))
    assert room_of("nsam.backends.torch.optim") == "backends"
    assert room_of("nsam.api") == "nsam"
    assert room_of("torch.nsam") is None


# --- no program is known by name -----------------------------------------------------------------

SHIPPED = sorted([*(ROOT / "examples").rglob("*.nsam"), *(ROOT / "dsl" / "std").glob("*.nsam")])

ALSO_WORDS_OF_THE_LANGUAGE = {
    "momentum": "the algorithm for linear momentum (one trace, scalar kernels), chosen by the shape of a rule",
    "oja": "a named objective",
    "nested": "periods that divide each other",
    "sequential": "plain English",
    "teacher": "plain English",
}
"""Names of shipped systems and rules that mean something of their own in the compiler, and what."""


def shipped_names() -> set[str]:
    declared = re.compile(r"^(?:system|rule|train)\s+(\w+)", re.MULTILINE)
    return {name for path in SHIPPED for name in declared.findall(path.read_text(encoding="utf-8"))}


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that are docstrings, which may mention anything."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def attribute_texts(tree: ast.AST) -> set[int]:
    """Identities of strings that stand alone: the descriptions below constants."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def mentions(path: Path, wanted: set[str]) -> list[str]:
    """String literals (exactly a name, or a name in a table of names) and comparisons with a name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = docstrings(tree) | attribute_texts(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            words = {node.value, *(node.value.split() if re.fullmatch(r"[\w ]+", node.value) else [])}
            found += [f"{path.relative_to(ROOT)}:{node.lineno} says {word!r}" for word in sorted(words & wanted)]
        elif isinstance(node, ast.MatchValue | ast.Compare):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and inner.id in wanted and isinstance(node, ast.MatchValue):
                    found.append(f"{path.relative_to(ROOT)}:{inner.lineno} matches {inner.id}")
    return found


def test_the_list_of_shipped_names_is_not_empty() -> None:
    names = shipped_names()
    assert {"hope", "titans", "m3", "dgd", "transformer"} <= names
    assert len(names) > 50
    assert set(ALSO_WORDS_OF_THE_LANGUAGE) <= names


def test_a_special_case_would_be_found(tmp_path: Path) -> None:
    path = ROOT / "compiler" / "folds.py"
    assert mentions(path, {"rank_one"})
    assert not mentions(path, {"hope", "titans", "dgd"})


@pytest.mark.parametrize("room", ["compiler", "backends"])
def test_no_program_is_special(room: str) -> None:
    wanted = shipped_names() - set(ALSO_WORDS_OF_THE_LANGUAGE)
    found = [found for path in sources(room) for found in mentions(path, wanted)]
    assert found == []


# --- what the product does not talk about --------------------------------------------------------

TEXT = {".py", ".md", ".nsam", ".toml", ".lark", ".txt", ".css", ".js", ".yml", ".yaml", ".cfg"}
# Paths of one machine's own folders: what only its owner has.
FORBIDDEN = re.compile(r"(?<![\w.])/(?:home|work|Users)/[a-z]")


def product_files() -> list[Path]:
    folders = [*ROOMS, "examples", "tests", "docs", "benchmarks"]
    found = [path for folder in folders if (ROOT / folder).is_dir() for path in (ROOT / folder).rglob("*")]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(p for p in found if p.suffix in TEXT and "__pycache__" not in p.parts)


def test_no_file_mentions_where_it_was_made() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in product_files()
        if (match := FORBIDDEN.search(path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert len(product_files()) > 100
    assert found == []


def test_program_files_are_of_a_readable_length() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in SHIPPED if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
