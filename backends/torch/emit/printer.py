"""Prints plan nodes as statements of a Python function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

from nsam.backends.torch.emit.keys import sums
from nsam.backends.torch.emit.names import Names
from nsam.compiler.expressions import Node, steady
from nsam.compiler.rows import Part
from nsam.compiler.signs import positive

WIDTH = 108
_INFIX = {"add": ("+", 4), "sub": ("-", 4), "mul": ("*", 5), "div": ("/", 5)}
_CALLS = {
    "exp": "torch.exp", "log": "torch.log", "abs": "torch.abs", "sign": "torch.sign", "sin": "torch.sin",
    "cos": "torch.cos", "tanh": "torch.tanh", "sigmoid": "torch.sigmoid", "silu": "F.silu", "gelu": "F.gelu",
    "gelu_tanh": "rt.gelu_tanh", "gelu_tanh_slope": "rt.gelu_tanh_slope",
    "relu": "F.relu", "softplus": "F.softplus", "max": "rt.maximum", "min": "rt.minimum",
    "sqrt": "rt.sqrt", "sqrt_slope": "rt.sqrt_slope", "root_slope": "rt.root_slope",
    "silu_slope": "rt.silu_slope", "gelu_slope": "rt.gelu_slope",
    "step_at": "rt.step_at", "inside": "rt.inside", "norm": "rt.norm", "dot": "rt.dot", "outer": "rt.outer",
    "normalize": "rt.normalize",
    "normalize_pullback": "rt.normalize_pullback", "root_mean_square": "rt.root_mean_square", "merge": "rt.merge",
    "rows": "rt.rows", "across": "rt.across", "gather": "rt.gather", "gate": "rt.gate",
    "embedding": "F.embedding", "carry": "rt.carry",
}  # fmt: skip
INLINE = frozenset(
    {*_INFIX, *_CALLS, "neg", "pow", "sum", "mean", "linear", "linear_t", "split", "row", "lp", "huber", "pseudo_huber",
     "length", "softmax", "clip", "index", "slice", "flatten", "lift",
     "expand_like", "ones", "rmsnorm", "layernorm", "detach", "concat"}
) - {"carry", "rows", "across", "gather"}  # fmt: skip
ATOM = 9
_BY_TOKEN = frozenset({"expand_like", "expand_tokens", "carry", "conv", "attention"})


def number(value: float | int) -> str:
    """A Python literal."""
    if isinstance(value, float) and math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(value)
    return repr(value)


class Printer:
    """Prints one function's nodes. `known` names what exists before; statements go to `lines`."""

    def __init__(
        self, names: Names, fold: Callable[[Node, Printer], str], outside: Iterable[Node] = (), clock: str = "start"
    ) -> None:
        self.clock = clock
        self.sites, self.slots = names.sites, names.slots
        self.names = names
        self.fold = fold
        self.text: dict[int, tuple[str, int]] = {n.id: (names.of(n), ATOM) for n in outside}
        self.lines: list[str] = []
        self.weights: dict[int, Node] = {}
        self.states: dict[int, Node] = {}
        self.updates: list[str] = []
        self.parts: Mapping[int, Part] = {}
        self.sums: dict[int, tuple[Node, tuple[str, ...]]] = {}

    def statements(self, nodes: Iterable[Node], keep: Iterable[Node]) -> None:
        """Print `nodes` in order; those in `keep` get a variable of their own."""
        todo = [n for n in nodes if n.id not in self.text]
        self.sums = sums(todo, self.sites)
        told = (n.args[0] for n in todo if n.id in self.slots)
        kept = {n.id for n in (*keep, *(x for x, _ in self.sums.values()), *told)}
        uses: dict[int, int] = {}
        for node in reversed(todo):
            part = self.parts.get(node.id)
            if (part is not None or node.op == "given") and node.id not in kept and not uses.get(node.id):
                continue  # only used whole
            for argument in node.args if part is None else (part.whole,):
                uses[argument.id] = uses.get(argument.id, 0) + 1
        for node in todo:
            if node.op in ("number", "weight", "state", "given", "shown", "child", "input"):
                continue
            if node.id in self.parts and node.id not in kept and not uses.get(node.id):
                continue
            self.statement(node, uses.get(node.id, 0) <= 1 and node.id not in kept)

    def statement(self, node: Node, inline: bool) -> None:
        """Print one node, as a statement or for use inside another's."""
        name = self.names.builder.names.get(node.id)
        if node.id in self.sums:
            x, places = self.sums[node.id]
            self.lines.append(f"new |= rt.inputs_seen(s, {self.of(x)}, at, {', '.join(map(quoted, places))})")
        if node.op in ("conv", "attention", "carry"):
            self.stateful(node)
            return
        text, level = self.expression(node)
        part = self.parts.get(node.id)
        simple = node.op in INLINE if part is None else part.axis == "memories"
        if inline and name is None and simple and len(text) < 72:
            self.text[node.id] = (text, level)
            return
        self.assign(node, text)

    def assign(self, node: Node, text: str) -> None:
        """Print `name = text`."""
        name = self.names.of(node)
        self.lines.append(f"{name} = {text}" + self.shape_comment(node, len(name) + len(text)))
        self.text[node.id] = (name, ATOM)

    def shape_comment(self, node: Node, used: int) -> str:
        """The shape, where there is room for it."""
        memories = node.attr("members")
        leads = {
            "flat": "B, T",
            "heads": "B, H, T",
            "stacked": f"B, H, {memories}, T",
            "sequence": "B, 1",
            "constant": "",
        }
        lead = leads.get(node.layout)
        if lead is None or used > WIDTH - 24:
            return ""
        inside = ", ".join([*([lead] if lead else []), *(str(n) for n in node.shape)])
        return f"  # [{inside}]"

    def of(self, node: Node, level: int = 0) -> str:
        """`node` as an expression that binds at least as tightly as `level`."""
        if node.id not in self.text:
            self.text[node.id] = self.leaf(node)
        text, own = self.text[node.id]
        return text if own >= level else f"({text})"

    def leaf(self, node: Node) -> tuple[str, int]:
        """A node that nothing has printed yet: a number, a weight, a state."""
        if node.id in self.parts:
            return self.expression(node)
        if node.op == "number":
            text = number(node.value)
            return text, ATOM if node.value >= 0 else 6
        if node.op == "weight":
            self.weights[node.id] = node
            return self.names.of(node), ATOM
        if node.op == "state":
            self.states[node.id] = node
            return self.names.of(node), ATOM
        if node.op in ("given",):
            return self.of(node.args[0], ATOM), ATOM
        return self.expression(node)

    def expression(self, node: Node) -> tuple[str, int]:
        """A node's Python expression and how tightly it binds."""
        text, level = self.plain(node)
        if node.id in self.slots:
            text, level = f"rt.told({text}, {self.of(node.args[0])}, {self.names.of(self.slots[node.id])})", ATOM
        return (f"rt.wide({text})", ATOM) if node.id in self.names.wide else (text, level)

    def plain(self, node: Node) -> tuple[str, int]:
        """The same, in the precision of its arguments."""
        if node.id in self.parts:
            part = self.parts[node.id]
            if part.axis == "memories":
                return f"{self.of(part.whole, ATOM)}[:, :, {part.index}]", ATOM
            return f"rt.part({self.of(part.whole)}, {part.index}, {part.count})", ATOM
        op, args = node.op, node.args
        if op in _INFIX:
            sign, level = _INFIX[op]
            text = self.of(args[1], level)
            if (
                op in ("sub", "div") or " @ " in text
            ):  # products of matrices bind like products of numbers, from the left
                text = self.of(args[1], level + 1)
            return f"{self.of(args[0], level)} {sign} {text}", level
        if op == "neg":
            return f"-{self.of(args[0], 7)}", 6
        if op == "pow" and args[1].op == "number" and 0 < args[1].value < 1:
            return f"rt.root({self.of(args[0])}, {self.of(args[1])})", ATOM
        if op == "pow" and args[0].op != "number":
            return f"rt.power({self.of(args[0])}, {self.of(args[1])})", ATOM
        if op == "pow":
            return f"{self.of(args[0], 8)} ** {self.of(args[1], 8)}", 7
        if op in ("normalize", "normalize_pullback") and node.attr("heads") is not None:
            return f"{_CALLS[op]}({', '.join(self.of(a) for a in args)}, heads={node.attr('heads')})", ATOM
        if op in _CALLS:
            return f"{_CALLS[op]}({', '.join(self.of(a) for a in args)})", ATOM
        special = getattr(self, f"_{op}", None)
        if special is not None:
            return special(node), 5 if op in ("linear", "linear_t") and " @ " in special(node) else ATOM
        if node.layout == "fold":
            return self.fold(node, self), ATOM
        raise AssertionError(f"no Python form for {node}")

    def _linear(self, node: Node) -> str:
        x, weight = node.args
        if weight.layout == "weight" and len(weight.shape) == 2:
            return f"F.linear({self.of(x)}, {self.of(weight)})"
        return f"{self.of(x, 6)} @ {self.of(weight, ATOM)}.mT"

    def _linear_t(self, node: Node) -> str:
        x, weight = node.args
        return f"{self.of(x, 6)} @ {self.of(weight, ATOM)}"

    def _split(self, node: Node) -> str:
        return f"rt.split({self.of(node.args[0])}, {node.attr('heads')})"

    def _sum(self, node: Node) -> str:
        return f"{self.of(node.args[0], ATOM)}.sum(-1, keepdim=True)"

    def _mean(self, node: Node) -> str:
        return f"{self.of(node.args[0], ATOM)}.mean(-1, keepdim=True)"

    def _softmax(self, node: Node) -> str:
        return f"torch.softmax({self.of(node.args[0])}, -1)"

    def _lp(self, node: Node) -> str:
        return f"rt.lp({self.of(node.args[0])}, {node.attr('p')})"

    def _huber(self, node: Node) -> str:
        return f"rt.huber({self.of(node.args[0])}, {node.attr('delta')})"

    def _pseudo_huber(self, node: Node) -> str:
        return f"rt.pseudo_huber({self.of(node.args[0])}, {node.attr('delta')})"

    def _length(self, node: Node) -> str:
        return f"rt.length({self.of(node.args[0])}, {node.attr('floor', 1e-6)})"

    def _index(self, node: Node) -> str:
        i = node.attr("i")
        return f"{self.of(node.args[0], ATOM)}[..., {i} : {int(str(i)) + 1}]"

    def _slice(self, node: Node) -> str:
        return f"{self.of(node.args[0], ATOM)}[..., {node.attr('start')} : {node.attr('stop')}]"

    def _flatten(self, node: Node) -> str:
        return f"{self.of(node.args[0], ATOM)}.flatten(-2)"

    def _lift(self, node: Node) -> str:
        """New axes of size 1 before the last one."""
        return self.of(node.args[0], ATOM) + ".unsqueeze(-2)" * int(str(node.attr("axes")))

    def _concat(self, node: Node) -> str:
        return f"rt.concat({', '.join(self.of(a) for a in node.args)})"

    def _clip(self, node: Node) -> str:
        x, low, high = (self.of(a) for a in node.args)
        if all(bound.op == "number" for bound in node.args[1:]):
            return f"torch.clamp({x}, {low}, {high})"
        return f"rt.minimum(rt.maximum({x}, {low}), {high})"

    def _detach(self, node: Node) -> str:
        return f"{self.of(node.args[0], ATOM)}.detach()"

    def _row(self, node: Node) -> str:
        source = node.args[0]
        return f"{self.of(source, ATOM)}.{'unsqueeze(-2)' if source.layout == 'weight' else 'mT'}"

    def _ones(self, node: Node) -> str:
        return f"torch.ones_like({self.of(node.args[0], ATOM)}[..., :1])"

    def _expand_like(self, node: Node) -> str:
        value, like = node.args
        if value.op == "number":
            return f"torch.full_like({self.of(like)}, {self.of(value)})"
        return f"{self.of(value, ATOM)}.expand_as({self.of(like)})"

    def _expand_heads(self, node: Node) -> str:
        return f"torch.as_tensor({self.of(node.args[0])})"

    def _expand_tokens(self, node: Node) -> str:
        value = node.args[0]
        text = f"(rt.blank(w, 1) + {self.of(value, 5)})" if value.op == "number" else self.of(value, ATOM)
        axes = "".join(f", {n if value.op == 'number' else -1}" for n in node.shape)
        return f"{text}.expand(at.batch, at.length{axes})"

    def _each_sequence(self, node: Node) -> str:
        """[B, n] of a value that is the same for all tokens of a sequence."""
        value = node.args[0]
        axes = ", -1" * len(node.shape)
        if value.op == "number":
            return f"(rt.blank(w, 1) + {self.of(value, 5)}).expand(at.batch{axes})"
        text = self.of(value, ATOM)
        return f"{text}.squeeze(1)" if value.layout == "sequence" else f"{text}.expand(at.batch{axes})"

    def _rmsnorm(self, node: Node) -> str:
        x, weight = node.args
        return f"rt.rms_norm({self.of(x)}, {self.of(weight)}, {node.attr('eps', 1e-6)})"

    def _layernorm(self, node: Node) -> str:
        x, weight, bias = node.args
        eps = node.attr("eps", 1e-6)
        return f"rt.layer_norm({self.of(x)}, {self.of(weight)}, {self.of(bias)}, {eps})"

    def _rope(self, node: Node) -> str:
        base = "" if node.attr("base") is None else f", base={node.attr('base')}"
        return f"rt.rope({self.of(node.args[0])}, {self._token()}{base})"

    def _position(self, node: Node) -> str:
        return f"rt.position({self.of(node.args[0])}, {self._token()})"

    def _token(self) -> str:
        """The number of the block's first token."""
        return "clock" if self.clock == "clock" else f's["{self.clock}"]'

    def _fold_read(self, node: Node) -> str:
        shown, x = node.args
        return f"{self.of(shown.args[0], ATOM)}.read({self.of(x)}, strict={shown.attr('strict')})"

    def _fold_read_t(self, node: Node) -> str:
        shown, x = node.args
        return f"{self.of(shown.args[0], ATOM)}.read_t({self.of(x)}, strict={shown.attr('strict')})"

    def _fold_row(self, node: Node) -> str:
        shown = node.args[0]
        return f"{self.of(shown.args[0], ATOM)}.row(strict={shown.attr('strict')})"

    # --- operations that carry something between blocks ---------------------------------------------

    def stateful(self, node: Node) -> None:
        """Operations with a second result that is stored for the next block."""
        name = self.names.of(node)
        memory = node.attr("memory")
        if node.op == "conv":
            key = f"{memory}.site{node.attr('site')}"
            x, weight = node.args
            self.lines.append(f'{name}, new["{key}"] = rt.conv({self.of(x)}, {self.of(weight)}, s["{key}"])')
        elif node.op == "carry":
            key = f"{memory}.{node.attr('slot')}"
            self.lines.append(f'{name}, new["{key}"] = rt.carry({self.of(node.args[0])}, s["{key}"])')
        else:
            q = self.of(node.args[0])
            # What is stored is a copy where it is an input itself: the caller may write into what it gave.
            k, v = (f"{self.of(a, ATOM)}.clone()" if shows_input(a) else self.of(a) for a in node.args[1:])
            left = f'{name}, new["{memory}.keys"], new["{memory}.values"] = rt.attention('
            self.lines += [
                left,
                f'    {q}, {k}, {v}, s["{memory}.keys"], s["{memory}.values"], window={node.attr("window")}',
                ")",
            ]
        self.text[node.id] = (name, ATOM)


