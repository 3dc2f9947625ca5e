"""Continual use: states that outlive calls, sequences and processes; levels that go on learning after training."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import nsam
from nsam.dsl.diagnostics import ProgramError

TEXT = """nsam 1
use std.rules (gd, safe_dgd)
system lifelong(dim: int = 8, heads: int = 2) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory kept : attention(heads = heads, window = 3) { learn rope(k(x), heads) -> v(x) }
  let h = x + kept(rope(x, heads))
  repeat 2 {
    memory habit : mlp(dim -> 2*dim -> dim, residual) {
      learn normalize(h) -> h; minimize l2; by safe_dgd(lr = 0.5); every 4 tokens; reset never; init learned
    }
    memory today : linear(dim -> dim, heads = heads) {
      learn normalize(h) -> h; minimize l2; by gd(lr = 0.5); every 1 token; reads running; init zeros
    }
    h = habit(h) + today(h)
  }
  memory slow : mlp(dim -> dim -> dim, act = gelu) { minimize task; every 4 steps }
  output slow(h)
}
"""


@pytest.fixture(scope="module")
def module() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return nsam.compile(nsam.loads(TEXT), "lifelong", compiled=False).double()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(module: Any, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
    with torch.no_grad():
        found: tuple[torch.Tensor, Any] = module(x, state)
    return found


def kept(state: Any) -> dict[str, torch.Tensor]:
    return {f"{i}.{k}": v for i, one in enumerate(state["children"]["repeat"]) for k, v in one["kept"].items()}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("cut", [8, 10])
def test_a_saved_state_goes_on_as_if_never_saved(module: Any, tmp_path: Path, backend: Any, cut: int) -> None:
    if backend == "reference":
        reference = nsam.compile(nsam.loads(TEXT), "lifelong", backend="reference")
        reference.load_state_dict(module.state_dict())
        module = reference
    x, file = random(2, 14, 8), tmp_path / "stream.safetensors"
    whole, _ = run(module, x)
    first, state = run(module, x[:, :cut])
    nsam.save_state(state, file)
    rest, _ = run(module, x[:, cut:], nsam.load_state(file, module))
    assert torch.equal(torch.cat([first, rest], 1), torch.cat([first, run(module, x[:, cut:], state)[0]], 1))
    assert torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-12)
    assert not list(tmp_path.glob("*.tmp"))


def test_states_with_gradients_are_saved_without_them(module: Any, tmp_path: Path) -> None:
    _, state = module(random(1, 9, 8))
    nsam.save_state(state, tmp_path / "s")
    back = nsam.load_state(tmp_path / "s", module)
    assert kept(state).keys() == kept(back).keys()
    assert all(torch.equal(kept(back)[name], tensor) for name, tensor in kept(state).items())
    assert not any(tensor.requires_grad for tensor in kept(back).values())


def test_across_sequences_habits_stay_and_days_end(module: Any) -> None:
    x = random(1, 10, 8)
    _, state = run(module, x)
    fresh = nsam.new_sequence(state)
    assert all(torch.equal(kept(fresh)[name], tensor) for name, tensor in kept(state).items())
    again, _ = run(module, x, fresh)
    assert (again - run(module, x)[0]).abs().max() > 1e-3
    assert all(one["sequence"] == {} and one["position"] == 0 for one in fresh["children"]["repeat"])


def test_levels_keep_learning_and_slower_ones_stay(module: Any) -> None:
    """What is repeated is recalled better and better, by the memories alone."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    x, state, errors = random(1, 8, 8), None, []
    seen = []
    for _ in range(12):
        _, state = run(module, x, state)
        state = nsam.new_sequence(state)
        seen.append(kept(state))
        (first, _) = state["children"]["repeat"]
        w1, w2 = first["kept"]["habit.w1"][0, 0], first["kept"]["habit.w2"][0, 0]
        h = x + inputs(module, x)
        key = h / h.norm(dim=-1, keepdim=True)
        recalled = key + torch.nn.functional.silu(key @ w1.T) @ w2.T
        errors.append(float((recalled - h).square().mean()))
    assert errors[-1] < 0.5 * errors[0]
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert all(any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(seen))


