"""Evaluation of expressions: one walk, and what differs between objectives, rules and units in small scopes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from nsam.backends.reference import functions
from nsam.backends.reference.arrays import Array, Arrays
from nsam.dsl.checked import Apply, Constant, Expr, Output, Read, Ref, State
from nsam.dsl.diagnostics import ProgramError, fail
from nsam.dsl.spans import Span


class InternalError(Exception):
    """The reference found something that the checker should have rejected: a mistake in nsam, not in the program."""

    def __init__(self, what: str) -> None:
        super().__init__(f"internal error: {what}; please report this with the program")


def unsupported(what: str, span: Span | None) -> ProgramError:
    """Return the diagnostic for a program that is right but that the reference does not interpret."""
    return fail("N0490", f"the reference backend does not support {what}", span, "this")


class Scope(ABC):
    """Gives meaning to names and to reads, and evaluates expressions with them."""

    ops: Arrays

    def value(self, expr: Expr) -> Array:
        """Return the value of `expr` for the current token (in a rule: update)."""
        if isinstance(expr, Constant):
            return self.ops.array(float(expr.value))
        if isinstance(expr, Ref):
            return self.ref(expr.name)
        if isinstance(expr, Read):
            return self.read(expr)
        if isinstance(expr, State):
            return self.state(expr.memory)
        if isinstance(expr, Output):
            return self.output(expr)
        if isinstance(expr, Apply):
            return self.apply(expr)
        raise InternalError(f"unknown expression {expr!r}")

    @abstractmethod
    def ref(self, name: str) -> Array:
        """Return what a name is bound to."""

    @abstractmethod
    def read(self, expr: Read) -> Array:
        """Return what a memory answers."""

    def state(self, memory: str) -> Array:
        """Return the tensor of a memory named bare."""
        raise InternalError(f"the state of {memory} is not in scope here")

    def output(self, expr: Output) -> Array:
        """Return a result of a call or repeat."""
        raise InternalError(f"the output of {expr.child} is not in scope here")

    def clock(self, function: str) -> int:
        """Return the position (`rope`, `position`: first token 0) or the count of updates (`unbias`: first one 1)."""
        raise InternalError(f"{function} has no clock here")

    def apply(self, expr: Apply) -> Array:
        """Apply a function: those with a clock or with compile-time options here, the rest in `functions`."""
        ops, name = self.ops, expr.function
        if name in ("normalize", "rope"):
            heads = option(expr, "heads", 1)
            count = None if heads is None else int(heads)
            x = self.value(expr.arguments[0])
            if name == "normalize":
                return functions.per_head(ops, lambda part: functions.normalize(ops, part), x, count)
            position = self.clock(name)
            base = float(option(expr, "base", 2, None) or functions.ROPE_BASE)
            return functions.per_head(ops, lambda part: functions.rope(ops, part, position, base), x, count)
        if name == "position":
            return self._place(int(option(expr, "n", 1) or 0))
        if name == "orthogonalize":
            iterations = option(expr, "iterations", 1, 5)
            return functions.orthogonalize(ops, self.value(expr.arguments[0]), int(iterations or 0))
        if name == "index":
            return ops.take(self.value(expr.arguments[0]), int(option(expr, "i", 1) or 0))
        if name == "slice":
            start, stop = int(option(expr, "start", 1) or 0), int(option(expr, "stop", 2) or 0)
            return ops.take(self.value(expr.arguments[0]), slice(start, stop))
        if name == "unbias":
            x, beta = (self.value(a) for a in expr.arguments)
            decayed = ops.power(beta, float(self.clock(name)))
            return ops.div(x, ops.sub(ops.array(1.0), decayed))
        if name == "pow":
            return self._power(expr)
        if name in ("lp", "huber", "pseudo_huber"):
            return self._error_function(expr)
        arguments = [self.value(a) for a in expr.arguments]
        result = functions.elementary(ops, expr, arguments)
        if result is None:
            raise InternalError(f"unknown function {name} of {len(arguments)} arguments")
        return result

    def _place(self, places: int) -> int:
        position = self.clock("position")
        if position >= places:
            raise ValueError(f"the sequence has {position + 1} tokens and this system has positions for {places}")
        return position

    def _power(self, expr: Apply) -> Array:
        base, exponent = expr.arguments
        power = self.value(exponent)
        known = self.ops.known(power)
        if known is not None:
            return self.ops.power(self.value(base), known)
        return self.ops.exp(self.ops.mul(power, self.ops.log(self.value(base))))

    def _error_function(self, expr: Apply) -> Array:
        parameter = option(expr, "p" if expr.function == "lp" else "delta", 1)
        if parameter is None:
            raise InternalError(f"{expr.function} without its parameter")
        function = {"lp": functions.lp, "huber": functions.huber, "pseudo_huber": functions.pseudo_huber}[expr.function]
        return function(self.ops, self.value(expr.arguments[0]), parameter)


def option(expr: Apply, name: str, position: int, default: float | None = None) -> float | None:
    """Return a compile-time argument, given by name or as a constant at `position`."""
    found = expr.option(name)
    if found is None and len(expr.arguments) > position:
        argument = expr.arguments[position]
        if not isinstance(argument, Constant):
            raise InternalError(f"{name} of {expr.function} is not a compile-time number")
        found = argument.value
    return default if found is None else float(found)
