"""What `test_worlds.py` runs: `python worlds.py FOLDER CASES`, a JSON list.

Checkpoints that two processes write are read by one, by three and by four. One interpreter loads everything and is forked into
four processes; the first few of them make each world.
"""

import copy
import datetime
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from trajectories import drifting_gradient
from two_processes import COMPUTED, OPTIMIZERS, REORDERED, counted, model, whole

import functional_optim as fo
from functional_optim import trees
from functional_optim.adapters import OptimizerAdapter, load_by_name

WORLDS = (2, 1, 3, 4)  # The first one writes.


def wrapped() -> fo.Transform:
    """Wrappers with clocks, a schedule, branches, a master copy."""
    inner = fo.partition(
        {"rows": fo.with_master_copy(fo.lion()), "rest": fo.schedule_free_adamw()}, fo.by_ndim({2: "rows", 1: "rest"})
    )
    return fo.scheduled(fo.accumulate(fo.apply_if_finite(inner), every=2), **{"rows.lr": fo.warmup_cosine(0.1, 2, 9)})


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    **{name: OPTIMIZERS[name] for name in ("adamw", "composed", "per_tensor", "NAdam")},
    "muon": lambda params: OptimizerAdapter(params, fo.muon()),
    "wrapped": lambda params: OptimizerAdapter(params, wrapped()),
    "fused": lambda params: OptimizerAdapter(params, composed_of_elements(), fused=True),
    "quantized": lambda params: OptimizerAdapter(params, in_codes()),
    "kahan": lambda params: OptimizerAdapter(params, fo.adamw(), rounding="kahan"),
}

SHARED_OUT = "owners"

# Of these no number is a sum over processes, so that not a bit may differ after another step.
EXACT = ("adamw", "NAdam", "wrapped", "fused", "quantized", "kahan")


def in_codes() -> fo.Transform:
    """Codes of 8 and of 4 bits, of the one tensor here whose rows are blocks; the others are too small for codes."""
    eight, four = (
        fo.quantized(fo.scale_by_adam(), 8, block=16, min_size=20),
        fo.quantized(fo.trace(0.5), 4, block=16, min_size=20),
    )
    return fo.chain(eight, four, fo.sgd(0.01))


def model_for(name: str) -> nn.Module:
    """The model of a case: for codes one with rows of 16."""
    if name != "quantized":
        return model()
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def composed_of_elements() -> fo.Transform:
    """A chain, all of whose rules are elementwise, with a schedule."""
    return fo.scheduled(fo.chain(fo.scale_by_adam(amsgrad=True), fo.trace(0.5), fo.sgd()), lr=fo.warmup_cosine(0.1, 2, 9))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    """A step on gradients that do not depend on the world."""
    for i, p in enumerate(module.parameters()):
        full = torch.zeros(p.shape, dtype=p.dtype)
        g = drifting_gradient(full, t, i)
        p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
    optimizer.step()


