"""The template base class, weight decay as an object, and the ways between `step_param` and rules."""

import copy
import io
import math
import pickle

import pytest
import torch
from trajectories import (
    FLOAT32,
    FLOAT64,
    assert_params_close,
    assert_unchanged,
    drifting_gradient,
    set_gradients,
    snapshot,
    start_params,
    walk_together,
)

import functional_optim as fo
from functional_optim.adapters import (
    GenericAdaptiveOptimizer,
    OptimizerAdapter,
    WeightDecay,
    as_lr_scheduler,
    as_optimizer_class,
    as_transform,
)
from functional_optim.testing import LAWS, Trial, check_law, default_params

NO_DECAY = WeightDecay()


class PaperAdam(GenericAdaptiveOptimizer):
    """Adam line by line from the paper, in place, as such code is written: numbers on the host, tensors overwritten."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=NO_DECAY, amsgrad=False, defaults=None):
        defaults = {} if defaults is None else defaults
        defaults.update(weight_decay.defaults())
        defaults.update(amsgrad=amsgrad)
        super().__init__(params, defaults, lr, betas, eps)
        self.weight_decay = weight_decay

    def init_state(self, state, group, param):
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def moments(self, state, group, grad):
        beta1, beta2 = group["betas"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
        return m, v

    def step_param(self, state, group, grad, param):
        grad = self.weight_decay(param, grad, group)
        m, v = self.moments(state, group, grad)
        state["step"] += 1
        correction1, correction2 = (1 - beta ** state["step"] for beta in group["betas"])
        denominator = (v.sqrt() / math.sqrt(correction2)).add_(group["eps"])
        param.data.addcdiv_(m, denominator, value=-group["lr"] / correction1)


class PureAdam(PaperAdam):
    """The same without what no batched or traced number can go through: `alpha`, `value`, `out` and `math`."""

    def moments(self, state, group, grad):
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_((1 - beta1) * grad)
        state["exp_avg_sq"].mul_(beta2).add_((1 - beta2) * grad * grad)
        return state["exp_avg"], state["exp_avg_sq"]

    def step_param(self, state, group, grad, param):
        grad = self.weight_decay(param, grad, group)
        m, v = self.moments(state, group, grad)
        state["step"] += 1
        correction1, correction2 = (1 - beta ** state["step"] for beta in group["betas"])
        param.data.sub_(group["lr"] * m / correction1 / ((v / correction2).sqrt() + group["eps"]))


class L1(WeightDecay):
    """Another penalty; no optimizer knows of it."""

    def __call__(self, param, grad, group):
        return grad + group["weight_decay"] * param.data.sign()


class Descent(GenericAdaptiveOptimizer):
    """The plainest optimizer, which keeps a record of the calls."""

    def __init__(self, params, lr=0.5):
        super().__init__(params, {"note": "kept"}, lr, (0.9, 0.999), 1e-8)
        self.calls = []

    def init_state(self, state, group, param):
        self.calls.append(("init", dict(state), group["note"], param))
        state["previous"] = torch.zeros_like(param)

    def step_param(self, state, group, grad, param):
        self.calls.append(("step", set(state), group["note"], param))
        state["previous"].copy_(grad)
        param.data.add_(grad, alpha=-group["lr"])


def two_groups(dtype=torch.float64):
    a, b, c, d = start_params(dtype)
    return [{"params": [a, b], "lr": 0.1}, {"params": [c, d], "lr": 0.02, "betas": (0.5, 0.6), "weight_decay": 0.2}]


def params_in(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def advance(optimizer, steps, first=0):
    for t in range(first, first + steps):
        set_gradients(params_in(optimizer), t)
        optimizer.step()


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# An optimizer written against the interface.


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_papers_adam_retraces_torch(amsgrad, dtype, tolerance):
    decay = WeightDecay(0.1, weight_decouple=False)
    ours = PaperAdam(two_groups(dtype), weight_decay=decay, amsgrad=amsgrad)
    theirs = torch.optim.Adam(two_groups(dtype), weight_decay=0.1, amsgrad=amsgrad)
    walk_together(ours, theirs, 50, tolerance)


def test_with_decoupled_decay_it_retraces_adamw():
    ours, theirs = PaperAdam(two_groups(), weight_decay=WeightDecay(0.1)), torch.optim.AdamW(two_groups(), weight_decay=0.1)
    walk_together(ours, theirs, 50, FLOAT64)


def test_the_methods_are_called_in_order_and_only_where_there_is_a_gradient():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = Descent([{"params": [a]}, {"params": [b], "note": "own"}])
    assert optimizer.calls == [] and not optimizer.state
    a.grad = torch.ones(2)
    optimizer.step()
    b.grad = torch.ones(2)
    optimizer.step()
    assert [(what, seen, note, id(param)) for what, seen, note, param in optimizer.calls] == [
        ("init", {}, "kept", id(a)),
        ("step", {"previous"}, "kept", id(a)),
        ("step", {"previous"}, "kept", id(a)),
        ("init", {}, "own", id(b)),
        ("step", {"previous"}, "own", id(b)),
    ]
    assert a.tolist() == [0, 0] and b.tolist() == [0.5, 0.5]


def test_without_overrides_nothing_happens():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = GenericAdaptiveOptimizer([p], {}, 0.1, (0.9, 0.99), 1e-8)
    p.grad = torch.ones(2)
    assert optimizer.step() is None
    assert p.tolist() == [1, 1] and not optimizer.state[p]
    assert optimizer.defaults == {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


def test_the_closure_runs_with_gradients_and_its_loss_is_returned():
    p = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = Descent([p])

    def closure():
        optimizer.zero_grad()
        loss = p * p
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9 and p.item() == 0


def test_the_gradient_is_not_the_template_s_to_change_and_has_no_graph():
    seen = []

    class Nosy(Descent):
        def step_param(self, state, group, grad, param):
            seen.append((grad.requires_grad, torch.is_grad_enabled()))
            super().step_param(state, group, grad, param)

    p = torch.nn.Parameter(torch.tensor(3.0))
    (p.grad,) = torch.autograd.grad(p**3, p, create_graph=True)
    before = p.grad.clone()
    Nosy([p]).step()
    assert seen == [(False, False)] and torch.equal(p.grad, before)


def test_the_callers_defaults_are_not_changed():
    defaults = {"note": 1}
    optimizer = GenericAdaptiveOptimizer([torch.nn.Parameter(torch.ones(1))], defaults, 0.1, (0.9, 0.99), 1e-8)
    assert defaults == {"note": 1} and optimizer.param_groups[0]["note"] == 1


def test_autograd_notices_that_the_parameter_was_written():
    p = torch.nn.Parameter(torch.tensor(3.0))
    loss = p * p
    p.grad = torch.tensor(1.0)
    Descent([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_under_schedulers_of_torch_and_of_ours():
    ours, theirs = PaperAdam(two_groups(), weight_decay=WeightDecay(0.1)), torch.optim.AdamW(two_groups(), weight_decay=0.1)
    cycles = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=31) for o in (ours, theirs)]
    walk_together(ours, theirs, 20, FLOAT64, cycles)
    others = [as_lr_scheduler(o, fo.linear(0.1, 0.0, 10)) for o in (ours, theirs)]
    walk_together(ours, theirs, 10, FLOAT64, others)


# Bad input.


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": math.nan}, "Invalid learning rate: nan"),
        ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1.0"),
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"betas": (1.0, 0.999)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"betas": (0.9, 0.9, 1.5)}, "Invalid beta parameter at index 2: 1.5"),
    ],
)
def test_numbers_out_of_range(numbers, message):
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=f"^{message}$"):
        PaperAdam([p], **numbers)
    with pytest.raises(ValueError, match=rf"^param_groups\[0\]: {message}$"):
        PaperAdam([{"params": [p], **numbers}])
    optimizer = PaperAdam([p])
    with pytest.raises(ValueError, match=rf"^param_groups\[1\]: {message}$"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], **numbers})
    assert len(optimizer.param_groups) == 1


def test_zero_is_in_range():
    PaperAdam([torch.nn.Parameter(torch.ones(1))], lr=0, betas=(0.0, 0.0), eps=0)


def test_a_sparse_gradient_is_refused_before_anything_changes():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = PaperAdam([a, b])
    a.grad, b.grad = torch.ones(3), torch.ones(3).to_sparse()
    before = snapshot(optimizer)
    message = "^GenericAdaptiveOptimizer does not support sparse gradients, please consider SparseAdam instead$"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert_unchanged(optimizer, before)


# Weight decay.


def test_the_flavours_of_weight_decay():
    group = {"lr": 0.5, "weight_decay": 0.1}
    grad = torch.tensor([1.0, -1.0]).double()
    for options, expected, returned in (
        ({}, [3.8, -1.9], [1.0, -1.0]),  # 1 − 0.5 · 0.1
        ({"absolute": True}, [3.6, -1.8], [1.0, -1.0]),  # 1 − 0.1
        ({"weight_decouple": False}, [4.0, -2.0], [1.4, -1.2]),
        ({"weight_decouple": False, "absolute": True}, [4.0, -2.0], [1.4, -1.2]),
    ):
        param = torch.nn.Parameter(torch.tensor([4.0, -2.0]).double())
        found = WeightDecay(0.1, **options)(param, grad, group)
        assert param.tolist() == pytest.approx(expected, rel=1e-15) and found.tolist() == pytest.approx(returned, rel=1e-15)
        assert grad.tolist() == [1, -1]


@pytest.mark.parametrize("decouple", [True, False])
def test_a_decay_of_0_does_nothing(decouple):
    param, grad = torch.nn.Parameter(torch.tensor([math.inf, -0.0])), torch.ones(2)
    assert WeightDecay(weight_decouple=decouple)(param, grad, {"lr": 1.0, "weight_decay": 0.0}) is grad
    assert param.tolist() == [math.inf, 0]


def test_a_decay_may_be_a_tensor():
    param = torch.nn.Parameter(torch.tensor(4.0))
    WeightDecay()(param, torch.tensor(0.0), {"lr": 0.5, "weight_decay": torch.tensor(0.5)})
    assert param.item() == 3


def test_the_default_decay_is_that_of_the_groups_and_must_not_be_negative():
    assert WeightDecay(0.3).defaults() == {"weight_decay": 0.3} and WeightDecay().defaults() == {"weight_decay": 0.0}
    optimizer = PaperAdam(two_groups(), weight_decay=WeightDecay(0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.2]
    with pytest.raises(ValueError, match="^Invalid weight_decay value: -0.1$"):
        WeightDecay(-0.1)
    assert WeightDecay(0.1) == WeightDecay(0.1) != WeightDecay(0.1, absolute=True)


def test_another_penalty_needs_no_change_to_the_optimizer():
    class SignDecayedAdam(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = p.grad + 0.1 * p.detach().sign()
            return super().step(closure)

    ours = PaperAdam(start_params(), lr=0.1, weight_decay=L1(0.1))
    walk_together(ours, SignDecayedAdam(start_params(), lr=0.1), 50, FLOAT64)


# Checkpoints and copies.


def reloaded(optimizer, make):
    groups = [{**g, "params": [torch.nn.Parameter(p.detach().clone()) for p in g["params"]]} for g in optimizer.param_groups]
    other = make(groups)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return other


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
        lambda optimizer: reloaded(optimizer, lambda groups: PaperAdam(groups, weight_decay=WeightDecay(0.1, absolute=True))),
    ],
    ids=["deepcopy", "pickle", "checkpoint"],
)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_copy_goes_on_bit_by_bit(copied, steps):
    optimizer = PaperAdam(two_groups(), weight_decay=WeightDecay(0.1, absolute=True))
    advance(optimizer, steps)
    other = copied(optimizer)
    assert other.weight_decay == optimizer.weight_decay
    for each in (optimizer, other):
        advance(each, 9, steps)
    assert_params_close(params_in(other), params_in(optimizer), 0)
    assert all(other.state[p]["step"] == steps + 9 for p in params_in(other))


def test_a_scheduled_optimizer_can_be_copied():
    optimizer = PaperAdam(two_groups())
    scheduler = as_lr_scheduler(optimizer, fo.constant(0.1))
    advance(optimizer, 1)
    scheduler.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before = [p.detach().clone() for p in params_in(optimizer)]
        advance(other, 1, 1)
        assert_params_close(params_in(optimizer), before, 0)
        assert all(other.state[p]["step"] == 2 for p in params_in(other))


def test_the_state_keeps_its_dtypes():
    class Wide(PaperAdam):
        def init_state(self, state, group, param):
            state.update(step=torch.tensor(0.0), m=torch.zeros_like(param, dtype=torch.float32), flags=[True])

        def step_param(self, state, group, grad, param):
            state["m"].add_(grad.float(), alpha=1e-3)

    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Wide([p])
    advance(optimizer, 3)
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    other, seen = Wide([q]), []
    other.register_load_state_dict_post_hook(lambda o: seen.append(o.state[q]["m"].dtype))
    state = optimizer.state_dict()
    other.load_state_dict(state)
    assert other.state[q]["m"].dtype == torch.float32 and torch.equal(other.state[q]["m"], optimizer.state[p]["m"])
    assert other.state[q]["m"] is not optimizer.state[p]["m"] and other.state[q]["flags"] == [True]
    assert seen == [torch.float32]
    assert not other._optimizer_load_state_dict_pre_hooks and len(other._optimizer_load_state_dict_post_hooks) == 1


# A rule as a class.

TRANSFORMS = {
    "adam": fo.adam(lr=0.1),
    "adamw, amsgrad": fo.adamw(amsgrad=True),
    "sgd": fo.sgd(momentum=0.9, weight_decay=0.1),
    "lion": fo.chain(fo.scale_by_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate()),
    "two traces": fo.chain(fo.trace(0.5), fo.trace(0.5), fo.scale(-0.1)),
    "scheduled": fo.scheduled(fo.adam(), lr=fo.linear(0.3, 0.1, 9)),
    "renamed": fo.chain(fo.scale_by_adam(), fo.rename_hparams(fo.scale_by_learning_rate(0.1), lr="eta")),
}
every_transform = pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS.keys())


@every_transform
def test_a_class_made_of_a_transform_steps_as_the_adapter_does(tx):
    ours, reference = as_optimizer_class(tx)(two_groups()), OptimizerAdapter(two_groups(), tx)
    # The adapter multiplies by reciprocals of scalars where the rule divides.
    walk_together(ours, reference, 30, FLOAT64)
    for p, q in zip(params_in(ours), params_in(reference), strict=True):
        assert ours.state[p].keys() == reference.state[q].keys()


def test_its_arguments_are_the_hyper_parameters():
    cls = as_optimizer_class(fo.adamw())
    assert issubclass(cls, GenericAdaptiveOptimizer) and cls.__name__ == "adamw"
    optimizer = cls(two_groups(), lr=0.3, eps=1e-3)
    walk_together(optimizer, torch.optim.AdamW(two_groups(), lr=0.3, eps=1e-3), 30, FLOAT64)
    assert optimizer.defaults == {"betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.01, "lr": 0.3}


def test_a_factor_of_its_rate_is_driven_saved_and_loaded_as_the_adapters():
    tx = TRANSFORMS["scheduled"]
    cls = as_optimizer_class(tx)
    ours, reference = cls(start_params()), OptimizerAdapter(start_params(), tx)
    for each in (ours, reference):
        assert each.param_groups[0]["lr"] == 1.0 and each.param_groups[0]["lr_is_factor"] is True
        scheduler = torch.optim.lr_scheduler.ExponentialLR(each, 0.5)
        advance(each, 1)
        scheduler.step()
        with pytest.warns(
            UserWarning, match=r"param_groups\[0\]: something drives lr, which is 0.5 now; .*the two multiply"
        ) as seen:
            advance(each, 2, first=1)
        assert len(seen) == 1
    assert_params_close(params_in(ours), params_in(reference), FLOAT64)
    for again in (copy.deepcopy(ours), cls(params_in(copy.deepcopy(ours)))):
        again.load_state_dict(through_a_file(ours.state_dict()))
        assert again.param_groups[0]["lr"] == 0.5
        again._watch.is_over = True
        advance(again, 1, first=3)
    advance(reference, 1, first=3)
    assert_params_close(params_in(again), params_in(reference), FLOAT64)
    rated = as_optimizer_class(fo.adam())(start_params(), lr=0.3)
    advance(rated, 1)
    with pytest.warns(UserWarning, match=r"lr = 0.3 .* is a learning rate, and here it is a factor .*, which stays 0.5"):
        again.load_state_dict(rated.state_dict())


def test_its_methods_can_be_overridden():
    class Negated(as_optimizer_class(fo.adam(lr=0.1))):
        def step_param(self, state, group, grad, param):
            super().step_param(state, group, -grad, param)

    walk_together(Negated(start_params()), torch.optim.Adam(start_params(), lr=0.1, maximize=True), 20, FLOAT64)


@fo.elementwise(slots=("previous",), hparams={"lr": 0.1})
def delayed(hp):
    """Steps along the last gradient: what it returns as the update is the slot that it got, and as the slot the gradient."""

    def rule(g, p, previous):
        return previous, g

    return rule


def test_a_rule_that_returns_its_inputs_is_not_overwritten():
    p = torch.nn.Parameter(torch.tensor(0.0))
    optimizer = as_optimizer_class(delayed())([p])
    found = []
    for g in (1.0, 2.0, 4.0):
        p.grad = torch.tensor(g)
        optimizer.step()
        found.append(p.item())
    assert found == [0, 1, 3] and p.grad.item() == 4


Lion = as_optimizer_class(TRANSFORMS["lion"])


class NamedLion(Lion):
    """A subclass, which a pickle finds by its name."""


@pytest.mark.parametrize("cls", [Lion, NamedLion])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
        lambda optimizer: reloaded(optimizer, lambda groups: type(optimizer)(groups)),
    ],
    ids=["deepcopy", "pickle", "checkpoint"],
)
@pytest.mark.parametrize("steps", [0, 7])
def test_a_copy_of_such_an_optimizer_goes_on_bit_by_bit(cls, copied, steps):
    optimizer = cls(two_groups())
    advance(optimizer, steps)
    other = copied(optimizer)
    assert isinstance(other, GenericAdaptiveOptimizer) and (cls is Lion or type(other) is cls)
    for each in (optimizer, other):
        advance(each, 9, steps)
    assert_params_close(params_in(other), params_in(optimizer), 0)


def test_numbers_of_such_an_optimizer_are_checked():
    with pytest.raises(ValueError, match=r"lr = -1 is outside \[0, inf\)"):
        Lion([torch.nn.Parameter(torch.ones(1))], lr=-1)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: betas\[1\] = 1.0 is outside \[0, 1\)"):
        Lion([{"params": [torch.nn.Parameter(torch.ones(1))], "betas": (0.9, 1.0)}])
    with pytest.raises(ValueError, match="has no hyper-parameter 'learning_rate'"):
        Lion([torch.nn.Parameter(torch.ones(1))], learning_rate=0.1)


@pytest.mark.parametrize(
    "tx, name",
    [
        (fo.chain(fo.clip_by_global_norm(), fo.adam()), "chain.clip_by_global_norm"),
        (fo.Transform(lambda params, hp: {}, lambda u, s, p, hp: (u, s), name="by_hand"), "by_hand"),
        (fo.chain(fo.trace(), fo.apply_if_finite(fo.adam())), "chain.apply_if_finite"),
        (fo.whole_tree(name="together")(lambda hp: lambda gs, ps, shared: (gs, {}))(), "together"),
    ],
)
def test_what_looks_at_all_parameters_is_refused(tx, name):
    with pytest.raises(ValueError, match=f"{name} may look at all parameters together, but step_param sees one"):
        as_optimizer_class(tx)


def test_a_constructor_is_no_transform():
    with pytest.raises(TypeError, match=r"Did you mean to call it, adam\(\)\?"):
        as_optimizer_class(fo.adam)


# A class as a rule.


@pytest.mark.parametrize("decay", [WeightDecay(0.1), WeightDecay(0.1, weight_decouple=False), L1(0.1)])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
def test_a_transform_made_of_a_class_computes_what_the_class_does(decay, amsgrad, dtype, tolerance):
    tx = as_transform(PaperAdam, weight_decay=decay, amsgrad=amsgrad)
    optimizer = PaperAdam(start_params(dtype), weight_decay=decay, amsgrad=amsgrad)
    params = {str(i): p.detach().clone() for i, p in enumerate(start_params(dtype))}
    state = tx.init_state(params)
    for t in range(30):
        advance(optimizer, 1, t)
        grads = {key: drifting_gradient(p, t, int(key)) for key, p in params.items()}
        u, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, u)
        # What is added is the difference of two parameters, rounded once more.
        assert_params_close(list(params.values()), params_in(optimizer), tolerance)


def test_its_hyper_parameters_are_the_numbers_of_the_class():
    tx = as_transform(PaperAdam, lr=0.2, weight_decay=WeightDecay(0.1), amsgrad=True)
    assert tx.hparams == {"weight_decay": 0.1, "lr": 0.2, "betas": (0.9, 0.999), "eps": 1e-8}
    assert set(tx.init_state(torch.ones(2))) == {"steps", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    with pytest.raises(ValueError, match=r"betas\[0\] = 1.0 is outside \[0, 1\)"):
        tx.init_state(torch.ones(2), {"betas": (1.0, 0.9)})


def test_it_composes_and_takes_groups():
    ours = OptimizerAdapter(two_groups(), fo.chain(fo.clip_by_global_norm(0.7), as_transform(PaperAdam)))
    theirs = OptimizerAdapter(two_groups(), fo.chain(fo.clip_by_global_norm(0.7), fo.adamw(weight_decay=0.0)))
    walk_together(ours, theirs, 30, FLOAT64)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_it_keeps_the_laws(law):
    if law.__name__ == "derivatives_at_zero_are_finite":
        with pytest.raises(AssertionError, match="not finite at a gradient of 0"):
            check_law(law, Trial(as_transform(PureAdam), default_params()))  # It has torch's root.
    else:
        check_law(law, Trial(as_transform(PureAdam, weight_decay=WeightDecay(0.1)), default_params()))


def test_in_place_code_is_batched_as_far_as_its_operations_are():
    tx, params = as_transform(PaperAdam), torch.tensor([1.0, -2.0]).double()
    state = tx.init_state(params)
    several = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    _, state = tx.update(several[0], state, params)
    batched = torch.vmap(lambda g: tx.update(g, state, params)[0])(several)
    torch.testing.assert_close(batched, torch.stack([tx.update(g, state, params)[0] for g in several]), rtol=1e-14, atol=0)


class Counting(Descent):
    """Keeps numbers that are no tensors, and uses them as such."""

    def init_state(self, state, group, param):
        state.update(step=0, rate=0.5)

    def step_param(self, state, group, grad, param):
        self.calls.append((state["step"], state["rate"]))
        state["step"] += len(range(state["step"] + 1))
        state["rate"] *= 0.5
        param.data.add_(grad, alpha=-state["rate"])


def test_numbers_of_the_state_stay_numbers_to_the_class():
    made = []
    tx = as_transform(lambda params: made.append(Counting(params)) or made[0])
    params, state = torch.zeros(2), None
    for expected in (-0.25, -0.125, -0.0625):
        u, state = tx.update(torch.ones(2), state or tx.init_state(params), params)
        assert u.tolist() == [expected, expected]
    assert repr(made[0].calls) == "[(0, 0.5), (1, 0.25), (3, 0.125)]"
    assert state == {"steps": torch.tensor(7.0), "rate": torch.tensor(0.0625)}
    assert state["steps"].dtype == torch.float64


def test_a_pickled_one_goes_on():
    tx = as_transform(PaperAdam, weight_decay=L1(0.1))
    other = pickle.loads(pickle.dumps(tx))
    params, g = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0])
    state = tx.init_state(params)
    assert torch.equal(tx.update(g, state, params)[0], other.update(g, state, params)[0])
    assert other.hparams == tx.hparams and other.name == tx.name == "PaperAdam"


@every_transform
def test_there_and_back_is_the_transform(tx):
    back = as_transform(as_optimizer_class(tx))
    # Of a transform without one, the class's `lr` is a factor.
    assert {name: tuple(x) if isinstance(x, list) else x for name, x in back.hparams.items()} == {"lr": 1.0, **tx.hparams}
    walk_together(OptimizerAdapter(two_groups(), back), OptimizerAdapter(two_groups(), tx), 10, FLOAT64)


class Listing(Descent):
    """Keeps what is neither tensor nor number."""

    def init_state(self, state, group, param):
        state["seen"] = []


class ByShape(Descent):
    """Keeps other things for vectors than for matrices."""

    def init_state(self, state, group, param):
        state["rows" if param.ndim == 2 else "all"] = torch.zeros(())

    def step_param(self, state, group, grad, param):
        state["more"] = torch.zeros(())


def test_what_can_be_no_transform_says_so():
    with pytest.raises(TypeError, match=r"as_transform: state\['seen'\] is a list: expected a tensor or a number"):
        as_transform(Listing)
    with pytest.raises(TypeError, match="as_transform: a SGD is no GenericAdaptiveOptimizer"):
        as_transform(torch.optim.SGD)
    tx = as_transform(ByShape)
    message = r"after init_state of a parameter of shape \(3,\) the state holds \['all'\], for a parameter .* \['rows'\]"
    with pytest.raises(ValueError, match=message):
        tx.init_state(torch.zeros(3))
    with pytest.raises(ValueError, match=r"after step_param the state holds \['more', 'rows'\]"):
        tx.update(torch.zeros(3, 3), tx.init_state(torch.zeros(3, 3)), torch.zeros(3, 3))
