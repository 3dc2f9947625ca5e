"""Plain-text mathematics: pieces of a formula that know how tightly they bind.

A `Text` is built from smaller ones by the constructors below, which put brackets only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nsam.dsl.records import dataclass

SUM, PRODUCT, TIGHT, POWER, ATOM = range(5)
"""How tightly a piece binds: a + b, a b and a / b, W x and Wᵀ x, what ends in an exponent or begins with a root, a name
or anything in brackets."""

_SUBSCRIPT = str.maketrans("0123456789+-t", "₀₁₂₃₄₅₆₇₈₉₊₋ₜ")
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_FRACTIONS = {0.5: "½", 0.25: "¼", 0.75: "¾"}


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a formula. `binding` is one of the five above; `negated` is what a minus stands before."""

    text: str
    binding: int = ATOM
    negated: Text | None = None

    def __str__(self) -> str:
        return self.text

    def within(self, least: int) -> str:
        """The piece as part of something that binds as tightly as `least`."""
        fits = self.binding >= least and not (self.negated is not None and least > SUM)
        return self.text if fits else f"({self.text})"


def subscript(index: int | str) -> str:
    """`12` → `₁₂`, `t-1` → `ₜ₋₁`."""
    return str(index).translate(_SUBSCRIPT)


def number(value: float) -> Text:
    """A number: ½ for 0.5, ∞, and no more digits than it has; 1 − 10⁻⁸ for what is almost 1, which a factor is not."""
    if value != value or value in (float("inf"), float("-inf")):
        return Text("∞") if value > 0 else neg(Text("∞"))
    binding = ATOM
    if abs(value) in _FRACTIONS:
        shown = _FRACTIONS[abs(value)]
    elif float(value).is_integer() and abs(value) < 1e6:
        shown = str(int(abs(value)))
    else:
        shown = f"{abs(value):.6g}"
        if shown == "1":
            almost = sub(Text("1"), number(1 - abs(value)))
            return neg(almost) if value < 0 else almost
        if "e" in shown:
            digits, exponent = shown.split("e")
            power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
            shown = power if digits == "1" else f"{digits}·{power}"
            binding = POWER if digits == "1" else PRODUCT
    return neg(Text(shown, binding)) if value < 0 else Text(shown, binding)


def add(left: Text, right: Text) -> Text:
    """a + b; a − b where b is −b."""
    if right.negated is not None:
        return sub(left, right.negated)
    shown = f"({right.text})" if right.text.startswith("−") else right.text
    return Text(f"{left.text} + {shown}", SUM)


def sub(left: Text, right: Text) -> Text:
    """a − b; a + b where b is −b."""
    if right.negated is not None:
        return add(left, right.negated)
    return Text(f"{left.text} − {right.within(PRODUCT)}", SUM)


def neg(inner: Text) -> Text:
    """−a."""
    return inner.negated if inner.negated is not None else Text(f"−{inner.within(PRODUCT)}", PRODUCT, inner)


def mul(left: Text, right: Text, sign: str = " ") -> Text:
    """A product: `a b`, or `a ⊙ b` with `sign` " ⊙ "."""
    if left.negated is not None:
        return neg(mul(left.negated, right, sign))
    if right.negated is not None:
        return neg(mul(left, right.negated, sign))
    wide = sign == " ⊙ "
    first = left.within(POWER if wide or (" / " in left.text and left.binding < POWER) else PRODUCT)
    return Text(f"{first}{sign}{right.within(POWER if wide else TIGHT)}", PRODUCT)


def div(left: Text, right: Text) -> Text:
    """a / b."""
    if left.negated is not None:
        return neg(div(left.negated, right))
    return Text(f"{left.within(PRODUCT)} / {right.within(TIGHT)}", PRODUCT)


def power(base: Text, exponent: Text) -> Text:
    """a², a^b."""
    shown = base.within(ATOM)
    if exponent.text.lstrip("−").isdigit():
        return Text(shown + exponent.text.replace("−", "-").translate(_SUPERSCRIPT), POWER)
    return Text(f"{shown}^{exponent.within(ATOM)}", POWER)


def call(name: str, arguments: Iterable[Text]) -> Text:
    """name(a, b)."""
    return Text(f"{name}({', '.join(a.text for a in arguments)})")


def sqrt(inner: Text) -> Text:
    """√a."""
    return Text(f"√{inner.text}" if inner.binding == ATOM and len(inner.text) <= 2 else f"√({inner.text})", POWER)


def squared_length(inner: Text) -> Text:
    """‖a‖²."""
    return Text(f"‖{inner.text}‖²", POWER)


def transpose(inner: Text) -> Text:
    """aᵀ."""
    return Text(f"{inner.within(ATOM)}ᵀ", POWER)


def apply(matrix: Text, vector: Text) -> Text:
    """W x."""
    return Text(f"{matrix.within(TIGHT)} {vector.within(TIGHT)}", TIGHT)


def outer(left: Text, right: Text) -> Text:
    """a bᵀ; the sign of a is the sign of the product."""
    if left.negated is not None:
        return neg(outer(left.negated, right))
    if right.text == "1":
        return left
    return Text(f"{left.within(TIGHT)} {transpose(right)}", TIGHT)


FUNCTIONS: dict[str, Callable[[Text], Text]] = {
    "log": lambda x: call("log", [x]),
    "abs": lambda x: Text(f"|{x.text}|"),
    "norm": lambda x: Text(f"‖{x.text}‖"),
    "neg": neg,
    "sqrt": sqrt,
    "transpose": transpose,
    "silu_slope": lambda x: call("silu′", [x]),
    "gelu_slope": lambda x: call("gelu′", [x]),
    "gelu_tanh_slope": lambda x: call("gelu_tanh′", [x]),
    "sqrt_slope": lambda x: call("√′", [x]),
    "step_at": lambda x: call("relu′", [x]),
    "root_mean_square": lambda x: call("rms", [x]),
}
"""Functions of one value that are written in another way than `name(x)`."""
