"""Diagnostic codes, one file a hundred."""

from nsam.dsl.codes import n00xx, n01xx, n02xx, n03xx, n04xx, n05xx
from nsam.dsl.codes.entry import Code

CODES: dict[str, Code] = {
    entry.code: entry for module in (n00xx, n01xx, n02xx, n03xx, n04xx, n05xx) for entry in module.TABLE
}

__all__ = ["CODES", "Code"]
