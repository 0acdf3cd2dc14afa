"""All ticks of a machine inside compiled code: one tick is compiled, and the program loops over it.

A program calls a tick as often as it is written down. So that it stays small whatever the budget, that is done in loops of loops:
of a thousand ticks ten, ten times, ten times over. What is beyond the budget changes nothing, and is little.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

# How often a loop calls what is in it.
LARGEST = 10

# Sums over fewer variables than this are written out. Inductor's own loops over so few take three times as long.
SETTINGS = {"unroll_reductions_threshold": 40}


def compiled_run(machine: Any, state: Any) -> Any:
    """The state when the budget is spent; what has ended before, stays as it is."""
    # Where no compiler is used, none is imported.
    from functional_optim.meta.compiled import run_loop, structure_key
    from functional_optim.meta.packing import pack
    from functional_optim.meta.remat import require_constant_closure

    count = machine.budget.evals - 1
    if count == 0:
        return state
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

    def repeated(depth: int, carry: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
        """The state after the ticks of so many loops, one in another."""

        def many(carry: Sequence[Tensor], constants: Sequence[Tensor], entry: Any) -> tuple[list[Tensor], list[Tensor]]:
            structure.append(None)
            return repeated(depth - 1, carry, constants), []

        one = step if depth == 1 else many
        name = "a tick" if depth == 1 else f"{math.prod(times[: depth - 1])} ticks"
        options: Any = {"cache": caches[depth], "key": key, "structure": structure, "name": name, "settings": SETTINGS}
        return run_loop(one, carry, constants, (), steps=times[depth - 1], **options)[0]

    times = loops_of(count)
    caches: list[dict[Any, Any]] = [{} for _ in range(len(times) + 1)]
    return rebuild_carry(repeated(len(times), carry, constants))


def loops_of(count: int) -> tuple[int, ...]:
    """How often each of a few loops, one in another, calls what is in it, so that there are so many ticks, or a few more.

    >>> loops_of(111)
    (4, 4, 7)
    """
    depth = next(depth for depth in itertools.count(1) if LARGEST**depth >= count)
    enough = (x for x in itertools.combinations_with_replacement(range(1, LARGEST + 1), depth) if math.prod(x) >= count)
    return min(enough, key=lambda times: (math.prod(times), sum(times)))
