"""Where there is no GPU, Triton's interpreter runs the kernels for one: it has to be told before anything imports Triton."""

import gc
import os

import torch
from precompiled import use_header

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

use_header()


def pytest_collection_finish():
    """What is there now stays: the collector of garbage need not look at it, again and again, while tests run."""
    gc.collect()
    gc.freeze()
