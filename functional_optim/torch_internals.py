"""The one door to what is private, or no promise: names of torch and of its compiler that any release may move or take away.

Each is looked up when it is first used. Where it is gone, one of these follows, as is said with each name:

- another way, at most slower
- fused:    `fused=True` warns once, at the line that steps, and the optimizer takes the ordinary step
- compiled: `fo.meta.compiled` and `unroll(..., compile=True)` raise `Gone`, which names it; without them nothing is missing

What still is there may do something else than it did. So a kernel is tried before anything depends on it (`trial.py`).
"""

import functools
import inspect
import math
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy


class Gone(ImportError):
    """This torch lacks a private name that something here can't do without."""


@dataclass(frozen=True)
class Name:
    """Where a private name is, and what happens where it is gone."""

    path: str
    without: str


def _names(without: str, **paths: str) -> dict[str, Name]:
    return {name: Name(path, without) for name, path in paths.items()}


NAMES: dict[str, Name] = {
    **_names(
        "fused, compiled",
        FakeTensorMode="torch._subclasses.FakeTensorMode",
        ShapeEnv="torch.fx.experimental.symbolic_shapes.ShapeEnv",
        make_fx="torch.fx.experimental.proxy_tensor.make_fx",
        TracingContext="torch._guards.TracingContext",
        tracing="torch._guards.tracing",
        inductor_config="torch._inductor.config",
        select_decomp_table="torch._inductor.decomposition.select_decomp_table",
        compile_fx_inner="torch._inductor.compile_fx.compile_fx_inner",
    ),
    **_names(
        "fused",
        DimDynamic="torch.fx.experimental.symbolic_shapes.DimDynamic",
        StatelessSymbolicContext="torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext",
    ),
    **_names(
        "another way: rules with coded slots run block by block, uncompiled",
        CppCodeCache="torch._inductor.codecache.CppCodeCache",
    ),
    **_names(
        "compiled",
        FakeTensor="torch._subclasses.FakeTensor",
        active_fake_mode="torch._guards.active_fake_mode",
        disable_current_modes="torch.utils._python_dispatch._disable_current_modes",
        functorch_config="torch._functorch.config",
        maybe_current_level="torch._C._functorch.maybe_current_level",
        is_batchedtensor="torch._C._functorch.is_batchedtensor",
    ),
    **_names(
        "another way: what looks through the layers of `torch.func` sees the outermost (see `is_at_hand` and those below it)",
        is_functorch_wrapped_tensor="torch._C._functorch.is_functorch_wrapped_tensor",
        get_unwrapped="torch._C._functorch.get_unwrapped",
    ),
    **_names(
        "another way: what it wraps, without Inductor's changes to the joint graph",
        partition_fn="torch._inductor.compile_fx.partition_fn",
    ),
    **_names(
        "compiled, where `partition_fn` is gone too",
        min_cut_rematerialization_partition="torch._functorch.partitioners.min_cut_rematerialization_partition",
    ),
    **_names(
        "another way: a function that asks for the value of a tensor gets the compiler's own error",
        DataDependentOutputException="torch._subclasses.fake_tensor.DataDependentOutputException",
        DynamicOutputShapeException="torch._subclasses.DynamicOutputShapeException",
    ),
    **_names(
        "another way: the compiler's usual preparations, so the first kernels take longer, and each step (see `inductor`)",
        compiler_config="torch.compiler.config",  # its cache_key_tag
        cpp_builder="torch._inductor.cpp_builder",  # its get_cpp_compiler
        # its stride_at_vec_range, CppVecKernel._get_vec_load_line and CppScheduling.try_loop_split
        cpp_kernels="torch._inductor.codegen.cpp",
        cpu_vec_isa="torch._inductor.cpu_vec_isa",  # its valid_vec_isa_list, x86_isa_checker, VecAVX512 and VecAVX2
    ),
    **_names(
        "another way: each kernel of a program is translated by itself (see `kernel_files`)",
        AsyncCompile="torch._inductor.async_compile.AsyncCompile",
        get_compile_threads="torch._inductor.async_compile.get_compile_threads",
        CppPythonBindingsCodeCache="torch._inductor.codecache.CppPythonBindingsCodeCache",
        LambdaFuture="torch._inductor.codecache.LambdaFuture",
    ),
    **_names(
        "another way: a Hessian under `vmap` gets the compiler's own error",
        FakeTensorDeviceMismatchError="torch._subclasses.fake_tensor.FakeTensorDeviceMismatchError",
        TorchDispatchMode="torch.utils._python_dispatch.TorchDispatchMode",
    ),
    **_names(
        "another way: the compiler runs a step of a loop to see what each call of it returns, which is slower",
        registered_hop_fake_fns="torch._higher_order_ops.utils.registered_hop_fake_fns",
    ),
    **_names(
        "another way: other people's `make_fx` is noticed by its fake tensors alone",
        get_proxy_mode="torch.fx.experimental.proxy_tensor.get_proxy_mode",
    ),
    **_names(
        "another way: layers are composed of others whatever is done with them (see `meta.layers`)",
        get_interpreter_stack="torch._C._functorch.get_interpreter_stack",
    ),
    **_names(
        "another way: `fused(transform)` is the rules (see `is_observed`), which is slower",
        dispatch_modes="torch._C._len_torch_dispatch_stack",
    ),
    **_names("another way: what needs it imports it", inductor_lowering="torch._inductor.lowering"),
    **_names(
        "another way: a library's product of small matrices, which is slower (see `meta.products`)",
        inductor_ir="torch._inductor.ir",
    ),
    **_names("another way: tensors are compared in Python", TensorGuards="torch._C._dynamo.guards.TensorGuards"),
    **_names("another way: `torch.compiler.disable`, which imports Dynamo", disable_dynamo="torch._compile._disable_dynamo"),
    **_names("another way: PerLeaf is no tree to torch.vmap", register_pytree_node="torch.utils._pytree.register_pytree_node"),
    **_names(
        "another way: that step is one like any other, at a learning rate of 0 (see `is_asked_for_state`)",
        init_optim_state="torch.distributed.checkpoint.state_dict._init_optim_state",
    ),
    **_names("another way: what only torch's own pytrees know is no tree of parameters", torch_trees="torch.utils._pytree"),
}


