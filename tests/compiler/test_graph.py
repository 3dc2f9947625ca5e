"""The level graph of programs: nodes, frequencies, levels, transfers."""

from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from nsam.compiler.graph import build_graph
from nsam.compiler.rates import ALWAYS, NEVER, Rate
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = "nsam 1\nuse std.rules (gd, momentum, m3, adamw)\n"
FAST = "learn x -> x; minimize l2; by gd(lr = 0.1)"


def graph_of(body: str, name: str = "s", train: str | None = None, **parameters: Any) -> nx.MultiDiGraph:
    program = Program.loads(HEAD + body)
    if train is not None:
        declared = program.train(train)
        return build_graph(declared.model, declared)
    return build_graph(program.instantiate(name, parameters))


def example(file: str, name: str, **parameters: Any) -> nx.MultiDiGraph:
    text = (EXAMPLES / file).read_text(encoding="utf-8")
    return build_graph(Program.loads(text).instantiate(name, parameters))


@pytest.fixture(scope="module")
def hope() -> nx.MultiDiGraph:
    train = Program.loads((EXAMPLES / "hope/hope.nsam").read_text(encoding="utf-8")).train("hope_bytes")
    return build_graph(train.model, train)


def level(graph: nx.MultiDiGraph, path: str) -> int:
    return int(graph.nodes[path]["level"])


def kinds(graph: nx.MultiDiGraph, source: str, target: str) -> set[str]:
    return set(graph.get_edge_data(source, target, default={}))


# --- Hope ----------------------------------------------------------------------------------------


def test_hope_orders_its_memories_and_its_optimizer(hope: nx.MultiDiGraph) -> None:
    inner = "repeat.*.titans."
    assert level(hope, inner + "mem") == 1
    assert {level(hope, inner + name) for name in ("k", "v", "eta", "alpha")} == {2}
    fast_momenta = level(hope, "train hope_bytes.matrices.fast")
    weights = level(hope, inner + "q")
    assert 2 < fast_momenta < weights, "the weight's update needs the momentum's state of the same step"
    assert weights == level(hope, "train hope_bytes") == level(hope, "embed") == level(hope, "repeat.*.cms.level.0")
    assert weights < level(hope, "repeat.*.cms.level.1") < level(hope, "repeat.*.cms.level.2")
    assert level(hope, "train hope_bytes.matrices.slow") > level(hope, "repeat.*.cms.level.1")
    levels = {data["level"] for _, data in hope.nodes(data=True)}
    assert levels == set(range(1, len(levels) + 1))


def test_hope_frequencies_are_exact(hope: nx.MultiDiGraph) -> None:
    frequency = {path: data["frequency"] for path, data in hope.nodes(data=True)}
    assert frequency["repeat.*.titans.mem"] == Rate("token", 16)
    assert frequency["repeat.*.titans.k"] == Rate("token", 64)
    assert frequency["repeat.*.cms.level.2"] == Rate("step", 16)
    assert frequency["train hope_bytes.matrices.slow"] == Rate("step", 8)
    assert frequency["train hope_bytes.matrices.every_16.slow"] == Rate("step", 128), "updates multiply the period"


def test_repeats_stand_once_with_their_count(hope: nx.MultiDiGraph) -> None:
    assert hope.nodes["repeat.*.titans.mem"]["count"] == 2
    assert hope.nodes["embed"]["count"] == 1


def test_parameters_are_counted(hope: nx.MultiDiGraph) -> None:
    total = sum(data["parameters"] * data["count"] for _, data in hope.nodes(data=True))
    layer = 2 * 128 + 2 * 128 * 128 + 3 * 4 * 128 + 2 * 4 * 128 + 5 * 8 * 128 * 128 // 4 + 3 * 8 * 128 * 128
    assert total == 256 * 128 + 128 + 2 * layer


def test_hope_transfers(hope: nx.MultiDiGraph) -> None:
    inner = "repeat.*.titans."
    for name in ("k", "v", "eta", "alpha", "mem"):
        assert kinds(hope, "train hope_bytes", inner + name) == {"init"}
    assert hope.edges[inner + "k", inner + "mem", "backprop"]["uses"] == ("key",)
    assert set(hope.edges[inner + "rate_of", inner + "mem", "backprop"]["uses"]) == {"lr"}
    assert set(hope.edges[inner + "v", inner + "mem", "backprop"]["uses"]) == {"value"}
    assert kinds(hope, inner + "q", "train hope_bytes.matrices.fast") == {"generate"}
    assert kinds(hope, "train hope_bytes.matrices.fast", inner + "q") == {"direct"}
    assert kinds(hope, "embed", "train hope_bytes.matrices.fast") == set(), "a table is not a matrix"


def test_what_comes_from_the_pass_before_is_carried(hope: nx.MultiDiGraph) -> None:
    assert hope.edges["repeat.*.cms.level.2", "repeat.*.n1", "backprop"]["carried"]
    assert not hope.edges["embed", "repeat.*.n1", "backprop"]["carried"]


def test_everything_in_hope_reaches_the_output(hope: nx.MultiDiGraph) -> None:
    assert all(reaches for _, reaches in hope.nodes(data="reaches_output"))


