"""N03xx: levels: cycles, frequencies, gradients, transfers."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

_CYCLE = """nsam 1

use std.rules (gd)

system tangled(dim: int) {
  input x: [dim]
  memory a : linear(dim -> dim) {
    learn x -> b(x); minimize l2; by gd(lr = 0.1); every 1 token; reads running
  }
  memory b : linear(dim -> dim) {
    learn x -> a(x); minimize l2; by gd(lr = 0.1); every 4 tokens; reads %s
  }
  output a(b(x))
}
"""

_INIT = """nsam 1

use std.rules (gd)

system upward(dim: int) {
  input x: [dim]
  memory fast : linear(dim -> dim) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every %s tokens; reset %s; init %s
  }
  memory slow : linear(dim -> dim) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every %s tokens; reset %s; init %s
  }
  output slow(fast(x))
}
"""

_TRANSFER = """nsam 1

use std.rules (gd)

system told(dim: int) {
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 1 token }
  %s
  output o(m(k(x)))
}
"""

_CHILD = """nsam 1

use std.rules (gd)

system child(dim: int) {
  input x: [dim]
  memory slow : linear(dim -> dim)
  memory fast : linear(dim -> dim) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every 8 tokens; init slow
  }
  transfer slow -> fast : %s
  output fast(x)
}
"""

_DETACHED = """nsam 1

use std.rules (gd)

system detached(dim: int) {
  input x: [dim]
  memory q, k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 1 token }
  %soutput m(q(x))
}
"""

_SIGN = """nsam 1

rule sign_descent(lr) {
  self <- self - lr * %s
}

system flat(dim: int) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by sign_descent(lr = 0.1); every 1 token }
  output m(x)
}
"""

_FROZEN = """nsam 1

use std.rules (gd)

system frozen(dim: int) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every %s tokens }
  output m(x)
}
"""

_IDLE = """nsam 1

system idle(dim: int) {
  input x: [dim]
  memory m, spare : linear(dim -> dim)
  output %s
}
"""

_STEPS = """nsam 1

use std.rules (adamw)

system sample(dim: int = 8) {
  input tokens: token(256)
  memory embed : table(256, dim)
  memory slow : linear(dim -> dim) { minimize task; every %s steps }
  output embed.T(slow(embed(tokens)))
}

train run {
  model    sample()
  data     text(context = 16, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by       adamw(lr = 0.01)
  every    2 steps
  steps    10
}
"""

TABLE: tuple[Code, ...] = (
    Code(
        "N0301",
        "same-time-cycle",
        "error",
        "Memories are ordered by which needs which state at time t itself (definition 2). A memory that `reads "
        "running` shows its state after the current token; when the states of several such memories each need the next "
        "one's state after that same token, none of them can be computed first. One must show its last boundary.",
        _CYCLE % "running",
        _CYCLE % "boundary",
        "definition 2",
    ),
    Code(
        "N0302",
        "init-from-faster-level",
        "error",
        "Initialisation hands knowledge from a slow level to a faster one, at the faster one's reset. An initial state "
        "taken from a memory of higher frequency would make the slow level forget at the pace of the fast one.",
        _INIT % ("4", "per sequence", "learned", "16", "every 64 tokens", "fast"),
        _INIT % ("4", "every 64 tokens", "slow", "16", "per sequence", "learned"),
        "equations 28 and 72",
    ),
    Code(
        "N0303",
        "circular-initial-state",
        "error",
        "A memory's initial state may be another memory's state, and so on, but the chain has to end in a state that "
        "is learned, zero or generated.",
        _INIT % ("4", "every 64 tokens", "slow", "4", "every 64 tokens", "fast"),
        _INIT % ("4", "every 64 tokens", "slow", "4", "every 64 tokens", "learned"),
    ),
    Code(
        "N0304",
        "transfer-without-use",
        "error",
        "A declared transfer is a statement about a use that the program makes. It has to name two memories of which "
        "the first one's output or state is used by the second directly, with no other memory in between. A memory "
        "that learns in the sequence uses its own state: gradients are taken there, and `direct` holds it constant.",
        _TRANSFER % "transfer o -> m : direct",
        _TRANSFER % "transfer v -> m : backprop",
        "section 3.3",
    ),
    Code(
        "N0305",
        "transfer-contradicts-use",
        "error",
        "The use decides what kinds a transfer can be: an output that feeds a context, a gate or a read is `backprop` "
        "(or `direct`, which stops the gradient); `init` with another memory's state is `init`; `init` with a memory's "
        "output is `generate`.",
        _CHILD % "backprop",
        _CHILD % "init",
        "section 3.3",
    ),
    Code(
        "N0306",
        "no-gradient-past-direct",
        "warning",
        "A `direct` transfer stops the gradient. A parameter whose every way to the output passes such a transfer "
        "keeps its first random values for ever.",
        _DETACHED % "transfer k -> m : direct\n  ",
        _DETACHED % "",
        "equations 24-27",
    ),
    Code(
        "N0307",
        "zero-derivative",
        "warning",
        "Some rules and functions (`sign` among them) have a derivative that is zero wherever it exists. So has the "
        "inner gradient of some objectives: that of `lp(1)` is a sign, and `value` only enters that sign. The outer "
        "gradient ends there, and a parameter with no other way to the output never learns.",
        _SIGN % "sign(grad)",
        _SIGN % "grad",
    ),
    Code(
        "N0308",
        "frozen-context",
        "warning",
        "A memory whose period is `inf` has frequency 0: its state never moves, so what it is told to learn has no "
        "effect. The warning is for parameters that serve only its context or its gates: they get no gradient. Where "
        "everything that it learns from serves others too, or has no parameters, there is none.",
        _FROZEN % "inf",
        _FROZEN % "16",
    ),
    Code(
        "N0309",
        "level-graph-too-large",
        "error",
        "A level graph may have at most 100,000 transfers and same-time needs together. Layers that are alike belong "
        "in a `repeat`, which counts once.",
    ),
    Code(
        "N0310",
        "memory-without-effect",
        "warning",
        "A memory counts when the output is made of what it shows, or when it shapes one that counts: its context, "
        "its gates, its initial state. One that does neither costs time and learns nothing.",
        _IDLE % "m(x)",
        _IDLE % "m(x) + spare(x)",
    ),
    Code(
        "N0311",
        "steps-between-moves",
        "error",
        "A memory that moves every n steps moves together with the level that trains it: n is a multiple of that "
        "level's own period. Both count the steps of the training loop.",
        _STEPS % 5,
        _STEPS % 4,
        "71",
    ),
    Code(
        "N0391",
        "unknown-picture-format",
        "error",
        "The ending of the file name chooses the format of a picture: .svg, .png, .pdf, .dot, .html, .mmd or .json.",
    ),
    Code(
        "N0392",
        "graphviz-missing",
        "error",
        "Images (.svg, .png, .pdf) are drawn by Graphviz's program `dot` with its layout `neato`, which are installed "
        "apart from Python packages, and some systems have the layout in a package of its own. The formats .html, "
        ".mmd, .dot and .json do not need it.",
    ),
    Code(
        "N0393",
        "graphviz-failed",
        "error",
        "Graphviz's program `dot` refused the picture. This is a defect of nsam, not of the program: please report it.",
    ),
    Code(
        "N0394",
        "picture-not-written",
        "error",
        "The picture was made, but the file could not be written.",
    ),
)
