"""One fast memory explained: its inner problem, its update, when it moves and how that is computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nsam.compiler import explain_equations as eq
from nsam.compiler import explain_text as tx
from nsam.compiler.describe import initial_text, reset_text, source_text, structure_text
from nsam.compiler.exact import affine_in, depends_on
from nsam.compiler.explain_algorithm import algorithm_lines
from nsam.compiler.explain_model import Line, MemoryExplanation, Part
from nsam.compiler.explain_problem import Problem, TensorGradient, read_problem, state_of, tensor_symbol, value_symbol
from nsam.compiler.explain_rules import Symbols, Update, named_in, update
from nsam.compiler.explain_text import Text
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.lower import Lowered
from nsam.dsl import checked as c


def explain_memory(lowered: Lowered, fast: FastMemory) -> MemoryExplanation:
    """Explain one fast memory."""
    return _Memory(lowered, fast).explain()


def structure_lines(structure: c.Structure) -> tuple[Line, ...]:
    """What reading the structure computes, and the shapes of its tensors (of one head)."""
    tensors = structure.tensors()
    shapes = []
    for tensor, shape in tensors.items():
        inner = shape if structure.heads is None else shape[1:]
        shapes.append(f"{tensor_symbol(structure, tensor)} [{', '.join(str(n) for n in inner)}]")
    heads = f", {structure.heads} heads, each on its slice" if structure.heads is not None else ""
    formula, sizes = reading(structure), f"{', '.join(shapes)}{heads}"
    if len(formula) + len(sizes) < 76:
        return (Line(f"{formula}        {sizes}"),)
    return Line(formula), Line(sizes)


def reading(structure: c.Structure) -> str:
    """M(x) as a formula."""
    if structure.kind == "vector":
        return "M = m"
    if structure.kind == "linear":
        return "M(x) = M x + b" if structure.bias else "M(x) = M x"
    if structure.kind != "mlp":
        return structure_text(structure)
    depth, act = len(structure.sizes) - 1, structure.act or "identity"
    h = Text("x")
    for layer in range(1, depth + 1):
        i = tx.subscript(layer)
        z = tx.apply(Text(f"W{i}"), h)
        if structure.bias:
            z = tx.add(z, Text(f"b{i}"))
        if layer < depth and structure.gated:
            h = tx.mul(_activation(act, tx.apply(Text(f"U{i}"), h)), z, " ⊙ ")
        elif layer < depth:
            h = _activation(act, z)
        else:
            h = z
    return f"M(x) = {tx.add(Text('x'), h) if structure.residual else h}"


def _activation(name: str, z: Text) -> Text:
    return z if name == "identity" else tx.call(name, [z])


class _Memory:
    def __init__(self, lowered: Lowered, fast: FastMemory) -> None:
        assert fast.memory.rule is not None
        assert fast.memory.context is not None
        assert fast.memory.objective is not None
        assert fast.memory.frequency is not None
        self.lowered, self.fast, self.memory = lowered, fast, fast.memory
        self.rule, self.context, self.objective = fast.memory.rule, fast.memory.context, fast.memory.objective
        self.frequency = fast.memory.frequency
        self.problem: Problem = read_problem(lowered.builder, fast)
        self.update = self.make_update()

    def explain(self) -> MemoryExplanation:
        parts = (
            Part("structure", structure_lines(self.memory.structure)),
            Part("context", tuple(self.context_lines())),
            Part("objective", tuple(self.objective_lines())),
            Part("gradient", tuple(self.gradient_lines())),
            Part("update", tuple(self.update_lines())),
            Part("moves", tuple(self.move_lines())),
            Part("starts", tuple(start_lines(self.memory))),
            Part("computed", tuple(algorithm_lines(self.lowered, self.fast, self.update, self.problem.transposed))),
        )
        return MemoryExplanation((self.memory.name,), structure_text(self.memory.structure), parts)

    # --- the inner problem ---------------------------------------------------------------------------

    def context_lines(self) -> list[Line]:
        lines = []
        if self.context.key is not None:
            lines.append(Line(f"k = {source_text(self.context.key)}"))
        value = source_text(self.context.value)
        own = value_symbol(self.memory) == "v̂"
        lines.append(
            Line(f"{'v̂' if own else 'v'} = {value}", eq.SELF_TARGET if own else "")
            if value != source_text(self.context.key)
            else Line("v = k")
        )
        if own:
            lines.append(Line("self is this memory: it makes its own targets. k and v̂ are constants in the gradient"))
        return lines

    def objective_lines(self) -> list[Line]:
        equation = eq.objective_equation(self.objective, self.problem.transposed)
        lines = [Line(f"L = {self.problem.loss}", equation)]
        if self.fast.window > 1:
            past = self.fast.window - 1
            lines.append(
                Line(f"summed over the last {self.fast.window} tokens: Σᵢ L(kᵢ, vᵢ), i = t−{past}, …, t", eq.WINDOW)
            )
        return lines

    def gradient_lines(self) -> list[Line]:
        lines = [*self.problem.forward, *self.problem.backward]
        if self.fast.window > 1:
            lines.append(Line("for every token i of the window, with its stored kᵢ and vᵢ; ∇ is the sum over i"))
        for gradient in self.problem.gradients:
            lines.append(Line(f"∂L/∂{gradient.symbol} = {gradient.text}"))
        return lines

    @property
    def summed(self) -> bool:
        """Whether gradients of several tokens are summed before the rule is applied."""
        return self.frequency.summed and self.fast.period > 1

    # --- the update ----------------------------------------------------------------------------------

    @property
    def single(self) -> TensorGradient | None:
        """The gradient of the only tensor, where it is one outer product."""
        found = self.problem.gradients
        one = len(found) == 1 and len(found[0].products) == 1 and self.fast.window == 1
        return found[0] if one else None

    def make_update(self) -> Update:
        gradients, named = self.problem.gradients, named_in(self.rule)
        plain = all(len(g.products) == 1 for g in gradients) and self.fast.window == 1
        if self.single is not None:
            left, right = self.single.products[0]
            symbols = Symbols(self.single.symbol, right, tx.outer(left, right), error=left)
        elif len(gradients) == 1:
            derivative = Text("∇") if self.fast.window > 1 else Text(f"∂L/∂{gradients[0].symbol}")
            symbols = Symbols(gradients[0].symbol, Text("k"), derivative, error=self.error_at_key)
        else:
            g, x = Text(free("g", named)), Text(free("x", named))
            symbols = Symbols("W", x, tx.outer(g, x) if plain else Text("∇"), error=g)
        if self.fast.window > 1:
            symbols = replace(symbols, key=Text("X"), error=Text("G"), tokens=True)
        if self.summed:
            new = f"ₛ₊{tx.subscript(self.fast.period)}"
            symbols = replace(
                symbols, gradient=Text("∇"), old="ₛ", new=new, timed=False, count=free("n", self.program_names())
            )
        symbols = replace(symbols, taken=self.problem.symbols | self.program_names())
        return update(self.rule, replace(symbols, counted=counted(self.memory, symbols)))

    def program_names(self) -> set[str]:
        """Values and memories of the program that stand in the context or in the rule's arguments."""
        starts = [self.context.value, *(value for _, value in self.rule.arguments)]
        found = (e for start in (*starts, self.context.key) if start is not None for e in c.walk(start))
        return {e.name if isinstance(e, c.Ref) else e.memory for e in found if isinstance(e, c.Ref | c.Read | c.State)}

    @property
    def error_at_key(self) -> Text:
        """What `err` means to the rule: the error that stands beside the key in the only tensor's gradient."""
        beside = [left for left, right in self.problem.gradients[0].products if right.text == "k"]
        return beside[0] if len(beside) == 1 else Text("g")

    @property
    def layerwise(self) -> bool:
        """Whether the rule reads each layer's own input or error."""
        return bool(self.rule.rule.needs & {"key", "err"}) and not self.summed

    def update_lines(self) -> list[Line]:
        equation = eq.update_equation(self.rule, self.update, self.objective, self.problem.transposed)
        lines = [Line(text, equation if i == self.update.main else "") for i, text in enumerate(self.update.lines)]
        online = self.online_form()
        if online:
            lines.append(Line(f"that is  {online}"))
        uses_sum = any("∇" in text for text in self.update.lines)
        many, window = len(self.problem.gradients) > 1, self.fast.window > 1
        if uses_sum:
            lines.append(self.sum_line())
        if many and (not uses_sum or (self.layerwise and not window)):
            triples = "  ".join(f"({g.symbol}, {g.products[0][1]}, {g.products[0][0]})" for g in self.problem.gradients)
            named = named_in(self.rule)
            generic = f"(W, {free('x', named)}, {free('g', named)})"
            lines.append(Line(f"for {generic} = {triples}{', each with its ∇' if uses_sum else ''}"))
        elif many:
            lines.append(Line(f"for W = {', '.join(g.symbol for g in self.problem.gradients)}, each with its ∇"))
        if window and self.layerwise:
            shown = {"key": "X the layer's inputs" if many else "X the keys", "err": "G the errors"}
            rows = " and ".join(text for need, text in shown.items() if need in self.rule.rule.needs)
            lines.append(Line(f"{rows} of the window, a row for each token"))
        lines += [Line(f"where {text}") for text in self.update.where]
        return lines

    def sum_line(self) -> Line:
        state = "W" if len(self.problem.gradients) > 1 else self.problem.gradients[0].symbol
        if self.summed:
            return Line(f"∇ = Σᵢ ∂Lᵢ/∂{state} at {state}ₛ, i = s+1, …, s+{self.fast.period}", "eq. 71")
        return Line(f"∇ = ∂L/∂{state}, of the window" if self.fast.window > 1 else f"∇ = ∂L/∂{state}")

    def online_form(self) -> str:
        """M_{t−1} (α I − (η + w) k kᵀ) + w v kᵀ, where the error is M k − v: the update with nothing left to derive."""
        if (
            self.fast.period != 1
            or self.fast.slowest is not None
            or self.single is None
            or self.memory.structure.kind != "linear"
        ):
            return ""
        fold = self.single.fold
        product = fold.gradient.products[0]
        state = state_of(self.fast, fold)
        if not depends_on(product.left, state) or depends_on(product.right, state):
            return ""
        split = affine_in(self.lowered.builder, product.left, self.lowered.builder.linear(product.right, state))
        if split is None or split[0].op != "number" or split[0].value != 1 or self.update.trace:
            return ""
        return self.update.closed(self.single.symbol, self.single.products[0][1], value_symbol(self.memory))

    # --- time ----------------------------------------------------------------------------------------

    def move_lines(self) -> list[Line]:
        if self.fast.slowest is not None:
            return self.adaptive_lines(self.fast.slowest)
        n, reads = self.fast.period, self.memory.reads
        symbol = "W" if len(self.problem.gradients) > 1 else self.problem.gradients[0].symbol
        equation = eq.schedule_equation(self.frequency, reads)
        if n == 1:
            after = reads == "running" and not self.summed
            shown = f"{symbol}ₜ (after the token)" if after else f"{symbol}ₜ₋₁ (before the token)"
            return [Line(f"every token, gradient at {symbol}ₜ₋₁; a read at t shows {shown}", equation)]
        lines = [Line(f"every {n} tokens; s = {n} ⌊(t−1)/{n}⌋ is the last boundary before t", equation)]
        if self.summed:
            lines.append(Line(f"all gradients of a chunk are taken at {symbol}ₛ, summed, and the rule is applied once"))
        else:
            lines.append(
                Line(f"keys, values, layer inputs, errors at {symbol}ₛ; the update folds over t = s+1, …, s+{n}")
            )
        if reads == "running" and not self.summed:
            lines.append(Line(f"a read at t shows {symbol}ₜ, inside the chunk too"))
        elif reads == "running":
            lines.append(Line(f"a read at t shows {symbol}ₛ, at the chunk's last token {symbol}ₛ₊{tx.subscript(n)}"))
        else:
            lines.append(Line(f"a read at t shows {symbol}ₛ"))
        return lines

    def adaptive_lines(self, slowest: int) -> list[Line]:
        n = self.fast.period
        symbol = "W" if len(self.problem.gradients) > 1 else self.problem.gradients[0].symbol
        equation = eq.schedule_equation(self.frequency, self.memory.reads)
        heads = "the heads and " if self.memory.structure.heads is not None else ""
        after = self.memory.reads == "running"
        return [
            Line(f"every {n} to {slowest} tokens: s is the sequence's last boundary before t", equation),
            Line(
                f"each sequence decides at multiples of {n}: a boundary where the mean of L at {symbol}ₛ over {heads}"
                f"i = s+1, …, t exceeds {self.fast.threshold:g}, or t − s = {slowest}; no gradient through the decision"
            ),
            Line(f"keys, values, layer inputs, errors at {symbol}ₛ; the update folds over t = s+1, s+2, …"),
            Line(f"a read at t shows {symbol}ₜ, inside the chunk too" if after else f"a read at t shows {symbol}ₛ"),
        ]


