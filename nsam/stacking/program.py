"""The program of a stacked model: the Transformer in the language, its MLPs levels of a continuum memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nsam.stacking.shape import Shape

Clock = Literal["tokens", "steps"]
Levels = Literal["by_depth", "in_layer"]


@dataclass(frozen=True, slots=True)
class Group:
    """`count` consecutive layers, from layer `first` on, whose levels have the same period."""

    first: int
    count: int
    period: int


def groups(shape: Shape, periods: Sequence[int], levels: Levels) -> list[Group]:
    """Share out the layers, early ones the fastest, as in a chain of levels (eq. 70); one group where all are alike."""
    if levels == "in_layer":
        return [Group(0, shape.layers, periods[0])]
    edges = [round(i * shape.layers / len(periods)) for i in range(len(periods) + 1)]
    return [Group(a, b - a, p) for a, b, p in zip(edges, edges[1:], periods, strict=False)]


def program_text(shape: Shape, periods: Sequence[int], clock: Clock, levels: Levels, rate: float) -> str:
    """Write the program; its systems are `block` and `stacked`."""
    from nsam.dsl.format import format_source

    about = f"A {shape.family} model whose MLPs are levels of a continuum memory: level stacking, section 7.3."
    lines = ["nsam 1", "", f'"""{about}"""']
    lines += ["", "use std.rules (gd)"] if clock == "tokens" else []
    lines += ["", *_block(shape, clock, levels, periods), "", *_model(shape, clock, levels, periods, rate), ""]
    return format_source("\n".join(lines))


def _block(shape: Shape, clock: Clock, levels: Levels, periods: Sequence[int]) -> list[str]:
    sizes = "dim: int, hidden: int, heads: int, kv_heads: int, head: int"
    period = "period: int" if levels == "by_depth" else f"periods: list[int] = [{', '.join(map(str, periods))}]"
    rate = ", rate: float" if clock == "tokens" else ""
    if levels == "in_layer":
        head = f"system block({sizes}{rate}, {period}) {{"
    else:
        head = f"system block({sizes}, {period}{rate}) {{"
    bias = ", bias" if shape.bias else ""
    turned = shape.positions is None
    key = f"rope(k(a), kv_heads, base = {shape.base})" if turned else "k(a)"
    query = f"rope(q(a), heads, base = {shape.base})" if turned else "q(a)"
    return [
        head,
        "  input x: [dim]",
        f"  memory n1, n2 : {shape.norm}(dim, eps = {shape.eps:g})",
        f"  memory q : linear(dim -> heads*head{bias})",
        f"  memory k, v : linear(dim -> kv_heads*head{bias})",
        f"  memory o : linear(heads*head -> dim{bias})",
        "  let a = n1(x)",
        f"  memory kept : attention(heads = heads, kv_heads = kv_heads) {{ learn {key} -> v(a) }}",
        f"  let h = x + o(kept({query}))",
        "  let z = n2(h)",
        *_levels(shape, clock, levels),
        "}",
    ]


def _levels(shape: Shape, clock: Clock, levels: Levels) -> list[str]:
    flags = "".join(f", {flag}" for flag, there in (("gated", shape.gated), ("bias", shape.mlp_bias)) if there)
    name, period = ("level", "period") if levels == "by_depth" else ("level[p in periods]", "p")
    structure = f"mlp(dim -> hidden -> dim, act = {shape.act}{flags})"
    mlp = f"  memory {name} : {structure} {{"
    if clock == "steps":
        lines = [f"{mlp} minimize task; every {period} steps }}"]
    else:
        lines = [
            "",
            "  # Levels start from the pretrained network and learn to say what it says plus a correction, which",
            "  # training learns. It starts from zeros: so the stacked model starts as the pretrained one at any rate.",
            f"  memory pretrained : {structure}",
            "  memory correction : linear(dim -> dim)",
            "  let target = pretrained(z) + correction(z)",
            mlp,
            "    learn z -> target",
            "    minimize l2",
            f"    by gd(lr = rate / (dim * {period}))",
            f"    every {period} tokens summed",
            "    init pretrained",
            "  }",
        ]
    if levels == "by_depth":
        return [*lines, "  output h + level(z)"]
    return [*lines, "  memory share : vector(len(periods))", "  output h + mix(softmax(share), level, z)"]


def _model(shape: Shape, clock: Clock, levels: Levels, periods: Sequence[int], rate: float) -> list[str]:
    sizes = {
        "vocab": shape.vocab, "dim": shape.dim, "hidden": shape.hidden, "heads": shape.heads,
        "kv_heads": shape.kv_heads, "head": shape.head,
    }  # fmt: skip
    parameters = [f"{name}: int = {value}" for name, value in sizes.items()]
    parameters += [f"rate: float = {rate!r}"] if clock == "tokens" else []
    lines = ["system stacked(", *(f"  {parameter}," for parameter in parameters[:-1]), f"  {parameters[-1]}", ") {"]
    lines += ["  input tokens: token(vocab)", "  memory embed : table(vocab, dim)"]
    if shape.positions is None:
        lines.append("  let x = embed(tokens)")
    else:
        lines.append(f"  memory places : table({shape.positions}, dim)")
        lines.append(f"  let x = embed(tokens) + places(position(tokens, {shape.positions}))")
    inner = "dim, hidden, heads, kv_heads, head"
    for group in groups(shape, periods, levels):
        period = f", {group.period}" if levels == "by_depth" else ""
        arguments = f"x, {inner}{period}{', rate' if clock == 'tokens' else ''}"
        lines.append(f"  repeat {group.count} {{ x = block({arguments}) }}")
    lines.append(f"  memory nf : {shape.norm}(dim, eps = {shape.eps:g})")
    if shape.tied:
        return [*lines, "  output embed.T(nf(x))", "}"]
    return [*lines, "  memory logits : linear(dim -> vocab)", "  output logits(nf(x))", "}"]
