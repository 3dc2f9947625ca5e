"""Rules that torch has too, step for step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nsam
from nsam.backends.torch.optim import optimizer


@pytest.mark.parametrize(
    ("name", "arguments", "theirs"),
    [
        ("gd", {"lr": 0.03}, lambda p: torch.optim.SGD(p, lr=0.03)),
        ("momentum", {"lr": 0.03, "beta": 0.8}, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8)),
        (
            "adamw",
            {"lr": 0.02, "beta1": 0.8, "decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.999), weight_decay=0.1),
        ),
    ],
)
def test_same_path_as_torch(name: str, arguments: Any, theirs: Any, problem: Any, distance: Any, std: Any) -> None:
    mine, reference = problem.parameters(), problem.parameters()
    path = problem.run(optimizer(std(name, **arguments), mine), mine)
    assert distance(path, problem.run(theirs(reference), reference)) < 1e-12


def test_float32_path_stays_near_torch(problem_of: Any, distance: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (7,)], torch.float32)
    mine, reference = problem.parameters(), problem.parameters()
    path = problem.run(optimizer(std("adamw", lr=0.02), mine), mine)
    assert distance(path, problem.run(torch.optim.AdamW(reference, lr=0.02), reference)) < 2e-6


def test_muon_is_near_torchs_bfloat16_one(problem_of: Any, distance: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (5, 3), (4, 4)], torch.float32)
    mine, reference = problem.parameters(), problem.parameters()
    path = problem.run(optimizer(std("muon", lr=0.02), mine), mine)
    theirs = torch.optim.Muon(reference, lr=0.02, weight_decay=0.0)
    apart = distance(path, problem.run(theirs, reference))
    assert apart < 1e-2
    assert distance(path, [problem.start] * 50) > 0.1


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_products_in_bfloat16_stay_near_torchs(problem_of: Any, distance: Any, compiled: bool) -> None:
    """torch's Muon orthogonalises in bfloat16 too, but rounds before it divides by the norm."""
    problem = problem_of([(24, 40), (40, 24), (16, 16), (16, 16)], torch.float32)
    mine, plain, reference = problem.parameters(), problem.parameters(), problem.parameters()
    how = {"lr": 0.02, "compiled": compiled}
    coarse = problem.run(nsam.optimizer("std.rules", "muon", mine, products=torch.bfloat16, **how), mine)
    fine = problem.run(nsam.optimizer("std.rules", "muon", plain, **how), plain)
    theirs = problem.run(torch.optim.Muon(reference, lr=0.02, weight_decay=0.0), reference)
    assert all(p.dtype == torch.float32 for p in mine)
    assert 0 < distance(coarse, fine) < 1e-2
    assert distance(coarse, theirs) < 1e-2