@functools.cache
def get(name: str) -> Any:
    """What a private name stands for; None where this torch does not have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own modules use what torch deprecates.
        try:
            return pkgutil.resolve_name(NAMES[name].path)
        except (ImportError, AttributeError):
            return None


def __getattr__(name: str) -> Any:
    """A private name of `NAMES`, as an attribute of this module.

    Raises:
        Gone: this torch does not have it.
    """
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = get(name)
    if value is None:
        raise Gone(f"torch {torch.__version__} has no {NAMES[name].path}, which it takes to compile this")
    return value


# --- Attributes, settings and notes in graphs ----------------------------------------------------------------------------


def memory_of(x: Tensor) -> int:
    """What tells the memory of a tensor from all other memory, also where it has no elements.

    Without `_cdata`: its address, which tensors without elements have not (compiled).
    """
    storage = x.untyped_storage()
    return storage._cdata if hasattr(storage, "_cdata") else storage.data_ptr()


def version_of(x: Tensor) -> float:
    """How often a tensor was written to. Without `_version`: NaN, which is neither equal to another nor larger."""
    return getattr(x, "_version", math.nan)


def local_of(x: Any) -> Tensor | None:
    """The memory that this process has of a `DTensor`, ready to be read; None of any other tensor.

    Without `_local_tensor`: `to_local`, which makes a new tensor each time, so that every step is planned anew.
    """
    own = getattr(x, "_local_tensor", None)
    if own is None:
        return x.to_local() if hasattr(x, "to_local") else None
    return own.wait() if hasattr(own, "trigger_wait") else own


def schema_of(operation: Any) -> Sequence[Any]:
    """The declared arguments of an operation of a graph; () of any other function. Without `_schema`: (fused, compiled)."""
    is_operation = isinstance(operation, type(torch.ops.aten.add.Tensor))
    return operation._schema.arguments if is_operation else ()


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives may be taken now. Without `_current_level`: as if they were, which is slower."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_asked_for_state() -> bool:
    """Whether the step under way is the one by which `torch.distributed.checkpoint` makes an optimizer show its state.

    It sets gradients of 0 and a learning rate of 0, which a step of training may have as well: only the caller tells them apart.
    """
    if "torch.distributed.checkpoint.state_dict" not in sys.modules:
        return False
    caller, frame = getattr(get("init_optim_state"), "__code__", None), inspect.currentframe()
    while frame is not None and frame.f_code is not caller:
        frame = frame.f_back
    return frame is not None


def is_traced() -> bool:
    """Whether a graph is being made of what is called now, by `torch.compile` or by `make_fx`."""
    modes = map(get, ("active_fake_mode", "get_proxy_mode"))
    return torch.compiler.is_compiling() or any(mode is not None and mode() is not None for mode in modes)


def is_of_compiler(function: Any) -> bool:
    """Whether this is what `torch.compile` returned, or torch's wrapper of that; where torch does not say so, it is none."""
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(function, "_torchdynamo_disable", False)


def is_at_hand(x: Tensor) -> bool:
    """Whether the value of a tensor can be had on the host at once: of an ordinary one there, that is not batched and not traced.

    Without `is_functorch_wrapped_tensor`: as if it could not.
    """
    if is_traced() or x.device.type != "cpu" or type(x) is not Tensor:
        return False
    is_wrapped = get("is_functorch_wrapped_tensor")
    return is_wrapped is not None and not is_wrapped(x)


def is_observed() -> bool:
    """Whether what is called now may be batched, differentiated, traced or watched. Where nobody can tell: as if it were."""
    if torch.compiler.is_compiling():  # First, since what follows is not for the compiler.
        return True
    stack, modes = get("get_interpreter_stack"), get("dispatch_modes")
    return stack is None or modes is None or bool(stack()) or modes() > 0 or in_forward_mode()


