"""C++ for the statements of a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nsam.backends.torch.native.statements import Loop, Product, Running, Statement, Total, Turn
from nsam.backends.torch.native.values import Buffer, Expression, Lazy, Number, Sizes, View, leaves

PART = 24
"""Statements of one C++ function: compilers are slow with long ones."""


class Text:
    """The lines of one C++ function, and the buffers that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Buffer] = {}

    def pointer(self, view: View, index: str = "") -> str:
        """Where a view begins, and what is to be added for a place."""
        self.names[view.buffer.name] = view.buffer
        terms = [view.buffer.name, str(view.offset) if view.offset else "", _times("m", view.step), index]
        return " + ".join(term for term in terms if term)


def write(text: Text, statement: Statement) -> None:
    """One statement."""
    text.lines.append("{")
    if isinstance(statement, Loop):
        _loop(text, statement)
    elif isinstance(statement, Total):
        _total(text, statement)
    elif isinstance(statement, Product):
        _product(text, statement)
    elif isinstance(statement, Turn):
        _turn(text, statement)
    else:
        _running(text, statement)
    text.lines.append("}")


def _product(text: Text, s: Product) -> None:
    (count, rows, inner), columns = s.a.sizes, s.b.sizes[2]
    left, right = s.a.strides[1:], s.b.strides[1:] if s.tiled else s.b.strides[1:2]
    numbers = (rows, columns, inner, *left, *right, s.target.strides[1])
    steps = [x.strides[0] for x in (s.a, s.b, s.target)]
    a, b, c = (text.pointer(x, f"i * {step}" if count > 1 else "") for x, step in zip((s.a, s.b, s.target), steps))  # noqa: B905
    name = "product_of_halves" if s.tiled else "product"
    call = f"{name}<{', '.join(map(str, numbers))}>({a}, {b}, {c});"
    text.lines.append(f"for (long i = 0; i < {count}; i++) {call}" if count > 1 else call)


def _turn(text: Text, s: Turn) -> None:
    lead = [i for i, size in enumerate(s.source.sizes[:-2]) if size > 1]
    for i in lead:
        text.lines.append(f"for (long i{i} = 0; i{i} < {s.source.sizes[i]}; i{i}++) {{")
    a, c = (text.pointer(x, _index(x, lead)) for x in (s.source, s.target))
    rows, columns = s.source.sizes[-2:]
    text.lines.append(f"turn<{rows}, {columns}, {s.source.strides[-2]}, {s.source.strides[-1]}>({a}, {c});")
    text.lines += ["}"] * len(lead)


def _running(text: Text, s: Running) -> None:
    other = [i for i in range(len(s.source.sizes)) if i != s.dim and s.source.sizes[i] > 1]
    for i in other:
        text.lines.append(f"for (long i{i} = 0; i{i} < {s.source.sizes[i]}; i{i}++) {{")
    places = [_index(x, other) for x in (s.source, s.target)]
    source, target = (text.pointer(x, place) for x, place in zip((s.source, s.target), places, strict=True))
    size, steps = s.source.sizes[s.dim], (s.source.strides[s.dim], s.target.strides[s.dim])
    text.lines.append(f"{{ T sum = 0; for (long j = 0; j < {size}; j++) {{")
    text.lines.append(f"sum += ({source})[j * {steps[0]}]; ({target})[j * {steps[1]}] = sum; }} }}")
    text.lines += ["}"] * len(other)


def _index(view: View, dims: Sequence[int]) -> str:
    """What is to be added to a view's beginning for the places along some dimensions."""
    return " + ".join(f"i{i} * {view.strides[i]}" for i in dims if view.strides[i])


Loops = list[tuple[int, tuple[int, ...]]]
"""Nested loops, the outermost first: how often, and the dimensions that are walked as one."""


