"""Kernels for GPUs on tensors of the host: Triton's interpreter runs them, program after program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from functional_optim.adapters.engine import buckets
from functional_optim.adapters.engine.backends import inductor

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported without its interpreter", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor, TensorHandle  # noqa: E402

from functional_optim.adapters.engine.backends import triton as backend  # noqa: E402

# What numpy, or torch, calls the functions of libdevice that have other names there.
NAMES = {"pow": "float_power", "atan2": "arctan2", "rint": "round"}


class Library:
    """The functions of libdevice, which the interpreter has not: they are for GPUs."""

    def __getattr__(self, name):
        function = getattr(torch, NAMES.get(name, name))

        def run(*args):
            widest = max(args, key=lambda x: x.handle.data.ndim)
            own = [torch.from_numpy(np.array(x.handle.data)) for x in args]
            result = function(*own).numpy().astype(widest.handle.data.dtype)
            return triton.language.core.tensor(TensorHandle(result, widest.handle.dtype), widest.type)

        return run


def interpret(monkeypatch):
    """From now on the host is a GPU: its kernels are Triton's, and one launch is for tensors of any size."""
    monkeypatch.setattr(inductor, "GPUS", ("cpu",))
    monkeypatch.setattr(buckets, "on_host", lambda x: False)
    monkeypatch.setattr(backend, "libdevice", Library())


class Launches:
    """How many kernels were launched, by their functions' names."""

    def __init__(self, monkeypatch):
        self.count, call = 0, GridExecutor.__call__

        def counted(executor, *args, **kwargs):
            self.count += 1
            return call(executor, *args, **kwargs)

        monkeypatch.setattr(GridExecutor, "__call__", counted)


def compiled(texts, folder):
    """What the texts of kernels become for the GPUs of `compiled_kernels`, in a process without the interpreter."""
    jobs = folder / "texts.json"
    types = {torch.float32: "*fp32", torch.float64: "*fp64"}
    jobs.write_text(json.dumps([[text.source, types[text.dtype], text.sums] for text in texts]))
    script = Path(__file__).parent / "compiled_kernels.py"
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script, jobs], env=own, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
