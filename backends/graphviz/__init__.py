"""Pictures of level graphs: DOT, Mermaid, JSON, a self-contained page, and images through Graphviz."""

from nsam.backends.graphviz.render import FORMATS, render, text

__all__ = ["FORMATS", "render", "text"]
