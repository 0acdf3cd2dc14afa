"""Random chains under random edits: what an engine computes is what the transform itself computes, whatever is done in between.

Two optimizers over equal parameters get the same gradients and the same edits. One runs the engine under test, the other calls
the transform itself at every step; parameters, slots and counts agree after each. While nobody has edited the state or left out
a gradient, both also agree with the pure function, which knows nothing of optimizers.
"""

import copy
import io
import pickle
import re

import pytest
import torch
from cases import divide_by_average_norm
from engines import Plain
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import functional_optim as fo
from functional_optim import adapters
from functional_optim.adapters import OptimizerAdapter

# Some run as lists or packed, one in its own memory; a () tensor, one without elements.
SHAPES = [(3, 4), (5,), (), (0,), (40, 30)]
NAMES = ["wide", "short", "number", "nothing", "large"]

# Links whose numbers don't depend on the last digit of what comes in: ε is not tiny, and no sign decides.
LINKS = {
    "clip": lambda: fo.clip_by_global_norm(1.0),
    "clip value": lambda: fo.clip_by_value(0.7),
    "adam": lambda: fo.scale_by_adam(eps=0.1),
    "amsgrad": lambda: fo.scale_by_adam(eps=0.1, amsgrad=True),
    "trace": lambda: fo.trace(0.8),
    "nesterov": lambda: fo.trace(0.6, nesterov=True),
    "rms": lambda: fo.scale_by_rms(0.8, eps=0.1),
    "rows": divide_by_average_norm,
    "cautious": lambda: fo.cautious(fo.scale_by_adam(eps=0.1)),
    "signs": lambda: fo.with_gradient_signs(fo.trace(0.5)),
    "schedule": lambda: fo.scale_by_schedule(fo.linear(1.0, 0.5, 6)),
    "decay": fo.add_decayed_weights,
    "centralize": fo.centralize,
    "monitor": fo.monitor,
    "ema": lambda: fo.ema(0.7),
    "zero nans": fo.zero_nans,
    "belief": lambda: fo.scale_by_belief(eps=0.1, eps_root=0.1),
    "trust": lambda: fo.scale_by_trust_ratio(eps=0.1, min_norm=0.1),
    "nadam": lambda: fo.scale_by_nadam(eps=0.1),
    "stable": lambda: fo.scale_by_stable_adamw(eps=0.1),
    "usual norm": lambda: fo.clip_by_adagc(warmup_steps=2),
    "mars": fo.mars_correction,
    "prodigy": lambda: fo.scale_by_prodigy(d0=0.1, eps=0.1),
    "dog": lambda: fo.scale_by_dog(reps_rel=0.1, eps=0.1),
    "average": lambda: fo.average_iterates(t0=1.0),
    "plateau": lambda: fo.reduce_on_plateau(factor=0.5, patience=1),
    "polyak": lambda: fo.scale_by_polyak(eps=0.1),
}


def first_ones(step):
    return step < 3


def by_size(name, leaf):
    return "matrix" if leaf.ndim > 1 else "rest"


def is_no_number(name, leaf):
    return leaf.ndim > 0


def other_rate():
    return fo.rename_hparams(fo.scale_by_learning_rate(0.05), lr="other_lr")


def halve_gradients(optimizer, args, kwargs):
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.mul_(0.5)


def shrink_parameters(optimizer, args, kwargs):
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(0.99)


# What can be put around a chain that ends with a learning rate.
WRAPPERS = {
    "accumulate": lambda tx: fo.accumulate(tx, every=2),
    "finite": fo.apply_if_finite,
    "skip": lambda tx: fo.skip_large_updates(tx, largest_norm=50.0),
    "lookahead": lambda tx: fo.lookahead(tx, sync_period=2),
    "average": fo.ema_params,
    "conditionally": lambda tx: fo.conditionally(
        tx, first_ones, otherwise=fo.rename_hparams(fo.scale_by_learning_rate(0.05), lr="other_lr")
    ),
    "norms": fo.log_norms,
    "master": fo.with_master_copy,
    "scheduled": lambda tx: fo.scheduled(tx, lr=fo.linear(0.1, 0.01, 8)),
    "partition": lambda tx: fo.partition({"matrix": tx, "rest": fo.sgd(momentum=0.5, lr=0.05)}, by_size),
    "masked": lambda tx: fo.masked(tx, is_no_number),
    "renamed": lambda tx: fo.rename_hparams(tx, lr="step_size"),
    "schedule-free": fo.schedule_free,
}

