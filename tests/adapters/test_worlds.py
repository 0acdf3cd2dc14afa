"""Checkpoints that two processes write are read by one, three and four of them. What they run is in `worlds.py`."""

import json
import os
import subprocess
import sys

import pytest
import worlds


@pytest.fixture(scope="module")
def found(tmp_path_factory, request) -> list[dict[str, str]]:
    """What went wrong in each process, in the cases that this session asks for."""
    folder = tmp_path_factory.mktemp("worlds")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    items = [item for item in request.session.items if getattr(item, "function", None) in TESTS]
    cases = list(dict.fromkeys(item.callspec.params["name"] for item in items))
    command = [sys.executable, worlds.__file__, str(folder), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stdout + done.stderr
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(max(worlds.WORLDS))]


# Between them these have rules of every kind, wrappers, a schedule, and codes.
FEW = ("composed", "muon", "wrapped", "quantized")
CASES = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.full]) for name in worlds.MAKERS]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", worlds.WORLDS)
def test_a_checkpoint_survives_another_world_size(world, name, found):
    assert_passed(world, name, found)


@pytest.mark.parametrize("name", [worlds.SHARED_OUT])
@pytest.mark.parametrize("world", worlds.WORLDS)
def test_matrices_are_shared_out(world, name, found):
    assert_passed(world, name, found)


TESTS = (test_a_checkpoint_survives_another_world_size, test_matrices_are_shared_out)


def assert_passed(world, name, found):
    key = f"{world} {name}"
    problems = [f"process {rank}: {report[key]}" for rank, report in enumerate(found) if key in report]
    assert not problems, "\n\n".join(problems)