def inputs(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What attention with rotary positions and a window of 3 adds: computed by a module of its own."""
    text = TEXT.split("  let h")[0].replace("lifelong", "part") + "  output kept(rope(x, heads))\n}\n"
    part = nsam.compile(nsam.loads(text), "part", compiled=False).double()
    part.load_state_dict({name: p for name, p in module.state_dict().items() if name[:2] in ("k.", "v.")})
    return run(part, x)[0]


def test_between_boundaries_a_kept_level_does_not_move(module: Any) -> None:
    x = random(1, 12, 8)
    _, state = run(module, x[:, :4])
    at_boundary = {k: v for k, v in kept(state).items() if not k.endswith(".run")}
    for t in (4, 5, 6):
        _, state = run(module, x[:, t : t + 1], state)
        assert all(torch.equal(kept(state)[name], value) for name, value in at_boundary.items())
    _, state = run(module, x[:, 7:8], state)
    assert not any(
        torch.equal(kept(state)[name], v) for name, v in at_boundary.items() if name.endswith((".w1", ".w2"))
    )


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_sequences_are_taken_out_of_a_batch(backend: Any) -> None:
    module = nsam.compile(nsam.loads(TEXT), "lifelong", backend=backend, compiled=False).double()
    x, y = random(3, 6, 8), random(3, 5, 8, seed=1)
    _, state = run(module, x)
    wanted, _ = run(module, y, state)
    found, _ = run(module, y[[2, 0]], nsam.take_sequences(state, [2, 0]))
    assert torch.allclose(found, wanted[[2, 0]], atol=1e-13)
    with pytest.raises(ValueError, match="the state is of 3 sequences, the input of 1"):
        run(module, y[:1], state)
    with pytest.raises(ValueError, match="the state is of 1 sequences, the input of 3"):
        run(module, y, nsam.take_sequences(state, [0]))


GIVEN = """nsam 1
use std.rules (gd)
system s(dim: int = 4) {
  input x: [dim]
  input c: [dim * dim] per sequence
  memory near : attention(1, window = 3) { learn x -> x }
  memory m : linear(dim -> dim) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; reset every 4 tokens; init c
  }
  output m(x) + near(x)
}
"""


@pytest.mark.parametrize("end", [2, 3, 9])
def test_a_state_is_apart_from_what_the_caller_gave(end: int) -> None:
    module = nsam.compile(nsam.loads(GIVEN), "s", compiled=False).double()
    x, c = random(2, 14, 4), random(2, 16, seed=1)
    with torch.no_grad():
        whole, _ = module(x, c)
        given = x[:, :end].clone(), c.clone()
        _, state = module(*given)
        for tensor in given:
            tensor.zero_()
        assert torch.allclose(module(x[:, end:], c, state)[0], whole[:, end:], atol=1e-13)


def test_a_window_keeps_nothing_else_alive(module: Any) -> None:
    """After a long text its state holds the tokens in the window, not all of them; token by token it copies nothing."""
    x = random(2, 40, 8)
    whole, _ = run(module, x)
    y, state = run(module, x[:, :30])
    for name in ("kept.keys", "kept.values"):
        tensor = state["sequence"][name]
        assert tensor.shape[2] == 2
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert tensor.is_contiguous()
    found = [y]
    for t in range(30, 40):
        y, state = run(module, x[:, t : t + 1], state)
        found.append(y)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_sequences_are_numbers(backend: Any) -> None:
    module = nsam.compile(nsam.loads(TEXT), "lifelong", backend=backend, compiled=False).double()
    _, state = run(module, random(3, 6, 8))
    y = random(3, 2, 8, seed=1)
    wanted, _ = run(module, y, state)
    for same in ([2, -3], (2, 0), range(2, -1, -2), torch.tensor([2, 0]), torch.tensor([2, 0], dtype=torch.uint8)):
        taken = nsam.take_sequences(state, same)
        assert torch.allclose(run(module, y[[2, 0]], taken)[0], wanted[[2, 0]], atol=1e-13)
    for wrong in ([3], torch.tensor([0, 3]), [-4]):
        with pytest.raises(ValueError, match=r"there is no sequence -?[34]: the state is of 3, from 0 to 2"):
            nsam.take_sequences(state, wrong)
    no_numbers: tuple[Any, ...] = (1, [0.5], [[0, 1]], "01", torch.tensor(1), None)
    for wrong in no_numbers:
        with pytest.raises(ValueError, match="takes the numbers of sequences"):
            nsam.take_sequences(state, wrong)
    with pytest.raises(ValueError, match=r"mask\.nonzero"):
        nsam.take_sequences(state, torch.tensor([True, False, True]))


@pytest.mark.parametrize("wrong", [None, "hello", {"position": 3}])
def test_only_a_state_has_sequences(wrong: Any) -> None:
    calls = {
        "new_sequence": lambda: nsam.new_sequence(wrong),
        "take_sequences": lambda: nsam.take_sequences(wrong, [0]),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} takes the state that a module returned") as error:
            call()
        assert ("without a state begins new sequences" in str(error.value)) == (wrong is None)


CONTINUE = """
import sys, torch, nsam
torch.set_num_threads(1)
program, weights, state, inputs, outputs = sys.argv[1:]
module = nsam.compile(nsam.load(program), "lifelong", compiled=False).double()
module.load_state_dict(torch.load(weights, weights_only=True))
x = torch.load(inputs, weights_only=True)
with torch.no_grad():
    y, after = module(x, nsam.load_state(state, module))