chains = st.lists(st.sampled_from(sorted(LINKS)), max_size=3)
wrappers = st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=2, unique=True)


def built(links, around):
    """A chain of these links and a learning rate, in these wrappers; the first of two equal hyper-parameters keeps its name."""
    parts, taken = [], {"lr"}
    for i, name in enumerate(links):
        link = LINKS[name]()
        clash = {own: f"{own}_{i}" for own in link.declared if own in taken}
        link = fo.rename_hparams(link, **clash) if clash else link
        taken |= set(link.declared)
        parts.append(link)
    tx = fo.chain(*parts, fo.scale_by_learning_rate(0.1))
    for name in around:
        fits = "lr" in tx.declared and not (name == "schedule-free" and "momentum" in tx.declared)
        if fits or name not in ("scheduled", "renamed", "schedule-free"):
            tx = WRAPPERS[name](tx)
    return tx


def fresh(dtype):
    generator = torch.Generator().manual_seed(0)
    # The last one is float32 whatever the others are: several dtypes in one model.
    dtypes = [dtype] * (len(SHAPES) - 1) + [torch.float32]
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(own))
        for shape, own in zip(SHAPES, dtypes, strict=True)
    ]


def refusal_of(optimizer, value):
    """Step; or, after a group with other numbers was added, how a rule that wants one for all of them says so."""
    try:
        optimizer.step(value=value)
    except ValueError as error:
        found = re.search("takes one '[a-z_]+' for all parameters|They must be equal", str(error))
        if not (len(optimizer.param_groups) > 1 and found):
            raise
        return found[0]