def test_a_memory_that_is_never_read_does_not_reach_the_output() -> None:
    graph = graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim)
  memory idle : linear(dim -> dim) {{ {FAST}; every 1 token }}
  output a(x)
}}""",
        dim=4,
    )
    assert graph.nodes["a"]["reaches_output"]
    assert not graph.nodes["idle"]["reaches_output"]
    assert graph.graph["outputs"] == ["a"]


# --- the zoo -------------------------------------------------------------------------------------


def test_attention_is_the_fastest_level() -> None:
    graph = example("zoo/zoo.nsam", "transformer_block", dim=8)
    assert graph.nodes["attn"]["frequency"] == ALWAYS
    assert {data["level"] for _, data in graph.nodes(data=True)} == {1, 2}
    assert level(graph, "attn") == 1
    assert graph.edges["attn", "o", "backprop"]["shows"] == "same-time"


def test_nested_cms_starts_from_the_slow_level() -> None:
    graph = example("zoo/zoo.nsam", "nested_cms", dim=8)
    assert kinds(graph, "slow", "fast") == {"init", "backprop"}
    assert level(graph, "fast") < level(graph, "slow") < level(graph, "k")
    assert kinds(graph, "training", "slow") == {"init"}
    assert kinds(graph, "training", "fast") == set(), "a state that starts as another's owns no parameter"
    assert graph.nodes["fast"]["parameters"] == 0


def test_generated_weights_move_once_a_sequence() -> None:
    graph = example("zoo/zoo.nsam", "hyper", dim=8)
    assert graph.nodes["fast"]["role"] == "generated"
    assert graph.nodes["fast"]["frequency"] == Rate("sequence")
    assert kinds(graph, "writer", "fast") == {"generate"}
    assert graph.edges["writer", "fast", "generate"]["declared"]
    assert level(graph, "fast") < level(graph, "writer")


def test_a_declared_direct_transfer_is_obeyed() -> None:
    graph = example("zoo/zoo.nsam", "detached", dim=8)
    assert kinds(graph, "k", "m") == kinds(graph, "v", "m") == {"direct"}
    assert kinds(graph, "q", "m") == {"backprop"}


def test_a_momentum_inside_a_sequence_is_a_memory_of_its_own() -> None:
    graph = example("zoo/zoo.nsam", "titans_memory", dim=8)
    assert graph.nodes["m.trace"]["hosts"] == ("m",)
    assert graph.nodes["m.trace"]["frequency"] == Rate("token"), "it moves at every token of the host's period"
    assert level(graph, "m.trace") < level(graph, "m"), "the host's update needs the momentum's state of the same token"
    assert kinds(graph, "m", "m.trace") == {"generate"}
    assert kinds(graph, "m.trace", "m") == {"backprop"}


def test_step_periods_below_the_training_level() -> None:
    graph = example("zoo/zoo.nsam", "independent_cms", dim=8)
    assert level(graph, "level.0") == level(graph, "weight") == level(graph, "training")
    assert level(graph, "training") < level(graph, "level.1") < level(graph, "level.2")


# --- levels by same-time needs -------------------------------------------------------------------


def two_memories(reads: str, period: int = 1) -> nx.MultiDiGraph:
    return graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim) {{ {FAST}; every {period} tokens; reads {reads} }}
  memory b : linear(dim -> dim) {{ learn a(x) -> x; minimize l2; by gd(lr = 0.1); every {period} tokens }}
  output b(x)
}}""",
        dim=4,
    )


def test_running_reads_order_equal_frequencies() -> None:
    running, boundary = two_memories("running"), two_memories("boundary")
    assert (level(running, "a"), level(running, "b")) == (1, 2)
    assert (level(boundary, "a"), level(boundary, "b")) == (1, 1)
    assert running.edges["a", "b", "backprop"]["shows"] == "same-time"
    assert boundary.edges["a", "b", "backprop"]["shows"] == "last boundary"


def test_a_need_passes_through_other_reads() -> None:
    graph = graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim) {{ {FAST}; every 1 token; reads running }}
  memory w : linear(dim -> dim)
  memory b : linear(dim -> dim) {{ learn w(a(x)) -> x; minimize l2; by gd(lr = 0.1); every 1 token }}
  output b(x)
}}""",
        dim=4,
    )
    assert (level(graph, "a"), level(graph, "b"), level(graph, "w")) == (1, 2, 3)
    assert kinds(graph, "a", "b") == set(), "the transfer goes through w"
    assert kinds(graph, "a", "w") == kinds(graph, "w", "b") == {"backprop"}


def test_where_a_memory_is_read_is_no_need_of_its_state() -> None:
    graph = graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim) {{ {FAST}; every 1 token; reads running }}
  memory b : linear(dim -> dim) {{ {FAST}; every 1 token }}
  output b(a(x))
}}""",
        dim=4,
    )
    assert level(graph, "a") == level(graph, "b") == 1


def test_period_inf_is_the_lowest_level() -> None:
    graph = graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim) {{ {FAST}; every inf tokens }}
  memory w : linear(dim -> dim)
  output w(a(x))
}}""",
        dim=4,
    )
    assert graph.nodes["a"]["frequency"] == NEVER
    assert level(graph, "a") == 2
    assert level(graph, "w") == 1


def test_a_cycle_has_no_levels() -> None:
    with pytest.raises(ProgramError, match="N0301"):
        graph_of(
            f"""system s(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim) {{ learn x -> b(x); minimize l2; by gd(lr = 0.1); every 1 token; reads running }}
  memory b : linear(dim -> dim) {{ learn x -> a(x); minimize l2; by gd(lr = 0.1); every 4 tokens; reads running }}
  output a(b(x))
}}
# {FAST}""",
            dim=4,
        )


def test_a_repeat_is_no_cycle() -> None:
    graph = graph_of(
        f"""system s(dim: int) {{
  input x: [dim]
  let h = x
  repeat 3 {{
    memory m : linear(dim -> dim) {{ learn h -> h; minimize l2; by gd(lr = 0.1); every 1 token; reads running }}
    h = h + m(h)
  }}
  output h
}}
# {FAST}""",
        dim=4,
    )
    assert graph.nodes["repeat.*.m"]["count"] == 3
    assert graph.edges["repeat.*.m", "repeat.*.m", "backprop"]["carried"]
