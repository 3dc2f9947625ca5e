"""Walks a checked rule and writes it as assignments, nested memories included."""

from __future__ import annotations

from dataclasses import replace

from nsam.compiler.rule_algebra import WHOLE, Algebra, Kind, call, constant, names, ref
from nsam.compiler.rule_derive import (
    READ,
    READ_TRANSPOSED,
    Expansion,
    NotDifferentiable,
    inner_gradient,
    network_gradient,
)
from nsam.compiler.rule_fills import Fills
from nsam.compiler.rule_networks import Layers, Shape, shapes
from nsam.compiler.rule_plan import COUNT, GRAM, INPUTS, Assign, PlanState, RulePlan, own
from nsam.dsl.checked import (
    Apply,
    Constant,
    Expr,
    Read,
    Ref,
    Rule,
    RuleLet,
    RuleMemory,
    RuleState,
    RuleStatement,
    RuleUpdate,
    State,
)
from nsam.dsl.diagnostics import fail
from nsam.dsl.fills import is_fill


def _place(name: str, tensor: str) -> str:
    """Return the name of a memory's tensor in the plan."""
    return f"{name}.{tensor}" if tensor else name


class Lowering:
    """Lowers one rule, with `steps` for the step clock; scopes of nested rules share the assignments and the states."""

    def __init__(self, rule: Rule, steps: bool = False) -> None:
        self.rule = rule
        self.steps = steps
        self.kinds: dict[str, Kind] = dict.fromkeys(rule.parameters, "scalar")
        self.kinds[COUNT] = "scalar"
        self.algebra = Algebra(self.kinds)
        self.states: list[PlanState] = []
        self.body: list[Assign] = []
        self.results: dict[str, str] = {}

    def lower(self, fixed: dict[str, Expr]) -> RulePlan:
        """Return the whole rule's plan."""
        bound: dict[str, Expr] = {name: fixed.get(name, ref(name)) for name in self.rule.parameters}
        bound |= {name: ref(name) for name in INPUTS}
        scope = Scope(self, "", 1, bound, "self")
        scope.run(self.rule.statements)
        results = (("self", scope.finish("self")), *((s.name, self.results[s.name]) for s in self.states))
        used = frozenset(name for assign in self.body for name in names(assign.value))
        return RulePlan(
            self.rule.name,
            tuple(name for name in self.rule.parameters if name not in fixed),
            tuple(self.states),
            tuple(self.body),
            results,
            frozenset((*INPUTS, GRAM)) & used,
            dict(self.kinds),
            COUNT in used,
        )


