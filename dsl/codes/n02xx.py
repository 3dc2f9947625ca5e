"""N02xx: names, types, shapes and clauses."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code


def _system(body: str, parameters: str = "dim: int") -> str:
    """Return a program of one system that reads a vector `x`."""
    lines = "\n".join(f"  {line}" for line in ("input x: [dim]", *body.split("\n")))
    return f"nsam 1\n\nuse std.rules (gd, dgd)\n\nsystem sample({parameters}) {{\n{lines}\n}}\n"


def _memory(clauses: str, structure: str = "linear(dim -> dim)", before: str = "memory k : linear(dim -> dim)") -> str:
    """Return a program with one memory `m` that has these clauses."""
    lines = "\n".join(f"  {clause.strip()}" for clause in clauses.split(";"))
    return _system(f"{before}\nmemory m : {structure} {{\n{lines}\n}}\noutput m(x)")


def _rule(body: str, parameters: str = "lr") -> str:
    """Return a program of one rule."""
    lines = "\n".join(f"  {line}" for line in body.split("\n"))
    return f"nsam 1\n\nuse std.rules (gd, dgd)\n\nrule sample({parameters}) {{\n{lines}\n}}\n"


def _train(fields: str) -> str:
    """Return a program that trains a small model, with these fields."""
    model = (
        "system model_of(vocab: int, dim: int = 8) {\n  input tokens: token(vocab)\n"
        "  memory embed : table(vocab, dim)\n  output embed.T(embed(tokens))\n}\n"
    )
    lines = "\n".join(f"  {field.strip()}" for field in fields.split(";"))
    return f"nsam 1\n\nuse std.rules (gd, dgd, adamw)\n\n{model}\ntrain sample {{\n{lines}\n}}\n"


_MODEL = "model model_of(vocab = 256); data text(context = 8, batch = 2)"
_LOSS = "minimize cross_entropy(model(tokens), next(tokens))"
_TRAIN = f"{_MODEL}; {_LOSS}; by gd(lr = 0.1); steps 4"
_TWO = "nsam 1\n\nsystem inner(dim: int) {\n  input x: [dim]\n  output x\n}\n\n"
_OUTER = "system outer(dim: int) {{\n  input x: [dim]\n  output {}\n}}\n"
_LEARN = "learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 16 tokens"
_SURPRISED = "learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 4..16 tokens"
_GENERATED = (
    "input c: [dim] per sequence\nmemory w : linear(dim -> dim*dim)\n"
    "memory m : linear(dim -> dim) { init w(c) }\noutput m(x)"
)
_TRACE = "memory trace : like(self) { learn grad; minimize dot; by gd(lr = 1); every 1 update }"

TABLE: tuple[Code, ...] = (
    Code(
        "N0201",
        "unknown-name",
        "error",
        "Every name is declared in the system, a parameter, or brought in by `use`.",
        _system("let y = sigmoid(z)\noutput y"),
        _system("let y = sigmoid(x)\noutput y"),
    ),
    Code(
        "N0202",
        "already-declared",
        "error",
        "A name is declared once in a file, and once in a system or rule.",
        _system("let y = x\nlet y = x + 1\noutput y"),
        _system("let y = x\nlet z = x + 1\noutput y + z"),
    ),
    Code(
        "N0203",
        "wrong-arity",
        "error",
        "Functions, memories, systems and rules get as many arguments as they take.",
        _system("output sigmoid(x, x)"),
        _system("output sigmoid(x)"),
    ),
    Code(
        "N0204",
        "unknown-argument",
        "error",
        "An argument given by name is one that the function, system or rule has.",
        _memory("learn k(x) -> x; minimize l2; by gd(rate = 0.1); every 16 tokens"),
        _memory(_LEARN),
    ),
    Code(
        "N0205",
        "argument-twice",
        "error",
        "An argument is given once, by position or by name.",
        _memory("learn k(x) -> x; minimize l2; by gd(0.1, lr = 0.1); every 16 tokens"),
        _memory(_LEARN),
    ),
    Code(
        "N0206",
        "wrong-kind-of-name",
        "error",
        "Memories are read, systems and functions called, values named; a list of memories is read as a whole.",
        _system("memory m : linear(dim -> dim)\noutput x + m"),
        _system("memory m : linear(dim -> dim)\noutput x + m(x)"),
    ),
    Code(
        "N0207",
        "reassigned-outside-repeat",
        "error",
        "A `let` name is assigned once; only a `repeat` reassigns.",
        _system("let h = x\nh = h + 1\noutput h"),
        _system("let h = x\nlet g = h + 1\noutput g"),
    ),
    Code(
        "N0208",
        "dependency-cycle",
        "error",
        "No value needs itself within one token. What a memory learnt before the token may come back to it.",
        _system("let a = b + x\nlet b = a * 2\noutput a"),
        _system("let a = x + 1\nlet b = a * 2\noutput b"),
    ),
    Code(
        "N0209",
        "uses-itself",
        "error",
        "A system or rule is not made of itself, directly or through others.",
        "nsam 1\n\nsystem outer(dim: int) {\n  input x: [dim]\n  output outer(x, dim)\n}\n",
        _TWO + _OUTER.format("inner(x, dim)"),
    ),
    Code(
        "N0210",
        "wrong-type",
        "error",
        "Parameters and options have the type that their declaration says; values are numbers.",
        _TWO + _OUTER.format("inner(x, true)"),
        _TWO + _OUTER.format("inner(x, dim)"),
    ),
    Code(
        "N0211",
        "impossible-value",
        "error",
        "Sizes, counts and widths are whole numbers from 1 up to 2^31 (periods 2^63); a memory has up to 2^36 numbers.",
        _system("memory m : conv(dim, width = 0)\noutput m(x)"),
        _system("memory m : conv(dim, width = 4)\noutput m(x)"),
    ),
    Code(
        "N0212",
        "not-known-at-compile-time",
        "error",
        "Sizes, heads, periods and iterations are made of parameters and numbers.",
        _system("let n = sum(x)\nmemory m : linear(dim -> n)\noutput m(x)"),
        _system("memory m : linear(dim -> n)\noutput m(x)", "dim: int, n: int = 4"),
    ),
    Code(
        "N0213",
        "not-computable",
        "error",
        "Numbers of a program have a value: no division by zero, no result too large to hold.",
        _system("output x * (1 / 0)"),
        _system("output x * (1 / 2)"),
    ),
    Code(
        "N0214",
        "shape-mismatch",
        "error",
        "Shapes fit: a memory reads its input size, elementwise operands are equal or 1 along each axis.",
        _system("memory m : linear(2*dim -> dim)\noutput m(x)"),
        _system("memory m : linear(2*dim -> dim)\noutput m(concat(x, x))"),
    ),
    Code(
        "N0215",
        "heads-do-not-divide",
        "error",
        "Heads are equal slices: their number divides every size that they cut.",
        _system("memory m : linear(64 -> 64, heads = 7)\noutput x + sum(m(softmax(v)))\nmemory v : vector(64)"),
        _system("memory m : linear(64 -> 64, heads = 8)\noutput x + sum(m(softmax(v)))\nmemory v : vector(64)"),
    ),
    Code(
        "N0216",
        "token-as-vector",
        "error",
        "A token is an index: only a table reads it.",
        "nsam 1\n\nsystem sample(vocab: int) {\n  input t: token(vocab)\n  output t + 1\n}\n",
        "nsam 1\n\nsystem sample(vocab: int) {\n  input t: token(vocab)\n  memory e : table(vocab, 8)\n"
        "  output e(t) + 1\n}\n",
    ),
    Code(
        "N0217",
        "residual-shape",
        "error",
        "A residual memory adds its input to its output, so both have one size.",
        _system("memory m : mlp(dim -> dim -> 2*dim, act = silu, residual)\noutput m(x)"),
        _system("memory m : mlp(dim -> 2*dim -> dim, act = silu, residual)\noutput m(x)"),
    ),
    Code(
        "N0218",
        "unknown-structure",
        "error",
        "A memory is linear, mlp, conv, table, vector, rmsnorm, layernorm, attention, or like another.",
        _system("memory m : dense(dim, dim)\noutput m(x)"),
        _system("memory m : linear(dim -> dim)\noutput m(x)"),
    ),
    Code(
        "N0219",
        "structure-arguments",
        "error",
        "A structure has its own sizes, options and flags.",
        _system("memory m : linear(dim -> dim, residual)\noutput m(x)"),
        _system("memory m : linear(dim -> dim, bias)\noutput m(x)"),
    ),
    Code(
        "N0220",
        "clause-twice",
        "error",
        "Each clause is written once.",
        _memory(f"{_LEARN}; every 8 tokens"),
        _memory(_LEARN),
    ),
    Code(
        "N0221",
        "clause-missing",
        "error",
        "A memory that learns says from what, for what, by which rule and how often.",
        _memory("learn k(x) -> x; minimize l2; by gd(lr = 0.1)"),
        _memory(_LEARN),
    ),
    Code(
        "N0222",
        "clause-without-sense",
        "error",
        "A clause applies to the memory that has it: attention minimizes nothing, what never learns is never reset.",
        _memory("reset every 16 tokens"),
        _memory(f"{_LEARN}; reset every 16 tokens"),
    ),
    Code(
        "N0223",
        "period-below-one",
        "error",
        "A period is a whole number from 1, or `inf` (never).",
        _memory("learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 0 tokens"),
        _memory("learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 1 token"),
        "definition 2",
    ),
    Code(
        "N0224",
        "reset-cuts-period",
        "error",
        "A reset falls on a boundary: its distance is a multiple of the memory's period.",
        _memory(f"{_LEARN}; reset every 24 tokens"),
        _memory(f"{_LEARN}; reset every 48 tokens"),
    ),
    Code(
        "N0225",
        "summed-needs-only-gradients",
        "error",
        "An update that is summed over tokens sees only the sum of gradients: no key, no err, no argument that varies "
        "with the token.",
        _memory("learn k(x) -> x; minimize l2; by dgd(lr = 0.1); every 16 tokens summed"),
        _memory("learn k(x) -> x; minimize l2; by dgd(lr = 0.1); every 16 tokens"),
        "71",
    ),
    Code(
        "N0226",
        "key-of-gradients",
        "error",
        "A rule that uses `key` or `err` needs a context with keys; gradients have none. On the step clock such a rule "
        "serves the weights of linear and mlp memories whose gradient is a sum over their layer's inputs, of a module "
        "that was compiled to tell of them, in one process.",
        _rule(_TRACE.replace("by gd", "by dgd") + "\nself <- self - lr * trace"),
        _rule(f"{_TRACE}\nself <- self - lr * trace"),
        "33-37, 57, 59-60",
    ),
    Code(
        "N0227",
        "objective-without-memory",
        "error",
        "An objective depends on what the memory returns.",
        _memory("learn k(x) -> x; minimize sum(value^2); by gd(lr = 0.1); every 16 tokens"),
        _memory("learn k(x) -> x; minimize sum((self(key) - value)^2); by gd(lr = 0.1); every 16 tokens"),
        "definition 1",
    ),
    Code(
        "N0228",
        "objective-names",
        "error",
        "An objective is made of `self`, `key`, `value` and parameters; other values belong into the context.",
        _memory("learn k(x) -> x; minimize dot(self(x), value); by gd(lr = 0.1); every 16 tokens"),
        _memory("learn k(x) -> x; minimize dot(self(key), value); by gd(lr = 0.1); every 16 tokens"),
    ),
    Code(
        "N0229",
        "objective-not-a-number",
        "error",
        "An objective is one number a token.",
        _memory("learn k(x) -> x; minimize (self(key) - value)^2; by gd(lr = 0.1); every 16 tokens"),
        _memory("learn k(x) -> x; minimize sum((self(key) - value)^2); by gd(lr = 0.1); every 16 tokens"),
    ),
    Code(
        "N0230",
        "generated-size",
        "error",
        "A generator writes every number of the state that it generates, and no more.",
        _system(_GENERATED.replace("dim*dim", "dim")),
        _system(_GENERATED),
    ),
    Code(
        "N0231",
        "initial-state-varies",
        "error",
        "An initial state sees only inputs that are one a sequence, and memories.",
        _system(_GENERATED.replace("w(c)", "w(x)")),
        _system(_GENERATED),
    ),
    Code(
        "N0232",
        "initial-structure",
        "error",
        "A memory that starts from another has its structure.",
        _system("memory slow : linear(dim -> 2*dim)\nmemory m : linear(dim -> dim) { init slow }\noutput m(x)"),
        _system("memory slow : linear(dim -> dim)\nmemory m : linear(dim -> dim) { init slow }\noutput m(x)"),
        "72",
    ),
    Code(
        "N0233",
        "transfer-without-clause",
        "error",
        "A declared transfer is what the clauses say: `init` and `generate` need an `init` clause; one kind a pair.",
        _system("memory a, b : linear(dim -> dim)\ntransfer a -> b : init\noutput b(a(x))"),
        _system("memory a : linear(dim -> dim)\nmemory b : like(a) { init a }\ntransfer a -> b : init\noutput b(a(x))"),
    ),
    Code(
        "N0234",
        "no-transpose",
        "error",
        "`m.T(x)` is for memories that are one matrix: linear without bias, and tables.",
        _system("memory m : mlp(dim -> 2*dim -> dim)\noutput m.T(x)"),
        _system("memory m : linear(dim -> dim)\noutput m.T(x)"),
    ),
    Code(
        "N0235",
        "one-output",
        "error",
        "A system has exactly one output.",
        _system("let y = x"),
        _system("let y = x\noutput y"),
    ),
    Code(
        "N0236",
        "misplaced-declaration",
        "error",
        "Inputs and outputs belong to the system, not to a repeat in it; a rule declares its memories one by one.",
        _system("let h = x\nrepeat 2 {\nh = h + 1\noutput h\n}\noutput h"),
        _system("let h = x\nrepeat 2 {\nh = h + 1\n}\noutput h"),
    ),
    Code(
        "N0237",
        "memory-outside-repeat",
        "error",
        "A repeat reads memories of its own: each pass has a copy of them.",
        _system("memory m : linear(dim -> dim)\nlet h = x\nrepeat 2 {\nh = h + m(h)\n}\noutput h"),
        _system("let h = x\nrepeat 2 {\nmemory m : linear(dim -> dim)\nh = h + m(h)\n}\noutput h"),
    ),
    Code(
        "N0238",
        "train-field",
        "error",
        "`model` names a system, `data` a kind of data that is known; the model is fed with its own inputs.",
        _train(f"model model_of(vocab = 256); data images(context = 8, batch = 2); {_LOSS}; by gd(lr = 0.1); steps 4"),
        _train(_TRAIN),
    ),
    Code(
        "N0239",
        "rule-targets",
        "error",
        "Each parameter follows one rule: one rule for all, or one for matrices and one for others.",
        _train(f"{_MODEL}; {_LOSS}; by gd(lr = 0.1) for matrices; steps 4"),
        _train(f"{_MODEL}; {_LOSS}; by gd(lr = 0.1) for matrices, adamw(lr = 0.1) for others; steps 4"),
    ),
    Code(
        "N0240",
        "too-many",
        "error",
        "A program stays within bounds: 100,000 memories and passes, 128 memories in a chain, 24 systems deep.",
        _system("let h = x\nrepeat 1000000 {\nh = h + 1\n}\noutput h"),
        _system("let h = x\nrepeat 10 {\nh = h + 1\n}\noutput h"),
    ),
    Code(
        "N0241",
        "rule-argument-shape",
        "error",
        "An argument of a rule is a number, or one number for each head of the memory.",
        _memory(
            "learn k(x) -> x; minimize l2; by gd(lr = sigmoid(k(x))); every 16 tokens", "linear(dim -> dim, heads = 4)"
        )
        .replace("linear(dim -> dim)", "linear(16 -> 16)", 1)
        .replace("input x: [dim]", "input x: [16]")
        .replace("linear(dim -> dim, heads", "linear(16 -> 16, heads"),
        _memory("learn k(x) -> x; minimize l2; by gd(lr = mean(sigmoid(k(x)))); every 16 tokens"),
    ),
    Code(
        "N0242",
        "adaptive-not-here",
        "error",
        "An adaptive period is for memories that learn a key and value inside the sequence, token by token: there is "
        "no surprise on the step clock, for `minimize task`, in rules and in `train`, and a sum has no single update.",
        _memory(f"{_SURPRISED} summed when surprise > 0.5"),
        _memory(f"{_SURPRISED} when surprise > 0.5"),
    ),
    Code(
        "N0243",
        "adaptive-bounds",
        "error",
        "The bounds of an adaptive period are whole numbers of tokens, the smaller one divides the larger one.",
        _memory(f"{_SURPRISED.replace('4..16', '6..16')} when surprise > 0.5"),
        _memory(f"{_SURPRISED} when surprise > 0.5"),
    ),
    Code(
        "N0244",
        "function-not-here",
        "error",
        "Some functions are for rules, systems or objectives only; operators are written as signs.",
        _system("output x @ x"),
        _system("output x * x"),
    ),
    Code(
        "N0245",
        "needs-tokens",
        "error",
        "Positions and convolutions need a value that varies with the token.",
        _system("memory v : vector(dim)\noutput x + rope(v)").replace("dim", "8").replace("8: int", "n: int = 1"),
        _system("output x + rope(x)").replace("dim", "8").replace("8: int", "n: int = 1"),
    ),
    Code(
        "N0246",
        "varies-with-token",
        "error",
        "An input that is one a sequence is given a value that does not vary with the token.",
        _TWO.replace("input x: [dim]", "input x: [dim] per sequence") + _OUTER.format("inner(x, dim)"),
        _TWO + _OUTER.format("inner(x, dim)"),
    ),
    Code(
        "N0247",
        "repeat-without-effect",
        "error",
        "A repeat reassigns at least one value declared before it.",
        _system("repeat 2 {\nlet h = x + 1\n}\noutput x"),
        _system("let h = x\nrepeat 2 {\nh = h + 1\n}\noutput h"),
    ),
    Code(
        "N0248",
        "rule-without-update",
        "error",
        "A rule updates `self`.",
        _rule("let step = lr * grad"),
        _rule("let step = lr * grad\nself <- self - step"),
    ),
    Code(
        "N0250",
        "request-parameter",
        "error",
        "Parameters given from outside exist, have a value of their type, and none without a default is left out.",
    ),
    Code(
        "N0251",
        "request-name",
        "error",
        "The system, rule or train declaration asked for is one that the program has.",
    ),
)
