"""From a syntax tree back to text: what the shrinker writes. Comments and docstrings are left out."""

from __future__ import annotations

from nsam.dsl import syntax as s
from nsam.dsl.format import format_source

_TIGHTNESS = {"+": 1, "-": 1, "*": 2, "/": 2, "@": 2, "^": 4}
_UNARY, _ATOM = 3, 5


def program_text(file: s.File) -> str:
    """The text of a file in the standard layout."""
    lines = [f"nsam {file.edition}", *(_use(use) for use in file.uses), *(_declaration(d) for d in file.declarations)]
    return format_source("\n\n".join(lines) + "\n")


def expression(e: s.Expression, tightness: int = 0) -> str:
    """An expression, in brackets where it binds less tightly than its place asks for."""
    text, own = _expression(e)
    return f"({text})" if own < tightness else text


def _expression(e: s.Expression) -> tuple[str, int]:
    match e:
        case s.Number():
            return (str(int(e.value)) if e.is_int else repr(float(e.value))), _ATOM
        case s.Text():
            return f'"{e.value}"', _ATOM
        case s.Boolean():
            return ("true" if e.value else "false"), _ATOM
        case s.Name():
            return e.id, _ATOM
        case s.ListOf():
            return f"[{', '.join(expression(item) for item in e.items)}]", _ATOM
        case s.Unary():
            return f"-{expression(e.operand, _UNARY)}", _UNARY
        case s.Call():
            return f"{e.function}{'.T' if e.transposed else ''}({_arguments(e.arguments)})", _ATOM
        case s.Binary(operator="^"):
            return f"{expression(e.left, _ATOM)}^{expression(e.right, _UNARY)}", _TIGHTNESS["^"]
        case s.Binary():
            own = _TIGHTNESS[e.operator]
            return f"{expression(e.left, own)} {e.operator} {expression(e.right, own + 1)}", own


def _arguments(arguments: tuple[s.Argument, ...]) -> str:
    return ", ".join(f"{a.name} = {expression(a.value)}" if a.name else expression(a.value) for a in arguments)


def _use(use: s.Use) -> str:
    return f"use {use.module or _quoted(use.path or '')} ({_names(use.names)})"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _names(names: tuple[s.Identifier, ...]) -> str:
    return ", ".join(name.id for name in names)


def _declaration(declaration: s.Declaration) -> str:
    match declaration:
        case s.RuleDeclaration():
            return f"rule {_head(declaration)} {_block(declaration.body)}"
        case s.SystemDeclaration():
            return f"system {_head(declaration)} {_block(declaration.body)}"
        case s.TrainDeclaration():
            raise NotImplementedError("train declarations are not among random programs")


def _head(declaration: s.RuleDeclaration | s.SystemDeclaration) -> str:
    parameters = []
    for p in declaration.parameters:
        kind = f": {p.type.id}{f'[{p.type.element}]' if p.type.element else ''}" if p.type else ""
        parameters.append(f"{p.name}{kind}{f' = {expression(p.default)}' if p.default is not None else ''}")
    return f"{declaration.name.id}({', '.join(parameters)})"


def _block(body: tuple[s.Statement, ...]) -> str:
    return "{\n" + "".join(f"{_statement(statement)}\n" for statement in body) + "}"


def _statement(statement: s.Statement) -> str:
    match statement:
        case s.InputDeclaration():
            return f"input {statement.name.id} : {_shape(statement.type)}{' per sequence' * statement.per_sequence}"
        case s.MemoryDeclaration():
            return _memory(statement)
        case s.Let():
            return f"let {statement.name.id} = {expression(statement.value)}"
        case s.Assign():
            return f"{statement.name.id} = {expression(statement.value)}"
        case s.Repeat():
            return f"repeat {expression(statement.count)} {_block(statement.body)}"
        case s.TransferDeclaration():
            return f"transfer {_names(statement.sources)} -> {_names(statement.targets)} : {statement.kind}"
        case s.Output():
            return f"output {expression(statement.value)}"
        case s.StateDeclaration():
            return f"state {statement.name.id} = {expression(statement.initial)}"
        case s.Update():
            return f"{statement.target.id} <- {expression(statement.value)}"


def _shape(shape: s.ValueShape) -> str:
    if shape.vocab is not None:
        return f"token({expression(shape.vocab)})"
    return f"[{', '.join(expression(size) for size in shape.sizes)}]"


def _memory(memory: s.MemoryDeclaration) -> str:
    index = f"[{memory.index[0].id} in {expression(memory.index[1])}]" if memory.index else ""
    head = f"memory {_names(memory.names)}{index} : {_structure(memory.structure)}"
    clauses = [_clause(clause) for clause in memory.clauses]
    if not clauses:
        return head
    line = f"{head} {{ {'; '.join(clauses)} }}"
    return line if len(line) < 110 else f"{head} {{\n" + "\n".join(clauses) + "\n}"


def _structure(structure: s.Structure) -> str:
    joint = " -> " if structure.arrows else ", "
    parts = [joint.join(expression(size) for size in structure.sizes)] if structure.sizes else []
    parts += [_arguments(structure.named)] if structure.named else []
    parts += [flag.id for flag in structure.flags]
    return f"{structure.kind}({', '.join(parts)})" if parts else structure.kind


def _clause(clause: s.Clause) -> str:
    match clause:
        case s.Learn():
            value = f" -> {expression(clause.value)}" if clause.value is not None else ""
            window = f" over last {expression(clause.window)} tokens" if clause.window is not None else ""
            return f"learn {expression(clause.key)}{value}{window}"
        case s.Minimize():
            return f"minimize {expression(clause.objective)}"
        case s.By():
            arguments = f"({_arguments(clause.arguments)})" if clause.arguments else ""
            return f"by {clause.rule}{arguments}{f' for {clause.targets}' if clause.targets else ''}"
        case s.Every():
            return _every(clause)
        case s.Reads():
            return f"reads {clause.mode}"
        case s.Reset():
            if clause.kind == "every":
                assert clause.period is not None
                return f"reset every {expression(clause.period)} tokens"
            return "reset never" if clause.kind == "never" else "reset per sequence"
        case s.Init():
            if clause.kind == "expression":
                assert clause.expression is not None
                return f"init {expression(clause.expression)}"
            return f"init {clause.kind}{f' normal({expression(clause.deviation)})' if clause.deviation else ''}"


def _every(clause: s.Every) -> str:
    period = expression(clause.period)
    if clause.slowest is not None and clause.threshold is not None:
        longest, threshold = expression(clause.slowest), expression(clause.threshold)
        return f"every {period}..{longest} {clause.unit}s when surprise > {threshold}"
    one = period == "1"
    return f"every {period} {clause.unit}{'' if one else 's'}{' summed' * clause.summed}"