def loops_over(sizes: Sizes, views: Sequence[View], stores: Sequence[View]) -> Loops:
    """Loops over the places of some views: the innermost along what lies beside each other, merged where all agree."""
    dims = [i for i, size in enumerate(sizes) if size > 1]
    score = {i: sum(abs(x.strides[i]) == 1 for x in [*views, *stores, *stores]) for i in dims}
    inner = max(dims, key=lambda i: (score[i], i), default=None)
    walk = stores[0] if stores else None
    outer = sorted((i for i in dims if i != inner), key=lambda i: -abs(walk.strides[i]) if walk else i)
    every = [*views, *stores]
    found: Loops = []
    for i in [*outer, *([inner] if inner is not None else [])]:
        if found and all(x.strides[found[-1][1][-1]] == x.strides[i] * sizes[i] for x in every):
            size, together = found[-1]
            found[-1] = (size * sizes[i], (*together, i))
        else:
            found.append((sizes[i], (i,)))
    return found


class Nest:
    """Nested loops, the innermost one in vectors."""

    def __init__(self, text: Text, loops: Loops) -> None:
        self.text = text
        self.size = loops[-1][0] if loops else 1
        self.inner = loops[-1][1][-1] if loops else None
        self.outer = loops[:-1]
        self.known: dict[Lazy, str] = {}
        self.count = 0

    def step(self, view: View) -> int:
        """Stride of a view along the innermost loop."""
        return 0 if self.inner is None else view.strides[self.inner]

    def open(self) -> None:
        """The outer loops."""
        for size, dims in self.outer:
            name = f"i{dims[-1]}"
            self.text.lines.append(f"for (long {name} = 0; {name} < {size}; {name}++) {{")

    def close(self) -> None:
        """The ends of the outer loops."""
        self.text.lines += ["}"] * len(self.outer)

    def at(self, view: View, more: str = "") -> str:
        """The address of the current place."""
        index = _index(view, [dims[-1] for _, dims in self.outer])
        return self.text.pointer(view, " + ".join(part for part in (index, more) if part))

    def value(self, x: Lazy, tail: str) -> str:
        """The name of the vector that holds an expression's values; `tail` says how many, where not all."""
        if x in self.known:
            return self.known[x]
        if isinstance(x, Number):
            text = f"Vec(T({number(x.value)}))" if not x.boolean else f"every({str(bool(x.value)).lower()})"
        elif isinstance(x, View):
            text = self._load(x, tail)
        else:
            text = x.text.format(*(self.value(operand, tail) for operand in x.operands))
        name = f"v{self.count}"
        self.count += 1
        self.text.lines.append(f"const Vec {name} = {text};")
        self.known[x] = name
        return name

    def _load(self, x: View, tail: str) -> str:
        step = self.step(x)
        place = self.at(x, _times("j", step))
        rest = f", {tail}" if tail else ""
        return load(x, place, step, rest)

    def save(self, target: View, name: str, tail: str) -> None:
        """Put a vector into its place."""
        step = self.step(target)
        place = self.at(target, _times("j", step))
        rest = f", {tail}" if tail else ""
        if target.buffer.half:
            self.text.lines.append(f"narrow({name}, {place}, {step}{rest});")
        elif target.boolean:
            self.text.lines.append(f"bytes({name}, {place}, {step}{rest});")
        elif step == 1:
            self.text.lines.append(f"{name}.store({place}{rest});")
        else:
            self.text.lines.append(f"scatter({name}, {place}, {step}{rest});")


def load(x: View, place: str, step: int, rest: str) -> str:
    """A vector of values that lie `step` apart."""
    if x.boolean:
        return f"mask({place}, {step}{rest})"
    if x.buffer.half:
        return f"wide({place}, {step}{rest})"
    if step == 0:
        return f"Vec(*({place}))"
    return f"Vec::loadu({place}{rest})" if step == 1 else f"gather({place}, {step}{rest})"


def _times(name: str, step: int) -> str:
    return name if step == 1 else f"{name} * {step}" if step else ""


def number(value: float) -> str:
    """A number as C++ writes it."""
    if math.isinf(value):
        return "std::numeric_limits<T>::infinity()" if value > 0 else "-std::numeric_limits<T>::infinity()"
    return "std::numeric_limits<T>::quiet_NaN()" if math.isnan(value) else repr(float(value))


def _loop(text: Text, s: Loop) -> None:
    views = [leaf for _, value in s.stores for leaf in leaves(value)]
    nest = Nest(text, loops_over(s.sizes, views, [target for target, _ in s.stores]))
    nest.open()
    _vectors(text, nest.size, lambda tail: _stores(nest, s, tail))
    nest.close()


