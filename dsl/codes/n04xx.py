"""N04xx: what the backends cannot compile, requests with wrong parameters."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = (
    Code(
        "N0401",
        "no-compiled-form",
        "error",
        "The program means something, and the compiler does not know how to compute it in parallel over a chunk. It "
        "says so instead of computing something else; the reference backend may still run it. The message names the "
        "construct.",
    ),
    Code(
        "N0402",
        "no-such-thing",
        "error",
        "A request from Python named a backend, a library of rules or a precision that does not exist. The backends "
        "are `torch` and `reference`; a library is `std.rules`, `std.optimizers` or a loaded program.",
    ),
    Code(
        "N0403",
        "no-such-pass",
        "error",
        "A request asked to leave out a pass of the compiler that does not exist. The message lists the passes; `all` "
        "stands for every one of them. Passes change what the generated code costs, never its values.",
    ),
    Code(
        "N0404",
        "no-process-group",
        "error",
        "An optimizer whose states are spread over processes is made after `torch.distributed.init_process_group`.",
    ),
    Code(
        "N0405",
        "no-tokens",
        "error",
        "A system that is run by itself goes through a sequence of tokens, so one of its inputs must have a value for "
        "each token. One whose inputs are all `per sequence`, or which has none, can be called by another system.",
    ),
    Code(
        "N0490",
        "not-in-reference",
        "error",
        "The reference backend interprets programs one token at a time, in torch and in NumPy. It says what it does "
        "not know, instead of computing something else. No program text triggers this alone: the compiled backend may "
        "know what this does not.",
    ),
    Code(
        "N0480",
        "rule-cannot-serve",
        "error",
        "The arguments of a rule used as an optimizer are numbers, and every parameter of the model needs a rule. "
        "Memories declared in a rule are `like(self)`, linear or mlp, and their objectives have derivatives. A rule "
        "moves whole tensors, not DTensors, and a memory's own rule is known where `nsam.compile` made the module, not "
        "where its written source did. Raised when a rule is lowered or an optimizer is built.",
        equation="33-37",
    ),
)
