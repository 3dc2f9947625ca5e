"""Generated source as a module of Python, and its classes for pickle, which knows them by their source."""

from __future__ import annotations

import hashlib
import linecache
import sys
from types import ModuleType
from typing import Any

SOURCE = "nsam_source"
"""The name in a generated module that has its text."""


def load_source(text: str) -> ModuleType:
    """Load generated source as a module; tracebacks show its lines. The same text is loaded once."""
    name = f"nsam_generated_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = f"<{name}>"
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    sys.modules[name] = module
    exec(compile(text, module.__file__, "exec"), module.__dict__)
    module.__dict__[SOURCE] = text
    return module


def reduced(kind: type, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """How pickle makes an object again: `parts`, what it would do itself, but the class by its source.

    A generated module is no file that another process could import. Classes of a file that somebody wrote the source to
    stay as they are, and so do those that are derived from a generated one.
    """
    text = sys.modules[kind.__module__].__dict__.get(SOURCE)
    return parts if text is None else (new, (text, kind.__qualname__), *parts[2:])


def new(text: str, name: str) -> Any:
    """An object of a generated class that has nothing yet."""
    kind = load_source(text).__dict__[name]
    return kind.__new__(kind)
