"""Compiled modules in other processes and as copies: the generated source goes with them."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nsam

TEXT = """nsam 1
use std.rules (gd)
system block(dim: int) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 2 tokens }
  memory slow : linear(dim -> dim) { minimize task; by gd(lr = 0.5); every 2 steps }
  output slow(m(x))
}
system s(dim: int = 4) {
  input x: [dim]
  let h = x
  repeat 2 { h = h + block(h, dim) }
  output h
}
"""
ELSEWHERE = """
import sys, torch, nsam
module = torch.load(sys.argv[1], weights_only=False)
y, state = module(torch.ones(1, 5, 4, dtype=torch.float64))
rules = [group["nsam.rule"] for group in nsam.optimizer("std.rules", "adamw", module, lr=0.01).param_groups]
again = module(torch.ones(1, 3, 4, dtype=torch.float64), state)[0].detach()
torch.save({"y": y.detach(), "again": again, "rules": rules, "source": module.nsam_source}, sys.argv[2])
"""


def module() -> Any:
    torch.manual_seed(0)
    return nsam.compile(nsam.loads(TEXT), "s", compiled=False).double()


@pytest.mark.slow
def test_another_process_loads_a_module(tmp_path: Path) -> None:
    here = module()
    y, state = here(torch.ones(1, 5, 4, dtype=torch.float64))
    torch.save(here, tmp_path / "module.pt")
    arguments = [str(tmp_path / "module.pt"), str(tmp_path / "seen.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", ELSEWHERE, *arguments], check=True)
    there = torch.load(tmp_path / "seen.pt")
    assert torch.equal(there["y"], y)
    assert torch.equal(there["again"], here(torch.ones(1, 3, 4, dtype=torch.float64), state)[0])
    assert sorted(set(there["rules"])) == ["adamw", "gd"]
    assert there["source"] == here.nsam_source


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("known", [True, False])
def test_the_source_is_in_the_pickle_once(protocol: int, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    here = module()
    wanted = here(torch.ones(1, 5, 4, dtype=torch.float64))[0]
    file = io.BytesIO()
    pickle.dump(here, file, protocol)
    assert file.getvalue().count(b"class S(") == 1
    if not known:  # as in another process
        monkeypatch.delitem(sys.modules, type(here).__module__)
    file.seek(0)
    there = pickle.load(file)
    assert (type(there) is type(here)) == known
    assert torch.equal(there(torch.ones(1, 5, 4, dtype=torch.float64))[0], wanted)


def test_copies_keep_what_the_module_knows() -> None:
    here = module()
    here(torch.ones(1, 5, 4, dtype=torch.float64))
    for there in (copy.deepcopy(here), copy.copy(here)):
        assert type(there) is type(here)
        assert there.nsam_unit == here.nsam_unit
        assert there.nsam_rules == here.nsam_rules
        assert not there.compiled
        x = torch.ones(1, 5, 4, dtype=torch.float64)
        assert torch.equal(there(x)[0], here(x)[0])


def test_a_class_of_ones_own_is_pickled_as_python_does() -> None:
    here = module()
    here.__class__ = type("Own", (type(here),), {"__module__": __name__})
    with pytest.raises(pickle.PicklingError, match="Own"):
        pickle.dumps(here)