def transforms() -> list[str]:
    """The transforms of `torch.func` that are under way, from the outermost: "Grad", "Jvp", "Vmap" and others.

    Without `get_interpreter_stack`: as if all were, and twice.
    """
    stack = get("get_interpreter_stack")
    return 2 * ["Grad", "Jvp", "Vmap"] if stack is None else [level.key().name for level in stack() or ()]


def is_of_backward(x: Tensor) -> bool:
    """Whether `backward`, outside of all transforms, takes a derivative of this. Without what unwraps tensors: as if it did."""
    is_wrapped, unwrapped = map(get, ("is_functorch_wrapped_tensor", "get_unwrapped"))
    if is_wrapped is None or unwrapped is None:
        return True
    while is_wrapped(x):
        x = unwrapped(x)
    return x.requires_grad


def is_tracked(x: Tensor) -> bool:
    """Whether a derivative is being taken of this, by any of the transforms that are under way.

    Without what unwraps tensors: by the innermost.
    """
    is_wrapped, unwrapped = map(get, ("is_functorch_wrapped_tensor", "get_unwrapped"))
    while not x.requires_grad and is_wrapped is not None and unwrapped is not None and is_wrapped(x):
        x = unwrapped(x)
    return x.requires_grad


def asks_for_values() -> tuple[type[Exception], ...]:
    """The exceptions of a trace of what asks for the value of a tensor."""
    names = ("DataDependentOutputException", "DynamicOutputShapeException")
    return tuple(error for error in map(get, names) if error is not None)


def mistakes_devices() -> tuple[type[Exception], ...]:
    """The exception of a trace where tensors seem to be on several devices; without what mends that, none."""
    error, mode = map(get, ("FakeTensorDeviceMismatchError", "TorchDispatchMode"))
    return () if error is None or mode is None else (error,)


def patched(config: Any, settings: Mapping[str, Any]) -> Any:
    """A context with these settings of a part of torch; what it does not know any more, stays as it is."""
    return config.patch({name: value for name, value in settings.items() if _has(config, name)})


def _has(config: Any, name: str) -> bool:
    first, *rest = name.split(".")
    return hasattr(config, first) and (not rest or _has(getattr(config, first), ".".join(rest)))


def partition(graph: fx.GraphModule, inputs: Sequence[Any], outputs: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and the backward part of a joint graph, whose forward part has so many outputs."""
    function = get("partition_fn") or __getattr__("min_cut_rematerialization_partition")
    return function(graph, inputs, num_fwd_outputs=outputs)


def name_as_joint(holders: Sequence[fx.Node], count: int) -> None:
    """Name the inputs of a joint graph, the first `count` of which are the forward part's, as `partition` tells them apart."""
    for i, node in enumerate(holders):
        node.name = node.target = f"primals_{i + 1}" if i < count else f"tangents_{i + 1 - count}"


def forget_passes(node: fx.Node) -> None:
    """Take away what marks a node as part of a backward pass, for `partition`. Without these keys there is nothing to forget."""
    node.meta.pop("partitioner_tag", None)
    node.meta.pop("autograd_backward", None)


def compute_again(node: fx.Node) -> None:
    """Have `partition` compute a node again rather than keep it. Without these keys it may be kept."""
    node.meta["recompute"], node.meta["ac_graph_id"] = CheckpointPolicy.MUST_RECOMPUTE, 0


def keep_strides(output: fx.Node, count: int) -> None:
    """Have the compiler return so many outputs with the strides of the trace."""
    output.meta["user_visible_output_idxs"] = list(range(count))


def store(node: fx.Node) -> None:
    """Have the compiler store a node rather than compute it for every element that asks. Without this key: slower."""
    node.meta["inductor_realize_to_strides"] = True


# --- Lists of tensors ----------------------------------------------------------------------------------------------------


def foreach_functions() -> Mapping[str, Callable[..., Any]]:
    """The functions `torch._foreach_*` by the rest of their names. What is not among them goes from tensor to tensor.

    Those that end with an underscore write to their first list. They are called through `torch`, not `torch.ops`, whose Python
    wrapper costs as much as a small copy.
    """
    return {name.removeprefix("_foreach_"): function for name, function in vars(torch).items() if name.startswith("_foreach_")}


# --- The code that Inductor writes around a kernel on the host -----------------------------------------------------------

# What a wrapper of one kernel does besides calling it: take its arguments, read the length, make room for sums.
WRAPPING = {"clear", "size", "empty_strided_cpu", "torch", "float64"}


def wrapper_of(compiled: Any) -> Any:
    """The wrapper's function, of what `compile_fx_inner` returned. Where it is another: an exception (see `direct`)."""
    return compiled.current_callable.__func__


def called_alone(compiled: Any) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """What `compile_fx_inner` returned, without the profiler's label around it: 5 µs a call (another way: with it)."""
    return getattr(compiled, "current_callable", None) or compiled


def is_kernel(name: str) -> bool:
    """Whether a wrapper calls a kernel by such a name."""
    return name.startswith("cpp_fused")
