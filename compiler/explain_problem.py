"""The inner problem of a fast memory in mathematics: what it computes, its objective, and the gradient derived from it.

Nothing is written per objective or per structure: the formulas are read off the nodes that the derivation made. Names
are given to what a reader wants to see: the key k, the value v, the layers' preactivations z and inputs x, the output
ŷ, and the error g of each layer (what reverse mode brings to its output).
"""

from __future__ import annotations

from nsam.compiler import explain_text as tx
from nsam.compiler.explain_model import Line
from nsam.compiler.explain_nodes import Formula, inner_order, shared, tidy
from nsam.compiler.explain_rules import named_in
from nsam.compiler.explain_text import Text
from nsam.compiler.expressions import Builder, Node, postorder
from nsam.compiler.fast_memory import FastMemory, Fold
from nsam.compiler.layers import apply_layers
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class TensorGradient:
    """The gradient of one tensor: `symbol` and the outer products (left, right)."""

    symbol: str
    products: tuple[tuple[Text, Text], ...]
    fold: Fold

    @property
    def text(self) -> Text:
        """The sum of the outer products."""
        terms = [tx.outer(left, right) for left, right in self.products]
        found = terms[0] if terms else Text("0")
        for term in terms[1:]:
            found = tx.add(found, term)
        return found


@dataclass(frozen=True, slots=True)
class Problem:
    """An inner problem: `forward` and `backward` are lines of mathematics, `loss` the objective of one token.

    `symbols` are those that stand for something in it.
    """

    forward: tuple[Line, ...]
    loss: str
    backward: tuple[Line, ...]
    gradients: tuple[TensorGradient, ...]
    transposed: bool
    symbols: frozenset[str]


def tensor_symbol(structure: c.Structure, tensor: str) -> str:
    """M for a linear memory, m for a vector, W₁ U₁ b₁ for the layers, gates and biases of an mlp."""
    if structure.kind == "vector":
        return "m"
    if structure.kind != "mlp":
        return "b" if tensor == "bias" else "M"
    letter = {"w": "W", "g": "U", "b": "b"}[tensor[0]]
    return letter + tx.subscript(tensor[1:])


def value_symbol(memory: c.Memory) -> str:
    """v, or v̂ where the memory makes its own target (eq. 87)."""
    own = memory.context is not None and any(
        isinstance(e, c.Read) and e.memory == "self" for e in c.walk(memory.context.value)
    )
    return "v̂" if own else "v"


def given_nodes(roots: list[Node]) -> list[Node]:
    """The keys and values below `roots`."""
    return [n for n in inner_order(roots) if n.op == "given"]


def biased(node: Node) -> Node | None:
    """The layer that `node` is the preactivation of, its bias included."""
    if node.op == "add" and node.args[0].op == "linear" and node.args[1].op == "row":
        return node.args[0]
    return node if node.op == "linear" else None


def state_of(fast: FastMemory, fold: Fold) -> Node:
    """The node of the state that a fold moves."""
    mine = ("state", fast.memory.name, fold.tensor)
    return next(n for n in postorder([fold.node]) if (n.op, n.attr("memory"), n.attr("tensor")) == mine)


