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
        (tx.power(tx.power(A, Text("2")), Text("3")), "(a²)³"),
        (tx.power(tx.power(A, Text("2")), tx.number(0.5)), "(a²)^½"),
        (tx.power(A, tx.power(B, Text("2"))), "a^(b²)"),
        (tx.power(tx.squared_length(A), Text("2")), "(‖a‖²)²"),
        (tx.power(tx.sqrt(A), Text("2")), "(√a)²"),
        (tx.power(tx.number(1e-8), Text("2")), "(10⁻⁸)²"),
        (tx.transpose(tx.power(A, Text("2"))), "(a²)ᵀ"),
        (tx.mul(tx.power(A, Text("2")), tx.transpose(B), " ⊙ "), "a² ⊙ bᵀ"),
        (tx.mul(tx.power(A, Text("2")), B), "a² b"),
        (tx.div(A, tx.number(2.5e-7)), "a / (2.5·10⁻⁷)"),
        (tx.number(1 - 1e-8), "1 − 10⁻⁸"),
        (tx.number(1 + 2.5e-7), "1 + 2.5·10⁻⁷"),
        (tx.mul(tx.number(-1 + 1e-8), A), "−(1 − 10⁻⁸) a"),
    ],
)
def test_brackets(built: Text, shown: str) -> None:
    assert str(built) == shown
