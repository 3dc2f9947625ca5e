"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from nsam.dsl.diagnostics import fail

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,3})\s*\Z")


def parse_size(text: str | int) -> int:
    """Return the bytes that `text` names: `8GB`, `500 MB`, `2.5GiB`, or a whole number of bytes. N0521 otherwise."""
    if isinstance(text, str):
        found = _SIZE.match(text)
        unit = None if found is None else _UNITS.get(found[2].upper())
        size = 0 if found is None or unit is None else int(float(found[1]) * unit)
    else:
        size = 0 if isinstance(text, bool) else text
    if size <= 0:
        raise fail(
            "N0521",
            f"`{text}` is no amount of memory",
            help="a number and a unit: 8GB, 500MB (powers of ten), 2GiB, 512MiB (powers of two)",
        )
    return size
