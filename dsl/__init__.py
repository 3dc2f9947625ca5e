"""The language: text in, checked program out. Knows neither networkx nor torch."""
