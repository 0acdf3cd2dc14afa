"""`OptimizerAdapter`: any transform behind `torch.optim.Optimizer`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim.combinators.rounding import with_rounding
from functional_optim.direction import warn_if_uphill
from functional_optim.recipe import explained
from functional_optim.transform import Transform

from . import user
from .arguments import given_params, require_work
from .engine.placement import Copies
from .engine.snapshot import Present
from .leaves import Group, Numbered, stepped_of
from .state.groups import defaults_of
from .state.layout import Key
from .state.names import keys_of
from .state.rates import Rates, Watch, rates_of
from .transform_optimizer import TransformOptimizer


@explained
class OptimizerAdapter(TransformOptimizer):
    """A `torch.optim.Optimizer` that steps with a transform.

    A parameter group is a mapping of hyper-parameters: whatever a scheduler or a person writes there is what the next step uses.
    Groups may differ in any hyper-parameter, yet they are one tree to the transform: a global norm spans them all.

    Every group has an `lr`, which torch's schedulers and other people's programs drive. It is the learning rate where the
    transform has one, or where you give one for all its branches. Else, where schedules give the rate or branches have rates of
    their own, it is a factor of them all, 1 at first: then `group["lr_is_factor"]` is True. See `with_lr_factor`. A checkpoint
    that means the other by `lr` leaves it alone, with a warning.

    On the host a step is cut into stages: elementwise rules run with torch's in-place operations, over lists of small tensors and
    blocks of large ones; a rule that needs a tensor's shape is called for each, and what is no rule is called as it is, on its
    own part of the state. Steps that `accumulate`, `apply_if_finite`, `skip_large_updates` or `conditionally` leave out are not
    computed. Where nothing else is there, or elsewhere than on the host, the transform itself is called. The numbers agree to
    rounding; `explain()` says what is run how, and why.

    `state[p]` is a flat dict of tensors under torch's names, with a step count per parameter: one without a gradient is
    skipped, gets no state, and its count stands still. What a wrapper keeps for all, such as the clock of a schedule, is one
    value for all parameters, whoever has a gradient, as in the pure function; each parameter's state holds a copy. Where none
    has a gradient, `step` does nothing, as torch's does: clocks stand still then, while the pure function's go on.

    Of sharded parameters (`DTensor`, from FSDP2's `fully_shard` or tensor parallelism) the slots are sharded alike. Elementwise
    rules run on the shards of each process, and send nothing; the sums that a link asks for, such as a global norm, take one
    message for each mesh of processes. Where a rule needs a tensor's shape, each tensor has an owner: the others send it their
    shards, and get theirs of the result. (What is cut along several dimensions of a mesh, and what is no rule, is gathered and
    computed by all.) Each process has to have gradients for the same parameters. `ZeroRedundancyOptimizer` shows a process some
    of the parameters only, whose norm a chain would take for that of all: clip before the step there.

    Args:
        params: tensors, (name, tensor) pairs such as `model.named_parameters()`, or groups: dicts with `params` and
            hyper-parameters of their own.
        transform: any transform, such as `chain(...)` or `adamw()`.
        fused: run elementwise rules as compiled kernels that touch every tensor once, compiled at the first step; the numbers are
            the same to rounding. Where that is impossible for a link, or for a parameter (no compiler, an unsupported device), it
            warns once, names what it concerns, and steps that eagerly, as it does without `fused`.
        owners: under DistributedDataParallel, where each process has all parameters, share rules that need shapes out among all
            processes: each computes some of the tensors, and sends the others what comes out. Of sharded parameters each has an
            owner anyway.
        rounding: how parameters of low precision are rounded after a step: `"nearest"`, `"stochastic"`, `"error_bits"`, `"kahan"`
            or `"master_copy"`; see `with_rounding`, which is what `transform` becomes.
        hparams: defaults for groups that don't give their own; the transform's for the rest.

    Raises:
        TypeError: `transform`, `fused`, `owners` or a hyper-parameter is not of the right type.
        ValueError: a hyper-parameter is unknown, or, here or in a group, out of range; the transform is an empty chain; or it
            does not take these parameters, such as one that a partition has no label for.
            Keys of a group that are no hyper-parameters are kept and ignored, as in torch; of a misspelt one it warns.

    It warns, `functional_optim.direction.UphillWarning`, of a transform whose updates point uphill: where no link turns the sign,
    or two do, or weight decay stands behind the learning rate. A chain that begins with `negate()` climbs on purpose.

    >>> import torch
    >>> import functional_optim as fo
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> tx = fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate())
    >>> optimizer = OptimizerAdapter([w], tx, lr=1.0)
    >>> (w @ w).backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([2.4000, 3.2000])
    """

    is_chain = True
    owners = False
    _is_made = False
    _rates: Rates
    _watch: Watch

    def __init__(
        self,
        params: Iterable[Any],
        transform: Transform,
        *,
        fused: bool | None = None,
        owners: bool = False,
        rounding: str = "nearest",
        **hparams: Any,
    ) -> None:
        params = given_params(params)
        require_work(transform)
        transform = with_rounding(transform, rounding)
        self.transform = transform
        self.fused = fused
        self.owners = owners
        defaults = defaults_of(transform, hparams)
        self._rates = rates_of(transform, hparams, params)
        self._watch = Watch(self._rates)
        super().__init__(params, {**defaults, **self._rates.defaults})
        everyone = self._checked_parameters()
        self._is_made = True
        if everyone is not None:
            # `explained` is a frame, too.
            warn_if_uphill(self._rates.transform, everyone, self._rates.hparams_of(self.defaults), stacklevel=3)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; see `TransformOptimizer`.

        Raises:
            TypeError, ValueError: also where the transform does not take these parameters, such as one that has no label.
        """
        factor = param_group.get("lr") if isinstance(param_group, dict) else None  # torch fills in the defaults.
        super().add_param_group(param_group)
        if self._is_made:
            try:
                self._checked_parameters()
            except Exception:
                self.param_groups.pop()
                raise
            if factor is not None and self._rates.factor and "lr" in self.transform.declared:
                user.warn(
                    f"param_groups[{len(self.param_groups) - 1}]: lr = {factor} is a factor of the branches' own rates, "
                    "as in the groups before, which gave none. For a rate, give one when the optimizer is made."
                )
        self._watch.admit(self.param_groups[-1])

    def _checked_parameters(self) -> dict[Key, Tensor] | None:
        """All parameters, which suit the transform; None while some have no shape yet, which then is for the first step."""
        everyone = {key: p for index, group in enumerate(self.param_groups) for key, p in keys_of(index, group)}
        if any(is_lazy(p) for p in everyone.values()):
            return None
        try:
            self.transform.form.check(everyone)
            self.transform.form.check_each(stepped_of(everyone))
        except ValueError as error:
            advice = " Parameters have no names here: pass model.named_parameters()."
            raise ValueError(f"{error}{'' if any(key.name for key in everyone) else advice}") from None
        return everyone

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """The one transform, for every group: as given, or with a factor of its learning rates."""
        return self._rates.transform

    def hparams_of(self, transform: Transform, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """The complete hyper-parameters of a group, validated; its `lr` may be a factor."""
        return self._rates.hparams_of(group)

    def entry_of(self, name: str) -> str:
        """What a hyper-parameter is called in a group: a factor of all rates `lr`."""
        return self._rates.entry(name)

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Callable[[], None]:
        """The step, computed; what is returned writes it down. Of a factor that something drives it warns, once."""
        for index, group in () if self._watch.is_over else groups:
            self._watch.look(index, group)
        return super().computed(transform, groups, closure, extra)

    def eval(self) -> None:
        """Put the parameters where they are to be evaluated, until `train()`; see `eval_params`. `step` is refused there."""
        self.evaluation.begin(self)

    def train(self) -> None:
        """Put the parameters back where they are trained.

        Raises:
            RuntimeError: inside `eval_params`, which puts them back itself.
        """
        self.evaluation.leave()

    def copies(self, present: Present) -> Copies | None:
        """All processes, where owners are asked for."""
        if not self.owners:
            return None
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError("owners=True shares work out among processes: call torch.distributed.init_process_group first.")
        return Copies(dist.group.WORLD, present.params[0].device)

    def is_fused(self, group: Mapping[str, Any]) -> bool:
        """Whatever the group: how to execute is no hyper-parameter, and no checkpoint changes it."""
        return bool(self.fused)
