"""N03xx: levels: cycles, frequencies, gradients, transfers."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = ()
