"""Plain-text mathematics: brackets where they are needed, and nowhere else."""

from __future__ import annotations

import pytest

from nsam.compiler import explain_text as tx
from nsam.compiler.explain_text import Text

A, B, C = Text("a"), Text("b"), Text("c")


@pytest.mark.parametrize(
    ("built", "shown"),
    [
        (tx.sub(A, tx.add(B, C)), "a − (b + c)"),
        (tx.sub(A, tx.neg(B)), "a + b"),
        (tx.add(A, tx.neg(tx.mul(B, C))), "a − b c"),
        (tx.add(A, tx.add(tx.neg(B), C)), "a + (−b + c)"),
        (tx.neg(tx.neg(A)), "a"),
        (tx.mul(tx.add(A, B), C), "(a + b) c"),
        (tx.mul(A, tx.neg(B)), "−a b"),
        (tx.mul(tx.div(A, B), C), "(a / b) c"),
        (tx.div(A, tx.mul(B, C)), "a / (b c)"),
        (tx.mul(tx.apply(A, B), C, " ⊙ "), "(a b) ⊙ c"),
        (tx.power(tx.add(A, B), Text("2")), "(a + b)²"),
        (tx.power(A, tx.neg(Text("1"))), "a⁻¹"),
        (tx.outer(tx.neg(A), B), "−a bᵀ"),
        (tx.outer(A, tx.apply(B, C)), "a (b c)ᵀ"),
        (tx.transpose(tx.add(A, B)), "(a + b)ᵀ"),
        (tx.number(0.5), "½"),
        (tx.number(-2.0), "−2"),
        (tx.number(1e-8), "10⁻⁸"),
        (tx.number(2.5e-7), "2.5·10⁻⁷"),
        (tx.number(float("inf")), "∞"),
        (tx.number(0.999), "0.999"),
    ],
)
def test_brackets(built: Text, shown: str) -> None:
    assert str(built) == shown
