"""A rule's update in mathematics, its arguments put in.

A rule that is an affine recurrence is written as one, M_t = M_{t−1} (α_t I − η_t x xᵀ) − η_t g xᵀ with what α
and η are; any other as its straight-line form, one assignment a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from nsam.compiler import affine
from nsam.compiler import explain_text as tx
from nsam.compiler.explain_columns import Columns
from nsam.compiler.explain_nodes import Formula
from nsam.compiler.explain_text import Text
from nsam.compiler.expressions import Builder, Node
from nsam.compiler.rule_lowering import Lowering
from nsam.compiler.rule_passes import clean
from nsam.compiler.rule_plan import COUNT, GRAM, RulePlan
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

OLD, NEW = "ₜ₋₁", "ₜ"
_X, _G, _NABLA = Text("x"), Text("g"), Text("∇")


@dataclass(frozen=True, slots=True)
class Update:
    """`lines` of mathematics, then `where` its coefficients.

    `erases` tells whether the state decays along the input, `trace` whether there is a momentum, `affine` whether the
    rule is an affine recurrence, `main` which line is the host's, and `reason` why it is no recurrence. `keep`, `both`
    and `write` are α, η + w and w.
    """

    lines: tuple[str, ...]
    where: tuple[str, ...]
    erases: bool = False
    trace: bool = False
    affine: bool = False
    main: int = -1
    reason: str = ""
    keep: Text | None = None
    both: Text | None = None
    write: Text | None = None

    def closed(self, state: str, key: Text, value: str) -> str:
        """The update of M where the error is M k − v, written without the error."""
        if self.keep is None or self.write is None or self.both is None:
            return ""
        identity = scaled(self.keep, Text("I"))
        erased = tx.sub(identity, scaled(self.both, tx.outer(key, key)))
        wrote = scaled(self.write, tx.outer(Text(value), key))
        return f"{state}{NEW} = {state}{OLD} ({erased}) + {wrote}"


@dataclass(frozen=True, slots=True)
class Symbols:
    """How state, gradient, the layer's input and error are written, and the time marks of old and new states.

    `tokens` tells that input and error are those of several tokens, as rows (a window), not one column each. `count` is
    the number of the update, and `counted` says which that is where it is not plain. `taken` are symbols that stand for
    something else there: what a rule calls so gets a prime.
    """

    state: str = "M"
    key: Text = _X
    gradient: Text = _NABLA
    old: str = OLD
    new: str = NEW
    timed: bool = True
    error: Text = _G
    tokens: bool = False
    count: str = "t"
    counted: str = ""
    taken: frozenset[str] = frozenset()

    @property
    def square(self) -> Text:
        """x xᵀ, summed over tokens where there are several: Xᵀ X."""
        return Text(f"{self.key}ᵀ {self.key}", tx.TIGHT) if self.tokens else tx.outer(self.key, self.key)


def arguments_of(use: c.RuleUse) -> dict[str, Text]:
    """A rule's arguments as written in the program; numbers as numbers."""
    return {name: expression(value, {}) for name, value in use.arguments}


def named_in(use: c.RuleUse) -> frozenset[str]:
    """Values of the program that a rule's arguments name, as they are written; not those that a memory is read at."""
    names: set[str] = set()
    stack = [value for _, value in use.arguments]
    while stack:
        node = stack.pop()
        if isinstance(node, c.Apply):
            stack.extend(node.arguments)
        elif isinstance(node, c.Ref | c.State):
            names.add(node.name if isinstance(node, c.Ref) else node.memory)
    return frozenset(names)


def update(use: c.RuleUse, symbols: Symbols, arguments: Mapping[str, Text] | None = None) -> Update:
    """Return a rule's update. `arguments` replaces the texts of its arguments (constants too)."""
    try:
        return _recurrence(use, symbols, arguments)
    except affine.NotAffine as problem:
        symbols = replace(symbols, gradient=Text("∇"))
        plan, shown = straight(use, arguments is None), arguments or arguments_of(use)
        lines = plan_lines(plan, symbols, shown)
        own = (i for i, line in enumerate(lines) if line.startswith(f"{symbols.state}{symbols.new} = "))
        where = start_texts(plan, symbols, shown)
        if symbols.counted and (plan.needs_count or plan.strides):
            where.append(symbols.counted)
        return Update(tuple(lines), tuple(where), main=next(own, len(lines) - 1), reason=str(problem))


