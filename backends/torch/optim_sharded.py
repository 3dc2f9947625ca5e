"""One optimizer for several processes: each keeps the states of a part of the parameters, and moves that part."""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from nsam.backends.torch.optim_keys import require_one_process
from nsam.backends.torch.optim_rules import RuleOptimizer
from nsam.dsl.diagnostics import fail


def sharded(optimizer: RuleOptimizer) -> ZeroRedundancyOptimizer:
    """Return an optimizer that takes the same steps, its states spread over the processes of the default group.

    Each process owns about as many numbers as any other, whole parameters at a time; same-shape matrices of one
    process are still moved as a batch. All processes must hold equal parameters and, at each step, equal gradients, as
    DistributedDataParallel leaves them. `consolidate_state_dict` before `state_dict` collects the states on one
    process; an optimizer that is not sharded can go on from what it saves. Raises `ProgramError` N0404 without a
    process group, N0226 for a rule that uses `key`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise fail(
            "N0404",
            "a sharded optimizer needs a process group, and there is none",
            help="call torch.distributed.init_process_group first, in a program started by torchrun; or leave out "
            "`sharded`",
        )
    require_one_process(optimizer.rules)
    rules, compiled, products = optimizer.rules, optimizer.compiled, optimizer.products
    make = partial(RuleOptimizer, rules=rules, compiled=compiled, products=products)
    return ZeroRedundancyOptimizer([dict(group) for group in optimizer.param_groups], make)  # type: ignore[arg-type]
