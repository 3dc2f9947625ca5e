"""Text to tree: what each piece of syntax means, where it stands, and what is said when it is wrong."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import nsam
from nsam.dsl import syntax as s
from nsam.dsl.diagnostics import Diagnostic, ProgramError, Report
from nsam.dsl.grammar import grammar
from nsam.dsl.parser import parse, parse_with_report
from nsam.dsl.spans import Source, Span

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "dsl/std/rules.nsam", ROOT / "examples/hope/hope.nsam", ROOT / "examples/zoo/zoo.nsam"]
HERE = Span(Source("", ""), 0, 0)


def program(text: str) -> s.File:
    return parse(Source("p.nsam", text))


def body(text: str) -> tuple[s.Statement, ...]:
    (declaration,) = program(f"nsam 1\nsystem f(dim: int) {{\n{text}\n}}\n").declarations
    assert isinstance(declaration, s.SystemDeclaration)
    return declaration.body


def value(text: str) -> s.Expression:
    (statement,) = body(f"let y = {text}")
    assert isinstance(statement, s.Let)
    return statement.value


def clauses(text: str) -> tuple[s.Clause, ...]:
    (statement,) = body(f"memory m : linear(dim -> dim) {{\n{text}\n}}")
    assert isinstance(statement, s.MemoryDeclaration)
    return statement.clauses


def memory(text: str) -> s.MemoryDeclaration:
    (statement,) = body(text)
    assert isinstance(statement, s.MemoryDeclaration)
    return statement


def errors(text: str) -> list[Diagnostic]:
    with pytest.raises(ProgramError) as error:
        program(text)
    return list(error.value.diagnostics)


def name(text: str) -> s.Name:
    return s.Name(HERE, text)


def integer(number: int) -> s.Number:
    return s.Number(HERE, number, True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_spans_of_shipped_programs_cover_their_text(path: Path) -> None:
    """Every node stands inside its parent, and names stand where their span says."""
    text = path.read_text(encoding="utf-8")
    seen = 0
    stack: list[s.Node] = [*program(text).declarations]
    while stack:
        node = stack.pop()
        seen += 1
        assert node.span.text == node.span.text.strip() != ""
        if isinstance(node, s.Name | s.Identifier):
            assert node.span.text == node.id
        if isinstance(node, s.Call):
            assert node.function_span.text == node.function
        for child in children(node):
            assert node.span.start <= child.span.start <= child.span.end <= node.span.end
            stack.append(child)
    assert seen > 200


def children(node: s.Node) -> list[s.Node]:
    found: list[s.Node] = []
    pending = [getattr(node, field.name) for field in fields(node)]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple):
            pending.extend(item)
        elif isinstance(item, s.Node) and is_dataclass(item):
            found.append(item)
    return found


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("a / b @ c", "(a / b) @ c"),
        ("a ^ b ^ c", "a ^ (b ^ c)"),
        ("-a ^ 2", "-(a ^ 2)"),
        ("-a * b", "(-a) * b"),
        ("a ^ -b", "a ^ (-b)"),
        ("a - -b", "a - (-b)"),
        ("m(x)^2", "(m(x))^2"),
        ("f(\n  a,\n  b\n)", "f(a, b)"),
        ("[a,\n b]", "[a, b]"),
        ("f(a, b,)", "f(a, b)"),
    ],
)
def test_precedence(text: str, same: str) -> None:
    assert value(text) == value(same)


def test_precedence_tells_apart() -> None:
    assert value("(a + b) * c") != value("a + b * c")
    assert value("(a ^ b) ^ c") != value("a ^ b ^ c")
    assert value("a - (b - c)") != value("a - b - c")


@pytest.mark.parametrize(
    ("text", "number", "is_int"),
    [
        ("4", 4, True),
        ("0.5", 0.5, False),
        (".5", 0.5, False),
        ("1.", 1.0, False),
        ("4e-3", 0.004, False),
        ("1E5", 1e5, False),
    ],
)
def test_numbers(text: str, number: float, is_int: bool) -> None:
    assert value(text) == s.Number(HERE, number, is_int)


def test_constants_strings_and_reads() -> None:
    assert value("inf") == s.Number(HERE, float("inf"), False)
    assert value("true") == s.Boolean(HERE, True)
    assert value(r'"a \"b\" \\ \n"') == s.Text(HERE, 'a "b" \\ \n')
    assert value("m.T(x)") == s.Call(HERE, "m", HERE, (s.Argument(HERE, None, name("x")),), True)
    assert value("f(x, n = 2)") == s.Call(
        HERE, "f", HERE, (s.Argument(HERE, None, name("x")), s.Argument(HERE, "n", integer(2)))
    )


def test_structures() -> None:
    found = memory("memory m : mlp(dim -> 4*dim -> dim, act = silu, residual, heads = 2, bias)").structure
    assert found.kind == "mlp"
    assert found.arrows
    assert len(found.sizes) == 3
    assert [argument.name for argument in found.named] == ["act", "heads"]
    assert found.flags == (name("residual"), name("bias"))
    table = memory("memory m : table(n, dim)").structure
    assert (table.sizes, table.arrows) == ((name("n"), name("dim")), False)
    assert memory("memory m : linear(a -> b, bias)").structure.flags == (name("bias"),)
    assert memory("memory m : like(self)").structure.sizes == (name("self"),)


def test_memories() -> None:
    found = memory("memory level[p in periods] : linear(dim -> dim) { every p steps }")
    assert found.index == (s.Identifier(HERE, "p"), name("periods"))
    assert found.clauses == (s.Every(HERE, name("p"), "step"),)
    assert memory("memory m : vector(3) {}").braced
    assert not memory("memory m : vector(3)").braced
    assert [one.id for one in memory("memory a, b : vector(3)").names] == ["a", "b"]


def test_clauses() -> None:
    a, b = name("a"), name("b")
    assert clauses("learn a") == (s.Learn(HERE, a),)
    assert clauses("learn a -> b over last 3 tokens") == (s.Learn(HERE, a, b, integer(3)),)
    assert clauses("every 1 token; every 2 updates summed") == (
        s.Every(HERE, integer(1), "token"),
        s.Every(HERE, integer(2), "update", True),
    )
    assert clauses("reset every 64 tokens; reset per sequence; reset never") == (
        s.Reset(HERE, "every", integer(64)),
        s.Reset(HERE, "sequence"),
        s.Reset(HERE, "never"),
    )
    assert clauses("init zeros; init learned; init learned normal(2); init a") == (
        s.Init(HERE, "zeros"),
        s.Init(HERE, "learned"),
        s.Init(HERE, "learned", integer(2)),
        s.Init(HERE, "expression", expression=a),
    )
    assert clauses("by gd\nreads running") == (s.By(HERE, "gd", HERE), s.Reads(HERE, "running"))


def test_words_of_clauses_serve_as_names() -> None:
    found = body("repeat 2 {\n  init = init + every(step)\n}\nlet data = init\nlet tokens = last")
    assert isinstance(found[0], s.Repeat)
    assert found[0].body == (
        s.Assign(
            HERE,
            s.Identifier(HERE, "init"),
            s.Binary(HERE, "+", name("init"), s.Call(HERE, "every", HERE, (s.Argument(HERE, None, name("step")),))),
        ),
    )


def test_inputs_and_transfers() -> None:
    found = body("input c: [dim, 2*dim] per sequence\ninput t: token(9)\ntransfer a, b -> c : direct")
    assert isinstance(found[0], s.InputDeclaration)
    assert found[0].per_sequence
    assert len(found[0].type.sizes) == 2
    assert found[1] == s.InputDeclaration(HERE, s.Identifier(HERE, "t"), s.ValueShape(HERE, (), integer(9)))
    assert isinstance(found[2], s.TransferDeclaration)
    assert ([one.id for one in found[2].sources], found[2].kind) == (["a", "b"], "direct")


def test_training() -> None:
    (found,) = program(
        "nsam 1\ntrain t {\n by a(lr = 1) for matrices, b for others\n steps 3; every 1 step\n}"
    ).declarations
    assert isinstance(found, s.TrainDeclaration)
    assert [type(one).__name__ for one in found.fields] == ["By", "By", "Field", "Every"]
    assert [one.targets for one in found.fields if isinstance(one, s.By)] == ["matrices", "others"]


def test_files() -> None:
    found = program('# first\nnsam 1; """Doc\nstring."""\nuse std.rules (a, b); use "./x.nsam" (c)\n# last')
    assert found.docstring == "Doc\nstring."
    assert [(use.module, use.path) for use in found.uses] == [("std.rules", None), (None, "./x.nsam")]
    assert [(one.text, one.alone) for one in found.comments] == [("# first", True), ("# last", True)]
    assert program("nsam 1").declarations == ()
    assert program("nsam 1; use std.rules (a, b,)") == program("nsam 1; use std.rules (a, b)")


def test_comments_know_whether_they_stand_alone() -> None:
    found = program("nsam 1 # a\n  # b\nrule r(lr) { # c\n}\n").comments
    assert [(one.text, one.alone) for one in found] == [("# a", False), ("# b", True), ("# c", False)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n\n", " ;\n", "; ; \n"])
def test_line_ends(ending: str) -> None:
    text = "nsam 1\nrule r(lr) {\nlet a = f(1,\n2)\nself <- a\n}\n"
    assert program(text.replace("\n", ending) if ";" not in ending else text.replace("a\n", "a" + ending)) == program(
        text
    )


def test_newlines_end_statements_outside_brackets_only() -> None:
    assert [found.code for found in errors("nsam 1\nrule r(lr) {\nself <- a +\nb\n}\n")] == ["N0101"]
    assert program("nsam 1\nrule r(lr) {\nself <- (a +\n# why\nb)\n}\n").declarations


def test_equality_ignores_place_and_comments() -> None:
    assert program("nsam 1\nrule r(lr) { self <- 1 }") == program("nsam 1 # x\n\n\nrule r(lr) {\n  self <- (1)\n}\n")
    assert program("nsam 1\nrule r(lr) { self <- 1 }") != program("nsam 1\nrule r(lr) { self <- 2 }")


def test_what_a_broken_line_goes_on_with_is_no_mistake_of_its_own() -> None:
    fields = "  by gd(lr = 1) for matrices,\n  gd(lr = 2) for others\n  stepz 3\n"
    found = errors(f"nsam 1\nsystem a() {{\n  let y = x +\n  x -\n  x\n  z +\n}}\ntrain c {{\n{fields}}}\n")
    assert [(one.code, one.primary.span.line) for one in found if one.primary] == [
        ("N0101", 3),
        ("N0108", 6),
        ("N0101", 9),
        ("N0111", 11),
    ]


def test_many_errors_come_in_the_order_of_the_text() -> None:
    text = (
        "nsam 1\nsystem a(dim: int) {\n  input x [dim]\n  memory m : linear(dim -> dim) {\n    every 4\n"
        "    reads runing\n"
        "  }\n  let y = x $ 2\n}\nrule b(lr) {\n  self <- \n}\ntrain c {\n  stepz 3\n}\n"
    )
    found = errors(text)
    assert [one.code for one in found] == ["N0109", "N0111", "N0111", "N0106", "N0101", "N0111"]
    assert [one.primary.span.line for one in found if one.primary] == [3, 5, 6, 8, 11, 14]


def test_a_missing_brace_does_not_hide_what_follows() -> None:
    found = errors("nsam 1\nsystem a(dim: int) {\n  input x: [dim]\n\nsystem b(dim) {\n  output x\n}\n")
    assert [one.code for one in found] == ["N0103", "N0110"]


def test_an_error_in_one_block_does_not_blame_the_next() -> None:
    found = errors("nsam 1\nsystem a(d: int) {\n  let y = f(x\n  let z = 1\n}\nsystem b(d: int) {\n  output x\n}\n")
    assert [one.code for one in found] == ["N0102"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("let y := x", "let y = x"),
        ("let y <- x", "let y = x"),
        ("memmory m : vector(3)", "memory m : vector(3)"),
        ("memory m vector(3)", "memory m : vector(3)"),
        ("memory m = vector(3)", "memory m : vector(3)"),
        ("input c [dim]", "input c: [dim]"),
        ("input c: dim", "input c: [dim]"),
        ("return x", "output x"),
        ("let y = x ** 2", "let y = x ^ 2"),
        ("let y = f(n: 2)", "let y = f(n  = 2)"),
        ("let y = x let z = x", "let y = x; let z = x"),
        ("memory m : vector(3) { every 4 }", "memory m : vector(3) { every 4 tokens }"),
        ("memory m : vector(3) { reads runing }", "memory m : vector(3) { reads running }"),
        ("memory m : vector(3) { minimise l2 }", "memory m : vector(3) { minimize l2 }"),
        ("let y = f(x))", "let y = f(x)"),
        ("transfer a -> b direct", "transfer a -> b : direct"),
        ("let\u00a0y = x", "let y = x"),
        ("// why", "# why"),
    ],
)
def test_fixes_repair_the_program(wrong: str, right: str) -> None:
    frame = "nsam 1\nsystem f(dim: int) {{\n  {}\n}}\n"
    text = frame.format(wrong)
    (found,) = errors(text)
    assert found.fix is not None
    span = found.fix.span
    mended = text[: span.start] + found.fix.replacement + text[span.end :]
    assert program(mended) == program(frame.format(right))


def test_reports_are_added_to() -> None:
    report = Report()
    assert parse_with_report(Source("a", "nsam 1\nrule r(lr) { x }"), report) is None
    assert parse_with_report(Source("b", "nsam 1\n"), report) is not None
    assert parse_with_report(Source("c", "nsam 2\n"), report) is None
    assert [found.code for found in report.diagnostics] == ["N0108", "N0006"]


def test_the_grammar_has_no_conflicts_and_named_terminals() -> None:
    assert all(not terminal.name.startswith("__ANON") for terminal in grammar().terminals)


@pytest.mark.parametrize(
    ("default", "kind"),
    [
        ("0.1", "float"),
        ("-0.5", "float"),
        ("inf", "float"),
        ("4", "int"),
        ('"a"', "str"),
        ("true", "bool"),
        ("[1]", "list[int]"),
    ],
)
def test_the_type_that_is_missing_is_that_of_the_default(default: str, kind: str) -> None:
    text = f"nsam 1\nsystem s(d: int, r = {default}) {{ input x : [d]; output x }}\n"
    with pytest.raises(ProgramError) as raised:
        nsam.loads(text)
    (found,) = raised.value.diagnostics
    assert found.code == "N0110"
    assert found.fix is not None
    at = found.fix.span.start
    nsam.loads(text[:at] + found.fix.replacement + text[at:])
    assert found.fix.replacement == f": {kind}"
