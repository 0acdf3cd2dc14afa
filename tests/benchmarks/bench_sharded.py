"""What a step of sharded parameters costs: two processes, or more, of one thread each, gloo, FSDP2, sixteen layers of 768 x 768.

    python tests/benchmarks/bench_sharded.py                       # about a minute
    python tests/benchmarks/bench_sharded.py --rows fused muon

Ours and torch's take turns on the same DTensors; a ratio is taken within a round, and its median and quartiles are printed; and
that of the processor's time that the first process took, which tells more where others compete for the cores. Muon takes turns
with itself on whole parameters, in one process, while others wait; the bytes are those that it sends.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

ROWS = {
    "fused": "fused AdamW / torch.optim.AdamW(fused=True)",
    "clip": "clipping + fused AdamW / clip_grad_norm_ + torch.optim.AdamW(fused=True)",
    "eager": "AdamW / torch.optim.AdamW()",
    "clip eager": "clipping + AdamW / clip_grad_norm_ + torch.optim.AdamW()",
    "muon": "muon / muon in one process",
}
LAYERS, WIDTH = 16, 768


def clipped() -> fo.Transform:
    """A norm over all, and AdamW."""
    return fo.chain(fo.clip_by_global_norm(1.0), fo.adamw())


class Side:
    """A model of its own, sharded or whole, and what steps it."""

    def __init__(self, make, *, shards: bool = True, clips: bool = False) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.params = list((fully_shard(model) if shards else model).parameters())
        self.optimizer, self.clips = make(self.params), clips
        for i, p in enumerate(self.params):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 1e-3
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g

    def step(self) -> None:
        """One step, after clipping where that is apart."""
        if self.clips:
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()


def sides(row: str) -> list[Side]:
    """Ours, and what it is compared with."""
    fused = row in ("fused", "clip")
    if row == "muon":
        return [Side(lambda ps: OptimizerAdapter(ps, fo.muon()), shards=shards) for shards in (True, False)]
    clips = row.startswith("clip")
    return [
        Side(lambda ps: OptimizerAdapter(ps, clipped() if clips else fo.adamw(), fused=fused)),
        Side(lambda ps: torch.optim.AdamW(ps, fused=fused or None), clips=clips),
    ]


def taken(side: Side, *, alone: bool) -> tuple[float, float]:
    """Seconds until all processes are through; of what is done alone, until the first is. And those that a processor worked."""
    dist.barrier()
    start, worked = time.perf_counter(), time.process_time()
    if not alone or dist.get_rank() == 0:
        side.step()
    if not alone:
        dist.barrier()
    return time.perf_counter() - start, time.process_time() - worked


def sent_by(side: Side) -> int:
    """Bytes that this process sends to others in one step."""
    counted, send = [], dist.all_to_all_single

    def watched(output, given, incoming, outgoing, **kwargs):
        counted.append((sum(outgoing) - outgoing[dist.get_rank()]) * given.element_size())
        return send(output, given, incoming, outgoing, **kwargs)

    dist.all_to_all_single = watched
    try:
        side.step()
    finally:
        dist.all_to_all_single = send
    return sum(counted)


def measure(row: str, rounds: int) -> None:
    """Print one row, in the first process."""
    ours, other = sides(row)
    alone = row == "muon"
    for _ in range(3):
        taken(ours, alone=False), taken(other, alone=alone)
    found, times, worked = [], [], []
    for _ in range(max(3, rounds // 10) if alone else rounds):
        pair, work = zip(taken(ours, alone=False), taken(other, alone=alone), strict=True)
        found.append(pair[0] / pair[1])
        times.append(pair)
        worked.append(work[0] / work[1] if work[1] else 0.0)
    sent = sent_by(ours) if alone else 0
    if dist.get_rank() == 0:
        low, middle, high = statistics.quantiles(found, n=4)
        first, second = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(
            f"{ROWS[row]:75s} {middle:5.2f}  ({low:.2f} to {high:.2f}); {first:.1f} ms / {second:.1f} ms; "
            f"processor {statistics.median(worked):.2f}",
            flush=True,
        )
        if alone:
            matrices = LAYERS * WIDTH * WIDTH * 4 / dist.get_world_size()
            print(f"    sent to others, beside a share of the matrices: {sent / matrices:.2f}", flush=True)


def main() -> None:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, *sys.argv, "--store", str(Path(folder, "store"))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
            processes = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(options.processes)]
            sys.exit(max(process.wait() for process in processes))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(options.store).as_uri(), rank=options.rank, world_size=options.processes)
    for row in options.rows:
        measure(row, options.rounds)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
