"""N05xx: data, training, checkpoints and runs."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = ()
