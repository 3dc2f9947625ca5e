"""Fast memories: from objective, structure and rule to one fold for each weight.

The inner gradient is derived (`derive.py`), the rule read as a recurrence (`affine.py`), and an algorithm chosen from
a table of patterns; the generic fold, which applies the rule token by token, is always right. Why a faster one was not
taken is kept for `explain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsam.compiler import affine
from nsam.compiler.derive import Gradient, NotDifferentiable, OuterProduct, gradients
from nsam.compiler.exact import affine_in, depends_on, exact_block
from nsam.compiler.expressions import Attr, Node, postorder, steady
from nsam.compiler.fast_memory import Algorithm, FastMemory, Fold, piece_length
from nsam.compiler.passes import switched_off
from nsam.compiler.rule_plan import RulePlan, lower_rule, own
from nsam.compiler.unsupported import unsupported
from nsam.compiler.windows import require_sums
from nsam.dsl import checked as c

if TYPE_CHECKING:
    from nsam.compiler.lower import Lowering


def build_fast_memory(lowering: Lowering, memory: c.Memory) -> FastMemory:
    """Derive the update of one fast memory. Raises `ProgramError` for what cannot be compiled."""
    return _Build(lowering, memory).run()


class _Build:
    def __init__(self, lowering: Lowering, memory: c.Memory) -> None:
        from nsam.compiler.lower import memory_heads

        assert memory.rule is not None
        assert memory.objective is not None
        assert memory.objective.expression is not None, "a memory that moves by the model's own loss has no fold"
        assert memory.context is not None
        assert memory.frequency is not None
        self.l, self.m, self.b = lowering, memory, lowering.b
        self.context, self.rule, self.objective = memory.context, memory.rule, memory.objective.expression
        self.heads = memory_heads(memory)
        self.period = int(memory.frequency.period)
        self.summed = memory.frequency.summed
        self.slowest = None if memory.frequency.slowest is None else int(memory.frequency.slowest)
        self.threshold = 0.0 if memory.frequency.threshold is None else float(memory.frequency.threshold)
        self.direct = lowering.direct_sources(memory)
        self.tensors = list(memory.structure.tensors())

    def run(self) -> FastMemory:
        key, value = self.inputs()
        states = {t: self.l.state(self.m, t) for t in self.tensors}
        held = self.held()
        objective = self.lower_objective(self.objective, key, value, held)
        try:
            derived = gradients(self.b, objective, list(held.values()))
        except NotDifferentiable as problem:
            raise unsupported(
                f"the compiler has no derivative for `{problem.op}` in this objective", self.m.span
            ) from None
        found = {states[t].id: derived[held[t].id] for t in self.tensors}
        arguments = self.arguments()
        folds, exact = self.folds(states, found, arguments, key)
        loss = objective
        if exact:
            shown = {f.tensor: self.b.make("shown", (f.node,), f.node.shape, "fold", strict=True) for f in folds}
            loss = self.lower_objective(self.objective, key, value, shown)
        needs_plan = any(f.algorithm in ("summed", "generic") for f in folds)
        plan = self.plan() if needs_plan else None
        if plan is not None and self.window > 1 and not self.summed:
            require_sums(plan, self.rule)
        return FastMemory(
            self.m, self.heads, self.period, exact_block(self.m) if exact else self.period, exact, folds, plan,
            tuple(arguments.items()), key, loss, self.window, self.slowest, self.threshold,
        )  # fmt: skip

    def sizes(self, tensor: str) -> tuple[Node, Node]:
        """Rows and columns of what the rule sees: a vector is one row, or the column that its key 1 reads."""
        rows, columns = self.l.state(self.m, tensor).shape
        axes = len(self.m.structure.tensors()[tensor]) - (self.m.structure.heads is not None)
        row = axes == 1 and "key" not in self.rule.rule.needs
        return self.b.number(columns if row else rows), self.b.number(rows if row else columns)

    def held(self) -> dict[str, Node]:
        """The states that inner gradients are taken at: without outer gradient if the memory feeds itself `direct`."""
        states = {t: self.l.state(self.m, t) for t in self.tensors}
        return {t: self.l.detached(state, self.m.name, self.direct) for t, state in states.items()}

    @property
    def window(self) -> int:
        return int(self.context.window or 1)

    def plan(self) -> RulePlan:
        """The rule as straight-line code, its constant arguments folded in."""
        fixed = {name: value for name, value in self.rule.arguments if isinstance(value, c.Constant)}
        return lower_rule(self.rule.rule, fixed)

    # --- inputs ------------------------------------------------------------------------------------

    def inputs(self) -> tuple[Node | None, Node]:
        """Key and value, heads split; with a window, extended by the stored ones of earlier tokens."""
        key = None
        if self.context.key is not None:
            key = self.carried(self.clause(self.context.key), "key")
            self.b.name(key, f"{self.m.name}_key")
        value = self.carried(self.clause(self.context.value), "value")
        return key, value

    def clause(self, expr: c.Expr) -> Node:
        node = self.l.expr(expr, self.direct, self.m)
        if node.layout in ("number", "heads"):
            return node
        return self.b.split(self.b.each_token(node), self.heads)

    def carried(self, node: Node, slot: str) -> Node:
        if self.window == 1 or node.layout == "number":
            return node
        return self.b.make("carry", (node,), node.shape, "heads", memory=self.m.name, slot=slot, window=self.window)

    def arguments(self) -> dict[str, Node]:
        """The rule's arguments: numbers, or one scalar a token and head."""
        found = {}
        for name, expr in self.rule.arguments:
            node = self.l.expr(expr, self.direct, self.m)
            found[name] = self.b.gate(node, self.heads)
            if node.op != "number":
                self.b.name(found[name], f"{self.m.name}_{name}")
        return found

    def lower_objective(self, expr: c.Expr, key: Node | None, value: Node, weights: dict[str, Node]) -> Node:
        """The objective with `self` read through `weights`; key and value are given."""
        b = self.b

        def walk(e: c.Expr) -> Node:
            if isinstance(e, c.Constant):
                return b.number(e.value)
            if isinstance(e, c.Ref):
                source = key if e.name == "key" else value
                assert source is not None, e.name
                return b.given(source)
            if isinstance(e, c.Read):
                return self.read(walk(e.argument), e.transposed, weights)
            if isinstance(e, c.State):
                return self.read(b.number(1), False, weights)
            assert isinstance(e, c.Apply)
            return self.l.apply(e, [walk(a) for a in e.arguments])

        node = walk(expr)
        return node if node.layout == "heads" else b.make("expand_heads", (node,), (1,), "heads")

    def read(self, x: Node, transposed: bool, weights: dict[str, Node]) -> Node:
        from nsam.compiler.layers import apply_layers

        if self.m.structure.kind == "vector":
            weight = weights["weight"]
            op = "fold_row" if weight.layout == "fold" else "row"
            return self.b.make(op, (weight,), (weight.shape[0],), "heads")
        if x.layout == "number":
            raise unsupported(f"a value-less context needs a vector memory, not {self.m.structure.kind}", self.m.span)
        return apply_layers(self.b, self.m, x, transposed, lambda t: weights[t])

    # --- the table of algorithms ---------------------------------------------------------------------

    def folds(
        self, states: dict[str, Node], found: dict[int, Gradient], arguments: dict[str, Node], key: Node | None
    ) -> tuple[tuple[Fold, ...], bool]:
        self.reads = max(len(gradient.products) for gradient in found.values())
        self.gradients = {t: found[s.id] for t, s in states.items()}
        candidate = self.m.name in self.l.exact
        if candidate:
            tensor, state = next(iter(states.items()))
            fold = self.exact_fold(tensor, state, found[state.id], arguments, key)
            if fold is not None:
                return (fold,), True
            self.l.exact -= {self.m.name}
        return tuple(self.fold(t, s, found[s.id], arguments, key) for t, s in states.items()), False

    def fold(self, tensor: str, state: Node, gradient: Gradient, arguments: dict[str, Node], key: Node | None) -> Fold:
        products = self.products(gradient)
        layer_key, err = self.layer(tensor, products, state, key)
        reasons: list[str] = []
        scale: Attr = None
        if not self.summed and self.window == 1:
            made = self.affine_fold(tensor, state, products, arguments, layer_key, reasons)
            if made is not None and "chunk" in self.l.passes:
                node, algorithm = made
                return Fold(tensor, node, algorithm, gradient)
            if made is not None:
                reasons.append(switched_off("chunk"))
                scale = made[0].attr("kappa")
        elif self.window > 1 and not self.summed:
            reasons.append(f"every token writes the last {self.window} tokens again")
        algorithm = "summed" if self.summed else "generic"
        pairs = [n for p in products for n in (p.right, p.left)]
        extra = [a for a in arguments.values() if a.op != "number"]
        named = tuple(name for name, a in arguments.items() if a.op != "number")
        needs = self.rule.rule.needs
        tail = []
        if not self.summed and "key" in needs:
            rows = self.required(layer_key, "key")
            tail.append(self.b.mul(rows, self.seen()) if self.window > 1 else rows)
        if not self.summed and "err" in needs:
            tail.append(self.required(err, "err"))
        node = self.b.make(
            algorithm, (state, *pairs, *extra, *tail), state.shape, "fold",
            memory=self.m.name, tensor=tensor, pairs=len(products), arguments=named,
            key="key" in needs, err="err" in needs, window=self.window, scale=scale,
        )  # fmt: skip
        return Fold(tensor, node, algorithm, gradient, tuple(reasons))

    def required(self, node: Node | None, what: str) -> Node:
        if node is None:
            raise unsupported(
                f"rule `{self.rule.rule.name}` needs `{what}`, but the way in which the objective reads has none",
                self.rule.span,
            )
        return node

    def products(self, gradient: Gradient) -> list[OuterProduct]:
        """All terms as outer products; a vector is a column whose layer input is 1."""
        products = list(gradient.products)
        if self.window > 1:
            products = [OuterProduct(self.b.mul(p.left, self.seen()), p.right, p.read) for p in products]
        for adjoint in gradient.direct:
            each = adjoint
            if self.window > 1:
                each = self.b.mul(adjoint, self.seen())
            elif steady(adjoint):  # the state's alone, and as much again for every token
                each = self.b.mul(adjoint, self.there())
            one = self.b.make("ones", (each,), (1,), "heads")
            products.append(OuterProduct(each, one, adjoint))
        return products

    def seen(self) -> Node:
        """1 for tokens that have been there, 0 for the places before the first one."""
        return self.carried(self.there(), "seen")

    def there(self) -> Node:
        """1 for every token."""
        return self.b.make("ones", (self.clause(self.context.value),), (1,), "heads")

    def layer(
        self, tensor: str, products: list[OuterProduct], state: Node, key: Node | None
    ) -> tuple[Node | None, Node | None]:
        """The layer's input and the error at its output for the read `self(key)`: what `key` and `err` mean."""
        if self.m.structure.kind == "vector":
            return (products[0].right, products[0].left) if products else (None, None)
        if self.m.structure.kind == "linear" and tensor == "weight":
            x = None if key is None else self.b.given(key)
            match = [p for p in products if p.right is x]
            return x, (match[0].left if len(match) == 1 else None)
        if len(products) == 1:
            if products[0].right.op != "ones" or self.reads <= 1:
                return products[0].right, products[0].left
            # A bias' adjoint is summed over all reads; its error at the key alone is that of its layer's matrix.
            matrix = "weight" if tensor == "bias" else tensor.replace("b", "w")
            return products[0].right, self.layer(matrix, self.products(self.gradients[matrix]), state, key)[1]
        # The objective reads the memory at more than its key: take the layer's application in `self(key)`.
        at_key = self.key_reads(key).get(tensor)
        match = [p for p in products if p.read is at_key]
        return (match[0].right, match[0].left) if len(match) == 1 else (None, None)

    def key_reads(self, key: Node | None) -> dict[str, Node]:
        """For each matrix, the node that applies it when the memory is read at its key."""
        if key is None:
            return {}
        states = self.held()
        read = self.read(self.b.given(key), False, states)
        applied = {n.args[1].id: n for n in postorder([read]) if n.op == "linear"}
        return {t: applied[state.id] for t, state in states.items() if state.id in applied}

    def affine_fold(
        self,
        tensor: str,
        state: Node,
        products: list[OuterProduct],
        arguments: dict[str, Node],
        layer_key: Node | None,
        reasons: list[str],
    ) -> tuple[Node, Algorithm] | None:
        b = self.b
        try:
            found = affine.analyse(b, self.rule, arguments, layer_key, self.sizes(tensor))
        except affine.NotAffine as problem:
            reasons.append(str(problem))
            return None
        zero = b.number(0)
        if not found.traces:
            keep = found.state.get("self") or zero
            erase = b.neg(found.state.get("self xx'") or zero)
            write = b.neg(found.state.get("grad") or zero)
            return self.rank_one(state, tensor, products, (keep, erase, write), layer_key, exact=False), "rank-one"
        reason = momentum_shape(found)
        if reason is not None:
            reasons.append(reason)
            return None
        return self.momentum(state, tensor, products, found, layer_key), "momentum"

    def momentum(
        self, state: Node, tensor: str, products: list[OuterProduct], found: affine.Recurrence, key: Node | None
    ) -> Node:
        """The fold S_t = theta S_{t-1} − (erase M x xᵀ + write Σ g uᵀ), M_t = M_{t-1}(keep I − fade x xᵀ) + S_t."""
        b = self.b
        zero = b.number(0)
        (name, trace) = found.traces[0]
        kappa = found.state.get(f"{name} new")
        assert kappa is not None
        keep, theta = found.state.get("self") or zero, trace.get(name) or zero
        write = b.neg(b.scaled(kappa, trace.get("grad") or zero))
        erase = b.neg(b.scaled(kappa, trace.get("self xx'") or zero))
        fade = b.neg(found.state.get("self xx'") or zero)
        args = [
            state,
            *(n for p in products for n in (p.right, p.left)),
            self.decay(keep, tensor),
            self.decay(theta, tensor, "trace"),
            write,
        ]
        if any(not (gate.op == "number" and gate.value == 0) for gate in (erase, fade)):
            assert key is not None
            args += [erase, fade, key]
        return b.make(
            "momentum", args, state.shape, "fold",
            memory=self.m.name, tensor=tensor, pairs=len(products), trace=own(name), kappa=float(kappa.value),
        )  # fmt: skip

    def rank_one(
        self,
        state: Node,
        tensor: str,
        products: list[OuterProduct],
        gates: tuple[Node, Node, Node],
        key: Node | None,
        *,
        exact: bool,
    ) -> Node:
        """The fold M_t = M_{t-1}(keep I − erase x xᵀ) − write Σ g uᵀ.

        Decays and triangle are nodes of their own, so that memories with equal gates and keys share them.
        """
        keep, erase, write = gates
        pairs = [n for p in products for n in (p.right, p.left)]
        decay = self.decay(keep, tensor, exact=exact)
        args = [state, *pairs, decay, write]
        if not (erase.op == "number" and erase.value == 0):
            assert key is not None
            shared = self.shared(exact, tensor, "triangle")
            between = keep if keep.op == "number" else decay
            args += [erase, key, self.b.make("triangle", (key, erase, between), (), "fold", **shared)]
        elif not products and key is not None:
            args += [erase, key]
        return self.b.make(
            "rank_one", args, state.shape, "fold", memory=self.m.name, tensor=tensor, pairs=len(products), exact=exact
        )

    def decay(self, keep: Node, tensor: str, part: str = "state", *, exact: bool = False) -> Node:
        """Decays between the tokens of a block."""
        node = self.b.make("decay", (keep,), (), "fold", **self.shared(exact, tensor, part))
        self.l.like.setdefault(node.id, self.l.state(self.m, self.tensors[0]))
        return node

    def shared(self, exact: bool, tensor: str, part: str) -> dict[str, int | bool | str]:
        """What memories must agree on to share work over a block; without the pass `share` none do."""
        block = exact_block(self.m) if exact else self.period
        own = {} if "share" in self.l.passes else {"owner": f"{self.m.name}.{tensor}.{part}"}
        piece = piece_length(self.m.structure) if "split" in self.l.passes else block
        cut = {"piece": piece} if block > piece else {}
        return {"block": block, "never": self.m.reset.kind == "never", **cut, **own}

    def exact_fold(
        self, tensor: str, state: Node, gradient: Gradient, arguments: dict[str, Node], key: Node | None
    ) -> Fold | None:
        """The exact parallel form of a period of 1: the gradient is affine in the state along the key."""
        b = self.b
        products = self.products(gradient)
        x, _ = self.layer(tensor, products, state, key)
        try:
            found = affine.analyse(b, self.rule, arguments, x, self.sizes(tensor))
        except affine.NotAffine:
            return None
        if found.traces or any(depends_on(p.right, state) for p in products):
            return None
        slope, plain = b.number(0), []
        for product in products:
            if not depends_on(product.left, state):
                plain.append(product)
                continue
            split = affine_in(b, product.left, b.linear(product.right, state))
            if split is None or product.right is not x:
                return None
            slope = b.add(slope, split[0])
            if not (split[1].op == "number" and split[1].value == 0):
                plain.append(OuterProduct(split[1], product.right, product.read))
        zero = b.number(0)
        write = b.neg(found.state.get("grad") or zero)
        keep = found.state.get("self") or zero
        erase = b.add(b.neg(found.state.get("self xx'") or zero), b.scaled(write, slope))
        if erase.op != "number" and x is None:
            return None
        node = self.rank_one(state, tensor, plain, (keep, erase, write), x, exact=True)
        return Fold(tensor, node, "rank-one", gradient)


def momentum_shape(found: affine.Recurrence) -> str | None:
    """Why a recurrence with traces is not linear momentum with scalar kernels, or None when it is."""
    if len(found.traces) != 1:
        return "the rule keeps more than one trace"
    name, trace = found.traces[0]
    if set(dict(trace.terms)) - {name, "grad", "self xx'"}:
        return f"trace `{name}` depends on more than itself, the gradient and what stands along the key"
    if set(dict(found.state.terms)) - {"self", "self xx'", f"{name} new"}:
        return "the state moves by more than its retention, what stands along the key, and the trace"
    kappa = found.state.get(f"{name} new")
    if kappa is None or kappa.op != "number" or kappa.value == 0:
        return f"trace `{name}` enters the state with a factor that is not a constant"
    return None
