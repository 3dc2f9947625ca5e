"""Is the compiled system what the program says? Values and gradients against the reference, and the six invariants."""

from nsam.verification.report import Report, Row
from nsam.verification.verify import verify_module, verify_unit

__all__ = ["Report", "Row", "verify_module", "verify_unit"]
