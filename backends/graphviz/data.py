"""The level graph as JSON, for tools: a stable schema (version 1) with every node and edge, nothing grouped."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx

VERSION = 1
_NODE = (
    "path", "label", "system", "unit", "role", "level", "structure_text", "context", "objective", "rule", "initial",
    "reads", "reset", "summed", "count", "parameters", "size", "reaches_output",
)  # fmt: skip


def json_text(graph: nx.MultiDiGraph) -> str:
    """Return the graph as JSON; keys in a fixed order, one line for each level, node and edge."""
    parts = []
    for key, value in json_data(graph).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f' "{key}": [\n{lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def json_data(graph: nx.MultiDiGraph) -> dict[str, Any]:
    """Return the graph as plain data: version, name, training, outputs, levels, nodes, edges."""
    return {
        "version": VERSION,
        "name": graph.graph["name"],
        "training": graph.graph["training"],
        "outputs": list(graph.graph["outputs"]),
        "levels": [{"level": level, "frequency": text} for level, text in graph.graph["levels"].items()],
        "nodes": [_node(node) for _, node in graph.nodes(data=True)],
        "edges": [_edge(source, target, data) for source, target, data in graph.edges(data=True)],
    }


def _node(node: dict[str, Any]) -> dict[str, Any]:
    found = {name.removesuffix("_text"): node[name] for name in _NODE}
    rate = node["frequency"]
    frequency = {"text": node["frequency_text"], "clock": rate.clock, "period": rate.period}
    frequency |= {} if rate.slowest is None else {"slowest": rate.slowest}
    return {**found, "frequency": frequency, "hosts": list(node["hosts"]), "span": _span(node["span"])}


def _edge(source: str, target: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "kind": data["kind"],
        "declared": data["declared"],
        "uses": list(data["uses"]),
        "shows": data["shows"],
        "carried": data["carried"],
        "span": _span(data["span"]),
    }


def _span(span: Any) -> dict[str, Any]:
    return {"line": span.line, "column": span.column, "start": span.start, "end": span.end}