def straight(use: c.RuleUse, fix: bool) -> RulePlan:
    """The rule as straight-line code, nothing kept beside its states for speed."""
    fixed: dict[str, c.Expr] = (
        {name: value for name, value in use.arguments if isinstance(value, c.Constant)} if fix else {}
    )
    return clean(Lowering(use.rule).lower(fixed))


# --- affine recurrences ----------------------------------------------------------------------------


class _Coefficients:
    """Greek letters for what is not a number, each explained once."""

    def __init__(self, formula: Formula, timed: bool) -> None:
        self.formula, self.timed = formula, timed
        self.letters: dict[int, str] = {}
        self.meanings: dict[str, str] = {}

    def text(self, node: Node, letter: str) -> Text:
        if node.op == "number":
            return self.formula.text(node)
        if node.op == "neg":
            return tx.neg(self.text(node.args[0], letter))
        if node.id not in self.letters:
            self.letters[node.id] = self.letter(letter, str(self.formula.text(node)))
        return Text(self.letters[node.id])

    def letter(self, wished: str, meaning: str) -> str:
        """The letter that has this meaning, or a free one."""
        for symbol, known in self.meanings.items():
            if known == meaning:
                return symbol
        marks = (wished + "′" * i + (NEW if self.timed else "") for i in range(1000))
        symbol = next(s for s in marks if s not in self.meanings)
        self.meanings[symbol] = meaning
        return symbol

    @property
    def where(self) -> tuple[str, ...]:
        """What each letter stands for."""
        return tuple(f"{symbol} = {meaning}" for symbol, meaning in self.meanings.items())

    def sum(self, b: Builder, erase: Node, write: Node) -> Text:
        """η + w, added up where both are numbers."""
        if erase.op == "number" and (write.op == "number" or erase.value == 0):
            return self.text(b.add(erase, write), "η")
        if erase is write:
            return tx.mul(Text("2"), self.text(write, "η"))
        return tx.add(self.text(erase, "η"), self.text(write, "w"))


def _recurrence(use: c.RuleUse, symbols: Symbols, replaced: Mapping[str, Text] | None) -> Update:
    b, formula = Builder(), Formula()
    shown = replaced or arguments_of(use)
    arguments: dict[str, Node] = {}
    for name, value in use.arguments:
        if replaced is None and isinstance(value, c.Constant):
            arguments[name] = b.number(value.value)
        else:
            arguments[name] = b.make("input", (), (1,), "heads", name=name)
            formula.texts[arguments[name].id] = shown[name]
    key = b.make("input", (), (2,), "heads", name="key.")
    formula.name(key, symbols.key.text)
    sizes = tuple(b.make("input", (), (1,), "heads", name=f"{axis}.") for axis in ("rows", "cols"))
    for axis, node in zip(("rows", "cols"), sizes, strict=True):
        formula.texts[node.id] = Text(f"{axis}({symbols.state})")
    found = affine.analyse(b, use, arguments, key, (sizes[0], sizes[1]))
    letters = _Coefficients(formula, symbols.timed)
    lines = []
    traces = {
        name: f"S{tx.subscript(i) if len(found.traces) > 1 else ''}" for i, (name, _) in enumerate(found.traces, 1)
    }
    for name, trace in found.traces:
        lines.append(f"{traces[name]}{symbols.new} = {_combination(b, trace, letters, symbols, traces, 'θ')}")
    lines.append(f"{symbols.state}{symbols.new} = {_combination(b, found.state, letters, symbols, traces, 'α')}")
    terms = dict(found.state.terms)
    erases = any(
        symbol.endswith("xx'") for part in (found.state, *(t for _, t in found.traces)) for symbol, _ in part.terms
    )
    keep, erase, write = (terms.get(symbol) for symbol in ("self", "self xx'", "grad"))
    minus = None if write is None else b.neg(write)
    both = None if minus is None else letters.sum(b, b.neg(erase) if erase is not None else b.number(0), minus)
    return Update(
        tuple(lines), letters.where, erases, bool(found.traces), True, len(lines) - 1, "",
        None if keep is None else letters.text(keep, "α"),
        both,
        None if minus is None else letters.text(minus, "w" if erases else "η"),
    )  # fmt: skip


