"""Checked program in, level graph, schedule and plan out. Knows neither lark nor torch."""
