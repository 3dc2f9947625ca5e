"""The reference: programs interpreted one token at a time in float64, in NumPy for values and in torch for gradients.

It goes straight from the declarations, without the compiler's schedule, derivation or kernels, so that the two can be
compared.
"""

from nsam.backends.reference.module import ReferenceModule, values
from nsam.backends.reference.optimizer import ReferenceOptimizer
from nsam.backends.reference.run import ReferenceState, new_sequence

__all__ = ["ReferenceModule", "ReferenceOptimizer", "ReferenceState", "new_sequence", "values"]