def _stores(nest: Nest, s: Loop, tail: str) -> None:
    nest.known = {}
    for target, value in s.stores:
        name = nest.value(value, tail)
        if not target.boolean and not target.buffer.half:
            nest.known[target] = name
        nest.save(target, name, tail)


def _vectors(text: Text, size: int, body: object) -> None:
    """A loop in vectors over `size` places, and what is left of it."""
    text.lines.append(f"vectors<{size}>([&](long j, auto full) {{")
    text.lines.append("if constexpr (decltype(full)::value) {")
    body("")  # type: ignore[operator]
    text.lines.append("} else {")
    body(f"{size} - j")  # type: ignore[operator]
    text.lines.append("} });")


def _total(text: Text, s: Total) -> None:
    sizes, views = s.value.sizes, list(leaves(s.value))
    kept = tuple(1 if i in s.dims else size for i, size in enumerate(sizes))
    wide = [i for i in range(len(sizes)) if i not in s.dims and sizes[i] > 1]
    score = {i: sum(abs(x.strides[i]) == 1 for x in views) for i in range(len(sizes)) if sizes[i] > 1}
    best = max(score, key=lambda i: (score[i], i), default=0)
    if best in s.dims:
        _across(text, s, kept, best)
        return
    order = sorted(wide, key=lambda i: (i == best, -abs(s.target.strides[i])))
    nest = Nest(text, [(sizes[i], (i,)) for i in order])
    nest.open()

    def body(tail: str) -> None:
        text.lines.append("Vec sum(T(0));")
        for i in s.dims:
            text.lines.append(f"for (long k{i} = 0; k{i} < {sizes[i]}; k{i}++) {{")
        nest.known = {}
        name = _inner_value(nest, s, s.dims, tail)
        text.lines.append(f"sum = sum + {name};" + "}" * len(s.dims))
        nest.save(s.target, "sum", tail)

    _vectors(text, nest.size, body)
    nest.close()


def _inner_value(nest: Nest, s: Total, dims: Sequence[int], tail: str) -> str:
    """The expression at a place of the summed dimensions: its views moved there."""

    def moved(x: Lazy) -> Lazy:
        if isinstance(x, View):
            index = " + ".join(f"k{i} * {x.strides[i]}" for i in dims if x.strides[i])
            if index:
                step = nest.step(x)
                place = nest.at(x, " + ".join(p for p in (index, _times("j", step)) if p))
                text = load(x, place, step, f", {tail}" if tail else "")
                name = f"v{nest.count}"
                nest.count += 1
                nest.text.lines.append(f"const Vec {name} = {text};")
                nest.known[x] = name
        elif isinstance(x, Expression):
            for operand in x.operands:
                moved(operand)
        return x

    moved(s.value)
    return nest.value(s.value, tail)


def _across(text: Text, s: Total, kept: Sizes, best: int) -> None:
    """A sum along the dimension in which the operands are vectors: what is left of a vector is added up at the end."""
    sizes = s.value.sizes
    loops = [i for i in range(len(sizes)) if i not in s.dims and sizes[i] > 1]
    inner = [i for i in s.dims if i != best and sizes[i] > 1]
    nest = Nest(text, [(sizes[i], (i,)) for i in [*loops, *inner, best]])
    for i in loops:
        text.lines.append(f"for (long i{i} = 0; i{i} < {sizes[i]}; i{i}++) {{")
    text.lines.append("Vec sum(T(0));")
    for i in inner:
        text.lines.append(f"for (long i{i} = 0; i{i} < {sizes[i]}; i{i}++) {{")

    def body(tail: str) -> None:
        nest.known = {}
        name = nest.value(s.value, tail)
        text.lines.append(f"sum = sum + {f'first({name}, {tail})' if tail else name};")

    _vectors(text, sizes[best], body)
    text.lines += ["}"] * len(inner)
    index = _index(s.target, loops)
    text.lines.append(f"*({text.pointer(s.target, index)}) = total(sum);")
    text.lines += ["}"] * len(loops)