def quoted(text: str) -> str:
    """A string of generated source."""
    return f'"{text}"'


def shows_input(node: Node) -> bool:
    """Whether a value may be a view of an input, with nothing computed in between."""
    while node.op in ("split", "merge", "slice", "index"):
        node = node.args[0]
    return node.op == "input"


def each_token(node: Node, text: str) -> str:
    """`text` with one row for each token of the block, for a value that crosses the border of a function."""
    if not steady(node):
        return text
    return f"{text}.expand(-1, {'-1, ' if node.layout == 'heads' else ''}at.length{', -1' * max(len(node.shape), 1)})"


def gate_sign(nodes: Iterable[Node]) -> str:
    """The `positive=` argument of a fold: whether all of its decays are known to be above 0."""
    return ", positive=True" if all(positive(n) for n in nodes) else ""


def state_bindings(printer: Printer, kind: Mapping[int, Node], source: str) -> list[str]:
    """`mem_w1 = s["mem.w1"]  # [B, H, 128, 32]` for every state or weight that a function uses."""
    found = []
    for node in sorted(kind.values(), key=lambda n: (str(n.attr("memory")), str(n.attr("tensor")))):
        lead = ["B", "H"] if source == "s" else []
        shape = ", ".join([*lead, *(str(n) for n in node.shape)])
        found.append(f'{printer.names.of(node)} = {source}["{node.attr("memory")}.{node.attr("tensor")}"]  # [{shape}]')
    return found


def clocks(lines: Iterable[str]) -> list[str]:
    """Bind the token's number at the block's start where `lines` use it: an inner loop moves the clock on."""
    code = (re.sub(r'"[^"]*"|#.*', "", line) for line in lines)  # a memory may have the name too
    used = {name for line in code for name in re.findall(r"\bclock(?:_never)?\b", line)}
    return [f'{name} = s["{name.replace("_", ".")}"]' for name in sorted(used)]