class Scope:
    """The names of one rule (the host's, or a nested memory's) and the stride at which it is applied."""

    def __init__(
        self,
        lowering: Lowering,
        prefix: str,
        stride: int,
        bound: dict[str, Expr],
        own: str,
        shape: Shape | None = None,
    ) -> None:
        self.lowering = lowering
        self.build = lowering.algebra.build
        self.prefix = prefix
        self.stride = stride
        self.bound = dict(bound)
        self.states = {"self": own}
        self.current = {own: own}
        self.bound["self"] = ref(own)
        self.own = own
        self.shape = shape
        self.networks: dict[str, Layers] = {}
        self.declared: Layers | None = None

    def run(self, statements: tuple[RuleStatement, ...]) -> None:
        """Lower the statements in order."""
        for statement in statements:
            if isinstance(statement, RuleState):
                name = self.prefix + own(statement.name)
                self.lowering.states.append(PlanState(name, self.start(statement), shape=self.shape))
                self.states[statement.name] = self.current[name] = name
                self.bound[statement.name] = ref(name)
            elif isinstance(statement, RuleLet):
                self.bound[statement.name] = self.assign(
                    self.prefix + own(statement.name), self.expression(statement.value)
                )
            elif isinstance(statement, RuleUpdate):
                self.update(statement)
            else:
                self.memory(statement)
        for name in self.states.values():
            if not self.prefix and name != "self":
                self.lowering.results[name] = self.finish(name)

    def start(self, statement: RuleState) -> Expr:
        """Return a state's initial value, which sees parameters and the host's initial state only."""
        value = self.expression(statement.initial)
        known = {"self", *self.lowering.rule.parameters}
        unknown = sorted(set(names(value)) - known)
        if unknown:
            name = unknown[0].split(".")[0]
            raise fail("N0480", f"the initial value of state `{statement.name}` needs `{name}`", statement.span)
        return value

    def assign(self, target: str, value: Expr) -> Expr:
        """Name `value`; names and constants stay as they are."""
        if isinstance(value, Ref | Constant):
            return value
        self.lowering.kinds[target] = self.lowering.algebra.kind(value)
        self.lowering.body.append(Assign(target, value, self.stride))
        return ref(target)

    def update(self, statement: RuleUpdate) -> None:
        """`target <- value`: a new version of a state."""
        state = self.states[statement.target]
        version = self.current[state] + "'"
        self.lowering.body.append(Assign(version, self.expression(statement.value), self.stride))
        self.current[state] = version
        self.bound[statement.target] = ref(version)

    def finish(self, state: str) -> str:
        """Return the name of a state's last version, which keeps the old value on updates that do not apply it."""
        last = self.current[state]
        if last != state and self.stride > 1:
            body = self.lowering.body
            place = next(i for i, assign in enumerate(body) if assign.target == last)
            body[place] = replace(body[place], otherwise=state)
        return last

    # --- nested memories -------------------------------------------------------------------------

    def memory(self, memory: RuleMemory) -> None:
        """Write a nested memory's update, and bind its name to what its reads show."""
        tensors = shapes(memory.structure, self.own, self.shape, memory.span)
        summed = memory.summed and memory.period > 1
        delayed = not memory.summed and memory.period > 1
        name = self.prefix + own(memory.name)
        places = {tensor: _place(name, tensor) for tensor in tensors}
        work = {tensor: _place(f"{name}.running" if delayed else name, tensor) for tensor in tensors}
        for tensor, shape in tensors.items():
            start = self.first(memory, shape)
            for state in dict.fromkeys((places[tensor], work[tensor])):
                self.lowering.states.append(PlanState(state, start, shape=shape))
        signals = self.signals(memory, name, places)
        arguments = {p: self.assign(f"{name}.{own(p)}", self.expression(a)) for p, a in memory.rule.arguments}
        shown = {}
        for tensor, shape in tensors.items():
            grad, key, err = signals[tensor]
            if summed:
                grad, key, err = self.accumulate(places[tensor], grad, memory.period, shape), None, None
            inputs = {k: v for k, v in (("grad", grad), ("key", key), ("err", err)) if v is not None}
            moved = self.apply_rule(memory, places[tensor], work[tensor], arguments | inputs, shape)
            if delayed:
                self.delay(places[tensor], moved, memory.period)
            shown[tensor] = ref(moved if memory.reads == "running" else places[tensor])
        if memory.structure.kind == "mlp":
            self.networks[memory.name] = Layers(memory.structure, shown)
        else:
            self.bound[memory.name] = shown[""]

    def first(self, memory: RuleMemory, shape: Shape | None) -> Expr:
        """Return what a memory's tensor starts from; the fills of `init` are as large as the tensor."""
        if memory.initial is None:
            return constant(0)
        return Scope(self.lowering, self.prefix, self.stride, self.bound, self.own, shape).expression(memory.initial)

    def signals(
        self, memory: RuleMemory, name: str, places: dict[str, str]
    ) -> dict[str, tuple[Expr, Expr | None, Expr | None]]:
        """Return for each tensor the inner gradient at the boundary state, its input and the error at its output."""
        if memory.objective.expression is None:
            raise fail("N0480", "`minimize task` has no meaning for a memory inside a rule", memory.objective.span)
        outer = self.bound
        network = memory.structure.kind == "mlp"
        weights = {tensor: ref(place) for tensor, place in places.items()}
        if network:
            self.declared = Layers(memory.structure, weights)
        else:
            self.bound = outer | {"self": weights[""]}
        expand = Expansion(name, self.lowering.algebra)
        value = self.assign(f"{name}.value", expand(self.expression(memory.context.value)))
        key = None
        if memory.context.key is not None:
            key = self.assign(f"{name}.key", expand(self.matrix(memory.context.key)))
        self.bound = self.bound | {"value": value} | ({} if key is None else {"key": key})
        objective = self.expression(memory.objective.expression, simplify=False)
        self.bound = outer
        declared, self.declared = self.declared, None
        try:
            if declared is not None:
                found = network_gradient(objective, places, declared.outputs, self.lowering.algebra)
                return {
                    tensor: (
                        self.assign(f"{place}.grad", found[tensor].state),
                        declared.inputs.get(tensor),
                        found[tensor].output,
                    )
                    for tensor, place in places.items()
                }
            one = inner_gradient(objective, name, key, self.lowering.algebra)
        except NotDifferentiable as error:
            raise fail(
                "N0480", f"the objective uses `{error}`, which has no derivative here", memory.objective.span
            ) from None
        err = one.output if key is not None else one.state
        return {"": (self.assign(f"{name}.grad", one.state), key, err)}

    def accumulate(self, name: str, grad: Expr, period: int, shape: Shape | None) -> Expr:
        """Add the inner gradient to the period's sum (eq. 71); the sum starts again after the boundary."""
        total = f"{name}.sum"
        now = f"{name}.total"
        keep = total if self.stride > 1 else None
        self.lowering.states.append(PlanState(total, constant(0), shape=shape))
        self.lowering.body.append(Assign(now, self.build("add", ref(total), grad), self.stride, keep))
        cleared = call("zeros_like", ref(total))
        self.lowering.body.append(Assign(f"{total}'", cleared, self.stride * period, now))
        self.lowering.results[total] = f"{total}'"
        return ref(now)

    def apply_rule(self, memory: RuleMemory, name: str, work: str, bound: dict[str, Expr], shape: Shape | None) -> str:
        """Lower the memory's own rule on one tensor; returns the name of its new value."""
        stride = self.stride * (memory.period if memory.summed else 1)
        inner = Scope(self.lowering, f"{name}.", stride, bound, work, shape)
        inner.run(memory.rule.rule.statements)
        for state in inner.states.values():
            if state != work:
                self.lowering.results[state] = inner.finish(state)
        self.lowering.results[work] = inner.finish(work)
        return self.lowering.results[work]

    def delay(self, name: str, moved: str, period: int) -> None:
        """Show the folded state from the boundary on."""
        shown = f"{name}'"
        self.lowering.body.append(Assign(shown, ref(moved), self.stride * period, name))
        self.lowering.results[name] = shown

    # --- expressions -----------------------------------------------------------------------------

    def expression(self, expr: Expr, simplify: bool = True) -> Expr:
        """Resolve names; reads of the memory being declared become `read` applications."""
        build = self.build if simplify else call
        if isinstance(expr, Constant):
            return constant(expr.value)
        if isinstance(expr, Ref):
            return self.name(expr)
        if isinstance(expr, State):
            if expr.memory in self.networks:
                raise fail("N0480", f"`{expr.memory}` has several tensors: read it, `{expr.memory}(x)`", expr.span)
            return self.bound[expr.memory]
        if isinstance(expr, Read):
            return self.read(expr, simplify)
        assert isinstance(expr, Apply), f"{type(expr).__name__} in a rule"
        if is_fill(expr):
            return self.fills.fill(expr)
        arguments = [self.expression(argument, simplify) for argument in expr.arguments]
        if self.lowering.steps and arguments and all(argument == ref("key") for argument in arguments):
            return self.of_step(expr.function, *arguments)
        if expr.function == "unbias":
            return self.unbias(*arguments)
        options = [constant(v) for _, v in expr.options if isinstance(v, int | float)]
        if expr.function not in WHOLE:
            return self.fills.entries(expr, build(expr.function, *arguments, *options), arguments)
        reduced = self.fills.reduced(expr, arguments, simplify)
        if reduced is not None:
            return reduced
        pairs = zip(arguments, expr.arguments, strict=True)
        arguments = [self.fills.whole(argument, written.type, written.span) for argument, written in pairs]
        if expr.function == "matmul" and len(expr.arguments[1].type.shape) == 1:
            return self.times_vector(expr.arguments[0], *arguments)
        return build(expr.function, *arguments, *options)

    def matrix(self, expr: Expr, simplify: bool = True) -> Expr:
        """Lower an expression to something of its own shape, numbers too."""
        return self.fills.whole(self.expression(expr, simplify), expr.type, expr.span)

    def of_step(self, function: str, *keys: Expr) -> Expr:
        """A function of nothing but a step's key: of its outer product where that is enough."""
        if function == "outer":
            return ref(GRAM)
        if function == "dot":
            return call("trace", ref(GRAM))
        return self.build("sqrt", call("trace", ref(GRAM))) if function == "norm" else self.build(function, *keys)

    def times_vector(self, written: Expr, left: Expr, vector: Expr) -> Expr:
        """`left @ vector`: vectors are rows here, so a matrix is transposed (a matrix of rows gives rows)."""
        if len(written.type.shape) == 1:
            return self.build("dot", left, vector)
        return self.build("matmul", vector, self.build("transpose", left))

    @property
    def fills(self) -> Fills:
        """What makes matrices of the numbers that stand for them."""
        return Fills(self.lowering.algebra, self.shape, self.bound)

    def name(self, expr: Ref) -> Expr:
        """Resolve one name."""
        if expr.name in self.bound:
            return self.bound[expr.name]
        raise fail("N0480", f"a rule applied here has no `{expr.name}`", expr.span)

    def read(self, expr: Read, simplify: bool) -> Expr:
        """A value-less read is the state itself; others are products, of rows of keys with the state."""
        if isinstance(expr.argument, Constant):
            return self.bound[expr.memory]
        argument = self.matrix(expr.argument, simplify)
        build = self.build if simplify else call
        if expr.memory == "self" and self.declared is not None:
            return self.declared.read(
                argument, build, key=isinstance(expr.argument, Ref) and expr.argument.name == "key"
            )
        if expr.memory in self.networks:
            return self.networks[expr.memory].read(argument, build)
        if expr.memory == "self":
            return call(READ_TRANSPOSED if expr.transposed else READ, argument)
        state = self.bound[expr.memory]
        return self.build("matmul", argument, state if expr.transposed else call("transpose", state))

    def unbias(self, average: Expr, retain: Expr) -> Expr:
        """An average that started at zero, divided by its weights' sum 1 - retain ** updates."""
        count: Expr = ref(COUNT)
        if self.stride > 1:
            count = call("floor_div", count, constant(self.stride))
        return self.build("div", average, self.build("sub", constant(1), self.build("pow", retain, count)))