nsam.save_state(after, state)
torch.save(y, outputs)
"""


def test_across_processes(module: Any, tmp_path: Path) -> None:
    x = random(1, 15, 8)
    whole, _ = run(module, x)
    names = ("lifelong.nsam", "weights.pt", "stream", "x.pt", "y.pt")
    program, weights, state, inputs_, outputs = (tmp_path / name for name in names)
    program.write_text(TEXT)
    torch.save(module.state_dict(), weights)
    first, after = run(module, x[:, :6])
    nsam.save_state(after, state)
    found = [first]
    for start, stop in ((6, 11), (11, 15)):
        torch.save(x[:, start:stop].clone(), inputs_)
        command = [sys.executable, "-c", CONTINUE, *map(str, (program, weights, state, inputs_, outputs))]
        subprocess.run(command, check=True, timeout=120)
        found.append(torch.load(outputs, weights_only=True))
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-12)


def test_what_is_no_state_of_this_system_is_refused(module: Any, tmp_path: Path) -> None:
    def refusal(path: Path, other: Any = module) -> str:
        with pytest.raises(ProgramError) as error:
            nsam.load_state(path, other)
        (found,) = error.value.diagnostics
        assert found.code == "N0519"
        return found.message

    file = tmp_path / "s"
    assert "No such file" in refusal(file)
    file.write_bytes(b"\x10\0\0\0\0\0\0\0not safetensors")
    refusal(file)
    nsam.save_state(run(module, random(1, 5, 8))[1], file)
    file.write_bytes(file.read_bytes()[:-3])
    refusal(file)
    wider = nsam.compile(nsam.loads(TEXT), "lifelong", compiled=False, dim=12).double()
    nsam.save_state(run(wider, random(1, 5, 12))[1], file)
    assert "`repeat.today.weight` is [2, 6, 6] there and [2, 4, 4] here" in refusal(file)
    nsam.save_state(run(wider.float(), random(1, 5, 12).float())[1], file)
    assert nsam.load_state(file)["position"] == 5
    other = nsam.compile(nsam.loads("nsam 1\nsystem s() { input x: [8]; output x }"), "s", compiled=False)
    assert "it has a part `repeat`" in refusal(file, other)
    renamed = nsam.compile(nsam.loads(TEXT.replace("habit", "custom")), "lifelong", compiled=False, dim=12)
    assert "it has a memory `repeat.habit.w1`" in refusal(file, renamed)
    assert "is float32 there and float64 here" in refusal(file, wider.double())


def test_an_unwritable_place_is_a_diagnostic(module: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProgramError) as error:
        nsam.save_state(run(module, random(1, 3, 8))[1], tmp_path / "file" / "state")
    assert error.value.diagnostics[0].code == "N0514"


# --- what a call is given ------------------------------------------------------------------------

LIFELONG = """nsam 1
use std.rules (gd)
system {name}(dim: int = 4) {{
  input x: [dim]
  memory {memory} : linear(dim -> dim) {{ learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens }}
  output {memory}(x)
}}
system pair(dim: int = 4) {{
  input x: [dim]
  output {name}(x, dim) + {name}(x, dim)
}}
system still(dim: int = 4) {{
  input x: [dim]
  memory w : linear(dim -> dim)
  output w(x)
}}
"""


def small(name: str = "one", memory: str = "m", system: str | None = None, **more: Any) -> Any:
    return nsam.compile(nsam.loads(LIFELONG.format(name=name, memory=memory)), system or name, compiled=False, **more)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: small("two", "n"), "it has a memory `n.weight`"),
        (lambda: small(dim=3), r"`m.weight` is \[1, 3, 3\] there and \[1, 4, 4\] here"),
        (lambda: small(system="pair"), "it has a part `one`"),
        (lambda: small(system="still"), "it has no memories"),
        (lambda: small(backend="reference"), "one of the reference backend: a state is what this module returned"),
    ],
    ids=["memory", "shape", "part", "nothing", "reference"],
)
def test_a_state_of_another_system_is_refused_by_a_call(other: Any, said: str) -> None:
    module, foreign = small(), other()
    width = int(foreign.nsam_unit.inputs[0].type.shape[0]) if hasattr(foreign, "nsam_unit") else 4
    _, state = foreign(torch.randn(1, 5, width))
    with pytest.raises(ValueError, match=said):
        module(torch.randn(1, 3, 4), state)
    with pytest.raises(ValueError, match=said):
        module(torch.randn(1, 3, 4), state=state)


@pytest.mark.parametrize(("there", "here"), [("float32", "float64"), ("bfloat16", "float32"), ("float64", "float32")])
def test_a_state_of_another_precision_is_refused_by_a_call(there: str, here: str) -> None:
    module = small().to(getattr(torch, here))
    x = torch.randn(1, 3, 4, dtype=getattr(torch, here))
    cast = pytree.tree_map_only(torch.Tensor, lambda t: t.to(getattr(torch, there)), module(x)[1])
    with pytest.raises(
        ValueError, match=f"`m.weight` is {there} there and {here} here.*cast the state's tensors to {here}"
    ):
        module(x, cast)


SPHERE = """nsam 1
use std.rules (gd)
rule turned(lr) {
  state seen = zeros
  seen <- (self @ transpose(self)) @ grad
  self <- (self @ transpose(self)) @ (self - lr * seen)
}
system turning(dim: int = 4) {
  input x: [dim]
  memory a : linear(dim -> dim) { learn x -> x; minimize l2; by turned(lr = 0.1); every 2 tokens summed }
  memory b : linear(dim -> dim) { learn x -> x; minimize l2; by turned(lr = 0.1); every 2 tokens }
  output a(x) + b(x)
}
"""


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_what_a_narrow_product_writes_is_kept_wide(weights: torch.dtype) -> None:
    """A state in the precision of autocast would be another function to compile, and would lose small updates."""
    module = nsam.compile(nsam.loads(SPHERE), "turning", compiled=False).to(weights)
    x, state = torch.randn(1, 5, 4).to(weights), None
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights is torch.float32):
            _, state = module(x, state)
        assert {name: tensor.dtype for name, tensor in state["sequence"].items()} == dict.fromkeys(
            state["sequence"], torch.float32
        )


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_is_no_state_is_refused_by_a_call(backend: Any) -> None:
    module, x = small(backend=backend), torch.randn(1, 3, 4)
    for wrong in ("hello", x, {"position": 3}, small(backend="torch")(x)[1] if backend == "reference" else [x]):
        with pytest.raises(ValueError, match="a state is what"):
            module(x, state=wrong)


def test_a_new_sequence_of_a_system_without_memories_to_keep_goes_on() -> None:
    module, x = small(), torch.randn(1, 3, 4)
    fresh = nsam.new_sequence(module(x)[1])
    assert torch.equal(module(x, fresh)[0], module(x)[0])
    still = small(system="still")
    assert torch.equal(still(x, still(x)[1])[0], still(x)[0])


@pytest.mark.parametrize("wrong", ["hello", {"position": 3}, (1, {})])
def test_only_a_state_is_saved(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TypeError, match="takes the state that a module returned"):
        nsam.save_state(wrong, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_keys_are_one_of_three(backend: Any) -> None:
    program = nsam.loads(LIFELONG.format(name="one", memory="m"))
    with pytest.raises(ValueError, match="keys is False, True or \"tokens\", not 'tokns'"):
        nsam.compile(program, "one", backend=backend, keys="tokns")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys is"):
        nsam.source(program, "one", keys="tokns")  # type: ignore[arg-type]