def free(symbol: str, taken: Collection[str]) -> str:
    """`symbol`, with primes where it stands for something else."""
    return next(text for text in (symbol + "′" * i for i in range(1000)) if text not in taken)


def counted(memory: c.Memory, symbols: Symbols) -> str:
    """Which update of a memory's rule `symbols.count` is, counted from the last reset; "" where it is the token t."""
    assert memory.frequency is not None
    since = {"per sequence": "", "never": ", over all sequences"}.get(reset_text(memory.reset), " since the last reset")
    if symbols.timed:
        return f"t counts the tokens{since}" if since else ""
    number = f" = s/{memory.frequency.period} + 1" if not since and memory.frequency.period != 1 else ""
    return f"{symbols.count}{number} is the number of the update{since}"


def start_lines(memory: c.Memory) -> list[Line]:
    """What a memory starts from, and when."""
    initial, reset = memory.initial, reset_text(memory.reset)
    when = {"per sequence": "at the start of every sequence", "never": "once; it is never reset"}.get(
        reset, f"at the start of every sequence and {reset}"
    )
    what = {
        "learned": f"{initial_text(initial)} by the level that trains the system",
        "zeros": "zeros",
        "memory": f"what `{initial.memory}` has learnt by then (transfer by initialisation)",
        "expression": f"written by {initial_text(initial)} (transfer by generation)",
    }[initial.kind]
    return [Line(f"{what}, {when}", eq.initial_equation(initial))]
