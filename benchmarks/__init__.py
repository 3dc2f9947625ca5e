"""Benchmarks B1 to B7: nsam against hand-written baselines, correctness first.

    python -m benchmarks [B1 …] [--quick] [--device cpu|cuda] [--threads 2] [--dtype float32|bfloat16] [--out DIR]
    python -m benchmarks profile

A benchmark is a module here with `TITLE`, `cases(settings)` or `readings(settings)`, and `checks()`.
"""
