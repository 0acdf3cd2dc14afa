"""Optimizers under torch's distributed engines: two processes retrace one. The checks are in `two_processes.py`.

All checks run in one pair of processes, which start in the time of a dozen checks; each is a test here.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import two_processes
from covering import kinds_of, mostly_full

ALONE = "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning"


def checkpointed(name: str) -> str:
    """The check that leaves a checkpoint of this optimizer."""
    return f"a_distributed_checkpoint_resumes[sharded: {name}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the two processes, which are through, have left reports and checkpoints."""
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="module")
def reports(folder, request) -> list[dict[str, str]]:
    """What went wrong in each check that this session asks for, by process."""
    asked = [item.callspec.params for item in request.session.items if "reports" in getattr(item, "fixturenames", ())]
    checks = [params.get("name") or checkpointed(params["crossing"]) for params in asked]
    two_processes.save_checkpoints_of_one_process(folder)
    # One thread each, or the two of them fight for the cores. Where one dies of a signal, it says where it was.
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": path}
    outputs = [folder / f"output-{rank}.txt" for rank in range(2)]
    processes = []
    for rank, output in enumerate(outputs):
        command = [sys.executable, two_processes.__file__, str(rank), str(folder), json.dumps(list(dict.fromkeys(checks)))]
        with output.open("w") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        # Where one has failed, the other would wait for it for minutes.
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n\n".join(output.read_text() for output in outputs)
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(2)]


# Of the transforms of the table those of a kind of their own, by which shards are treated, unless there is time for all.
FULL = mostly_full({name: trial.transform for name, trial in two_processes.TRIALS.items()}, kinds_of)
MARKS = {f"{two_processes.every_transform_takes_dtensors.__name__}[{name}]": marks for name, marks in FULL.items()}
KERNELS = two_processes.every_transform_runs_kernels_on_shards_and_shares_out_copies.__name__
MARKS |= {f"{KERNELS}[{name}]": [] if name == "lamb" else [pytest.mark.full] for name in FULL}
# Of what is run fused, too, a few: a compiler takes its time.
FEW = ("clipped, fused", "composed")
MARKS |= {name: [pytest.mark.full] for name in two_processes.CHECKS if "fused" in name and not any(each in name for each in FEW)}


@pytest.mark.filterwarnings(ALONE)
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in two_processes.CHECKS])
def test_on_two_processes(name, reports):
    problems = [f"process {rank}: {report[name]}" for rank, report in enumerate(reports) if report[name]]
    assert not problems, "\n\n".join(problems)


@pytest.mark.filterwarnings(ALONE)
@pytest.mark.parametrize("crossing", two_processes.CROSSING)
def test_a_checkpoint_of_two_processes_resumes_on_one(crossing, folder, reports):
    assert not reports[0][checkpointed(crossing)]
    two_processes.resume_on_one_process(crossing, folder)