class _Reader:
    """Reads one inner problem off its nodes."""

    def __init__(self, b: Builder, fast: FastMemory) -> None:
        self.b, self.fast, self.memory = b, fast, fast.memory
        self.structure = fast.memory.structure
        self.formula = Formula()
        self.basic = {"k", value_symbol(fast.memory), "ŷ"}
        self.reserved = frozenset[str]() if fast.memory.rule is None else named_in(fast.memory.rule)
        self.symbols = {t: tensor_symbol(self.structure, t) for t in self.structure.tensors()}
        self.basic |= set(self.symbols.values())
        raw = [n for f in fast.folds for p in f.gradient.products for n in (p.left, p.right)]
        raw += [n for f in fast.folds for n in f.gradient.direct]
        tidied = iter(tidy(b, raw))
        self.products: dict[str, list[tuple[Node, Node | None]]] = {}
        for fold in fast.folds:
            self.products[fold.tensor] = [(next(tidied), next(tidied)) for _ in fold.gradient.products]
        for fold in fast.folds:
            self.products[fold.tensor] += [(next(tidied), None) for _ in fold.gradient.direct]
        self.roots = [n for pairs in self.products.values() for pair in pairs for n in pair if n is not None]

    def read(self) -> Problem:
        loss = tidy(self.b, [self.loss()])[0]
        everything = [loss, *self.roots]
        self.name_inputs(everything)
        self.name_values(everything)
        order = inner_order(everything)
        output = [n for n in order if self.formula.symbols.get(n.id) == "ŷ"]
        ahead = {n.id for n in inner_order(output)}
        named = [n for n in order if n.id in self.formula.symbols and self.stands_alone(n)]
        forward = [self.line(n) for n in named if n.id in ahead]
        backward = [self.line(n) for n in named if n.id not in ahead]
        return Problem(
            tuple(forward), self.objective(loss), tuple(backward), self.gradients(), self.transposed(), self.used()
        )

    def objective(self, loss: Node) -> str:
        """The objective in k, v, ŷ and the state alone, or in the named values where that would be long."""
        plain = Formula({i: s for i, s in self.formula.symbols.items() if s in self.basic})
        found = str(plain.define(loss))
        return found if len(found) <= 70 else str(self.formula.define(loss))

    def loss(self) -> Node:
        """The objective at the boundary state (an exact fold's own loss reads the running state)."""
        if not self.fast.exact:
            return self.fast.loss
        return _at_state(self.b, self.fast)

    def stands_alone(self, node: Node) -> bool:
        return node.op not in ("given", "state", "row", "number")

    def line(self, node: Node) -> Line:
        symbol = self.formula.symbols[node.id]
        mark = "∂L/∂ŷ = " if node is self.output_error() else ""
        return Line(f"{mark}{symbol} = {self.formula.define(node)}")

    def output_error(self) -> Node | None:
        """What reverse mode brings to the output: the error of the last layer, where the objective reads it once."""
        last = "weight" if self.structure.kind == "linear" else f"w{len(self.structure.sizes) - 1}"
        pairs = self.products.get(last, [])
        return pairs[0][0] if len(pairs) == 1 and "ŷ" in self.formula.symbols.values() else None

    # --- names -------------------------------------------------------------------------------------

    def name_inputs(self, roots: list[Node]) -> None:
        for node in inner_order(roots):
            if node.op == "state":
                self.formula.name(node, self.symbols[str(node.attr("tensor"))])
            elif node.op == "row":
                self.formula.name(node, self.symbols[str(node.args[0].attr("tensor"))])
        for node in given_nodes(roots):
            is_key = self.fast.key is not None and node.args[0] is self.fast.key
            self.formula.name(node, "k" if is_key else value_symbol(self.memory))

    def name_values(self, roots: list[Node]) -> None:
        """Name the output, the layers' inputs and errors, and whatever else is used twice."""
        self.name_output()
        twice = shared(roots)
        for node in twice:
            layer = biased(node)
            if layer is not None and self.structure.kind == "mlp":
                self.formula.name(node, self.preactivation(layer))
        for fold in self.fast.folds:
            for left, right in self.products[fold.tensor]:
                self.name_pair(fold.tensor, left, right, len(self.products[fold.tensor]))
        letters = ("u", "r", "p", *(f"u{tx.subscript(i)}" for i in range(2, 1000)))
        spare = (letter for letter in letters if letter not in self.reserved)
        for node in twice:
            if node.id not in self.formula.symbols:
                error = self.misses(node) and "e" not in self.used() | self.reserved
                self.formula.name(node, "e" if error else next(spare))

    def misses(self, node: Node) -> bool:
        """Whether `node` is what the answer and the value differ by: ŷ − v, or m − v of a vector."""
        if node.op != "sub":
            return False
        names = [self.formula.symbols.get(a.id, "") for a in node.args]
        return names[0] in ("ŷ", "m") and names[1] in (value_symbol(self.memory), "k")

    def name_output(self) -> None:
        if self.structure.kind not in ("linear", "mlp") or self.fast.key is None:
            return
        states = {t: self.state(t) for t in self.structure.tensors()}
        if any(s is None for s in states.values()):
            return
        output = apply_layers(self.b, self.memory, self.b.given(self.fast.key), False, lambda t: states[t])  # type: ignore[return-value, arg-type]
        self.formula.name(tidy(self.b, [output])[0], "ŷ")

    def state(self, tensor: str) -> Node | None:
        fold = next((f for f in self.fast.folds if f.tensor == tensor), None)
        return None if fold is None else state_of(self.fast, fold)

    def preactivation(self, node: Node) -> str:
        tensor = str(node.args[1].attr("tensor"))
        taken = self.used() | self.reserved
        wished = ("c" if tensor.startswith("g") else "z") + tx.subscript(tensor[1:])
        return next(s for s in (wished + "′" * i for i in range(1000)) if s not in taken)

    def name_pair(self, tensor: str, left: Node, right: Node | None, pairs: int) -> None:
        deep = self.structure.kind == "mlp"
        layer = tensor[1:] if deep else ""
        if right is not None and right.op not in ("given", "ones", "neg", "number", "linear_t"):
            self.free_name(right, "x" + tx.subscript(layer))
        simple = left.op in ("given", "number") or (left.op == "neg" and left.args[0].op == "given")
        if not simple:
            output = self.misses(left) and not deep and pairs == 1
            letter = "h" if tensor.startswith("g") and deep else "g"
            self.free_name(left, "e" if output else letter + tx.subscript(layer))

    def used(self) -> frozenset[str]:
        """Symbols that stand for something here."""
        return frozenset(self.basic) | set(self.formula.symbols.values())

    def free_name(self, node: Node, symbol: str) -> None:
        taken = self.used() | self.reserved
        self.formula.name(node, next(s for s in (symbol + "′" * i for i in range(1000)) if s not in taken))

    # --- results -----------------------------------------------------------------------------------

    def gradients(self) -> tuple[TensorGradient, ...]:
        found = []
        for fold in self.fast.folds:
            pairs = tuple(
                (self.formula.text(left), Text("1") if right is None else self.formula.text(right))
                for left, right in self.products[fold.tensor]
            )
            found.append(TensorGradient(self.symbols[fold.tensor], pairs, fold))
        return tuple(found)

    def transposed(self) -> bool:
        """Whether the objective reads the transposed memory, so that the state enters what is written (eq. 66-67)."""
        return any(n.op == "linear_t" for pairs in self.products.values() for _, n in pairs if n is not None)


def _at_state(b: Builder, fast: FastMemory) -> Node:
    """The loss of an exact memory with its running state replaced by the state that the gradient was derived at."""
    done: dict[int, Node] = {}
    states = {f.tensor: state_of(fast, f) for f in fast.folds}
    for node in inner_order([fast.loss], frozenset({"given", "shown"})):
        if node.op == "given":
            done[node.id] = node
        elif node.op == "shown":
            done[node.id] = states[str(node.args[0].attr("tensor"))]
        elif node.op in ("fold_read", "fold_read_t"):
            weight, x = done[node.args[0].id], done[node.args[1].id]
            done[node.id] = b.linear(x, weight) if node.op == "fold_read" else b.linear_t(x, weight)
        elif node.layout == "fold" or node.op == "state":
            done[node.id] = node
        else:
            args = [done[a.id] for a in node.args]
            done[node.id] = b.make(node.op, args, node.shape, node.layout, **dict(node.attrs))
    return done[fast.loss.id]


def read_problem(b: Builder, fast: FastMemory) -> Problem:
    """Return the inner problem of a fast memory as mathematics."""
    return _Reader(b, fast).read()
