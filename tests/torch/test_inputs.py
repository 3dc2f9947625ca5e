"""What a module says of inputs that do not belong together, and of systems that have none to go through."""

from __future__ import annotations

import pytest
import torch

import nsam

TWO = """
nsam 1
use std.rules (gd)
system two(dim: int = 4) {
  input a: [dim]
  input b: [dim]
  input c: [dim] per sequence
  memory m : linear(dim -> dim) { learn a -> b; minimize l2; by gd(lr = 0.1); every 2 tokens; init zeros }
  output m(a) + b + c
}
"""


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 4), (2, 1, 4), (2, 4)), "`a` and `b` must have as many tokens as each other: 4 and 1"),
        (((2, 4, 4), (1, 4, 4), (2, 4)), "`a` and `b` must have as many sequences as each other: 2 and 1"),
        (((2, 4, 4), (2, 4, 4), (1, 4)), "`a` and `c` must have as many sequences as each other: 2 and 1"),
    ],
)
def test_inputs_belong_together(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    module = nsam.compile(nsam.loads(TWO), "two", compiled=False)
    assert module(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), torch.zeros(2, 4))[0].shape == (2, 4, 4)
    with pytest.raises(ValueError, match=message):
        module(*(torch.zeros(shape) for shape in shapes))


def test_a_system_without_tokens_can_only_be_called() -> None:
    helper = "system part(dim: int = 4) { input c: [dim] per sequence\n memory w : vector(dim)\n output c + w }"
    whole = "system whole() { input x: [4]\n input c: [4] per sequence\n output x + part(c) }"
    program = nsam.loads(f"nsam 1\n{helper}\n{whole}\n")
    module = nsam.compile(program, "whole", compiled=False)
    assert module(torch.zeros(2, 3, 4), torch.zeros(2, 4))[0].shape == (2, 3, 4)
    for run in (nsam.compile, nsam.verify, nsam.source):
        with pytest.raises(nsam.ProgramError, match="N0405"):
            run(program, "part")


def test_a_system_without_inputs_is_refused() -> None:
    program = nsam.loads(
        "nsam 1\nsystem part() { memory w : vector(4)\n output w }\n"
        "system whole() { input x: [4]\n output x + part() }\n"
    )
    with pytest.raises(nsam.ProgramError, match="N0405"):
        nsam.compile(program, "part")
    with pytest.raises(nsam.ProgramError, match=r"N0401.*`part` has no input"):
        nsam.compile(program, "whole")


def test_shapes_of_a_call_without_values() -> None:
    module = nsam.compile(nsam.loads(TWO), "two").to("meta")
    inputs = [torch.zeros(shape, device="meta") for shape in ((2, 64, 4), (2, 64, 4), (2, 4))]
    assert module(*inputs)[0].shape == (2, 64, 4)


def test_numbers_that_are_noted_to_be_negated_are_so() -> None:
    """As an imaginary part of a conjugate: compiled code reads what lies there."""
    module = nsam.compile(nsam.loads(TWO), "two", compiled=False)
    seen: list[bool] = []
    module.register_forward_pre_hook(lambda _, given: seen.extend(x.is_neg() for x in given))
    x = [torch.complex(torch.zeros(shape), torch.randn(shape)) for shape in ((2, 4, 4), (2, 4, 4), (2, 4))]
    noted = [one.conj().imag for one in x]
    assert all(one.is_neg() for one in noted)
    found, wanted = module(*noted)[0], module(*(-one.imag for one in x))[0]
    assert not any(seen)
    assert torch.equal(found, wanted)


def test_what_is_no_system_and_what_is_no_program() -> None:
    program = nsam.loads(TWO)
    for name in (3, None, ["two"]):
        with pytest.raises(nsam.ProgramError, match="N0251 there is no system"):
            nsam.compile(program, name, compiled=False)  # type: ignore[arg-type]
    for function in (nsam.compile, nsam.graph, nsam.source, nsam.verify):
        with pytest.raises(TypeError, match=r"a program is what nsam.load\(.* returns, not 'two.nsam'"):
            function("two.nsam", "two")
    with pytest.raises(nsam.ProgramError) as refused:
        nsam.compile(program, "two", compiled=False, dim="4")
    assert refused.value.diagnostics[0].help == "for instance `dim=64`"