class Edits(RuleBasedStateMachine):
    """Steps and edits of two optimizers, and of the pure function beside them while it can follow."""

    def make(self, params, transform):
        """An optimizer that runs the engine under test."""
        return OptimizerAdapter(params, transform)

    transforms = st.builds(built, chains, wrappers)

    @initialize(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32]))
    def start(self, data, dtype):
        self.tx = data.draw(self.transforms)
        self.optimizers = [
            make(list(zip(NAMES, fresh(dtype), strict=True)), self.tx) for make in (Plain, lambda p, tx: self.make(p, tx))
        ]
        self.time = 0
        self.names, self.scale = list(NAMES), {}
        self.pure = {n: p.detach().clone() for n, p in zip(NAMES, self.params(0), strict=True)}
        self.pure_state = self.tx.init_state(self.pure)
        self.follows = True

    def params(self, which):
        return [p for group in self.optimizers[which].param_groups for p in group["params"]]

    def both(self):
        return zip(self.params(0), self.params(1), strict=True)

    def edit_states(self, data, change):
        """Change the state of one parameter in both optimizers, if it has any."""
        i = data.draw(st.integers(0, len(self.names) - 1))
        for optimizer, p in zip(self.optimizers, (self.params(0)[i], self.params(1)[i]), strict=True):
            if optimizer.state.get(p):
                change(optimizer.state, p)
                self.follows = False

    @rule(missing=st.sets(st.integers(0, 6), max_size=2), kind=st.sampled_from(["plain", "plain", "transposed", "infinite"]))
    def step(self, missing, kind):
        generator = torch.Generator().manual_seed(self.time)
        self.time += 1
        grads = {}
        for i, (name, (p, q)) in enumerate(zip(self.names, self.both(), strict=True)):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            if kind == "infinite" and self.tx.name == "apply_if_finite" and g.numel():
                g.view(-1)[0] = torch.inf
            grads[name] = None if i in missing or not p.requires_grad else g
            p.grad = q.grad = None
            if grads[name] is not None:
                p.grad, q.grad = g.clone(), g.clone()
                if kind == "transposed" and g.ndim == 2:
                    q.grad = g.t().contiguous().t()
        value = 1 + 1 / self.time
        refusals = [refusal_of(optimizer, value) for optimizer in self.optimizers]
        assert len(set(refusals)) == 1, refusals
        if None in grads.values() or not self.follows:
            self.follows = False
            return
        hparams = {name: self.optimizers[0].param_groups[0][name] for name in self.tx.declared if name in self.given}
        updates, self.pure_state = self.tx.update(grads, self.pure_state, self.pure, hparams, value=value)
        self.pure = fo.apply_updates(self.pure, updates)

    given: frozenset[str] = frozenset()

    @rule(data=st.data(), factor=st.sampled_from([0.5, 0.9]), as_tensor=st.booleans())
    def set_hparam(self, data, factor, as_tensor):
        numbers = [n for n, v in self.tx.hparams.items() if isinstance(v, float) and n in self.optimizers[0].param_groups[0]]
        if not numbers:
            return
        name = data.draw(st.sampled_from(numbers))
        value = factor * float(self.optimizers[0].param_groups[0][name])
        for optimizer in self.optimizers:
            # One tensor for all groups: some hyper-parameters are one for all, and of tensors nobody asks whether they are equal.
            new = torch.tensor(value, dtype=torch.float64) if as_tensor else value
            for group in optimizer.param_groups:
                group[name] = new
        self.given = self.given | {name}

    @rule(factor=st.sampled_from([0.5, 0.9]))
    def fill_tensor_hparam(self, factor):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for value in {id(v): v for v in group.values() if isinstance(v, torch.Tensor)}.values():
                    value.mul_(factor)

    @rule(data=st.data())
    def scale_slot(self, data):
        def change(state, p):
            for name, slot in state[p].items():
                if slot.shape == p.shape and slot.is_floating_point() and not name.endswith("step"):
                    slot.mul_(0.5)

        self.edit_states(data, change)

    @rule(data=st.data())
    def replace_slot(self, data):
        def change(state, p):
            state[p] = {name: slot.clone() for name, slot in state[p].items()}

        self.edit_states(data, change)

    @rule(data=st.data())
    def drop_state(self, data):
        self.edit_states(data, lambda state, p: state.pop(p))

    @rule(data=st.data(), count=st.sampled_from([1, 30]))
    def set_count(self, data, count):
        def change(state, p):
            if "step" in state[p]:
                state[p]["step"].fill_(count)

        self.edit_states(data, change)

    @rule(data=st.data())
    def transpose(self, data):
        i = data.draw(st.integers(0, len(self.names) - 1))
        for p in (self.params(0)[i], self.params(1)[i]):
            if p.ndim == 2:
                p.data = p.data.t().contiguous().t() if p.is_contiguous() else p.data.contiguous()

    @rule(data=st.data())
    def freeze_or_thaw(self, data):
        i = data.draw(st.integers(0, len(self.names) - 1))
        for p in (self.params(0)[i], self.params(1)[i]):
            p.requires_grad_(not p.requires_grad)

    @rule()
    def copy_deeply(self):
        self.optimizers = [copy.deepcopy(optimizer) for optimizer in self.optimizers]

    @rule()
    def pickle(self):
        self.optimizers = [pickle.loads(pickle.dumps(optimizer)) for optimizer in self.optimizers]

    @rule(hook=st.sampled_from(["before", "after"]))
    def register_hook(self, hook):
        for optimizer in self.optimizers:
            if hook == "before":
                optimizer.register_step_pre_hook(halve_gradients)
            else:
                optimizer.register_step_post_hook(shrink_parameters)
        self.follows = False

    @rule()
    def save_and_load(self):
        for which in (0, 1):
            buffer = io.BytesIO()
            torch.save(self.optimizers[which].state_dict(), buffer)
            buffer.seek(0)
            # A new optimizer over the same parameters, with the same groups.
            groups = [
                {"params": list(zip(group["param_names"], group["params"], strict=True))}
                for group in self.optimizers[which].param_groups
            ]
            self.optimizers[which] = (Plain, lambda p, tx: self.make(p, tx))[which](groups, self.tx)
            self.optimizers[which].load_state_dict(torch.load(buffer, weights_only=True))

    @precondition(lambda self: len(self.optimizers[0].param_groups) == 1)
    @rule()
    def load_by_name(self):
        for which in (0, 1):
            saved = self.optimizers[which].state_dict()
            named = list(zip(self.names, self.params(which), strict=True))[::-1]
            self.optimizers[which] = (Plain, lambda p, tx: self.make(p, tx))[which](named, self.tx)
            adapters.load_by_name(self.optimizers[which], saved)
        self.names = self.names[::-1]

    @precondition(lambda self: len(self.optimizers[0].param_groups) == 1)
    @rule()
    def add_group(self):
        for optimizer in self.optimizers:
            optimizer.add_param_group({"params": [("late", torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64)))]})
        self.names = [*self.names, "late"]
        self.follows = False

    @invariant()
    def they_agree(self):
        if not hasattr(self, "tx"):
            return
        for name, (p, q) in zip(self.names, self.both(), strict=True):
            self.assert_close(name, p, q)
            theirs, ours = (optimizer.state.get(x, {}) for optimizer, x in zip(self.optimizers, (p, q), strict=True))
            assert theirs.keys() == ours.keys(), (self.tx, name)
            for slot in theirs:
                self.assert_close((name, slot), theirs[slot], ours[slot], p.dtype)
            if self.follows:
                self.assert_close(("pure", name), self.pure[name], q)

    def assert_close(self, key, expected, found, dtype=None):
        """To some units in the last place of the largest value that there has been: what cancelled leaves its rounding."""
        assert expected.dtype == found.dtype and expected.shape == found.shape
        if not expected.numel():
            return
        expected, found = expected.detach().double(), found.detach().double()
        self.scale[key] = max(self.scale.get(key, 1.0), float(expected.nan_to_num(0, 0, 0).abs().max()))
        # 50 roundings at most; the tensors of lower precision take part in norms over all.
        close = 2e-5 * self.scale[key]
        torch.testing.assert_close(found, expected, rtol=0, atol=close, equal_nan=True, msg=lambda m: f"{key} of {self.tx}: {m}")


