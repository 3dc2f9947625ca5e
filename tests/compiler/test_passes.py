"""Passes: named, switched off one by one, and told about by the explanation; no torch is needed for any of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nsam.compiler.explain import explain, explain_json
from nsam.compiler.expressions import postorder
from nsam.compiler.passes import ALL, NAMES, PASSES, Passes, passes_without
from nsam.compiler.places import SEQUENCE, Place
from nsam.compiler.schedule import UnitPlan, plan
from nsam.dsl.checked import Unit
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


GPU = "on a GPU with Triton one kernel for up to 64 rows"


def titans() -> Unit:
    return Program.load(EXAMPLES / "hope" / "hope.nsam").instantiate("titans", {"dim": 8, "heads": 2})


def deltanet() -> Unit:
    path = EXAMPLES / "linear_memories" / "linear_memories.nsam"
    return Program.load(path).instantiate("deltanet", {"dim": 8})


def parts(found: UnitPlan, op: str) -> int:
    """How many different nodes `op` the folds of a plan stand on."""
    return sum(n.op == op for n in postorder(f.node for m in found.lowered.fast for f in m.folds))


def told(unit: Unit, passes: Passes = ALL) -> dict[str, str]:
    """What the explanation says about each pass."""
    (found,) = json.loads(explain_json(unit, passes))
    return {part["label"]: part["lines"][0]["text"] for part in found["passes"]}


def test_names_are_read_in_any_form() -> None:
    assert passes_without(()) == ALL
    assert ALL.without == ()
    assert passes_without("share, exact") == passes_without(["exact", "share"])
    assert passes_without("share, exact").without == ("exact", "share")
    assert passes_without(["all"]).without == NAMES
    assert "share" not in passes_without("share")
    assert "hoist" in passes_without("share")


def test_a_pass_that_does_not_exist_is_refused_with_the_list() -> None:
    with pytest.raises(ProgramError) as refused:
        passes_without("shre")
    (found,) = refused.value.diagnostics
    assert found.code == "N0403"
    assert found.help is not None
    assert "did you mean `share`?" in found.help
    assert all(name in found.help for name in NAMES)
    with pytest.raises(ProgramError, match="there is no pass `3`"):
        passes_without(3)  # type: ignore[arg-type]


def test_without_share_each_weight_has_a_triangle_and_decays_of_its_own() -> None:
    assert (parts(plan(titans()), "triangle"), parts(plan(titans()), "decay")) == (7, 2)
    plain = plan(titans(), passes_without("share"))
    assert (parts(plain, "triangle"), parts(plain, "decay")) == (10, 10)


def test_without_chunk_every_rule_runs_token_by_token() -> None:
    assert {f.algorithm for m in plan(titans()).lowered.fast for f in m.folds} == {"rank-one"}
    plain = plan(titans(), passes_without("chunk"))
    assert {f.algorithm for m in plain.lowered.fast for f in m.folds} == {"generic"}


def test_without_exact_a_block_is_one_token() -> None:
    assert [level.cuts for level in plan(deltanet()).levels] == [(32,)]
    assert [level.cuts for level in plan(deltanet(), passes_without("exact")).levels] == [(1,)]


def test_without_hoist_work_stands_in_the_loop_that_uses_it() -> None:
    full, plain = plan(titans()), plan(titans(), passes_without("hoist"))
    assert weights(full, Place(SEQUENCE)) == {"q", "taps_q", "taps_k", "taps_v"}
    assert weights(plain, Place(SEQUENCE)) == set()
    assert weights(plain, Place(0)) >= {"taps_k", "taps_v"}
    assert weights(plain, Place(1)) == {"q", "taps_q"}
    assert full.hoisted()
    assert not plain.hoisted()


def test_without_sink_nothing_is_left_for_the_end() -> None:
    assert weights(plan(titans()), Place(SEQUENCE, True)) == {"o"}
    plain = plan(titans(), passes_without("sink"))
    assert weights(plain, Place(SEQUENCE, True)) == set()
    assert "o" in weights(plain, Place(1))


def weights(found: UnitPlan, place: Place) -> set[str]:
    """Memories whose slow weights are read at a place."""
    nodes = [n for level in found.levels for n in (*level.before, *level.after)]
    nodes += [n for stage in found.stages for n in stage.nodes]
    here = [n for n in nodes if found.places[n.id] == place]
    return {str(a.attr("memory")) for n in here for a in n.args if a.op == "weight"}


def test_the_explanation_says_what_each_pass_did() -> None:
    said = told(titans())
    assert list(said) == list(NAMES)
    assert said["chunk"] == "k, v, eta, alpha, mem (along keys)"
    assert said["split"] == "nothing: every chunk is short enough to be folded at once"
    assert said["exact"] == "nothing: no memory moves at every token"
    assert said["share"].startswith("7 triangles instead of 10, one for k.w1, v.w1, eta.w1, alpha.w1; 2 decays instead")
    assert said["reuse"] == "layer outputs at the key, in the updates of k, v, eta, alpha, mem"
    ahead = "for each block of 64: 2 operations (1 decay and 1 triangle of each chunk)"
    assert said["hoist"] == f"for all tokens: 9 operations (reads of taps_q, q, taps_k, taps_v); {ahead}"
    assert said["stack"] == "k, v, eta, alpha move as one"
    assert said["rows"] == "k, v, eta, alpha: 2 inputs at once; mem: 3 inputs at once"
    assert said["sink"] == "for all tokens: 3 operations (reads of o)"
    assert said["segment"] == "nothing: one call covers 64 tokens already"
    assert said["inverse"] == f"5 triangles of 64 × 64, from blocks of 16; 2 triangles of 16 × 16, by powers; {GPU}"
    assert told(deltanet())["exact"] == "m: 32 tokens at a time"
    calls = "512 tokens a call: 16 blocks of 32; 256 tokens a call: 8 blocks of 32; 64 tokens a call: 2 blocks of 32"
    assert told(deltanet())["segment"] == calls


@pytest.mark.parametrize(("dim", "tokens"), [(512, ("512", "256")), (514, ("256", "128"))])
def test_calls_are_longest_where_matrices_are_small(dim: int, tokens: tuple[str, str]) -> None:
    unit = Program.load(EXAMPLES / "linear_memories" / "linear_memories.nsam").instantiate("deltanet", {"dim": dim})
    assert tuple(re.findall(r"(\d+) tokens a call", told(unit)["segment"]))[:2] == tokens


@pytest.mark.parametrize(("dim", "piece"), [(8, 64), (256, 128)])
def test_long_chunks_are_told_in_the_pieces_that_are_computed(dim: int, piece: int) -> None:
    path = EXAMPLES / "linear_memories" / "linear_memories.nsam"
    unit = Program.load(path).instantiate("delta_momentum_inside", {"dim": dim, "chunk": 300})
    assert told(unit)["split"] == f"m: 300 tokens in pieces of {piece}"
    assert told(unit)["inverse"] == f"1 triangle of {piece} × {piece}, from blocks of 16; {GPU}"
    assert f"for each piece of {piece} tokens a {piece} × {piece} matrix" in " ".join(explain(unit).split())
    made = plan(unit)
    pieces = made.pieces(made.lowered.fast[0].folds[0].node, 310)
    assert sum(pieces) == 310
    assert pieces[-2:] == [300 % piece, 10]


@pytest.mark.parametrize("name", NAMES)
def test_the_explanation_says_what_is_switched_off(name: str) -> None:
    off, others = passes_without(name), [n for n in NAMES if n != name]
    plain = next(each.without for each in PASSES if each.name == name)
    said = told(titans(), off)
    assert said[name] == f"switched off: {plain}"
    assert not any(said[other].startswith("switched off") for other in others)


def test_a_slow_algorithm_that_was_asked_for_gets_no_advice() -> None:
    text = explain(titans(), passes_without("chunk"))
    assert "why: pass `chunk` is switched off" in text
    assert "faster:" not in text
    assert "why: pass `exact` is switched off" in explain(deltanet(), passes_without("exact"))
    assert "faster:" not in explain(deltanet(), passes_without("exact"))


def test_a_system_without_a_loop_has_no_passes() -> None:
    unit = Program.loads("nsam 1\nsystem s(dim: int) { input x: [dim]; memory w : linear(dim -> dim); output w(x) }")
    (found,) = json.loads(explain_json(unit.instantiate("s", {"dim": 4})))
    assert found["passes"] == []


def test_what_nothing_needs_is_not_computed() -> None:
    """Reads and values that no output and no update needs are in no stage and no loop."""
    text = """nsam 1
use std.rules (gd)
system s(dim: int) {
  input x: [dim]
  memory w, unread, taps : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn x -> w(x); minimize l2; by gd(lr = 0.1); every 4 tokens }
  let idle = unread(m(x)) + taps(x)
  output m(x)
}
"""
    found = plan(Program.loads(text).instantiate("s", {"dim": 4}))
    everywhere = [weights(found, Place(level, late)) for level in (SEQUENCE, 0) for late in (False, True)]
    assert set().union(*everywhere) == {"w"}
