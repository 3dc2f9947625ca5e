"""Random programs, built from the classes of the syntax tree: every one parses to itself and survives the formatter.

`write` turns a tree into text with all brackets spelt out; `decorated` adds what an author adds: blanks, empty lines,
comments, `;` instead of new lines.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsam.dsl import syntax as s
from nsam.dsl.format import format_source
from nsam.dsl.parser import parse
from nsam.dsl.spans import Source, Span
from nsam.dsl.words import RESERVED, TARGETS, TRANSFERS, UNITS

HERE = Span(Source("generated", ""), 0, 0)
MODEST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# names include words that are keywords elsewhere: `init`, `every`, `step`, `data`, `tokens` serve as names
KEYWORD_NAMES = ["init", "every", "step", "data", "tokens", "learn", "over", "last", "key", "self", "model", "summed"]
KEYWORD_NAMES += ["when", "surprise"]
identifiers = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True).filter(lambda name: name not in RESERVED)
names = st.one_of(st.sampled_from(KEYWORD_NAMES), identifiers.filter(lambda name: name not in ("zeros", "learned")))
declared = names.map(lambda name: s.Identifier(HERE, name))
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
numbers = st.one_of(
    st.integers(0, 10**17).map(lambda value: s.Number(HERE, value, True)),
    st.floats(0, 1e300, allow_subnormal=False).map(lambda value: s.Number(HERE, value, False)),
    st.just(s.Number(HERE, float("inf"), False)),
)
atoms = st.one_of(
    numbers,
    names.map(lambda name: s.Name(HERE, name)),
    texts.map(lambda text: s.Text(HERE, text)),
    st.booleans().map(lambda value: s.Boolean(HERE, value)),
)


def arguments(values: st.SearchStrategy[s.Expression]) -> st.SearchStrategy[tuple[s.Argument, ...]]:
    positional = st.lists(values.map(lambda value: s.Argument(HERE, None, value)), max_size=2)
    named = st.lists(st.builds(lambda name, value: s.Argument(HERE, name, value), names, values), max_size=2)
    return st.builds(lambda first, then: (*first, *then), positional, named)


def larger(values: st.SearchStrategy[s.Expression]) -> st.SearchStrategy[s.Expression]:
    return st.one_of(
        st.builds(lambda op, a, b: s.Binary(HERE, op, a, b), st.sampled_from("+-*/@^"), values, values),
        values.map(lambda value: s.Unary(HERE, "-", value)),
        st.lists(values, max_size=3).map(lambda items: s.ListOf(HERE, tuple(items))),
        st.builds(lambda f, given, t: s.Call(HERE, f, HERE, given, t), names, arguments(values), st.booleans()),
    )


expressions = st.recursive(atoms, larger, max_leaves=6)
few = st.lists(declared, min_size=1, max_size=2).map(tuple)
flags = st.lists(names.map(lambda name: s.Name(HERE, name)), max_size=2).map(tuple)
named = st.lists(st.builds(lambda n, v: s.Argument(HERE, n, v), names, expressions), min_size=1, max_size=2).map(tuple)
structures = st.one_of(
    st.builds(
        lambda kind, sizes, given, words: s.Structure(HERE, kind, HERE, tuple(sizes), True, given, words),
        names,
        st.lists(expressions, min_size=2, max_size=4),
        named | st.just(()),
        flags,
    ),
    st.builds(
        lambda kind, sizes, given, words: s.Structure(HERE, kind, HERE, tuple(sizes), False, given, words),
        names,
        st.lists(expressions, max_size=2),
        named,
        flags,
    ),
)
bys = st.builds(lambda rule, given: s.By(HERE, rule, HERE, given), names, arguments(expressions))
everies = st.builds(
    lambda period, unit, summed, adaptive: s.Every(HERE, period, unit, summed, *adaptive),
    expressions,
    st.sampled_from(UNITS),
    st.booleans(),
    st.just((None, None)) | st.tuples(expressions, expressions),
)
minimizes = expressions.map(lambda value: s.Minimize(HERE, value))
clauses = st.one_of(
    st.builds(lambda k, v, w: s.Learn(HERE, k, v, w), expressions, expressions | st.none(), expressions | st.none()),
    minimizes,
    bys,
    everies,
    st.sampled_from(["boundary", "running"]).map(lambda mode: s.Reads(HERE, mode)),
    st.sampled_from(["sequence", "never"]).map(lambda kind: s.Reset(HERE, kind)),
    expressions.map(lambda period: s.Reset(HERE, "every", period)),
    st.just(s.Init(HERE, "zeros")),
    (expressions | st.none()).map(lambda deviation: s.Init(HERE, "learned", deviation)),
    expressions.map(lambda value: s.Init(HERE, "expression", expression=value)),
)
memories = st.builds(
    lambda given, structure, body, index, braced: s.MemoryDeclaration(
        HERE, given, structure, tuple(body), index, braced or bool(body)
    ),
    few,
    structures,
    st.lists(clauses, max_size=3),
    st.tuples(declared, expressions) | st.none(),
    st.booleans(),
)
lets = st.builds(lambda name, value: s.Let(HERE, name, value), declared, expressions)
system_statements = st.one_of(
    st.builds(
        lambda name, sizes, per: s.InputDeclaration(HERE, name, s.ValueShape(HERE, tuple(sizes)), per),
        declared,
        st.lists(expressions, max_size=2),
        st.booleans(),
    ),
    st.builds(lambda name, n: s.InputDeclaration(HERE, name, s.ValueShape(HERE, (), n)), declared, expressions),
    memories,
    lets,
    st.builds(lambda name, value: s.Assign(HERE, name, value), declared, expressions),
    st.builds(lambda a, b, kind: s.TransferDeclaration(HERE, a, b, kind, HERE), few, few, st.sampled_from(TRANSFERS)),
    expressions.map(lambda value: s.Output(HERE, value)),
)
with_repeats = st.recursive(
    system_statements,
    lambda inner: st.builds(
        lambda count, body: s.Repeat(HERE, count, tuple(body)), expressions, st.lists(inner, max_size=2)
    ),
    max_leaves=4,
)
rule_statements = st.one_of(
    st.builds(lambda name, value: s.StateDeclaration(HERE, name, value), declared, expressions),
    memories,
    lets,
    st.builds(lambda name, value: s.Update(HERE, name, value), declared, expressions),
)
types = st.sampled_from([("int", None), ("float", None), ("bool", None), ("str", None), ("list", "int")]).map(
    lambda pair: s.TypeName(HERE, *pair)
)
typed = st.lists(
    st.builds(
        lambda name, kind, default: s.Parameter(HERE, name, kind, default), names, types, expressions | st.none()
    ),
    max_size=3,
).map(tuple)
untyped = st.lists(
    st.builds(lambda name, default: s.Parameter(HERE, name, None, default), names, expressions | st.none()), max_size=3
).map(tuple)
targeted = st.builds(
    lambda rule, given, to: s.By(HERE, rule, HERE, given, to), names, arguments(expressions), st.sampled_from(TARGETS)
)
settings_ = st.builds(
    lambda name, value: s.Field(HERE, name, value), st.sampled_from(["model", "data", "steps"]), expressions
)
declarations = st.one_of(
    st.builds(
        lambda n, p, b: s.SystemDeclaration(HERE, n, p, tuple(b)), declared, typed, st.lists(with_repeats, max_size=4)
    ),
    st.builds(
        lambda n, p, b: s.RuleDeclaration(HERE, n, p, tuple(b)),
        declared,
        untyped,
        st.lists(rule_statements, max_size=4),
    ),
    st.builds(
        lambda name, fields: s.TrainDeclaration(HERE, name, tuple(fields)),
        declared,
        st.lists(st.one_of(settings_, minimizes, targeted, everies), max_size=4),
    ),
)
uses = st.one_of(
    st.builds(lambda given: s.Use(HERE, "std.rules", None, given), few),
    st.builds(lambda path, given: s.Use(HERE, None, path, given), texts, few),
)
docstrings = st.none() | st.text(st.sampled_from("ab \n#{(;"), max_size=10)
programs = st.builds(
    lambda doc, use, body: s.File(HERE, 1, doc, tuple(use), tuple(body)),
    docstrings,
    st.lists(uses, max_size=2),
    st.lists(declarations, max_size=3),
)


# --- from tree to text ---


def string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def number(node: s.Number) -> str:
    if node.value == float("inf"):
        return "inf"
    text = repr(node.value)
    return text if node.is_int or any(sign in text for sign in ".e") else text + ".0"


def expr(node: s.Expression) -> str:
    match node:
        case s.Number():
            return number(node)
        case s.Text(value=value):
            return string(value)
        case s.Boolean(value=value):
            return "true" if value else "false"
        case s.Name(id=name):
            return name
        case s.ListOf(items=items):
            return f"[{', '.join(map(expr, items))}]"
        case s.Unary(operand=operand):
            return f"-({expr(operand)})"
        case s.Binary(operator=operator, left=left, right=right):
            return f"({expr(left)}) {operator} ({expr(right)})"
        case s.Call():
            return f"{node.function}{'.T' if node.transposed else ''}({given_as(node.arguments)})"


def given_as(items: tuple[s.Argument, ...]) -> str:
    return ", ".join(expr(item.value) if item.name is None else f"{item.name} = {expr(item.value)}" for item in items)


def structure(node: s.Structure) -> str:
    sizes = [" -> ".join(map(expr, node.sizes))] if node.arrows else [expr(size) for size in node.sizes]
    parts = [*sizes, given_as(node.named), *(flag.id for flag in node.flags)]
    return f"{node.kind}({', '.join(part for part in parts if part)})"


def listed(items: tuple[s.Identifier, ...]) -> str:
    return ", ".join(item.id for item in items)


def body(items: tuple[s.Node, ...]) -> str:
    return "{\n" + "".join(f"{line(item)}\n" for item in items) + "}"


def line(node: s.Node) -> str:
    match node:
        case s.Learn():
            value = "" if node.value is None else f" -> {expr(node.value)}"
            return f"learn {expr(node.key)}{value}" + (f" over last {expr(node.window)} tokens" if node.window else "")
        case s.Minimize():
            return f"minimize {expr(node.objective)}"
        case s.By():
            return f"by {node.rule}({given_as(node.arguments)})" + (f" for {node.targets}" if node.targets else "")
        case s.Every():
            period = expr(node.period) if node.slowest is None else f"{expr(node.period)}..{expr(node.slowest)}"
            condition = "" if node.threshold is None else f" when surprise > {expr(node.threshold)}"
            return f"every {period} {node.unit}s{' summed' if node.summed else ''}{condition}"
        case s.Reads():
            return f"reads {node.mode}"
        case s.Reset():
            return {"sequence": "reset per sequence", "never": "reset never"}.get(
                node.kind, f"reset every {expr(node.period) if node.period else ''} tokens"
            )
        case s.Init():
            if node.kind == "expression" and node.expression is not None:
                return f"init {expr(node.expression)}"
            return f"init {node.kind}" + (f" normal({expr(node.deviation)})" if node.deviation else "")
        case s.InputDeclaration():
            shape = f"[{', '.join(map(expr, node.type.sizes))}]"
            if node.type.vocab is not None:
                shape = f"token({expr(node.type.vocab)})"
            return f"input {node.name.id}: {shape}{' per sequence' if node.per_sequence else ''}"
        case s.MemoryDeclaration():
            index = "" if node.index is None else f"[{node.index[0].id} in {expr(node.index[1])}]"
            block = f" {body(node.clauses)}" if node.braced else ""
            return f"memory {listed(node.names)}{index} : {structure(node.structure)}{block}"
        case s.Let():
            return f"let {node.name.id} = {expr(node.value)}"
        case s.Assign():
            return f"{node.name.id} = {expr(node.value)}"
        case s.Update():
            return f"{node.target.id} <- {expr(node.value)}"
        case s.StateDeclaration():
            return f"state {node.name.id} = {expr(node.initial)}"
        case s.Repeat():
            return f"repeat {expr(node.count)} {body(node.body)}"
        case s.TransferDeclaration():
            return f"transfer {listed(node.sources)} -> {listed(node.targets)} : {node.kind}"
        case s.Output():
            return f"output {expr(node.value)}"
        case s.Field():
            return f"{node.name} {expr(node.value)}"
        case s.Use():
            return f"use {node.module or string(node.path or '')} ({listed(node.names)})"
        case s.TrainDeclaration():
            return f"train {node.name.id} {body(node.fields)}"
        case s.SystemDeclaration() | s.RuleDeclaration():
            word = "system" if isinstance(node, s.SystemDeclaration) else "rule"
            return f"{word} {node.name.id}({', '.join(map(parameter, node.parameters))}) {body(node.body)}"
    raise AssertionError(node)


def parameter(node: s.Parameter) -> str:
    kind = ""
    if node.type is not None:
        kind = f": {node.type.id}" + (f"[{node.type.element}]" if node.type.element else "")
    return node.name + kind + ("" if node.default is None else f" = {expr(node.default)}")


def write(file: s.File) -> str:
    parts = ["nsam 1", *([] if file.docstring is None else [f'"""{file.docstring}"""'])]
    return "\n".join([*parts, *map(line, file.uses), *map(line, file.declarations)]) + "\n"


def decorated(text: str, dice: random.Random) -> str:
    """Return `text` with other blanks, empty lines, comments and `;` where they do not change the meaning."""
    if '"' in text:  # positions inside strings and docstrings are not ours to touch
        return text
    lines: list[str] = []
    for number, row in enumerate(text.split("\n")):
        row = " " * dice.randrange(4) + row.replace(" = ", dice.choice([" = ", "=", "   = "]))
        row = row.replace(
            ", ", dice.choice([", ", ",", " ,\n ", ",  # in brackets\n"]) if "(" in row.split(",")[0] else ", "
        )
        row += dice.choice(["", "", "  ", f"   # comment {number}", ";", f";;  # after {number}"])
        lines += [row, *[""] * dice.choice([0, 0, 1, 3]), *dice.choice([[], [], [f"   # alone {number}"]])]
    return "\n".join(lines)


def comments(text: str) -> list[str]:
    return [found.text for found in parse(Source("p", text)).comments]


@MODEST
@given(programs)
def test_a_written_program_parses_to_itself(file: s.File) -> None:
    assert parse(Source("p", write(file))) == file


@MODEST
@given(programs, st.randoms(use_true_random=False))
def test_formatting_keeps_meaning_and_comments_and_is_idempotent(file: s.File, dice: random.Random) -> None:
    text = decorated(write(file), dice)
    formatted = format_source(text)
    assert parse(Source("p", formatted)) == file
    assert comments(formatted) == comments(text)
    assert format_source(formatted) == formatted


def test_decoration_decorates() -> None:
    text = decorated("nsam 1\nrule r(lr) {\nself <- f(1, 2)\n}\n", random.Random(1))
    assert len(comments(text)) > 1
    assert format_source(text) != text
