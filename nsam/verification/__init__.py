"""Is the compiled system what the program says? Against the reference, by the six invariants, in every precision."""

from nsam.verification.report import Report, Row
from nsam.verification.verify import verify_module, verify_unit

__all__ = ["Report", "Row", "verify_module", "verify_unit"]