def gathered(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All values by name, as one process holds them."""
    found: dict[str, Any] = {}
    for name, p in module.named_parameters():
        found[name] = whole(p.detach()).clone()
        found |= {f"{name} {slot}": whole(x).clone() for slot, x in optimizer.state[p].items()}
    return found


def checkpoint_of(module: nn.Module, optimizer: torch.optim.Optimizer, flat: bool) -> dict[str, Any]:
    parameters, state = get_state_dict(module, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))
    return {"model": parameters, "optimizer": state}


def write(name: str, folder: Path) -> None:
    """Two steps and a checkpoint, in each form; and what it should hold, and after another step."""
    module = fully_shard(model_for(name))
    optimizer = MAKERS[name](module.named_parameters())
    for t in range(2):
        step(module, optimizer, t)
    for flat in (False, True):
        dcp.save(checkpoint_of(module, optimizer, flat), checkpoint_id=folder / f"{name} {flat}")
    before = gathered(module, optimizer)
    by_name = copy.deepcopy(optimizer.state_dict())
    step(module, optimizer, 2)
    after = gathered(module, optimizer)
    if dist.get_rank() == 0:
        torch.save((before, after), folder / f"{name}.pt")

    # By name, in another order; the state as this process holds it, and whole.
    if name == "quantized":
        codes = optimizer.state[module.get_parameter("0.weight")]
        assert codes["exp_avg"].to_local().dtype == torch.int8 and codes["exp_avg.scale"].shape == (5, 2)
        assert codes["momentum_buffer"].shape == (5, 2, 8) and codes["momentum_buffer"].placements == codes["exp_avg"].placements

    for state in (by_name, trees.map_leaves(whole, by_name)):
        other = fully_shard(model_for(name))
        with torch.no_grad():
            for key, p in other.named_parameters():
                p.copy_(distribute_tensor(before[key], p.device_mesh, p.placements))
        optimizer = MAKERS[name](list(other.named_parameters())[::-1])
        assert not load_by_name(optimizer, state)
        step(other, optimizer, 2)
        for p in other.parameters():
            assert all(isinstance(x, DTensor) for x in optimizer.state[p].values() if x.shape == p.shape)
        require_same(gathered(other, optimizer), after, 0)


def read(name: str, folder: Path) -> None:
    """Load both forms, which is bit for bit what was written, and take the step after it."""
    before, after = torch.load(folder / f"{name}.pt")
    for flat in (False, True):
        module = model_for(name)
        if dist.is_initialized():
            fully_shard(module)
        for p in module.parameters():
            nn.init.zeros_(p)
        optimizer = MAKERS[name](module.named_parameters())
        state = checkpoint_of(module, optimizer, flat)
        dcp.load(state, checkpoint_id=folder / f"{name} {flat}", no_dist=not dist.is_initialized())
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        set_state_dict(module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)
        require_same(gathered(module, optimizer), before, 0)
        step(module, optimizer, 2)
        require_same(gathered(module, optimizer), after, 0 if name in EXACT else REORDERED)


def share_out() -> None:
    """Five equal matrices: nobody computes more than ⌈5 / world⌉ of them, and all is as if one process did."""
    torch.manual_seed(0)
    alone = nn.Sequential(*(nn.Linear(7, 7, bias=False) for _ in range(5))).double()
    module = fully_shard(copy.deepcopy(alone))
    tx = fo.chain(counted(), fo.scale_by_learning_rate(1e-3))
    optimizers = [OptimizerAdapter(each.parameters(), tx) for each in (alone, module)]
    for t in range(2):
        step(alone, optimizers[0], t)
        COMPUTED.clear()
        step(module, optimizers[1], t)
        assert len(COMPUTED) <= -(-5 // dist.get_world_size()), COMPUTED
    require_same(gathered(module, optimizers[1]), gathered(alone, optimizers[0]), REORDERED)


def require_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def run(rank: int, folder: Path, cases: list[str]) -> dict[str, str]:
    """The problems of this process, by world and case."""
    problems: dict[str, str] = {}
    for world in WORLDS:
        if rank >= world:
            continue
        if world > 1:
            store, wait = folder / f"store {world}", datetime.timedelta(seconds=60)
            dist.init_process_group("gloo", init_method=store.absolute().as_uri(), rank=rank, world_size=world, timeout=wait)
        for name in cases:
            try:
                if name != SHARED_OUT:
                    (write if world == WORLDS[0] else read)(name, folder)
                elif world > 1:
                    share_out()
            except Exception:
                problems[f"{world} {name}"] = traceback.format_exc()
                break  # The others wait for this process.
        if world > 1:
            dist.destroy_process_group()
        (folder / f"through {world} {rank}").touch()
        wait_for([folder / f"through {world} {each}" for each in range(world)] if world == WORLDS[0] else [])
    return problems


def wait_for(files: list[Path]) -> None:
    """Until all of these are there."""
    while not all(file.exists() for file in files):
        time.sleep(0.02)  # The others need the cores.


def main(folder: Path, cases: list[str]) -> None:
    """Run all worlds; what went wrong goes into `folder/report-RANK.json`."""
    children = []
    for rank in range(max(WORLDS)):
        child = os.fork()
        if not child:
            wait_for([folder / f"through {WORLDS[0]} {each}" for each in range(WORLDS[0])] if rank >= WORLDS[0] else [])
            (folder / f"report-{rank}.json").write_text(json.dumps(run(rank, folder, cases)))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
