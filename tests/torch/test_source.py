"""Generated source: what a reader sees. `NSAM_UPDATE_GOLDENS=1` writes the goldens anew."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nsam.backends.torch.build import write_source
from nsam.dsl.checked import Unit

Shipped = Callable[..., Unit]
GOLDENS = Path(__file__).parents[1] / "goldens"
KEPT = [
    ("hope", "titans"), ("hope", "cms"), ("hope", "hope"), ("zoo", "gated_deltanet"), ("zoo", "atlas"),
    ("zoo", "titans_memory"), ("zoo", "nested_cms"), ("zoo", "transformer_block"), ("zoo", "hyper"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "system"), KEPT)
def test_source_is_the_golden(shipped: Shipped, name: str, system: str) -> None:
    text, _ = write_source(shipped(name, system, dim=64))
    path = GOLDENS / f"source_{system}.py.txt"
    if os.environ.get("NSAM_UPDATE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text(), "the generated source changed: look at it, then set NSAM_UPDATE_GOLDENS=1"


@pytest.mark.parametrize(("name", "system"), KEPT)
def test_source_is_plain_python_without_dead_code(shipped: Shipped, name: str, system: str) -> None:
    """Every name that a function assigns is read again, and nothing of the compiler is imported."""
    text, _ = write_source(shipped(name, system, dim=64))
    tree = ast.parse(text)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "torch", "torch.nn", "nsam.backends.torch", "nsam.backends.torch.orthogonalize"}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        written = {node.id for node in names if isinstance(node.ctx, ast.Store)} - {"_"}
        assert written <= read, f"{function.name} never reads {sorted(written - read)}"


@pytest.mark.slow
def test_source_runs_without_the_compiler(shipped: Shipped, tmp_path: Path) -> None:
    """The written file alone, with the parser and the compiler made impossible to import."""
    text, kind = write_source(shipped("hope", "titans", dim=16))
    (tmp_path / "titans.py").write_text(text)
    code = (
        "import sys\n"
        "for name in ('lark', 'networkx', 'nsam.compiler', 'nsam.dsl.parser'):\n    sys.modules[name] = None\n"
        f"import torch, titans\nm = titans.{kind}()\nm.compiled = False\ny, s = m(torch.randn(2, 40, 16))\n"
        "assert y.shape == (2, 40, 16)\nassert y.isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
