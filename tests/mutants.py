"""Deliberate one-line defects, each with a test that must catch it: `python tests/mutants.py` shows that the tests can fail.

Every defect is put into a copy of the sources, and its test is run there. test_mutants.py checks that the list fits the code.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from builds import copied_sources


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
        "(sqrt(v / c2) + eps)",
        "sqrt(v / c2 + eps)",
        "test_adam.py::test_scale_by_adam_is_the_papers_loop",
    ),
    Mutant(
        "an optimizer that shows its state to a checkpoint goes on with what it made at a rate of 0",
        "adapters/torch_optimizer.py",
        "                del self.state[p]\n",
        "                pass\n",
        "test_distributed_checkpoint.py -k ask_for_a_state_of_a_class",
    ),
    Mutant(
        "a checkpoint of SGD holds a count that torch's has not",
        "adapters/torch_class.py",
        '(self.counts or name != "step")',
        "True",
        "test_distributed_checkpoint.py -k SGD",
    ),
    Mutant(
        "a sparse gradient moves the rows that it names, and their momentum alone",
        "adapters/torch_class.py",
        'touched = [leaf for leaf in sparse if not is_on(leaf.group.get("momentum", 0))]',
        "touched = sparse",
        "test_drop_in.py -k sparse",
    ),
    Mutant(
        "a differentiable step hands the rule a parameter that it goes on to overwrite",
        "adapters/torch_class.py",
        "leaf.key: leaf.param.clone()",
        "leaf.key: leaf.param",
        "test_drop_in.py -k leaves_alone",
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
        "adapters/groups.py",
        "for name in transform.declared if name in group}",
        'for name in transform.declared if name in group and name != "lr"}',
        "test_drop_in.py -k scheduler",
    ),
    Mutant(
        "a rule goes on with the slots that are left",
        "adapters/layout.py",
        "goes_on = not lacking",
        "goes_on = True",
        "test_contract_state.py -k starts_afresh",
    ),
    Mutant(
        "a part of a rule is taken out of a checkpoint",
        "adapters/adopting.py",
        "going_on = [rule for rule in rules if not lacking(rule)]",
        "going_on = rules",
        "test_resuming.py",
    ),
    Mutant(
        "the clock of a parameter that sits out stands still",
        "adapters/held.py",
        "[moving and is_clock for moving, is_clock in",
        "[False for moving, is_clock in",
        "test_branches.py -k late_parameters",
    ),
    Mutant(
        "a count goes on where there was no gradient",
        "functional_optim/lifting.py",
        "n if u is None else n + 1",
        "n + 1",
        "test_laws.py -k passes_over",
    ),
    Mutant(
        "a parameter without a gradient is no part of a mean",
        "adapters/torch_optimizer.py",
        "leaves_of(groups, states) if layout",
        "leaves_of(groups) if layout",
        "test_laws.py -k passes_over",
    ),
    Mutant(
        "all parameters have the step of the first",
        "adapters/layout.py",
        "one_or_each(each) if each else 0)",
        "next(iter(each.values()), 0))",
        "test_contract_step.py -k counts_for_itself",
    ),
    Mutant(
        "a second link overwrites the slots of the first",
        "adapters/layout.py",
        "is_taken = any(other.short == value.short for other in others)",
        "is_taken = False",
        "test_adapter.py -k two_traces",
    ),
    Mutant(
        "a loaded slot is cast to the parameter's dtype",
        "adapters/torch_optimizer.py",
        "return Boxed(value.reshape(()) if",
        "return (value.reshape(()) if",
        "test_adapter.py -k bfloat16",
    ),
    Mutant(
        "`maximize` is ignored",
        "adapters/drop_in.py",
        "chain(negate(), transform) if maximize else transform",
        "transform",
        "test_drop_in.py -k retrace",
    ),
    Mutant(
        "a kernel writes over what it has yet to store",
        "adapters/kernels.py",
        "[result * 1 for result in results]",
        "list(results)",
        "test_adapter.py -k return_their_inputs",
    ),
    Mutant(
        "a kernel is used without a trial",
        "adapters/kernels.py",
        "            try_out(kernel, kernel.vector(scalars), links, ending, dtypes, scalars)\n",
        "",
        "test_torch_internals.py -k trial",
    ),
    Mutant(
        "a trial looks at the parameter alone",
        "adapters/trial.py",
        "written += range(2, end) if ending in (Ending.STEP, Ending.UPDATE, Ending.STORE) else ()",
        "written += ()",
        "test_torch_internals.py -k directly",
    ),
    Mutant(
        "a length is no input of its graph",
        "adapters/direct.py",
        "[LENGTH, *tensors]",
        "list(tensors)",
        "test_torch_internals.py -k directly",
    ),
    Mutant(
        "the last of an odd number of elements is not in the norm",
        "adapters/kernels.py",
        "return halves + torch.where(is_odd, x[-1].double(), 0.0)",
        "return halves",
        "test_fused.py -k every_element_once",
    ),
    Mutant(
        "a quick start that fails is the end of it",
        "functional_optim/inductor.py",
        "        except Exception:  # An older C++ compiler",
        "        except ZeroDivisionError:  # An older C++ compiler",
        "test_inductor.py",
    ),
    Mutant(
        "a plan outlives a parameter that was turned",
        "adapters/held.py",
        "            and self._are_alike(*present.params, *present.grads, *self.slots)\n",
        "",
        "test_fused.py -k what_people_do",
    ),
    Mutant(
        "a pack outlives a parameter that moved",
        "adapters/parts.py",
        "return self._places() == self.places",
        "return True",
        "test_host_overhead.py -k packed_tensors",
    ),
    Mutant(
        "a plan outlives a count that was set",
        "adapters/held.py",
        "            and self.counts.tolist() == self.seen\n",
        "",
        "test_fused.py -k what_people_do",
    ),
    Mutant(
        "a parameter goes through links that don't see it",
        "adapters/links.py",
        "tuple(link for link in links if key in link.members)",
        "tuple(links)",
        "test_branches.py -k names_of_the_parameters_choose",
    ),
    Mutant(
        "to an engine, a branch's own number comes after the one of all",
        "functional_optim/combinators/partition.py",
        'outer[f"{label}.{name}"].or_else(outer[name])',
        'outer[name].or_else(outer[f"{label}.{name}"])',
        "test_branches.py -k branch_has_its_own_value",
    ),
    Mutant(
        "a whole-tree quantity is that of one part of the parameters",
        "adapters/run.py",
        "for work in works]\n        device",
        "for work in works[:1]]\n        device",
        "test_branches.py -k test_eager",
    ),
    Mutant(
        "slots are written while a step may still fail",
        "adapters/run.py",
        "        if self._writes:\n            return work.slots\n",
        "        return work.slots\n",
        "test_stages.py -k raises",
    ),
    Mutant(
        "the inner step is run though its gate is closed",
        "functional_optim/combinators/gate.py",
        "return then() if condition else otherwise()",
        "return choose(condition, then(), otherwise())",
        "test_stages.py -k really_left_out",
    ),
    Mutant(
        "a count advances behind a closed gate",
        "adapters/step.py",
        "return any(link.step == value.path for link in links)",
        "return True",
        "test_stages.py -k gates",
    ),
    Mutant(
        "a program outlives a step that its rules wait for",
        "adapters/formula.py",
        " or other >= self.step",
        "",
        "test_host_overhead.py -k depends_on",
    ),
    Mutant(
        "a kernel that is called twice is called once",
        "adapters/direct.py",
        "(arguments,) = calls",
        "arguments = calls[0]",
        "test_host_overhead.py -k any_other_wrapper",
    ),
    Mutant(
        "a step of small tensors leaves the thread without helpers",
        "adapters/direct.py",
        "        _set_threads(threads)\n",
        "        pass\n",
        "test_host_overhead.py -k one_thread",
    ),
    Mutant(
        "kernels are shared by options that are equal in Python only",
        "functional_optim/trees.py",
        "return type(value), repr(value)",
        "return value",
        "test_fused.py -k python_calls_equal",
    ),
    Mutant(
        "an attribute of a subclass is lost in a copy",
        "adapters/torch_optimizer.py",
        'and not name.startswith("_optimizer_")',
        'and name in ("transform", "fused")',
        "test_contract_state.py -k subclass_has_its",
    ),
    Mutant(
        "hooks are called twice where a subclass extends the step",
        "adapters/torch_optimizer.py",
        "if self._is_stepping:",
        "if False:",
        "test_contract_hooks.py -k extends_the_step",
    ),
    Mutant(
        "the numbers of a group are those of the first step",
        "adapters/torch_optimizer.py",
        "all(a is b for",
        "all(True for",
        "test_contract_construction.py -k read_from_the_group",
    ),
    Mutant(
        "the closure runs without gradients",
        "adapters/torch_optimizer.py",
        "            with torch.enable_grad():\n                loss = closure()",
        "            with torch.no_grad():\n                loss = closure()",
        "test_contract_step.py -k closure_is_called",
    ),
    Mutant(
        "the loss of the closure is lost",
        "adapters/torch_optimizer.py",
        "        return loss\n",
        "        return None\n",
        "test_contract_step.py -k closure_is_called",
    ),
    Mutant(
        "loading adds an option that there is not",
        "adapters/torch_optimizer.py",
        "            del self.defaults[name]",
        "            pass",
        "test_contract_hooks.py -k rewrite_the_checkpoint",
    ),
    Mutant(
        "an unfit number does not say in which group",
        "adapters/torch_optimizer.py",
        'raise type(error)(f"param_groups[{index}]: {error}") from None',
        "raise",
        "test_contract_construction.py -k found_at_the_step",
    ),
    Mutant(
        "a misspelt key goes unnoticed",
        "adapters/torch_optimizer.py",
        "cutoff=0.85",
        "cutoff=1.0",
        "test_contract_construction.py -k misspelt",
    ),
    Mutant(
        "a set of parameters is taken in any order",
        "adapters/torch_optimizer.py",
        "isinstance(params, set | frozenset)",
        "isinstance(params, frozenset)",
        "test_contract_construction.py -k no_list_of_parameters",
    ),
    Mutant(
        "an update is rounded to the precision of the gradient",
        "adapters/torch_optimizer.py",
        "return g.to(torch.promote_types(g.dtype, p.dtype))",
        "return g",
        "test_contract_step.py -k wider_or_narrower",
    ),
    Mutant(
        "the step is traced by the compiler",
        "adapters/torch_optimizer.py",
        '        @(torch_internals.get("disable_dynamo") or torch.compiler.disable)\n',
        "",
        "test_contract_compiled.py -k one_graph",
    ),
    Mutant(
        "None is kept in the state",
        "adapters/loading.py",
        "if value is not None and not _is_blank(value)",
        "if not _is_blank(value)",
        "test_contract_state.py -k is_no_slot",
    ),
    Mutant(
        "a checkpoint of another class is loaded",
        "adapters/loading.py",
        "            _check_group(optimizer, index, saved)",
        "            pass",
        "test_contract_state.py -k another_kind",
    ),
    Mutant(
        "a slot of another shape is loaded",
        "adapters/loading.py",
        "if old in found and shape != expected.shapes.get(name, shape):",
        "if False:",
        "test_contract_state.py -k other_shapes",
    ),
    Mutant(
        "a checkpoint by name is loaded by position",
        "adapters/loading.py",
        "for name, number in zip(names, numbers, strict=True):",
        "for name, number in zip(sorted(names), numbers, strict=True):",
        "test_load_by_name.py -k another_order",
    ),
    Mutant(
        "a checkpoint of Adam makes Adam of AdamW",
        "adapters/drop_in.py",
        '            group["decoupled_weight_decay"] = True',
        "            pass",
        "test_contract_state.py -k leaves_adamw_decoupled",
    ),
    Mutant(
        "the norm of a kernel asks the default device whether its length is odd",
        "adapters/kernels.py",
        "half, device=x.device)",
        "half)",
        "test_default_device.py -k compiled_step",
    ),
    Mutant(
        "a step inside autocast rounds its matrix products",
        "adapters/torch_optimizer.py",
        "if torch.is_autocast_enabled(kind):",
        "if False:",
        "test_contract_schedulers.py -k autocast",
    ),
    Mutant(
        "functional_state hands out the optimizer's own tensors",
        "adapters/functional_state.py",
        "x.detach().clone() if isinstance(x, Tensor) else x",
        "x.detach() if isinstance(x, Tensor) else x",
        "test_functional_state.py -k form_of_init_state",
    ),
    Mutant(
        "a run that is put back starts blank states",
        "adapters/functional_state.py",
        "if key not in blank or not _are_equal(run.own(key), blank[key]):",
        "if True:",
        "test_functional_state.py -k changes_nothing",
    ),
    Mutant(
        "counts leave the optimizer one short",
        "adapters/functional_state.py",
        "torch.tensor(int(count), dtype=torch.int64, device=device)",
        "torch.tensor(int(count) - 1, dtype=torch.int64, device=device)",
        "test_functional_state.py -k alternate",
    ),
    Mutant(
        "a joined schedule is asked for steps that are not its own",
        "functional_optim/schedules/pieces.py",
        "schedule(_clamped(step, *own))",
        "schedule(step - own[0])",
        "test_schedules.py::test_joined_schedules_see_their_own_steps_only",
    ),
    Mutant(
        "a restart is late where a quotient of logarithms rounds",
        "functional_optim/schedules/cycles.py",
        "n = where(cycles < self._elapsed(n + 1), n, n + 1)",
        "n = n + 0",
        "test_schedules.py::test_restarts_are_at_the_very_step",
    ),
    Mutant(
        "an infinite value that is not chosen reaches the derivative",
        "functional_optim/schedules/decays.py",
        "where(is_beyond, 0.0, periods))",
        "periods)",
        "test_schedules.py::test_an_overflow_beyond_the_end_spoils_no_derivative",
    ),
    Mutant(
        "a learning rate that is a tensor is replaced",
        "adapters/lr_scheduler.py",
        "group[self.name].fill_(_plain(value))",
        "group[self.name] = _plain(value)",
        "test_lr_scheduler.py::test_a_tensor_in_the_group_is_filled_and_tensors_of_a_schedule_become_numbers",
    ),
    Mutant(
        "the template writes to parameters behind autograd's back",
        "adapters/generic_adaptive.py",
        "torch.autograd.graph.increment_version([param for _, param in work])",
        "pass",
        "test_generic_adaptive.py::test_autograd_notices_that_the_parameter_was_written",
    ),
    Mutant(
        "an update that is an old slot is overwritten with the new one",
        "adapters/step_param.py",
        "detached_from(owned, new)",
        "new",
        "test_generic_adaptive.py::test_a_rule_that_returns_its_inputs_is_not_overwritten",
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
        "return memory_of(local(x))",
        "return memory_of(x)",
        "test_distributed.py -k a_slot_that_starts",
    ),
    Mutant(
        "MARS corrects the first gradient",
        "functional_optim/rules/mars.py",
        "where(t == 1, 0.0, ",
        "where(t == 0, 0.0, ",
        "test_adam_family.py -k mars",
    ),
    Mutant(
        "ADOPT starts its second moment at a fraction of the first square",
        "functional_optim/rules/adopt.py",
        "where(t == 1, 0.0, b2)",
        "b2",
        "test_adam_family.py -k adopt",
    ),
    Mutant(
        "AdaGC averages norms before the clip",
        "functional_optim/rules/adagc.py",
        "(1 - beta) * clipped",
        "(1 - beta) * size",
        "test_adam_family.py -k adagc",
    ),
    Mutant(
        "a cautious mask lets zeros pass",
        "functional_optim/combinators/signed.py",
        "(u * g > 0)",
        "(u * g >= 0)",
        "test_signed.py -k cautious",
    ),
    Mutant(
        "a schedule-free average forgets the β it was made with",
        "functional_optim/rules/schedule_free.py",
        "0 * beta + new_beta",
        "beta",
        "test_schedule_free.py -k beta",
    ),
    Mutant(
        "Kahan's sum keeps what it adds, not what arrives",
        "functional_optim/rules/kahan.py",
        "total - (stored - p)",
        "total - rounded",
        "test_rounding.py -k kahan",
    ),
    Mutant(
        "stochastic rounding is half as noisy as it should be",
        "functional_optim/numerics.py",
        "torch.randint(1 << dropped",
        "torch.randint(1 << (dropped - 1)",
        "test_rounding.py -k mean",
    ),
    Mutant(
        "Prodigy divides by the old estimate's ε",
        "functional_optim/rules/prodigy.py",
        "new_d * eps",
        "d * eps",
        "test_parameter_free.py -k prodigy",
    ),
    Mutant(
        "a second rule draws the noise of the first",
        "functional_optim/philox.py",
        "seed.to(torch.int64) + number * APART",
        "seed.to(torch.int64)",
        "test_noise.py -k noise_of_their_own",
    ),
    Mutant(
        "MoMo's step is not shrunk with the parameters",
        "functional_optim/rules/momo.py",
        "-(shrinkage * p + tau * d) / (1 + shrinkage)",
        "-shrinkage / (1 + shrinkage) * p - tau * d",
        "test_loss_driven.py -k momos_decay",
    ),
    Mutant(
        "what has a learning rate of 0 has a part in the estimate",
        "functional_optim/rules/d_adaptation.py",
        "return [lr > 0 for lr in lrs]",
        "return [lr >= 0 for lr in lrs]",
        "test_parameter_free.py -k rate_of_0",
    ),
    Mutant(
        "SAM has a slope of 10¹² at a gradient of 0",
        "functional_optim/combinators/sam.py",
        "share = torch.where(norm == 0, 0.0, 1 / torch.where(norm == 0, 1.0, norm + TINY))",
        "share = 1 / (norm + TINY)",
        "test_wrappers.py -k no_slope",
    ),
    Mutant(
        "an infinite example makes the sum NaN",
        "functional_optim/rules/per_example.py",
        "torch.where((above & norm.isinf())",
        "torch.where((above & norm.isnan())",
        "test_adaptive_clip.py -k without_bounds",
    ),
    Mutant(
        "two leaves of one name pass for one",
        "functional_optim/trees.py",
        "if len(set(called)) < len(called):",
        "if False:",
        "test_trees.py -k one_name",
    ),
    Mutant(
        "a class that only torch knows is a leaf",
        "functional_optim/trees.py",
        "if torch_trees and not torch_trees.tree_is_leaf(x)",
        "if False",
        "test_trees.py -k torch_knows",
    ),
    Mutant(
        "a loop runs on a vector though a rule looks at the leaves",
        "functional_optim/meta/flat.py",
        "(form.reduce is None or isinstance(form.reduce, SumOver))",
        "True",
        "test_meta_unroll.py -k sees_the_leaves",
    ),
    Mutant(
        "a logged loss has no slope where gradients are constants",
        "functional_optim/meta/unroll.py",
        "detached(grads), with_slopes(loss, params, detached(grads)), None",
        "detached(grads), loss, None",
        "test_meta_unroll.py -k nothing_but_gradients",
    ),
    Mutant(
        "forward mode over forward mode is 0",
        "functional_optim/meta/remat.py",
        "return _Rematerialised.apply(pushed, *tensors, *directions)",
        "return pushed(*tensors, *directions)",
        "test_meta_implicit.py -k forward_mode_over",
    ),
    Mutant(
        "a part of a program returns views of its own results",
        "functional_optim/meta/lowering.py",
        "        if _is_view(node):\n            reached",
        "        if False:\n            reached",
        "test_meta_compiled.py -k is_its_own",
    ),
    Mutant(
        "(A B)ᵀ is taken for Aᵀ Bᵀ",
        "functional_optim/meta/lowering.py",
        "(x, order)) for x in reversed(node.args)]",
        "(x, order)) for x in node.args]",
        "test_meta_compiled.py -k transposed",
    ),
    Mutant(
        "nobody keeps a loop that a compiled function makes for itself",
        "functional_optim/meta/lowering.py",
        "                _kept[-1].append(self)",
        "                pass",
        "test_meta_compiled.py -k one_program",
    ),
    Mutant(
        "a batch of cotangents passes for the batch around it",
        "functional_optim/meta/compiled.py",
        "if tape.within[done : done + 1] != (torch_internals.maybe_current_level(),):",
        "if done == len(tape.batches):",
        "test_meta_compiled.py -k jacrev",
    ),
    Mutant(
        "a program outlives what a schedule returned",
        "adapters/lists.py",
        "values_of(work.stage.links, run.hparams[work.kind.group], {})",
        "run.numbers[work.kind][0]",
        "test_host_overhead.py -k what_a_schedule",
    ),
    Mutant(
        "an editable install is an import hook, which type checkers don't follow",
        "setup.py",
        'package_dir={"": ".editable"} if is_linked and is_editable else MAPPED',
        "package_dir=MAPPED",
        "test_typing.py -k misspelt_ones",
    ),
    Mutant(
        "a signature that a decorator makes says nothing of its numbers",
        "functional_optim/transform.py",
        "default=hparam.default, annotation=_number_type(hparam.default)",
        "default=hparam.default",
        "test_package.py -k arguments_have_types",
    ),
    Mutant(
        "an even number of minus signs passes for a descent",
        "functional_optim/direction.py",
        "or len(turning) % 2:",
        "or turning:",
        "test_direction.py -k what_climbs",
    ),
    Mutant(
        "noise passes for a direction",
        "functional_optim/direction.py",
        "found if found and side(-1) == -found else 0",
        "found",
        "test_direction.py -k no_optimizer_of_the_library",
    ),
    Mutant(
        "looking where updates point draws from everybody's random numbers",
        "functional_optim/direction.py",
        "torch.no_grad(), torch.random.fork_rng(devices=[]), ",
        "torch.no_grad(), ",
        "test_direction.py -k leaves_no_trace",
    ),
    Mutant(
        "whole numbers are trained, and cut off",
        "functional_optim/checks.py",
        "if not (p.is_floating_point() or p.is_complex()):",
        "if False:",
        "test_bad_input.py -k whole_numbers",
    ),
    Mutant(
        "a pattern that is left nothing goes unnoticed",
        "functional_optim/combinators/labels.py",
        "if pattern == rest or not winners",
        "if True or not winners",
        "test_bad_input.py -k is_left_nothing",
    ),
    Mutant(
        "a sequence in a group is looked at once",
        "adapters/torch_optimizer.py",
        "lasting = () if any(",
        "lasting = values if any(",
        "test_bad_input.py -k changed_in_place",
    ),
]


def is_caught(mutant: Mutant) -> bool:
    """Whether the test fails on a copy of the sources with the defect in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied_sources(Path(folder))
        file = copy / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        link = copy / "functional_optim" / "adapters"
        if not link.exists():  # An sdist holds no links.
            link.symlink_to("../adapters")
        test, *options = mutant.test.split()
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", f"tests/{test}", *options],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
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
