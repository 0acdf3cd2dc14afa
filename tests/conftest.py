"""Where there is no GPU, Triton's interpreter runs the kernels for one: it has to be told before anything imports Triton."""

import os

import torch
from precompiled import use_header

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

use_header()
