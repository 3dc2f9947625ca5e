"""From a path or a text to all the files of a program, with every `use` resolved.

A program can reach the standard library, which is shipped inside the package, and files in the folder of its main file
and below. Nothing else: a program that somebody else wrote reads no file outside the folder that it was put into.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Fix, Label, ProgramError, Report, fail
from nsam.dsl.limits import MAX_CHARACTERS, MAX_FILES
from nsam.dsl.parser import parse, parse_with_report
from nsam.dsl.records import dataclass
from nsam.dsl.spans import Source, Span
from nsam.dsl.words import alternatives, nearest


@dataclass(frozen=True, slots=True)
class ResolvedUse:
    """A `use` line and the key of the file that it names."""

    use: syntax.Use
    file: str


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """One file. `key` is the module (`std.rules`), the absolute path, or the name given with a text."""

    key: str
    source: Source
    tree: syntax.File
    uses: tuple[ResolvedUse, ...]

    def declaration(self, name: str) -> syntax.Declaration | None:
        """Return the declaration called `name` in this file, or None."""
        return next((found for found in self.tree.declarations if found.name.id == name), None)


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A main file and everything that it uses; `files` by key, each after the files that it uses."""

    root: LoadedFile
    files: Mapping[str, LoadedFile]


def load_file(path: str | os.PathLike[str]) -> LoadedProgram:
    """Read and parse the program at `path` and all that it uses; raise `ProgramError` with everything found."""
    source = read_source(path)
    folder = Path(os.path.realpath(Path(path).parent))
    return _Loader(folder).program(str(folder / Path(path).name), source, folder)


def load_text(text: str, name: str = "<text>") -> LoadedProgram:
    """Parse a program given as text, which has no folder and so can use the standard library only."""
    return _Loader(None).program(name, Source(name, text.removeprefix("\ufeff")), None)


def load_standard(module: str) -> LoadedProgram:
    """Parse a module of the standard library (`std.rules`) and all that it uses."""
    loader = _Loader(None)
    return LoadedProgram(loader.standard(module), loader.files)


def read_source(path: str | os.PathLike[str], *, shown_as: str | None = None) -> Source:
    """Read one file as program text; raise `ProgramError` when it cannot be one."""
    name = shown_as or os.fspath(path)
    limit = 4 * MAX_CHARACTERS  # bytes: a character has at most four
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a folder" if os.path.isdir(path) else "no regular file"
            raise fail("N0001", f"{name} is {what}", help="name a file that ends in .nsam")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise fail("N0001", f"there is no file {name}", help=_similar_file(Path(path), Path(name))) from None
    except (OSError, ValueError) as error:
        # a ValueError is a null character, or one that cannot be encoded; what Python says differs between versions
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "no file can have such a name"
        raise fail("N0001", f"{name} cannot be read: {reason}") from None
    if len(content) > limit:
        help_text = "split it into several files and bring them together with `use`"
        raise fail("N0003", f"{name} is larger than a program may be ({limit // 1_000_000} MB)", help=help_text)
    return Source(name, _decoded(name, content))


def _decoded(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}"
        raise fail(
            "N0002", message, help="save the program as UTF-8; a compiled or binary file is no program"
        ) from None
    return text


