"""Random valid programs as text: a seed gives a program, small enough for the reference to run it token by token.

The generator is typed: it keeps a pool of values with their sizes, and a memory learns from, is gated by and is read at
values of the pool, its own reads included (through the last boundary). What the checker still rejects (a cycle of
running reads) the caller draws again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from sizes import LARGE, VOCABULARY, Fast, Size
from vocabulary import ACTIVATIONS, EXPRESSIONS, HEADER, OBJECTIVES, TRANSPOSED


@dataclass
class Writer:
    """Writes one system."""

    random: Random
    name: str
    dim: int
    nested: tuple[str, ...] = ()
    size: Size = LARGE
    model: bool = False
    """Whether it is a model from tokens to scores, some of whose memories move by its own loss."""
    values: list[tuple[str, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    fast: list[Fast] = field(default_factory=list)
    count: int = 0

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def fresh(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def value(self, size: int) -> str:
        """A value of the pool, projected if none has this size."""
        fitting = [text for text, n in self.values if n == size]
        if fitting and self.chance(0.9):
            return self.random.choice(fitting[-6:] if self.chance(0.6) else fitting)
        source, n = self.random.choice(self.values)
        name = self.fresh("p")
        self.lines.append(f"memory {name} : linear({n} -> {size})")
        return f"{name}({source})"

    def unit(self, size: int, heads: int | None = None) -> str:
        """A value of bounded size."""
        text = self.value(size)
        choice = self.random.randrange(5)
        if choice == 0:
            return f"tanh({text})"
        return f"normalize({text}, {heads})" if heads and choice < 3 else f"normalize({text})"

    def let(self) -> None:
        """One more value."""
        source, n = self.random.choice(self.values)
        other = self.value(n)
        made = self.random.choice(
            (
                f"{source} + {other}",
                f"{source} * sigmoid({other})",
                f"tanh({source}) - {other}",
                f"{source} / (1 + dot({other}, {other}))",
                f"silu({source})",
                f"normalize({source} - 0.3 * {other})",
                f"softmax({source})",
                f"max({source}, {other}) / 2",
            )
        )
        name = self.fresh("v")
        self.lines.append(f"let {name} = {made}")
        self.values.append((name, n))

    def slow(self) -> None:
        """A parameter of the training level, read once."""
        source, n = self.random.choice(self.values)
        name = self.fresh("w")
        kind = self.random.randrange(7)
        text = f"{name}({source})"
        if kind == 0:
            self.lines.append(f"memory {name} : conv({n}, width = {self.random.choice((1, 2, 4))})")
        elif kind == 1:
            self.lines.append(f"memory {name} : {self.random.choice(('rmsnorm', 'layernorm'))}({n})")
        elif kind == 2:
            self.lines.append(f"memory {name} : mlp({n} -> {n + 1} -> {n}, act = tanh, residual)")
        elif kind == 3:
            self.lines.append(f"memory {name} : vector({n})")
            text = f"({source} + {name})"
        elif kind == 4:
            self.lines.append(f"memory {name} : linear({n} -> {n}, bias)")
        elif kind == 5:
            self.lines.append(f"memory {name} : like(k)")
            source = self.value(self.dim)
            text, n = f"{name}({source})", self.dim
        else:
            heads = 2 if n % 2 == 0 and self.chance(0.5) else 1
            window = f", window = {self.random.choice((2, 5))}" if self.chance(0.3) else ""
            keep = f"rope({source}, {heads})" if n % (2 * heads) == 0 and self.chance(0.3) else source
            self.lines.append(
                f"memory {name} : attention(heads = {heads}{window}) {{ learn {keep} -> {self.value(n)} }}"
            )
        self.values.append((text, n))

    def declare(self, others: list[Fast]) -> Fast:
        """Choose a fast memory's structure and clock; its clauses come later, when all reads are known."""
        period = self.random.choice(self.size.periods)
        reads = self.random.choice(("boundary", "boundary", "running"))
        task = self.model and (not others or self.chance(0.5))
        if task:
            period, reads = max(period, 2), "boundary"
        same = [f for f in others if f.kind != "vector" or not task]
        if same and self.chance(0.2):
            other = self.random.choice(same)
            written = f"like({other.name})"
            return replace(other, name=self.fresh("m"), period=period, reads=reads, written=written, task=task)
        heads = 2 if self.chance(0.3) else None
        into = self.dim
        out = self.dim if self.chance(0.8) else self.dim + 2
        kind = self.random.choice(("linear", "linear", "mlp", "mlp", "mlp", "vector"))
        hidden: tuple[int, ...] = ()
        extra = f", heads = {heads}" if heads else ""
        if kind == "vector":
            heads, structure, out = None, f"vector({into})", into
        elif kind == "linear":
            extra += ", bias" if self.chance(0.25) else ""
            structure = f"linear({into} -> {out}{extra})"
        else:
            hidden = tuple(self.random.choice((2, 4, 6)) for _ in range(self.random.choice((1, 1, 2))))
            extra += f", act = {self.random.choice(ACTIVATIONS)}"
            extra += ", residual" if into == out and self.chance(0.5) else ""
            extra += ", gated" if self.chance(0.15) else ""
            extra += ", bias" if self.chance(0.25) else ""
            structure = f"mlp({' -> '.join(map(str, (into, *hidden, out)))}{extra})"
        return Fast(self.fresh("m"), structure, kind, into, out, heads, period, reads, hidden, "", task)

    def read(self, memory: Fast) -> None:
        """Add a read of a fast memory to the pool."""
        if memory.kind == "vector":
            self.values.append((f"({memory.name} * {self.value(memory.out)})", memory.out))
        elif memory.kind == "linear" and "bias" not in memory.structure and self.chance(0.2):
            self.values.append((f"{memory.name}.T({self.unit(memory.out)})", memory.into))
        else:
            name = self.fresh("r")
            self.lines.append(f"let {name} = {memory.name}({self.unit(memory.into)})")
            self.values.append((name, memory.out))

    def gate(self, memory: Fast, low: float, high: float, varies: bool) -> str:
        """A number between two bounds: a constant, or one a token (and head)."""
        if not varies or self.chance(0.5):
            return f"{self.random.uniform(low, high):.2f}"
        size = memory.heads if memory.heads and self.chance(0.6) else 1
        name = self.fresh("g")
        source, n = self.random.choice(self.values)
        self.lines.append(f"memory {name} : linear({n} -> {size})")
        return f"({low} + {high - low:.2f} * sigmoid({name}({source})))"

    def rule(self, memory: Fast, summed: bool, keyed: bool) -> str:
        def gate(low: float, high: float) -> str:
            if memory.task and self.chance(0.3):  # a rate that training learns
                name = self.fresh("g")
                self.lines.append(f"memory {name} : vector(1)")
                return f"({low} + {high - low:.2f} * sigmoid({name}))"
            return self.gate(memory, low, high, not summed)

        plain = [
            lambda: f"gd(lr = {gate(0.05, 0.3)})",
            lambda: f"gd(lr = {gate(0.05, 0.3)}, retain = {gate(0.6, 1)})",
            lambda: f"momentum(lr = {gate(0.02, 0.1)}, beta = {gate(0.3, 0.9)}, retain = {gate(0.7, 1)})",
            lambda: "delta_momentum(lr = 0.05, beta = 0.8)",
            lambda: f"adamw(lr = {gate(0.01, 0.05)})",
            lambda: f"signed(lr = {gate(0.01, 0.1)})",
            lambda: f"leaky(lr = {gate(0.05, 0.2)}, retain = {gate(0.6, 1)})",
            lambda: f"adagrad(lr = {gate(0.02, 0.1)}, eps = 0.01)",
            lambda: f"forgetful(lr = {gate(0.05, 0.2)}, retain = {gate(0.6, 1)})",
        ]
        long = [
            lambda: f"mapped(lr = {gate(0.02, 0.1)}, retain = {gate(0.6, 1)})",
            lambda: f"preconditioned_momentum(lr = {gate(0.02, 0.1)}, eps = 0.1)",
            lambda: "m3(lr = 0.05, period = 2, iterations = 2, eps = 0.1)",
            lambda: f"nested(lr = {gate(0.02, 0.1)})",
            lambda: f"muon(lr = {gate(0.02, 0.1)}, iterations = 2)",
            lambda: f"counted(lr = {gate(0.02, 0.1)})",
        ]
        layered = [
            lambda: f"dgd(lr = {gate(0.05, 0.3)})",
            lambda: f"dgd(lr = {gate(0.05, 0.3)}, retain = {gate(0.6, 1)}, erase = {gate(0.05, 0.3)})",
            lambda: f"safe_dgd(lr = {gate(0.05, 0.5)}, retain = {gate(0.6, 1)})",
            lambda: f"delta(lr = {gate(0.05, 0.3)})",
            lambda: f"inward(lr = {gate(0.05, 0.1)})",
        ]
        if self.size.nests:
            plain += long
        allowed = plain if summed or not keyed else [*plain, *layered, *layered]
        return self.random.choice(allowed)()

    def clauses(self, memory: Fast, starts: list[str]) -> None:
        """Write a fast memory down."""
        if memory.task:
            self.task_clauses(memory, starts)
            return
        keyed = memory.kind != "vector"
        summed = self.chance(0.25)
        listed = []
        target = self.unit(memory.out) if self.chance(0.7) else self.value(memory.out)
        window = f" over last {self.random.choice((2, 3, 5))} tokens" if self.chance(0.12) else ""
        if keyed:
            key = self.unit(memory.into, memory.heads)
            if memory.into == memory.out and target != key and self.chance(0.3):
                target = f"self({target})"  # of the key itself it would be learnt from the start, up to rounding
            listed.append(f"learn {key} -> {target}{window}")
        else:
            listed.append(f"learn {target}{window}")
        listed.append(f"minimize {self.objective(memory, keyed)}")
        listed.append(f"by {self.rule(memory, summed, keyed)}")
        longest, when = (memory.period, "") if summed else self.adaptive(memory)
        period = f"{memory.period}..{longest}" if when else f"{memory.period}"
        listed.append(f"every {period} tokens{' summed' if summed else ''}{when}")
        listed.append(f"reads {memory.reads}")
        if self.chance(0.2):
            listed.append(f"reset every {longest * self.random.choice((1, 2, 3))} tokens")
        elif self.chance(0.1):
            listed.append("reset never")
        listed.append(f"init {self.random.choice(('zeros', 'learned', 'learned', 'learned normal(0.3)', *starts))}")
        self.put(memory, listed)

    def task_clauses(self, memory: Fast, starts: list[str]) -> None:
        """Write down a memory that the model's own loss moves."""
        listed = ["minimize task", f"by {self.rule(memory, summed=True, keyed=False)}"]
        listed.append(f"every {memory.period} tokens")
        if self.chance(0.3):
            listed.append(f"reset every {memory.period * self.random.choice((1, 2, 3))} tokens")
        listed.append(f"init {self.random.choice(('learned', 'learned', 'learned normal(0.3)', *starts))}")
        self.put(memory, listed)

    def put(self, memory: Fast, clauses: list[str]) -> None:
        self.lines.append(f"memory {memory.name} : {memory.written or memory.structure} {{ {'; '.join(clauses)} }}")

    def adaptive(self, memory: Fast) -> tuple[int, str]:
        """The longest period of a memory and what it decides by, drawn apart from all else."""
        random = Random(f"{memory.name} {memory.structure} {self.lines}")
        if random.random() > 0.25:
            return memory.period, ""
        threshold = random.choice(("-0.713", "0.113", "0.317", "0.317", "0.731", "1.93", "inf"))
        return memory.period * random.choice((1, 2, 2, 3, 4)), f" when surprise > {threshold}"

    def objective(self, memory: Fast, keyed: bool) -> str:
        choices = [*OBJECTIVES, *OBJECTIVES]
        if keyed:
            choices += EXPRESSIONS
            choices += TRANSPOSED * 2 if memory.kind == "linear" and "bias" not in memory.structure else ()
        return self.random.choice(choices)

    def write(self) -> str:
        """The system's text."""
        generated = self.inputs()
        self.lines.append(f"memory k, v : linear({self.dim} -> {self.dim})")
        self.values += [("k(x)", self.dim), ("v(x)", self.dim)]
        for _ in range(self.random.choice(self.size.slow)):
            self.slow()
        for _ in range(self.random.choice(self.size.memories)):
            self.fast.append(self.declare(self.fast))
        for step in range(self.random.choice(self.size.values) + len(self.fast)):
            if step < len(self.fast):
                self.read(self.fast[step])
            elif self.nested and self.chance(0.4):
                self.call()
            elif self.size.nests and self.chance(0.3):
                self.repeat()
            elif self.size.nests and self.chance(0.2):
                self.levels()
            else:
                self.let()
        for memory in self.fast:
            self.clauses(memory, self.starts(memory, generated))
        for memory in self.fast:
            if not memory.task and self.chance(0.1):
                self.lines.append(f"transfer v -> {memory.name} : direct")
        self.lines.append(f"output {self.scores(self.output()) if self.model else self.output()}")
        body = "\n".join(f"  {line}" for line in self.lines)
        return f"system {self.name}() {{\n{body}\n}}\n"

    def inputs(self) -> bool:
        """The inputs, tokens among them; returns whether there is one that initial states can be generated from."""
        if self.model or self.chance(0.15):
            self.lines.append(f"input t : token({VOCABULARY})")
            self.lines.append(f"memory e : table({VOCABULARY}, {self.dim}) {{ init learned normal(0.5) }}")
        if self.model:
            self.lines.append("let x = e(t)")
        else:
            self.lines.append(f"input x : [{self.dim}]")
        self.values.append(("x", self.dim))
        if not self.model and len(self.lines) > 1:
            self.values.append(("e(t)", self.dim))
        generated = not self.model and self.chance(0.2)
        if generated:
            self.lines.append("input c : [2] per sequence")
        return generated

    def scores(self, output: str) -> str:
        """One score for each token."""
        if self.chance(0.5):
            return f"e.T({output})"
        name = self.fresh("p")
        self.lines.append(f"memory {name} : linear({self.dim} -> {VOCABULARY})")
        return f"{name}({output})"

    def starts(self, memory: Fast, generated: bool) -> list[str]:
        """Other initial states that fit: another memory's state, or a generator's output."""
        found = [f.name for f in self.fast if f.structure == memory.structure and f.period > memory.period]
        name = self.fresh("a")
        if generated and self.chance(0.6):
            written = self.random.choice(
                (f"mlp(2 -> 3 -> {memory.numbers}, act = tanh)", f"linear(2 -> {memory.numbers})")
            )
            self.lines.append(f"memory {name} : {written}")
            found += [f"{name}(c)"] * 3
        elif memory.kind == "vector" and self.chance(0.3):
            self.lines.append(f"memory {name} : vector({memory.into})")
            found.append(f"0.5 * {name} + tanh({name})")
        elif memory.kind != "vector" and self.chance(0.2):
            self.lines.append(f"memory {name} : {memory.structure}")
            self.values.append((f"{name}({self.value(memory.into)})", memory.out))
            found.append(name)
        return found * 2

    def call(self) -> None:
        name = self.fresh("n")
        self.lines.append(f"let {name} = {self.random.choice(self.nested)}({self.value(self.dim)})")
        self.values.append((name, self.dim))

    def repeat(self) -> None:
        """A repeat with a norm, and a nested system or a memory of its own."""
        name, norm, inner = self.fresh("h"), self.fresh("w"), self.fresh("m")
        self.lines.append(f"let {name} = {self.value(self.dim)}")
        body = [f"memory {norm} : rmsnorm({self.dim})"]
        if self.nested and self.chance(0.6):
            body.append(f"{name} = {name} + {self.random.choice(self.nested)}({norm}({name}))")
        else:
            body.append(
                f"memory {inner} : linear({self.dim} -> {self.dim}) {{ learn normalize({name}) -> {norm}({name}); "
                f"minimize l2; by gd(lr = 0.1); every {self.random.choice((1, 2, 4))} tokens }}"
            )
            body.append(f"{name} = {name} + 0.5 * {inner}({norm}({name}))")
        self.lines.append(f"repeat {self.random.choice((1, 2))} {{ {'; '.join(body)} }}")
        self.values.append((name, self.dim))

    def levels(self) -> None:
        """A list of memories, read one after the other or mixed."""
        name, result = self.fresh("m"), self.fresh("r")
        key, target = self.unit(self.dim), self.value(self.dim)
        self.lines.append(
            f"memory {name}[p in [2, 4]] : mlp({self.dim} -> 3 -> {self.dim}, act = tanh, residual) {{ "
            f"learn {key} -> {target}; minimize l2; by gd(lr = 0.1, retain = 0.9); every p tokens }}"
        )
        read = self.unit(self.dim)
        text = f"chain({name}, {read})" if self.chance(0.5) else f"mix(softmax({self.value(2)}), {name}, {read})"
        self.lines.append(f"let {result} = {text}")
        self.values.append((result, self.dim))

    def output(self) -> str:
        """Something of every fast memory, so that all have a say."""
        terms = []
        for memory in self.fast:
            if memory.kind == "vector":
                terms.append(f"{memory.name} * {self.value(self.dim)}")
                continue
            text = f"{memory.name}({self.unit(memory.into)})"
            if memory.out != self.dim:
                name = self.fresh("p")
                self.lines.append(f"memory {name} : linear({memory.out} -> {self.dim})")
                text = f"{name}({text})"
            terms.append(text)
        return " + ".join([*terms, self.value(self.dim)])


def program(seed: int, attempt: int = 0, size: Size = LARGE) -> str:
    """The program of a seed; its last system is `s`. One large program in ten learns by its own loss."""
    random = Random(f"{seed} {attempt}" + ("" if size.nests else " small"))
    nested = []
    texts = [HEADER]
    if size.nests and random.random() < 0.3:
        texts.append(Writer(random, "inner", 4).write())
        if "per sequence" not in texts[-1] and "token(" not in texts[-1]:
            nested.append("inner")
    model = size.nests and seed % 10 == 7
    texts.append(Writer(random, "s", 4, tuple(nested), size, model).write())
    return "\n".join(texts)
