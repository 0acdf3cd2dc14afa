"""What is private in torch has one door, and each name behind it may go: then there is another way, or one warning."""

import ast
import dataclasses
import types

import pytest
import torch
from builds import SOURCES, relative
from torch.autograd import forward_ad
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import functional_optim as fo
from functional_optim import torch_internals
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine import in_place, memory, program
from functional_optim.adapters.engine.backends import called, foreach, inductor_call, kernels, rows
from functional_optim.numerics import sqrt

DOOR = "functional_optim/torch_internals.py"
FUSED = [name for name, what in torch_internals.NAMES.items() if what.without.startswith("fused")]
COMPILED = [name for name, what in torch_internals.NAMES.items() if what.without in ("compiled", "fused, compiled")]


@pytest.fixture
def without(monkeypatch):
    """Take some private names away; kernels are compiled anew."""

    def take(*names):
        for name in names:
            gone = dataclasses.replace(torch_internals.NAMES[name], path=f"torch._gone.{name}")
            monkeypatch.setitem(torch_internals.NAMES, name, gone)
        torch_internals.get.cache_clear()

    monkeypatch.setattr(kernels, "_kernels", {})
    torch_internals.get.cache_clear()
    yield take
    torch_internals.get.cache_clear()


def stepped(fused, steps=3):
    """Two parameters, one of them large enough for several threads, after some steps of clipped AdamW."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in (7, 40_000)]
    optimizer = OptimizerAdapter(params, fo.chain(fo.clip_by_global_norm(), fo.adamw()), lr=0.1, fused=fused)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach() for p in params]


def assert_like_eager(found):
    for p, q in zip(found, stepped(False), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # to rounding, as in test_fused


def assert_eager_after_one_warning(reason):
    with pytest.warns(UserWarning) as caught:
        found = stepped(True)
    (warning,) = caught
    assert str(warning.message).startswith("fused=True, but ")
    assert reason in str(warning.message)
    assert warning.filename == __file__, "the line that steps"
    for p, q in zip(found, stepped(False), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", FUSED)
def test_without_what_fused_needs_it_warns_once_and_steps_eagerly(without, name):
    without(name)
    assert_eager_after_one_warning(f"torch._gone.{name}")


@pytest.mark.parametrize("name", ["disable_dynamo", "DataDependentOutputException", "is_batchedtensor"])
def test_without_what_has_another_way_fused_steps_are_the_same(without, name):
    without(name)
    assert_like_eager(stepped(True))


def meta_gradient(p, xs):
    """The slope of two steps of SGD for each task: a loop, batched and differentiated inside a compiled function, made anew."""
    scale = torch.tensor(1.5)
    inner = fo.meta.unroll(lambda p, x: (p * x * scale).sum() ** 2, fo.sgd(), steps=2, compile=True)

    def total(p, xs):
        return torch.vmap(lambda x: inner(p, {"lr": 0.1}, (x,)).params.sum())(xs).sum()

    return fo.meta.compiled(torch.func.grad(total))(p, xs)


def meta_gradient_by_hand(p, xs):
    """The same, task by task and without a compiler."""
    p, total = p.clone().requires_grad_(), torch.zeros(())
    for x in xs:
        q = p
        for _ in range(2):
            q = q - 0.1 * torch.autograd.grad((q * x * 1.5).sum() ** 2, q, create_graph=True)[0]
        total = total + q.sum()
    return torch.autograd.grad(total, p)[0]


TASKS = torch.tensor([1.0, 2.0]), torch.tensor([[0.3, 0.1], [0.2, 0.5]])


def assert_compiled_is_right():
    torch.testing.assert_close(meta_gradient(*TASKS), meta_gradient_by_hand(*TASKS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COMPILED)
def test_without_what_compiled_needs_it_says_so(without, name):
    without(name)
    with pytest.raises(torch_internals.Gone, match=rf"torch .* has no torch\._gone\.{name}"):
        meta_gradient(*TASKS)


@pytest.mark.parametrize(
    "name",
    [
        "partition_fn",
        "get_proxy_mode",
        "DynamicOutputShapeException",
        "inductor_lowering",
        "inductor_ir",
        "get_interpreter_stack",
        "is_functorch_wrapped_tensor",
        "get_unwrapped",
        "registered_hop_fake_fns",
    ],
)
def test_without_what_has_another_way_compiled_is_the_same(without, name):
    without(name)
    assert_compiled_is_right()


def test_without_either_partitioner_compiled_says_so(without):
    without("partition_fn", "min_cut_rematerialization_partition")
    with pytest.raises(torch_internals.Gone, match="min_cut"):
        meta_gradient(*TASKS)


def test_without_its_notes_in_graphs_compiled_is_the_same(monkeypatch):
    """Keys that a compiler does not know any more, or calls otherwise."""
    for name in ("forget_passes", "compute_again", "store", "keep_strides"):
        monkeypatch.setattr(torch_internals, name, lambda *args: None)
    assert_compiled_is_right()


def test_without_knowing_who_asks_a_step_that_shows_the_state_is_one_at_a_rate_of_0(without):
    without("init_optim_state")
    model = torch.nn.Linear(2, 1)
    before = [p.clone() for p in model.parameters()]
    optimizer = fo.adapters.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert [slots["step"].item() for slots in state.values()] == [1, 1]
    assert all(map(torch.equal, model.parameters(), before)) and optimizer.param_groups[0]["lr"] == 0.1


def test_what_compiled_needs_is_needed_there_alone(without):
    without(*COMPILED, "register_pytree_node", "partition_fn")
    inner = fo.meta.unroll(lambda p, x: (p * x).sum() ** 2, fo.sgd(), steps=3, remat=True)

    def trained(p):
        return torch.vmap(lambda x: inner(p, {"lr": 0.1}, (x,)).params.sum())(TASKS[1]).sum()

    assert torch.func.grad(trained)(TASKS[0]).isfinite().all()
    stepped(False)


def test_settings_that_are_gone_are_left_out():
    config = torch_internals.inductor_config
    before = config.size_asserts
    with torch_internals.patched(config, {"size_asserts": not before, "cpp.gone": 1, "gone.too": 2, "cpp.dynamic_threads": True}):
        assert config.size_asserts is not before and config.cpp.dynamic_threads
    assert config.size_asserts is before


def test_without_functions_on_lists_steps_are_the_same(monkeypatch):
    expected = stepped(False)
    for module in (program, foreach, rows, called, in_place):
        monkeypatch.setattr(module, "foreach", memory.LOOPS)
    for p, q in zip(stepped(False), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # Functions on lists may contract a product and a sum.


def test_without_the_level_of_forward_mode_derivatives_stay_right(monkeypatch):
    monkeypatch.delattr(forward_ad, "_current_level")
    with torch.no_grad():
        assert torch_internals.in_forward_mode()
        assert sqrt(torch.tensor([0.0, 4.0])).tolist() == [0.0, 2.0]


def test_without_their_marks_tensors_are_told_apart_by_address_and_their_versions_never_agree():
    x = torch.ones(3)
    address = types.SimpleNamespace(data_ptr=x.untyped_storage().data_ptr)
    bare = types.SimpleNamespace(untyped_storage=lambda: address)
    assert torch_internals.memory_of(bare) == x.data_ptr()
    assert torch_internals.version_of(bare) != torch_internals.version_of(bare)


@pytest.mark.parametrize("path", [path for path in SOURCES if relative(path) != DOOR], ids=relative)
def test_one_file_names_what_is_private(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Attribute):
            modules = [ast.unparse(node)]
        for module in modules:
            package, *below = module.split(".")
            private = any(part.startswith("_") and not part.endswith("__") for part in below) or "experimental" in below
            assert not (package in ("torch", "forward_ad") and private), f"line {node.lineno}: {module}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("_schema", "_cdata", "_version"), f"line {node.lineno}: {ast.unparse(node)}"


# What a compiler makes of a kernel, and gets wrong.


def miscompiled(monkeypatch, fault):
    """Let the compiler make the right kernels, but for a fault: a function of what it has made and of the inputs."""
    compile_body = kernels.compile_body

    def faulty(*args):
        compiled = compile_body(*args)
        return lambda inputs: fault(compiled, inputs)

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "compile_body", faulty)


def raises(compiled, inputs):
    raise NameError("name 's26' is not defined")


def forgets_a_slot(compiled, inputs):
    kept = inputs[-1].clone()
    slot = inputs[-1]
    result = compiled(inputs)
    slot.copy_(kept)
    return result


def steps_twice_as_far(compiled, inputs):
    p, before = inputs[3], inputs[3].clone()
    result = compiled(inputs)
    p.add_(p - before)
    return result


def leaves_the_last_element(compiled, inputs):
    p, before = inputs[3], inputs[3].clone()
    result = compiled(inputs)
    p[-1:] = before[-1:]
    return result


def writes_to_the_gradient(compiled, inputs):
    u = inputs[2]
    result = compiled(inputs)
    u.mul_(2)
    return result


def sums_too_much(compiled, inputs):
    return [x * 1.01 for x in compiled(inputs)]


@pytest.mark.parametrize(
    "fault",
    [raises, forgets_a_slot, steps_twice_as_far, leaves_the_last_element, writes_to_the_gradient, sums_too_much],
)
def test_a_kernel_that_fails_its_trial_is_never_used(monkeypatch, fault):
    miscompiled(monkeypatch, fault)
    assert_eager_after_one_warning("NameError" if fault is raises else "computes other numbers than the rules do")


def test_a_direct_call_that_writes_elsewhere_fails_its_trial(monkeypatch):
    """Arguments in another order: the pattern that is known, with another meaning."""
    found = inductor_call.direct

    def swapped(compiled, inputs):
        kernel = found(compiled, inputs)
        kernel.places[:] = [{1: 2, 2: 1}.get(place, place) for place in kernel.places]
        return kernel

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "direct", swapped)
    assert_eager_after_one_warning("computes other numbers")


def test_every_kernel_is_called_directly_and_nothing_else_is(monkeypatch):
    """On every torch that this runs on, or steps of small tensors take several times as long."""
    calls, call = [], inductor_call.Direct.__call__

    def counting(self, *args):
        calls.append(self)
        return call(self, *args)

    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(inductor_call.Direct, "__call__", counting)
    assert_like_eager(stepped(True, steps=3))
    made = list(kernels._kernels.values())
    assert len(made) == 2, "one for the norm, one for the step"
    # Once each when it is tried; then, at each of three steps, for the small parameter and for the large one.
    assert [calls.count(kernel.direct) for kernel in made] == [1 + 3 * 2, 1 + 3 * 2]
