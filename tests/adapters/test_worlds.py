"""Checkpoints that two processes write are read by one, three and four of them. What they run is in `worlds.py`."""

import json
import os
import subprocess
import sys

import pytest
import worlds


@pytest.fixture(scope="module")
def reports(tmp_path_factory, request) -> list[dict[str, str]]:
    """What went wrong in each process."""
    folder = tmp_path_factory.mktemp("worlds")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    items = [
        item for item in request.session.items if "reports" in getattr(item, "fixturenames", ()) and item.fspath == request.fspath
    ]
    cases = list(dict.fromkeys(item.callspec.params["name"] for item in items))
    command = [sys.executable, worlds.__file__, str(folder), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stdout + done.stderr
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(max(worlds.WORLDS))]


# Between them these have rules of every kind, wrappers and a schedule.
FEW = ("composed", "muon", "wrapped")
CASES = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.full]) for name in worlds.MAKERS]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", worlds.WORLDS)
def test_a_checkpoint_survives_another_world_size(world, name, reports):
    problems = [
        f"process {rank}: {report[f'{world} {name}']}" for rank, report in enumerate(reports) if f"{world} {name}" in report
    ]
    assert not problems, "\n\n".join(problems)
