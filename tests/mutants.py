"""Deliberate one-line defects, each with a test that must catch it: `python tests/mutants.py` shows that the tests can fail.

Every defect is put into a copy of the sources, and its test is run there. test_mutants.py checks that the list fits the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A defect, and the test that must fail because of it."""

    defect: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "ε inside the root",
        "functional_optim/rules/adam.py",
        '(sqrt(v / c2) + hp["eps"])',
        'sqrt(v / c2 + hp["eps"])',
        "test_adam.py::test_scale_by_adam_is_the_papers_loop",
    ),
    Mutant(
        "AMSGrad corrects the maximum with the first moment's factor",
        "functional_optim/rules/adam.py",
        "sqrt(w / c2)",
        "sqrt(w / c1)",
        "test_adam.py::test_scale_by_adam_is_the_papers_loop",
    ),
    Mutant(
        "the bias correction counts from 2",
        "functional_optim/numerics.py",
        "return 1 - double(beta) ** double(t)",
        "return 1 - double(beta) ** (double(t) + 1)",
        "test_adam.py",
    ),
    Mutant(
        "the square root has its infinite slope at 0",
        "functional_optim/numerics.py",
        "if not _differentiating():\n        return x.sqrt()",
        "if True:\n        return x.sqrt()",
        "test_laws.py -k derivatives_at_zero",
    ),
    Mutant(
        "the first momentum step is dampened",
        "functional_optim/rules/momentum.py",
        'where(t == 1, 1.0, 1 - hp["dampening"])',
        '1 - hp["dampening"]',
        "test_momentum.py",
    ),
    Mutant(
        "decay has the wrong sign",
        "functional_optim/rules/decay.py",
        'u + hp["weight_decay"] * p',
        'u - hp["weight_decay"] * p',
        "test_decay.py",
    ),
    Mutant(
        "values are clipped on one side only",
        "functional_optim/rules/clip.py",
        "g.clamp(-c, c)",
        "g.clamp(max=c)",
        "test_clip.py",
    ),
    Mutant(
        "a schedule starts at step 1",
        "functional_optim/rules/scale.py",
        "schedule(double(t - 1))",
        "schedule(double(t))",
        "test_scale.py",
    ),
    Mutant(
        "the minus sign is missing",
        "functional_optim/rules/scale.py",
        'return -hp["lr"] * u',
        'return hp["lr"] * u',
        "test_scale.py",
    ),
    Mutant(
        "a chain forgets what its links return",
        "functional_optim/combinators/chain.py",
        "            updates, new_state[name] = link",
        "            _, new_state[name] = link",
        "test_chain.py",
    ),
    Mutant(
        "outputs keep the dtype they were computed in",
        "functional_optim/lifting.py",
        "return new if new.dtype == stored.dtype else new.to(stored.dtype)",
        "return new",
        "test_laws.py -k dtype",
    ),
    Mutant(
        "low precision is not widened",
        "functional_optim/lifting.py",
        "return x.float() if x is not None and x.dtype in (torch.float16, torch.bfloat16) else x",
        "return x",
        "test_laws.py -k low_precision",
    ),
    Mutant(
        "NaN lies in every range",
        "functional_optim/hparams.py",
        "return above and below",
        "return above and below or x != x",
        "test_hparams.py",
    ),
    Mutant(
        "shapes are not compared",
        "functional_optim/checks.py",
        "if g.shape != p.shape:",
        "if False:",
        "test_bad_input.py",
    ),
    Mutant(
        "the learning rate of a group is not read",
        "adapters/torch_optimizer.py",
        "leaf.group.get(name, default)",
        'leaf.group.get(name if name != "lr" else "", default)',
        "test_drop_in.py -k scheduler",
    ),
    Mutant(
        "all parameters have the step of the first",
        "adapters/layout.py",
        "one_or_each({key: int(count) for key, count in each.items()} if counts_on_host else each)",
        "int(next(iter(each.values())))",
        "test_adapter.py",
    ),
    Mutant(
        "a second link overwrites the slots of the first",
        "adapters/layout.py",
        'names.append(".".join(path) if taken else path[-1])',
        "names.append(path[-1])",
        "test_adapter.py -k two_traces",
    ),
    Mutant(
        "a loaded slot is cast to the parameter's dtype",
        "adapters/torch_optimizer.py",
        "handle = self.register_load_state_dict_pre_hook(_box_tensors)",
        "handle = self.register_load_state_dict_pre_hook(lambda optimizer, state_dict: state_dict)",
        "test_adapter.py -k bfloat16",
    ),
    Mutant(
        "`maximize` is ignored",
        "adapters/drop_in.py",
        "chain(_negated(), transform) if maximize else transform",
        "transform",
        "test_drop_in.py -k retrace",
    ),
    Mutant(
        "a kernel writes over what it has yet to store",
        "adapters/kernels.py",
        "[result * 1 for result in traced.body(vector, *tensors[:count])]",
        "list(traced.body(vector, *tensors[:count]))",
        "test_adapter.py -k return_their_inputs",
    ),
    Mutant(
        "a plan outlives a parameter that moved",
        "adapters/fused.py",
        "*map(Tensor.data_ptr, (*params, *values)), ",
        "",
        "test_fused.py -k what_people_do",
    ),
    Mutant(
        "a plan outlives a count that was set",
        "adapters/fused.py",
        " and plan.counts.tolist() == plan.seen",
        "",
        "test_fused.py -k what_people_do",
    ),
    Mutant(
        "kernels are shared by options that are equal in Python only",
        "adapters/tracing.py",
        "return type(value), repr(value)",
        "return value",
        "test_fused.py -k python_calls_equal",
    ),
    Mutant(
        "a norm sums what one process holds",
        "functional_optim/sharded.py",
        "sums = [whole(torch.stack(column).sum()) for",
        "sums = [local(torch.stack(column).sum()) for",
        "test_distributed.py -k in_part",
    ),
    Mutant(
        "a whole-tree quantity stays spread over its mesh",
        "functional_optim/lifting.py",
        "return trees.map_leaves(whole, reduced)",
        "return reduced",
        "test_distributed.py -k in_part",
    ),
    Mutant(
        "a rule that needs whole tensors gets spread ones",
        "functional_optim/lifting.py",
        "leaves if self.elementwise else [[whole(x) for x in arguments] for arguments in leaves]",
        "leaves",
        "test_distributed.py -k every_placement",
    ),
    Mutant(
        "a slot is the memory of a sharded parameter",
        "adapters/layout.py",
        "return local(x).untyped_storage()._cdata",
        "return x.untyped_storage()._cdata",
        "test_distributed.py -k a_slot_that_starts",
    ),
]


def is_caught(mutant: Mutant) -> bool:
    """Whether the test fails on a copy of the sources with the defect in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("functional_optim", "adapters", "tests", "notebooks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        (copy / "functional_optim" / "adapters").symlink_to(copy / "adapters")
        test, *options = mutant.test.split()
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", f"tests/{test}", *options],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
        return run.returncode == 1


def main() -> int:
    """Try every mutant; the exit status is the number that survive."""
    survivors = 0
    for mutant in MUTANTS:
        caught = is_caught(mutant)
        survivors += not caught
        print(f"{'caught  ' if caught else 'SURVIVES'}  {mutant.defect}: {mutant.test}", flush=True)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} caught")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
