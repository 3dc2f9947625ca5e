"""Values that are known when a program is compiled, and how their expressions are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from nsam.dsl import syntax
from nsam.dsl.findings import Findings, attempt_all, did_you_mean
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Poly, quotient
from nsam.dsl.words import counted

_MOST_BITS = 256


@dataclass(frozen=True, slots=True)
class Unknown:
    """A float, bool or str parameter (or a number computed from one) that has no value yet."""

    kind: Literal["float", "bool", "str"]


@dataclass(frozen=True, slots=True)
class UnknownList:
    """A list parameter that has no value yet; checks look at one element of it."""

    name: str
    element: str

    @property
    def length(self) -> Poly:
        """Its length, symbolically."""
        return Poly.variable(f"len({self.name})")

    @property
    def item(self) -> Value:
        """One element, symbolically."""
        if self.element == "int":
            return Poly.variable(f"{self.name}[_]")
        return Unknown(self.element)  # type: ignore[arg-type]


# int, float, bool, str, a tuple of those, or one of the symbolic ones: Poly, Unknown, UnknownList.
Value: TypeAlias = "int | float | bool | str | tuple[Any, ...] | Poly | Unknown | UnknownList"

FUNCTIONS: dict[str, tuple[int, int]] = {"len": (1, 1), "min": (1, 32), "max": (1, 32), "sqrt": (1, 1), "abs": (1, 1)}
"""Compile-time functions with their least and largest number of arguments."""


def is_number(value: Value) -> bool:
    """Whether `value` is a number, known or not."""
    if isinstance(value, Unknown):
        return value.kind == "float"
    return isinstance(value, int | float | Poly) and not isinstance(value, bool)


def is_symbolic(value: Value) -> bool:
    """Whether `value` depends on parameters that have no value yet."""
    if isinstance(value, tuple):
        return any(is_symbolic(item) for item in value)
    return isinstance(value, Poly | Unknown | UnknownList)


def kind_of(value: Value) -> str:
    """Return the name of the value's type, as programs write it."""
    if isinstance(value, Unknown):
        return value.kind
    if isinstance(value, UnknownList):
        return f"list[{value.element}]"
    if isinstance(value, tuple):
        return f"list[{kind_of(value[0])}]" if value else "list"
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, int | Poly) else "float" if isinstance(value, float) else "str"


