"""Sizes: integers, or polynomials in parameters that have no value yet."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

from nsam.dsl.records import dataclass

# An atom is a name and the least value that it is taken to have: 0 for quotients, None when nothing is known.
Atom: TypeAlias = "tuple[str, int | None]"
Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"

_MOST_TERMS = 64
_MOST_DEGREE = 16

# A size is an int once parameters are given. While a program is only being checked it may be a `Poly`; the alias says
# `Any` for that half, so that everything after the checker can treat sizes as the ints that they are by then.
Size: TypeAlias = "int | Any"


@functools.lru_cache(4096)
def _order(monomial: Monomial) -> tuple[int, str]:
    """Higher degrees first, then by name."""
    return (-sum(power for _, power in monomial), str([(atom[0], power) for atom, power in monomial]))


@dataclass(frozen=True, slots=True, eq=False)
class Poly:
    """A polynomial with integer coefficients over parameter names; never a plain integer (those stay `int`).

    Equality is exact: two polynomials are equal when their coefficients are. Quotients that are not exact become
    opaque atoms such as `dim // heads`.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def variable(name: str, least: int | None = 1) -> Poly:
        """Return the polynomial that is the one parameter `name`, known to be at least `least`."""
        return Poly((((((name, least), 1),), 1),))

    @property
    def names(self) -> frozenset[str]:
        """The atoms in it."""
        return frozenset(atom[0] for monomial, _ in self.terms for atom, _ in monomial)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __add__(self, other: object) -> Size:
        if not isinstance(other, int | Poly):
            return NotImplemented
        if other == 0:
            return self
        found = dict(self.terms)
        for monomial, coefficient in _terms(other):
            found[monomial] = found.get(monomial, 0) + coefficient
        return _build(found)

    __radd__ = __add__

    def __neg__(self) -> Size:
        return _build({monomial: -coefficient for monomial, coefficient in self.terms})

    def __sub__(self, other: object) -> Size:
        if not isinstance(other, int | Poly):
            return NotImplemented
        return self + (-other)

    def __rsub__(self, other: object) -> Size:
        if not isinstance(other, int | Poly):
            return NotImplemented
        return -self + other

    def __mul__(self, other: object) -> Size:
        if not isinstance(other, int | Poly):
            return NotImplemented
        found: dict[Monomial, int] = {}
        right = _terms(other)
        for left_monomial, left in self.terms:
            for right_monomial, factor in right:
                monomial = _times(left_monomial, right_monomial)
                found[monomial] = found.get(monomial, 0) + left * factor
        result = _build(found)
        if isinstance(result, Poly) and result._large():
            return Poly.variable(f"({self}) * ({other})", 0)
        return result

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Size:
        if not isinstance(other, int | Poly):
            return NotImplemented
        exact = quotient(self, other)
        return Poly.variable(f"({self}) // ({other})", 0) if exact is None else exact

    def __rfloordiv__(self, other: object) -> Size:
        if not isinstance(other, int):
            return NotImplemented
        return Poly.variable(f"({other}) // ({self})", 0)

    def __str__(self) -> str:
        parts = [_term_text(monomial, coefficient) for monomial, coefficient in self.terms]
        return " + ".join(parts).replace("+ -", "- ")

    __repr__ = __str__

    def _large(self) -> bool:
        degree = max(sum(power for _, power in monomial) for monomial, _ in self.terms)
        return len(self.terms) > _MOST_TERMS or degree > _MOST_DEGREE


def _term_text(monomial: Monomial, coefficient: int) -> str:
    factors = [atom[0] if power == 1 else f"{atom[0]}^{power}" for atom, power in monomial]
    if coefficient != 1 or not factors:
        factors.insert(0, str(coefficient))
    return "-" + "*".join(factors[1:]) if coefficient == -1 and len(factors) > 1 else "*".join(factors)


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    return size.terms if isinstance(size, Poly) else (((), int(size)),)


def _build(found: Mapping[Monomial, int]) -> Size:
    """Return the polynomial with these coefficients, as an int when nothing symbolic is left."""
    kept = [(monomial, value) for monomial, value in found.items() if value != 0]
    if not kept:
        return 0
    if len(kept) > 1:
        kept.sort(key=lambda item: _order(item[0]))
    elif kept[0][0] == ():
        return kept[0][1]
    return Poly(tuple(kept))


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: item[0][0]))


def quotient(size: Size, by: Size) -> Size | None:
    """Return size / by when it is exact whatever the parameters are, else None."""
    if isinstance(size, int) and isinstance(by, int):
        return size // by if by != 0 and size % by == 0 else None
    if size == by or size == 0:
        return 0 if size == 0 else 1
    divisor = _terms(by)
    if len(divisor) != 1 or divisor[0][1] == 0:
        return None
    (monomial, factor) = divisor[0]
    found: dict[Monomial, int] = {}
    for term, coefficient in _terms(size):
        powers = dict(term)
        for atom, power in monomial:
            powers[atom] = powers.get(atom, 0) - power
        if coefficient % factor or any(power < 0 for power in powers.values()):
            return None
        rest = tuple(sorted(((a, p) for a, p in powers.items() if p), key=lambda item: item[0][0]))
        found[rest] = coefficient // factor
    return _build(found)


@functools.lru_cache(4096)
def _positive(size: Size) -> bool:
    """Whether `size` is above zero for all parameters that are at least their least value."""
    if isinstance(size, int):
        return size > 0
    total: Size = 0
    for monomial, coefficient in size.terms:
        product: Size = coefficient
        for atom, power in monomial:
            if atom[1] is None:
                return False
            for _ in range(power):
                product = product * (Poly.variable(atom[0], 0) + atom[1])
        total = total + product
    terms = _terms(total)
    return all(value >= 0 for _, value in terms) and any(monomial == () and value > 0 for monomial, value in terms)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """Return a size with these values for its names; KeyError for a name (or a quotient) without one."""
    total = 0
    for monomial, coefficient in _terms(size):
        term = coefficient
        for atom, power in monomial:
            term *= values[atom[0]] ** power
        total += term
    return total


def substituted(size: Size, values: Mapping[str, Size]) -> Size:
    """Return a size with these values for some of its names; the others stay."""
    total: Size = 0
    for monomial, coefficient in _terms(size):
        term: Size = coefficient
        for atom, power in monomial:
            for _ in range(power):
                term = term * values.get(atom[0], Poly.variable(*atom))
        total = total + term
    return total


def equal(left: Size, right: Size) -> bool | None:
    """Whether two sizes are equal: True, False, or None when it depends on parameters."""
    if left == right:
        return True
    difference = left - right
    if isinstance(difference, int):
        return difference == 0
    return False if _positive(difference) or _positive(-difference) else None


def divides(divisor: Size, size: Size) -> bool | None:
    """Whether `size` is a multiple of `divisor`: True, False, or None when it depends on parameters."""
    if isinstance(divisor, int) and isinstance(size, int):
        return divisor != 0 and size % divisor == 0
    return True if quotient(size, divisor) is not None else None


def at_least(size: Size, least: int) -> bool | None:
    """Whether `size >= least`: True, False, or None when it depends on parameters."""
    if isinstance(size, int):
        return size >= least
    if _positive(size - least + 1):
        return True
    return False if _positive(least - size) else None


def product(sizes: tuple[Size, ...]) -> Size:
    """Return the number of elements of a tensor of these sizes."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total
