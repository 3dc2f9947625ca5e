"""Level stacking (section 7.3): the MLPs of a pretrained Transformer as initial states of a continuum memory."""

from nsam.stacking.stack import Stacked, stack

__all__ = ["Stacked", "stack"]
