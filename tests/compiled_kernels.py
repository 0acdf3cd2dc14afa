"""Compile kernels for GPUs, on any machine: `python compiled_kernels.py TEXTS`, a file of [source, type of numbers, sums].

Prints what each has of each kind of access to memory, and how many bytes of registers are spilled, for each capability.
"""

import contextlib
import importlib.util
import io
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# The A100's, and the H100's.
CAPABILITIES = (80, 90)

HEAD = "import triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n\n"


def function_of(source, file):
    file.write_text(HEAD + source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel


def compiled(function, numbers, sums, capability):
    types = {"table": "*i64", "stretches": "*i32", "numbers": numbers, "stride": "i32"} | ({"sums": "*fp64"} if sums else {})
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if name != "stride"}
    source, log = ASTSource(function, types, {}, attributes), io.StringIO()
    with contextlib.redirect_stdout(log):
        found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    spilled = re.findall(r"(\d+) bytes spill stores", log.getvalue())
    assert spilled, f"no report of the assembler's: {log.getvalue()}"
    return {"accesses": Counter(re.findall(r"(?:ld|st)\.(?:global|local)[.\w]*", found.asm["ptx"])), "spilled": int(spilled[0])}


if __name__ == "__main__":
    triton.knobs.compilation.always_compile = triton.knobs.nvidia.dump_ptxas_log = True
    with tempfile.TemporaryDirectory() as name:
        found = []
        for i, (source, numbers, sums) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
            function = function_of(source, Path(name) / f"kernel_{i}.py")
            found.append([compiled(function, numbers, sums, capability) for capability in CAPABILITIES])
    print(json.dumps(found))
