"""All ticks of a machine inside compiled code: one tick is compiled, and the program loops over it, until all have ended."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from functional_optim.solvers.machine import GOING

# Sums over fewer variables than this are written out. Inductor's own loops over so few take three times as long.
SETTINGS = {"unroll_reductions_threshold": 40}


def compiled_run(machine: Any, state: Any) -> Any:
    """The state when the budget is spent, or soon after the last problem has ended."""
    # Where no compiler is used, none is imported.
    from functional_optim.meta.compiled import structure_key
    from functional_optim.meta.compiled_loop import run_loop
    from functional_optim.meta.packing import pack
    from functional_optim.meta.remat import require_constant_closure

    count = machine.budget.evals - 1
    if torch.compiler.is_compiling():
        for _ in range(count):
            state = machine.tick(state)
        return state
    problem = machine.problem
    require_constant_closure(problem.fn, batched=False)
    others = tuple(None if i in problem.trained else x for i, x in enumerate(problem.leaves))
    given = others, problem.args, problem.bounds
    carry, rebuild_carry = pack(state)
    constants, rebuild_constants = pack(given)
    structure: list[Any] = []

    def step(carry: Sequence[Tensor], constants: Sequence[Tensor], entry: Any) -> tuple[list[Tensor], list[Tensor]]:
        others, args, bounds = rebuild_constants(constants)
        leaves = tuple(x if i in problem.trained else others[i] for i, x in enumerate(problem.leaves))
        own = machine._replace(problem=replace(problem, args=args, leaves=leaves, bounds=bounds))
        structure.append(None)
        return pack(own.tick(rebuild_carry(carry)))[0], []

    key = structure_key((state, given)), tuple(machine[1:])

    def ended(carry: Sequence[Tensor]) -> bool:
        return not bool((rebuild_carry(carry).status == GOING).any())

    options: Any = {"cache": {}, "key": key, "structure": structure, "name": "a tick", "settings": SETTINGS, "ended": ended}
    return rebuild_carry(run_loop(step, carry, constants, (), steps=count, **options)[0])