class FusedEdits(Edits):
    """The same for compiled kernels, over fewer structures: each takes seconds to compile."""

    transforms = st.sampled_from(
        [
            built(["clip", "adam", "decay"], []),
            built(["trace", "rows", "monitor"], []),
            built(["rms", "schedule"], ["partition"]),
            built(["clip", "adam"], ["accumulate"]),
            built(["nadam", "trust"], ["schedule-free"]),
            built(["prodigy", "plateau"], []),
        ]
    )

    def make(self, params, transform):
        return OptimizerAdapter(params, transform, fused=True)


FEW = settings(max_examples=60, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=1500, stateful_step_count=20, derandomize=False)


def test_a_first_step_without_gradients_starts_nothing():
    optimizer = Plain(fresh(torch.float32), fo.adamw())
    optimizer.step()
    assert not optimizer.state


def test_the_ordinary_step():
    run_state_machine_as_test(Edits, settings=FEW)


@pytest.mark.filterwarnings("ignore:fused=True, but")
def test_the_fused_step():
    run_state_machine_as_test(FusedEdits, settings=settings(FEW, max_examples=20))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:fused=True, but")
@pytest.mark.parametrize("machine", [Edits, FusedEdits])
def test_many_of_both(machine):
    run_state_machine_as_test(machine, settings=MANY)
