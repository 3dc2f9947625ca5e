"""N04xx: what the backends cannot compile, requests with wrong parameters."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = ()
