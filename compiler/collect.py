"""From a checked program to its level graph: one pass over the units, no graph library.

What becomes an edge (section 3.3): a memory whose output feeds another's context, gates or the place it is read at
transfers by backpropagation, or by direct connection where the program says so; a state that starts as another's, or
that the training level learns, is initialisation; a state written by another memory's output is generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nsam.compiler.describe import clause, initial_text, reset_text, source_text, state_size, structure_text
from nsam.compiler.optimizers import Served, rule_problems
from nsam.compiler.problems import Edge, Kind, LevelGraph, Need, Problem, Role
from nsam.compiler.rates import Rate, rate_of
from nsam.compiler.scopes import Scope, all_reads, scopes, sources
from nsam.dsl.checked import Expr, Memory, RuleUse, Train, Transfer, Unit
from nsam.dsl.diagnostics import fail


def collect(unit: Unit, train: Train | None = None) -> LevelGraph:
    """Return the level graph of a system, with the level that trains it (`train`, or an implicit one).

    Memories inside a repeat stand once, at `repeat.*.…`, with their count.
    """
    return _Collector(unit, train).graph()


def uses(memory: Memory) -> Iterator[tuple[str, Expr]]:
    """Yield (use, expression) for each clause of a memory whose value its state depends on: key, value, gates."""
    if memory.context is not None:
        if memory.context.key is not None:
            yield "key", memory.context.key
        yield "value", memory.context.value
    if memory.rule is not None:
        yield from memory.rule.arguments


MOST_EDGES = 100_000
"""Transfers and same-time needs in one graph; a residual stream of n written-out layers has about n²/2."""


class _Collector:
    def __init__(self, unit: Unit, train: Train | None) -> None:
        self.unit = unit
        self.train = train
        self.rate = Rate("step", 1 if train is None else train.every)
        self.training = "training" if train is None else f"train {train.name}"
        self.scopes = scopes(unit)
        self.memories = {scope.place(m.name): (scope, m) for scope in self.scopes for m in scope.unit.memories}
        self.problems: dict[str, Problem] = {}
        self.edges: dict[tuple[str, str, Kind], Edge] = {}
        self.needs: dict[Need, None] = {}
        self.running: set[str] = set()

    def graph(self) -> LevelGraph:
        for path, (scope, memory) in self.memories.items():
            self.problems[path] = self.problem(path, scope, memory)
        self.problems[self.training] = self.training_problem()
        self.running = {path for path, problem in self.problems.items() if problem.reads == "running"}
        direct = self.direct_transfers()
        for path, (scope, memory) in self.memories.items():
            self.clause_edges(path, scope, memory, direct)
            self.initial_edges(path, scope, memory)
            self.objective_edges(path, memory, direct)
        self.read_edges(direct)
        self.mark_declared()
        for path, (scope, memory) in self.memories.items():
            self.inner_rule(path, scope, memory)
        self.outer_rules()
        return LevelGraph(
            self.unit.name, self.problems, tuple(self.edges.values()), tuple(self.needs), self.reaching(), self.training
        )

    def reaching(self) -> frozenset[str]:
        """Return the paths that have a say in the output: read on the way to it, or shaping what is."""
        before: dict[str, list[str]] = {}
        for edge in self.edges.values():
            before.setdefault(edge.target, []).append(edge.source)
        queue = [found.path for found in sources(self.scopes[0], [value for _, value in self.unit.outputs])]
        found = set(queue)
        while queue:
            new = [source for source in before.get(queue.pop(), ()) if source not in found]
            found.update(new)
            queue += new
        return frozenset(found)

    # --- nodes -----------------------------------------------------------------------------------

    def problem(self, path: str, scope: Scope, memory: Memory) -> Problem:
        role = _role(memory)
        size = state_size(memory)
        learned = memory.initial.kind == "learned" or role == "weight"
        return Problem(
            path=path,
            role=role,
            system=scope.path,
            unit=scope.unit.name,
            rate=rate_of(memory, self.rate),
            span=memory.span,
            structure=memory.structure,
            structure_text=structure_text(memory.structure),
            context=_context(memory, role),
            objective=_objective(memory, role),
            rule=clause(memory.rule.span, "by") if memory.rule else _default_rule(memory, role),
            initial="empty" if role == "attention" else initial_text(memory.initial),
            reads="running" if role == "attention" else memory.reads,
            reset="" if role == "weight" or not in_sequence(memory) else reset_text(memory.reset),
            summed=memory.frequency is not None and memory.frequency.summed,
            count=scope.count,
            parameters=size if learned and role not in ("attention", "generated") else 0,
            size=size,
            memory=memory,
        )

    def training_problem(self) -> Problem:
        train = self.train
        if train is None:
            return Problem(
                self.training, "training", "", self.unit.name, self.rate, self.unit.span,
                context="data", objective="task", rule="the optimizer",
            )  # fmt: skip
        kind, options = train.data
        return Problem(
            path=self.training,
            role="training",
            system="",
            unit=self.unit.name,
            rate=self.rate,
            span=train.span,
            context=f"{kind}({', '.join(f'{k} = {v}' for k, v in options.items())})",
            objective=source_text(train.objective),
            rule=", ".join(
                clause(use.span, "by").split(" for ")[0] + ("" if group == "all" else f" for {group}")
                for use, group in train.rules
            ),
        )

    # --- transfers -------------------------------------------------------------------------------

    def objective_edges(self, path: str, memory: Memory, direct: set[tuple[str, str]]) -> None:
        """The training level's loss reaches a memory that it moves inside the sequence: by the model's own gradient.

        Any other memory that learns is at its own last boundary when its gradients are taken; that is an edge of the
        graph where the program declares it `direct`.
        """
        if not memory.fast or memory.objective is None:
            return
        span = memory.objective.span
        if memory.end_to_end:
            self.edge(Edge(self.training, path, "backprop", ("objective",), "last boundary", span))
        elif (path, path) in direct:
            self.edge(Edge(path, path, "direct", ("objective",), "last boundary", span))

    def clause_edges(self, path: str, scope: Scope, memory: Memory, direct: set[tuple[str, str]]) -> None:
        for use, expr in uses(memory):
            for found in sources(scope, [expr]):
                self.flow(found.path, path, use, expr, found.carried, direct)
            if not self.running or not in_sequence(memory):
                continue
            for found in sources(scope, [expr], through=True, passes=False):
                if found.path in self.running:
                    self.needs[Need(found.path, path, use, found.span)] = None
            self.bound(memory)

    def bound(self, memory: Memory) -> None:
        if len(self.edges) + len(self.needs) > MOST_EDGES:
            raise fail("N0309", f"the level graph has more than {MOST_EDGES:,} transfers", memory.span, "reached here")

    def read_edges(self, direct: set[tuple[str, str]]) -> None:
        for scope in self.scopes:
            for path, argument in all_reads(scope):
                self.bound(self.memories[path][1])
                for found in sources(scope, [argument]):
                    self.flow(found.path, path, "read", argument, found.carried, direct)

    def flow(self, source: str, target: str, use: str, expr: Expr, carried: bool, direct: set[tuple[str, str]]) -> None:
        kind: Kind = "direct" if (source, target) in direct else "backprop"
        now = source in self.running
        self.edge(
            Edge(source, target, kind, (use,), "same-time" if now else "last boundary", expr.span, carried=carried)
        )

    def initial_edges(self, path: str, scope: Scope, memory: Memory) -> None:
        initial = memory.initial
        if initial.kind == "memory" and initial.memory is not None:
            place = scope.find(initial.memory)
            if place is not None:
                source = place[0].place(initial.memory)
                self.edge(Edge(source, path, "init", ("initial",), "at reset", memory.span))
        elif initial.kind == "expression" and initial.expression is not None:
            for found in sources(scope, [initial.expression]):
                self.edge(Edge(found.path, path, "generate", ("initial",), "at reset", initial.expression.span))
        elif initial.kind == "learned" and in_sequence(memory) and memory.structure.kind != "attention":
            self.edge(Edge(self.training, path, "init", ("initial",), "at reset", memory.span))

    def edge(self, new: Edge) -> None:
        """Add an edge, or its use to the one there is."""
        key = (new.source, new.target, new.kind)
        old = self.edges.get(key)
        if old is None:
            self.edges[key] = new
            return
        names = (*old.uses, *(use for use in new.uses if use not in old.uses))
        self.edges[key] = replace(old, uses=names, carried=old.carried and new.carried)

    # --- declared transfers ----------------------------------------------------------------------

    def declared(self) -> Iterator[tuple[Transfer, list[tuple[str, str]]]]:
        for scope in self.scopes:
            for transfer in scope.unit.transfers:
                pairs = [
                    (source, target)
                    for source in members(transfer.source, scope, self.memories)
                    for target in members(transfer.target, scope, self.memories)
                ]
                yield transfer, pairs

    def direct_transfers(self) -> set[tuple[str, str]]:
        return {pair for transfer, pairs in self.declared() if transfer.kind == "direct" for pair in pairs}

    def mark_declared(self) -> None:
        for transfer, pairs in self.declared():
            for source, target in pairs:
                key = (source, target, transfer.kind)
                if key in self.edges:
                    self.edges[key] = replace(self.edges[key], declared=True, span=transfer.span)

    # --- rules -----------------------------------------------------------------------------------

    def inner_rule(self, path: str, scope: Scope, memory: Memory) -> None:
        if memory.rule is None:
            return
        problem = self.problems[path]
        rate = problem.rate.applied(summed=problem.summed)
        served = Served(path, scope.path, scope.unit.name, (path,), (path,), rate, problem.size, in_sequence(memory))
        running = [need for need in self.needs if need.target == path]
        self.add_rule(memory.rule, served, problem.count)
        # The gradient that the rule's own memories learn from needs whatever the host's context needs.
        for inner in [p for p in self.problems.values() if p.hosts == (path,)]:
            for need in running:
                self.needs[replace(need, target=inner.path)] = None

    def outer_rules(self) -> None:
        if self.train is None:
            return
        for use, group in self.train.rules:
            hosts: dict[Rate, list[str]] = {}
            for path, (_, memory) in self.memories.items():
                if served_by(memory, group):
                    hosts.setdefault(self.host_rate(path, memory), []).append(path)
            for rate, paths in sorted(hosts.items(), reverse=True):
                self.outer_group(use, group, rate, tuple(paths))

    def host_rate(self, path: str, memory: Memory) -> Rate:
        return self.rate if in_sequence(memory) else self.problems[path].rate

    def outer_group(self, use: RuleUse, group: str, rate: Rate, paths: tuple[str, ...]) -> None:
        moved = [path for path in paths if not in_sequence(self.memories[path][1])]
        if len(moved) < len(paths):
            moved.append(self.training)
        prefix = f"{self.training}.{use.rule.name if group == 'all' else group}"
        if rate != self.rate:
            prefix += f".every_{rate.period}"
        sizes = [self.group_size(path, group) for path in paths]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        served = Served(prefix, self.training, use.rule.name, paths, tuple(moved), rate, total, False)
        self.add_rule(use, served, 1)

    def group_size(self, path: str, group: str) -> int | None:
        problem = self.problems[path]
        if problem.size is None or not isinstance(problem.count, int) or problem.structure is None:
            return None
        if group == "all":
            return problem.size * problem.count
        tensors = problem.structure.tensors()
        chosen = [
            shape for name, shape in tensors.items() if is_matrix(problem.structure.kind, name) == (group == "matrices")
        ]
        return problem.count * sum(_product(shape) for shape in chosen)

    def add_rule(self, use: RuleUse, served: Served, count: int) -> None:
        inside = rule_problems(use.rule, served)
        for problem in inside.problems:
            self.problems[problem.path] = replace(problem, count=count)
        for edge in inside.edges:
            self.edge(edge)
        for need in inside.needs:
            self.needs[need] = None


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def is_matrix(kind: str, tensor: str) -> bool:
    """Return whether a tensor belongs to `for matrices`: a weight of a linear or an mlp memory."""
    return kind in ("linear", "mlp") and not tensor.startswith("b")


def served_by(memory: Memory, group: str) -> bool:
    """Return whether the training level's rule for `group` moves one of a memory's tensors (or its initial state)."""
    moves = in_sequence(memory)
    if memory.structure.kind in ("attention", "like") or (not moves and memory.rule is not None):
        return False
    if moves and memory.initial.kind != "learned":
        return False
    if memory.frequency is not None and memory.frequency.unit == "step" and memory.frequency.period == float("inf"):
        return False
    names = memory.structure.tensors()
    return group == "all" or any(is_matrix(memory.structure.kind, name) == (group == "matrices") for name in names)


def members(name: str, scope: Scope, memories: dict[str, tuple[Scope, Memory]]) -> list[str]:
    """Return the paths that a name in a `transfer` means: a memory, every member of a list, or of a called system."""
    place = scope.find(name)
    if place is not None:
        return [place[0].place(name)]
    prefix = scope.place(name) + "."
    return [path for path in memories if path.startswith(prefix)]


def in_sequence(memory: Memory) -> bool:
    """Return whether a memory's state is set or moved inside a sequence, not by steps."""
    if memory.frequency is not None:
        return memory.frequency.unit != "step"
    return memory.structure.kind == "attention" or memory.initial.kind in ("memory", "expression")


def _role(memory: Memory) -> Role:
    if memory.structure.kind == "attention":
        return "attention"
    if memory.frequency is None:
        return "generated" if memory.initial.kind in ("memory", "expression") else "weight"
    return "memory"


def _context(memory: Memory, role: Role) -> str:
    if memory.context is not None:
        return clause(memory.context.span, "learn")
    if memory.end_to_end:
        return "tokens and targets"
    return "" if role == "generated" else "gradients"


def _objective(memory: Memory, role: Role) -> str:
    if memory.objective is not None:
        return clause(memory.objective.span, "minimize")
    return {"attention": "local l2, in closed form", "generated": ""}.get(role, "task")


def _default_rule(memory: Memory, role: Role) -> str:
    if role in ("attention", "generated"):
        return {"attention": "non-parametric", "generated": ""}[role]
    return "of the training level"
