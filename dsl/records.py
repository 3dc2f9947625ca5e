"""Dataclasses that are cheap to define and to make.

A frozen dataclass costs a call for each field of each instance, and two functions more when it is defined: an eighth of
checking a file. Here a type checker sees Python's own `dataclass`, so it refuses every assignment to what is frozen;
the running program only leaves the promise unchecked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(
        *, frozen: bool = False, eq: bool = True, slots: bool = False
    ) -> Callable[[type[object]], type[object]]:
        """Python's `dataclass`, where `frozen` is what the type checker holds, and makes instances hashable."""
        return dataclasses.dataclass(eq=eq, slots=slots, unsafe_hash=frozen and eq)
