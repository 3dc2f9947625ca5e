"""Plan expressions as plain-text mathematics, with names for the intermediate values that deserve one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nsam.compiler import explain_text as tx
from nsam.compiler.explain_text import Text
from nsam.compiler.expressions import Builder, Node

_LAYOUT = frozenset({"split", "merge", "gate", "detach", "carry", "expand_like", "expand_heads", "expand_tokens"})
_SILENT = _LAYOUT | {"given", "row"}


def tidy(b: Builder, roots: list[Node]) -> list[Node]:
    """Drop what only changes the layout, and terms divided by infinity (`pseudo_huber(inf)` is the squared error)."""
    done: dict[int, Node] = {}
    for node in inner_order(roots):
        if node.op == "given":
            done[node.id] = node
            continue
        args = tuple(done[a.id] for a in node.args)
        if node.op in _LAYOUT:
            done[node.id] = args[0]
        elif node.op == "div" and args[1].op == "number" and args[1].value == float("inf"):
            done[node.id] = b.number(0)
        elif node.op == "sqrt" and args[0].op == "number":
            done[node.id] = b.number(args[0].value ** 0.5)
        elif node.op == "root_slope":
            done[node.id] = b.mul(args[1], b.apply("pow", args[0], b.number(args[1].value - 1)))
        elif node.op == "pseudo_huber" and node.attr("delta") == float("inf"):
            done[node.id] = b.mul(b.number(0.5), b.reduce("dot", args[0], args[0]))
        elif args == node.args:
            done[node.id] = node
        elif len(args) == 2 and node.op in ("add", "sub", "mul", "div", "pow"):
            done[node.id] = b.apply(node.op, *args)
        else:
            done[node.id] = b.make(node.op, args, node.shape, node.layout, **dict(node.attrs))
    return [done[r.id] for r in roots]


@dataclass
class Formula:
    """Names given so far, and the formulas of what they stand for."""

    symbols: dict[int, str] = field(default_factory=dict)
    texts: dict[int, Text] = field(default_factory=dict)
    """Formulas to put in the place of nodes."""

    def name(self, node: Node, symbol: str) -> None:
        """Call `node` by `symbol` from now on, unless it has a name."""
        self.symbols.setdefault(node.id, symbol)

    def text(self, node: Node) -> Text:
        """`node` by its name, or by its formula."""
        if node.id in self.symbols:
            return Text(self.symbols[node.id])
        return self.texts[node.id] if node.id in self.texts else self.define(node)

    def define(self, node: Node) -> Text:
        """The formula of `node` down to what has a name."""
        if node.op == "number":
            return tx.number(node.value)
        if node.op in _SILENT:
            return self.text(node.args[0])
        if node.op == "input":
            return Text(str(node.attr("name")))
        if node.op == "ones":
            return Text("1")
        args = [self.text(a) for a in node.args]
        if node.op in ("add", "sub", "div"):
            return {"add": tx.add, "sub": tx.sub, "div": tx.div}[node.op](*args)
        if node.op == "mul":
            return self._product(node, args)
        if node.op == "pow":
            return tx.power(*args)
        if node.op in ("linear", "linear_t"):
            matrix = args[1] if node.op == "linear" else tx.transpose(args[1])
            return tx.apply(matrix, args[0])
        if node.op in tx.FUNCTIONS:
            return tx.FUNCTIONS[node.op](*args)
        return self._reduction(node, args)

    def _product(self, node: Node, args: list[Text]) -> Text:
        left, right = node.args
        if left is right:
            return tx.power(args[0], Text("2"))
        wide = all(a.op != "number" and a.shape and a.shape[-1] > 1 for a in (left, right))
        if right.shape in ((), (1,)) and left.op != "number" and left.shape not in ((), (1,)):
            args = args[::-1]
        return tx.mul(args[0], args[1], " ⊙ " if wide else " ")

    def _reduction(self, node: Node, args: list[Text]) -> Text:
        if node.op == "sum":
            inner = node.args[0]
            if inner.op == "pow" and inner.args[1].op == "number" and inner.args[1].value == 2:
                return tx.squared_length(self.text(inner.args[0]))
            if inner.op == "mul" and inner.args[0] is inner.args[1]:
                return tx.squared_length(self.text(inner.args[0]))
            return tx.call("sum", args)
        if node.op == "dot":
            return tx.squared_length(args[0]) if node.args[0] is node.args[1] else Text(f"⟨{args[0]}, {args[1]}⟩")
        if node.op == "length":
            return Text(f"‖{args[0]}‖")
        if node.op in ("lp", "huber", "pseudo_huber"):
            return penalty(node.op, args[0], float(node.attr("p" if node.op == "lp" else "delta") or 0))  # type: ignore[arg-type]
        if node.op == "normalize_pullback":
            return tx.apply(Text(f"normalize′({args[0]})ᵀ"), args[1])
        if node.op == "inside":
            return Text(f"[{args[1]} < {args[0]} < {args[2]}]")
        if node.op == "index":
            return Text(f"{args[0].within(tx.ATOM)}[{node.attr('i')}]")
        return tx.call(node.op, args)


def penalty(name: str, error: Text, parameter: float) -> Text:
    """The named functions of an error: (1/p)‖e‖ₚᵖ, Huber's, and its smooth form."""
    shown = tx.number(parameter)
    if name == "lp":
        if parameter == 2:
            return tx.mul(tx.number(0.5), tx.squared_length(error))
        p = shown.text
        length = f"‖{error}‖{tx.subscript(p)}" + tx.power(Text(""), shown).text if p.isdigit() else f"‖{error}‖_{p}^{p}"
        return tx.div(Text(length), shown)
    if name == "huber":
        return Text(f"Σᵢ huber({error}ᵢ; {shown})" if error.binding == tx.ATOM else f"Σᵢ huber(({error})ᵢ; {shown})")
    inside = tx.squared_length(error)
    if parameter != 1:
        inside = tx.div(inside, tx.number(parameter * parameter))
    root = tx.sub(tx.sqrt(tx.add(Text("1"), inside)), Text("1"))
    return root if parameter == 1 else tx.mul(tx.number(parameter * parameter), root)


def shared(roots: Iterable[Node]) -> list[Node]:
    """Nodes that are used more than once below `roots`, arguments first; names and single symbols left out."""
    counts: dict[int, int] = {}
    order = inner_order(roots)
    for node in order:
        for argument in () if node.op == "given" else node.args:
            counts[argument.id] = counts.get(argument.id, 0) + 1
    trivial = {"number", "given", "state", "row", "neg", "ones", "input", "weight"}
    return [n for n in order if counts.get(n.id, 0) > 1 and n.op not in trivial]


def inner_order(roots: Iterable[Node], stop: frozenset[str] = frozenset({"given"})) -> list[Node]:
    """Nodes of an inner problem, arguments first, not looking into keys and values (`given`), or what `stop` says."""
    seen: set[int] = set()
    found: list[Node] = []
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                found.append(node)
            elif node.id not in seen:
                seen.add(node.id)
                stack.append((node, True))
                if node.op not in stop:
                    stack.extend((a, False) for a in reversed(node.args))
    return found