def _similar_file(path: Path, shown: Path) -> str | None:
    """Return a hint at a file with a similar name in the same folder; `shown` is how messages call `path`."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(1000), entries, strict=False)]
    except (OSError, ValueError):
        return None
    guess = nearest(path.name, [name for name in names if name.endswith(".nsam")])
    return f"did you mean {shown.parent / guess}?" if guess else None


def standard_modules() -> tuple[str, ...]:
    """Return the modules of the standard library: `std.rules`, …"""
    found = [entry.name for entry in package_files("nsam.dsl.std").iterdir() if entry.name.endswith(".nsam")]
    return tuple(sorted(f"std.{name.removesuffix('.nsam')}" for name in found))


@cache
def _standard_file(module: str) -> tuple[Source, syntax.File]:
    """Return text and tree of a module of the standard library, read once a process."""
    name = module.removeprefix("std.") + ".nsam"
    source = Source(module, package_files("nsam.dsl.std").joinpath(name).read_text(encoding="utf-8"))
    return source, parse(source)


class _Loader:
    """Follows the `use` lines of one program, depth first."""

    def __init__(self, project: Path | None) -> None:
        self.project = project
        self.report = Report()
        self.files: dict[str, LoadedFile] = {}
        self.failed: set[str] = set()
        self.chain: list[tuple[str, str]] = []  # (key, name shown) from the main file to the current one

    def program(self, key: str, source: Source, folder: Path | None) -> LoadedProgram:
        root = self.load(key, source, folder)
        self.report.raise_if_failed()
        if root is None:
            raise RuntimeError(f"internal error: {source.name} did not load and nothing says why; please report this")
        return LoadedProgram(root, self.files)

    def load(self, key: str, source: Source, folder: Path | None) -> LoadedFile | None:
        """Parse one file and load what it uses; None when it has errors."""
        tree = parse_with_report(source, self.report)
        if tree is None:
            self.failed.add(key)
            return None
        return self.follow(key, source, tree, folder)

    def standard(self, module: str) -> LoadedFile:
        """Load a module of the standard library."""
        return self.follow(module, *_standard_file(module), None)

    def follow(self, key: str, source: Source, tree: syntax.File, folder: Path | None) -> LoadedFile:
        """Load what a parsed file uses."""
        self.chain.append((key, source.name))
        uses = [found for use in tree.uses if (found := self.resolve(use, folder)) is not None]
        self.chain.pop()
        loaded = LoadedFile(key, source, tree, tuple(uses))
        self.files[key] = loaded
        return loaded

    def resolve(self, use: syntax.Use, folder: Path | None) -> ResolvedUse | None:
        """Load the file that `use` names; None when that failed (reported, here or in the file itself)."""
        if use.module is not None:
            key, source, inside = use.module, self.module(use), None
        else:
            key, source, inside = self.file(use, folder)
        if source is None or key in self.failed or self.is_cycle(use, key):
            return None
        if key not in self.files:
            if len(self.files) + len(self.chain) >= MAX_FILES:
                self.report.add("N0013", f"a program may have {MAX_FILES} files", _place(use), "one too many")
                return None
            if use.module is not None:
                self.standard(key)
            elif self.load(key, source, inside) is None:
                return None
        self.check_names(use, self.files[key])
        return ResolvedUse(use, key)

    def module(self, use: syntax.Use) -> Source | None:
        """Return the text of a module of the standard library."""
        modules = standard_modules()
        if use.module in modules:
            return _standard_file(use.module)[0]
        guess = nearest(use.module or "", modules)
        span = _place(use)
        fix = None if guess is None else Fix(span, guess)
        hint = (
            f"did you mean `{guess}`?" if guess else f'there is {alternatives(modules)}; a file is `use "./file.nsam"`'
        )
        self.report.add("N0008", f"there is no module `{use.module}`", span, "unknown", help=hint, fix=fix)
        return None

    def file(self, use: syntax.Use, folder: Path | None) -> tuple[str, Source | None, Path | None]:
        """Return key, text and folder of a file of the project."""
        path = use.path or ""
        span = _place(use)
        if folder is None or self.project is None:
            where = "the standard library" if self.chain[-1][0].startswith("std.") else "a program given as text"
            message = f"{where} cannot use files"
            self.report.add(
                "N0010", message, span, "a file", help="load the program from a file, or use a `std` module"
            )
            return "", None, None
        try:
            target = Path(os.path.realpath(folder / path))
        except (OSError, ValueError):
            target = Path(os.sep)
        if "\0" in path or os.path.isabs(path) or not target.is_relative_to(self.project):
            message = "a program can use only files in the folder of its main file and below"
            notes = [f"that folder is {self.project}"]
            help_text = "copy the file into it and use it by a relative path"
            self.report.add("N0010", message, span, "leads outside", notes=notes, help=help_text)
            return "", None, None
        try:
            return str(target), read_source(target, shown_as=os.path.relpath(target)), target.parent
        except ProgramError as error:
            for found in error.diagnostics:
                code = "N0009" if found.code == "N0001" else found.code
                hint, fix = found.help, None
                if path in standard_modules():
                    hint, fix = "a module of the library stands without quotes", Fix(span, path)
                self.report.add(code, found.message, span, "used here", help=hint, fix=fix)
            return "", None, None

    def is_cycle(self, use: syntax.Use, key: str) -> bool:
        """Report a file that is being loaded already."""
        keys = [found for found, _ in self.chain]
        if key not in keys:
            return False
        names = [name for _, name in self.chain[keys.index(key) :]]
        circle = " → ".join([*names, names[0]])
        message = "files use each other in a circle"
        help_text = "move what both need into a file of its own"
        self.report.add("N0011", message, _place(use), "closes the circle", notes=[circle], help=help_text)
        return True

    def check_names(self, use: syntax.Use, file: LoadedFile) -> None:
        """Report names that the file does not declare."""
        declared = [found.name.id for found in file.tree.declarations]
        for name in use.names:
            if name.id in declared:
                continue
            guess = nearest(name.id, declared)
            fix = None if guess is None else Fix(name.span, guess)
            hint = f"did you mean `{guess}`?" if guess else f"it declares {', '.join(declared) or 'nothing'}"
            message = f"{file.source.name} declares no `{name.id}`"
            label = Label(use.span, "used here") if use.span.line != name.span.line else None
            more = [] if label is None else [label]
            self.report.add("N0012", message, name.span, "unknown", secondary=more, help=hint, fix=fix)


def _place(use: syntax.Use) -> Span:
    """Return the span of the module or path in a `use` line."""
    text = use.span.text
    start = len("use")
    while text[start] in " \t":
        start += 1
    end = text.index('"', start + 1) + 1 if text[start] == '"' else start + len(use.module or "")
    return Span(use.span.source, use.span.start + start, use.span.start + end)
