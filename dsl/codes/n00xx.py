"""N00xx: files, imports, editions and resource limits."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = ()
