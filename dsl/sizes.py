"""Sizes: integers, or polynomials in parameters that have no value yet."""

from __future__ import annotations

from typing import TypeAlias

Size: TypeAlias = int