def _combination(
    b: Builder, linear: affine.Linear, letters: _Coefficients, symbols: Symbols, traces: Mapping[str, str], keep: str
) -> Text:
    """Σ coefficient · symbol, each state factored as M (α I − η x xᵀ)."""
    names = {"self": f"{symbols.state}{symbols.old}"}
    for name, symbol in traces.items():
        names |= {name: f"{symbol}{symbols.old}", f"{name} new": f"{symbol}{symbols.new}"}
    terms = dict(linear.terms)
    found: list[Text] = []
    for symbol, shown in names.items():
        square, plain = terms.get(f"{symbol} xx'"), terms.get(symbol)
        if square is not None and plain is None:
            key = symbols.square
            found.append(scaled(letters.text(square, "η"), Text(f"{shown} {key}", tx.TIGHT)))
        elif square is not None and plain is not None:
            identity = scaled(letters.text(plain, keep), Text("I"))
            erase = scaled(letters.text(square, "η"), symbols.square)
            found.append(Text(f"{shown} ({tx.add(identity, erase)})", tx.PRODUCT))
        elif plain is not None:
            found.append(
                scaled(letters.text(plain, keep if symbol == "self" or symbol in traces else "κ"), Text(shown))
            )
    if "grad" in terms:
        letter = "w" if any(s.endswith("xx'") for s in terms) else "η"
        found.append(scaled(letters.text(terms["grad"], letter), symbols.gradient))
    total = found[0] if found else Text("0")
    for term in found[1:]:
        total = tx.add(total, term)
    return total


def scaled(factor: Text, value: Text) -> Text:
    """factor · value, nothing where the factor is 1."""
    if factor.text == "1":
        return value
    if factor.text == "−1":
        return tx.neg(value)
    return tx.mul(factor, value)


# --- straight-line rules -----------------------------------------------------------------------------


def plan_lines(plan: RulePlan, symbols: Symbols, arguments: Mapping[str, Text]) -> list[str]:
    """A rule's assignments, one a line, states with their time."""
    shown = _shown(plan, symbols)
    names = _inputs(plan, symbols, arguments)
    names |= {s.name: Text(f"{shown[s.name]}{symbols.old}") for s in plan.states}
    names["self"] = Text(f"{symbols.state}{symbols.old}")
    after = {value: name for name, value in plan.results if value not in names}
    scalar = plan.algebra.scalar
    columns = Columns(scalar, set() if symbols.tokens else {"key", "err"})
    lines = []
    for a in plan.body:
        target = f"{shown[after[a.target]]}{symbols.new}" if a.target in after else shown[a.target]
        text = expression(columns.assigned(a.target, a.value), names, scalar)
        when = ""
        if a.stride > 1:
            other = "" if a.otherwise is None else f", else {names[a.otherwise]}"
            when = f"   when {symbols.count} ≡ 0 (mod {a.stride}){other}"
        lines.append(f"{target} = {text}{when}")
        names[a.target] = Text(target)
    return lines


def start_texts(plan: RulePlan, symbols: Symbols, arguments: Mapping[str, Text]) -> list[str]:
    """What a rule's states start from, `c₀ = 3`, but for zeros."""
    shown = _shown(plan, symbols)
    names = _inputs(plan, symbols, arguments) | {"self": Text(f"{symbols.state}₀")}
    starts = ((s, expression(s.initial, names, plan.algebra.scalar)) for s in plan.states if not s.derived)
    return [f"{shown[state.name]}₀ = {start}" for state, start in starts if start.text != "0"]