def show(value: Value) -> str:
    """Return the value as programs write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        inner = ", ".join(show(item) for item in value[:8])
        return f"[{inner}, …]" if len(value) > 8 else f"[{inner}]"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Unknown):
        return f"some {value.kind}"
    return value.name if isinstance(value, UnknownList) else str(value)


def _described(value: Value) -> str:
    """Return "4.5, float", or "some str" where only the type is known."""
    return show(value) if isinstance(value, Unknown) else f"{show(value)}, {kind_of(value)}"


def conforms(value: Value, type_name: str, element: str | None = None) -> bool:
    """Whether `value` can be given where `type_name` (`int`, `float`, `bool`, `str`, `list`) is asked for."""
    if type_name == "list":
        if isinstance(value, UnknownList):
            return element is None or value.element == element or (value.element, element) == ("int", "float")
        return isinstance(value, tuple) and all(conforms(item, element or "int") for item in value)
    if type_name == "float":
        return is_number(value)
    if isinstance(value, Unknown):
        return value.kind == type_name
    if type_name == "int":
        return isinstance(value, int | Poly) and not isinstance(value, bool)
    return isinstance(value, bool) if type_name == "bool" else isinstance(value, str)


class Evaluator:
    """Evaluates compile-time expressions over `names`; other names are reported with `explain` to say why.

    `explain(name)` returns a help text for names that exist but have no compile-time value.
    """

    def __init__(
        self,
        findings: Findings,
        names: Mapping[str, Value],
        explain: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        self.findings = findings
        self.names = names
        self.explain = explain

    def value(self, node: syntax.Expression) -> Value:
        """Return the value of `node`; N0201, N0210 or N0212 are reported otherwise."""
        match node:
            case syntax.Number() | syntax.Text() | syntax.Boolean():
                return node.value
            case syntax.Name():
                return self._name(node)
            case syntax.ListOf():
                return tuple(attempt_all([lambda item=item: self.value(item) for item in node.items]))  # type: ignore[misc]
            case syntax.Unary():
                return self._number_of(node, "sub", 0, self.number(node.operand))
            case syntax.Binary():
                left, right = attempt_all([lambda: self.number(node.left), lambda: self.number(node.right)])
                return self._number_of(node, OPERATORS[node.operator], left, right)
            case syntax.Call():
                return self._call(node)

    def number(self, node: syntax.Expression) -> Any:
        """Return the value of `node`, which must be a number."""
        value = self.value(node)
        if not is_number(value):
            raise self.findings.error(
                "N0210", f"expected a number, found {kind_of(value)}", node.span, f"this is {show(value)}"
            )
        return value

    def integer(self, node: syntax.Expression, what: str) -> Any:
        """Return the value of `node`, which must be a whole number (or not known yet)."""
        value = self.value(node)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, Unknown) and value.kind == "float":
            return Poly.variable(f"({node.span.text})", None)
        if not isinstance(value, int | Poly) or isinstance(value, bool):
            raise self.findings.error(
                "N0210", f"{what} must be a whole number", node.span, f"this is {_described(value)}"
            )
        return value

    def _name(self, node: syntax.Name) -> Value:
        if node.id in self.names:
            return self.names[node.id]
        why = self.explain(node.id)
        if why is not None:
            raise self.findings.error(
                "N0212",
                f"`{node.id}` is not known when the program is compiled",
                node.span,
                why,
                help="sizes, periods and counts are made of parameters, whose defaults may use those before them",
            )
        raise self.findings.error(
            "N0201", f"unknown name `{node.id}`", node.span, "not a parameter", help=did_you_mean(node.id, self.names)
        )

    def _call(self, node: syntax.Call) -> Value:
        if node.function not in FUNCTIONS or node.transposed:
            raise self.findings.error(
                "N0212",
                f"`{node.function}` cannot be called here: this number is needed when the program is compiled",
                node.function_span,
                "no compile-time function",
                help=f"compile-time functions are {', '.join(FUNCTIONS)}",
            )
        least, most = FUNCTIONS[node.function]
        if not least <= len(node.arguments) <= most or any(a.name for a in node.arguments):
            raise self.findings.error(
                "N0203", f"`{node.function}` takes {arity_text(least, most)}", node.span, f"{len(node.arguments)} given"
            )
        if node.function == "len":
            return self._length(node.arguments[0].value)
        values = attempt_all([lambda a=a: self.number(a.value) for a in node.arguments])  # type: ignore[misc]
        if any(is_symbolic(value) for value in values):
            return symbolic_call(node.function, values)
        return self._finite(node, lambda: _concrete_call(node.function, values))

    def _length(self, node: syntax.Expression) -> Value:
        value = self.value(node)
        if isinstance(value, UnknownList):
            return value.length
        if not isinstance(value, tuple):
            raise self.findings.error("N0210", "`len` takes a list", node.span, f"this is {kind_of(value)}")
        return len(value)

    def _number_of(self, node: syntax.Expression, function: str, left: Any, right: Any) -> Value:
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return Unknown("float")
        if isinstance(left, Poly) or isinstance(right, Poly):
            return symbolic_operator(function, left, right)
        return self._finite(node, lambda: apply_operator(function, left, right))

    def _finite(self, node: syntax.Expression, compute: Callable[[], Any]) -> Value:
        try:
            result = compute()
        except OverflowError:
            raise self.findings.error("N0213", _NO_NUMBER, node.span, "the result is too large") from None
        except ArithmeticError as error:
            raise self.findings.error("N0213", _NO_NUMBER, node.span, str(error)) from None
        return result  # type: ignore[no-any-return]


_NO_NUMBER = "this number cannot be computed"

OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow", "@": "matmul"}
"""The function that each operator stands for."""


def apply_operator(function: str, left: float, right: float) -> int | float:
    """Return the value of an operator on two numbers; whole numbers stay whole where the result is.

    Raises ArithmeticError for results that have no value, or that no program needs (integers over 256 bits).
    """
    if function == "pow":
        _bound_power(left, right)
    if function == "div" and right == 0:
        raise ArithmeticError("division by zero")
    if function == "div" and isinstance(left, int) and isinstance(right, int) and left % right == 0:
        return left // right
    table: dict[str, Callable[[Any, Any], Any]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "pow": lambda a, b: a**b,
    }
    if function not in table:
        raise ArithmeticError("`@` multiplies matrices, not numbers")
    result = table[function](left, right)
    if isinstance(result, complex) or result != result:
        raise ArithmeticError("the result is not a number")
    if isinstance(result, int) and result.bit_length() > _MOST_BITS:
        raise ArithmeticError("the result is too large")
    return result  # type: ignore[no-any-return]


def _bound_power(base: float, exponent: float) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > 4 * _MOST_BITS:
        raise ArithmeticError("the result is too large")


def symbolic_operator(function: str, left: Any, right: Any) -> Value:
    """Return an operator's value where at least one side is a `Poly`."""
    if isinstance(left, float) or isinstance(right, float):
        return Unknown("float")
    if function == "add":
        return left + right  # type: ignore[no-any-return]
    if function == "sub":
        return left - right  # type: ignore[no-any-return]
    if function == "mul":
        return left * right  # type: ignore[no-any-return]
    if function == "div":
        exact = quotient(left, right)
        # May turn out whole or not: a symbol that fits both; where it matters, the numbers decide.
        return Poly.variable(f"({left}) / ({right})", None) if exact is None else exact
    if function == "pow" and isinstance(right, int) and 0 <= right <= 8:
        power: Any = 1
        for _ in range(right):
            power = power * left
        return power  # type: ignore[no-any-return]
    return Unknown("float")


def symbolic_call(function: str, values: list[Any]) -> Value:
    """Return a compile-time function's value where an argument is symbolic."""
    if function in ("min", "max", "abs") and all(isinstance(value, int | Poly) for value in values):
        return values[0] if len(set(values)) == 1 else Poly.variable(f"{function}({', '.join(map(str, values))})", None)
    return Unknown("float")


def _concrete_call(function: str, values: list[Any]) -> Any:
    if function == "sqrt":
        if values[0] < 0:
            raise ArithmeticError("a negative number has no square root here")
        return math.sqrt(values[0])
    if function == "abs":
        return abs(values[0])
    return max(values) if function == "max" else min(values)


def arity_text(least: int, most: int) -> str:
    """Return "2 arguments", "1 to 3 arguments"."""
    if least == most:
        return counted(least, "argument")
    return f"{least} to {most} arguments"