def _inputs(plan: RulePlan, symbols: Symbols, arguments: Mapping[str, Text]) -> dict[str, Text]:
    """How a rule's parameters and what it is given are written."""
    names = {name: text for name, text in arguments.items() if name in plan.parameters}
    names |= {"grad": symbols.gradient, "key": symbols.key, "err": symbols.error, COUNT: Text(symbols.count)}
    names[GRAM] = Text(f"E[{tx.outer(symbols.key, symbols.key)}]")
    return names


def _shown(plan: RulePlan, symbols: Symbols) -> dict[str, str]:
    """How a rule's states, in order, and then its other names are written, each in its own way; `self` too."""
    found = {"self": symbols.state}
    given = {str(text) for text in (symbols.key, symbols.error, symbols.gradient)}
    taken = symbols.taken | given | {symbols.state, symbols.count, "I", "L", "s", "t"}
    states = [s.name for s in plan.states]
    versions = {value for _, value in plan.results}
    for name in (*states, *(a.target for a in plan.body if a.target not in versions)):
        wished = symbols.state if name.startswith("self'") else _plain(name)
        if name not in found:
            found[name] = next(text for text in (wished + "′" * i for i in range(1000)) if text not in taken)
            taken |= {found[name]}
    return found


def _plain(name: str) -> str:
    return name.replace("'", "").replace(".sum", "_Σ").replace(".", "_")


_FILLS = {"identity": "I", "zeros": "0", "ones": "1"}
_FILLS |= {f"{name}_{kind}": text for name, text in (("zeros", "0"), ("ones", "𝟏")) for kind in ("like", "of")}
_BINARY = {"add": tx.add, "sub": tx.sub, "div": tx.div, "pow": tx.power}


Scalar = Callable[[c.Expr], bool]


def expression(expr: c.Expr, names: Mapping[str, Text], scalar: Scalar = lambda _: True) -> Text:
    """A checked expression as mathematics; `names` replaces references, `scalar` tells numbers from matrices."""
    if isinstance(expr, c.Constant):
        return tx.number(expr.value)
    if isinstance(expr, c.Ref):
        return names.get(expr.name, Text(expr.name))
    if isinstance(expr, c.State):
        return names.get(expr.memory, Text(expr.memory))
    if isinstance(expr, c.Read):
        name = Text("M") if expr.memory == "self" else Text(expr.memory)
        shown = tx.transpose(name) if expr.transposed else name
        return tx.call(shown.text, [expression(expr.argument, names, scalar)])
    if isinstance(expr, c.Output):
        return Text(expr.child if expr.name == "output" else f"{expr.child}.{expr.name}")
    assert isinstance(expr, c.Apply)
    return _applied(expr, [expression(a, names, scalar) for a in expr.arguments], scalar)


def _applied(expr: c.Apply, args: list[Text], scalar: Scalar) -> Text:
    name = expr.function
    if name in _BINARY:
        return _BINARY[name](*args)
    if name == "mul":
        return tx.mul(args[0], args[1], " " if any(scalar(a) for a in expr.arguments) else " ⊙ ")
    if name == "matmul":
        return Text(f"{args[0].within(tx.PRODUCT)} {args[1].within(tx.TIGHT)}", tx.PRODUCT)
    if name == "orthogonalize":
        return Text(f"NS{tx.subscript(args[1].text)}({args[0]})") if len(args) > 1 else tx.call("NS", args)
    if name == "outer":
        return tx.outer(*args)
    if name == "trace":  # of the outer products of a step
        return Text("E‖x‖²", tx.POWER)
    if name == "dot":
        return tx.squared_length(args[0]) if args[0] == args[1] else Text(f"⟨{args[0]}, {args[1]}⟩")
    if name in _FILLS:
        return Text(_FILLS[name])
    if name == "floor_div":
        return Text(f"⌊{tx.div(*args)}⌋")
    if len(args) == 1 and name in tx.FUNCTIONS:
        return tx.FUNCTIONS[name](args[0])
    extra = [Text(f"{k} = {v}") for k, v in expr.options if not (k == "heads" and v == 1)]
    return tx.call(name, [*args, *extra])
