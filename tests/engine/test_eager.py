"""The eager step over lists and blocks, against calling the transform itself, and what it promises besides the numbers."""

import copy
import io

import pytest
import torch
from engines import (
    EDITS,
    ELEMENTWISE,
    TRANSFORMS,
    Plain,
    assert_close,
    assert_same_progress,
    by_hand,
    odd_parameters,
    parameters,
    params_of,
    real_dtype,
    run,
    scale_rows,
    set_gradients,
    ways,
)

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, RMSprop
from functional_optim.adapters.engine.backends import rows
from functional_optim.adapters.engine.backends.foreach import program_of
from functional_optim.adapters.engine.route import links_of, scalars_of, slot_count, values_of
from functional_optim.adapters.engine.stages import Dtypes, Ending
from functional_optim.adapters.engine.trace import trace

# With the blocks below: lists of several and of one, a tensor taken whole, one in blocks of which the last is shorter.
SHAPES = [(3, 4), (150, 100), (), (7,), (0,), (1,), (2, 3, 5), (40, 25), (4, 3, 5)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that tests can afford."""
    monkeypatch.setattr(rows, "BLOCK", 4000)
    monkeypatch.setattr(rows, "SMALL", 500)


def pair(transform, shapes=SHAPES, dtype=torch.float64, **hparams):
    """The same parameters behind an optimizer that calls the transform and one that need not."""
    return (make(parameters(shapes, dtype), transform, **hparams) for make in (Plain, OptimizerAdapter))


def in_lists(optimizer):
    """Whether the last step went through lists."""
    return ways(optimizer) == {"LISTED"}


# Numbers: in float64, where a wrong formula can't hide behind rounding, then what depends on the dtype.


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_the_transform(name):
    plain, eager = pair(TRANSFORMS[name]())
    run(plain, eager)
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


@pytest.mark.parametrize("transform", ELEMENTWISE)
def test_it_is_every_elementwise_transform_of_the_table(transform):
    plain, eager = pair(transform)
    run(plain, eager)
    assert in_lists(eager)
    # dowg's sums grow to a thousand, and with them the last digits, which differ from one kind of processor to another.
    assert_same_progress(plain, eager, torch.float64, slack=10.0)


@pytest.mark.parametrize("name", ["adamw", "clip later", "no sum", "user rule", "momentum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_other_dtypes(name, dtype):
    plain, eager = pair(TRANSFORMS[name](), dtype=dtype)
    run(plain, eager, steps=8)
    assert in_lists(eager)
    # 8 steps, each of which may end on the other side of a tie.
    close = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    for p, q in zip(params_of(plain), params_of(eager), strict=True):
        torch.testing.assert_close(q, p, rtol=close, atol=close)


@pytest.mark.parametrize("name", ["adamw", "clip first", "no sum", "momentum"])
def test_any_layout_and_complex_numbers(name):
    def made():
        return [p for p in odd_parameters() if not p.is_conj()]

    plain, eager = Plain(made(), TRANSFORMS[name]()), OptimizerAdapter(made(), TRANSFORMS[name]())
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for i, (p, q) in enumerate(zip(params_of(plain), params_of(eager), strict=True)):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone() if i % 2 or p.ndim < 2 else p.grad.transpose(0, 1).contiguous().transpose(0, 1)
        if step == 2:
            eager.param_groups[0]["params"][5].grad = eager.param_groups[0]["params"][5].grad.conj().resolve_conj().conj()
        plain.step()
        eager.step()
    assert in_lists(eager)
    for p, q in zip(params_of(plain), params_of(eager), strict=True):
        tolerance = real_dtype(p) if name == "adamw" else torch.bfloat16 if p.dtype == torch.bfloat16 else torch.float32
        assert_close([q, *eager.state[q].values()], [p, *plain.state[p].values()], tolerance)


def test_float32_slots_of_bfloat16_parameters_keep_their_digits():
    plain, eager = pair(fo.sgd(momentum=0.9, state_dtype=torch.float32), dtype=torch.bfloat16)
    run(plain, eager)
    assert in_lists(eager)
    for p, q in zip(params_of(plain), params_of(eager), strict=True):
        assert eager.state[q]["momentum_buffer"].dtype == torch.float32
        assert_close([eager.state[q]["momentum_buffer"]], [plain.state[p]["momentum_buffer"]])


def test_gradients_in_lower_precision_than_their_parameters():
    plain, eager = pair(fo.adamw(), dtype=torch.float32)
    for optimizer in (plain, eager):
        for p in params_of(optimizer):
            p.grad_dtype = torch.bfloat16
            p.grad = torch.full_like(p, 0.3, dtype=torch.bfloat16)
        optimizer.step()
    assert in_lists(eager)
    assert_same_progress(plain, eager)


def test_groups_keep_their_hparams_and_share_the_norm():
    transform = fo.chain(fo.clip_by_global_norm(), fo.adamw())
    sets = [parameters(SHAPES, torch.float64) for _ in range(2)]
    groups = ([{"params": p[:3], "lr": 0.1}, {"params": p[3:], "betas": (0.5, 0.0), "max_norm": 0.1}] for p in sets)
    plain, eager = Plain(next(groups), transform), OptimizerAdapter(next(groups), transform)
    run(plain, eager)
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


@pytest.mark.parametrize("hparams", [{"weight_decay": 0.0}, {"betas": (0.0, 0.0)}, {"lr": 0.0}, {"eps": 0.0}, {"lr": 1e-30}])
def test_numbers_that_leave_little_of_a_formula(hparams):
    plain, eager = pair(fo.chain(fo.clip_by_global_norm(float("inf")), fo.adamw()), **hparams)
    run(plain, eager)
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


def test_tensors_as_hparams():
    plain, eager = pair(fo.adamw(), lr=torch.tensor(0.1), betas=torch.tensor([0.8, 0.9]).double())
    run(plain, eager, steps=5)
    for optimizer in (plain, eager):
        optimizer.param_groups[0]["lr"].fill_(0.5)
    run(plain, eager, steps=5, first=5)
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


# What changes from step to step.


def test_another_set_of_parameters_has_gradients_at_each_step():
    plain, eager = pair(fo.chain(fo.clip_by_global_norm(), fo.adam()))
    for step in range(12):
        set_gradients(step, params_of(plain), params_of(eager))
        for optimizer in (plain, eager):
            for i, p in enumerate(params_of(optimizer)):
                if (i + step) % 3 == 0 or (i == 1 and step < 3):
                    p.grad = None
            slots = {id(x) for state in optimizer.state.values() for name, x in state.items() if name != "step"}
            optimizer.step()
            # No slot was moved.
            assert slots <= {id(x) for state in optimizer.state.values() for x in state.values()}
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


@pytest.mark.parametrize("edit", EDITS)
def test_what_people_do_to_state_and_parameters_is_seen(edit):
    plain, eager = pair(fo.adam())
    run(plain, eager, steps=2)
    for i in (0, 1):  # A small one and a large one.
        for optimizer in (plain, eager):
            EDITS[edit](optimizer, params_of(optimizer)[i])
        run(plain, eager, steps=2, first=2 + 2 * i)
        assert in_lists(eager)
        assert_same_progress(plain, eager)  # The group that is added has float32 parameters.


def test_a_gradient_may_be_the_memory_of_its_parameter():
    """`p.grad = p.data`: the slots have to be read from it before the parameter is written."""
    plain, eager = pair(fo.chain(fo.scale_by_lion(), fo.scale_by_learning_rate()), lr=0.1)
    for _ in range(5):
        for p, q in zip(params_of(plain), params_of(eager), strict=True):
            p.grad, q.grad = p.detach().clone(), q.data
        plain.step()
        eager.step()
    assert in_lists(eager)
    assert_same_progress(plain, eager, torch.float64)


@fo.elementwise(slots=("newest", "older"))
def swapping(hp):
    """Returns slots in each other's place, and one of them as the update."""
    return lambda u, p, newest, older: (older, u, newest)


@fo.elementwise(slots=("first", "second"))
def twice(hp):
    """One value in two slots, and the parameter in the update."""

    def rule(u, p, first, second):
        both = 0.5 * first + 0.25 * u
        return both - 0.1 * p, both, both

    return rule


@pytest.mark.parametrize("link", [swapping, twice], ids=lambda link: link.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_slots_that_share_a_value_or_change_places(link, dtype):
    plain, eager = pair(fo.chain(link(), fo.scale(-0.125), link()), dtype=dtype)
    run(plain, eager, steps=6)
    assert in_lists(eager)
    assert_same_progress(plain, eager, dtype)


# What is stored, and what it costs.


def test_a_program_is_as_short_as_one_written_by_hand():
    """SGD with momentum: m ← g + μ m, p ← p − η m. AdamW: two operations for each moment, four for the parameter."""

    def operations(transform):
        links = links_of(transform)
        values = values_of(links, transform.hparams, {link.step: 4 for link in links}, {})
        scalars = scalars_of(links, lambda link: (values[link], 5 if link.form.counts else None), {})
        dtypes = Dtypes(torch.float32, torch.float32, (torch.float32,) * slot_count(links))
        program = program_of(trace(links, scalars, dtypes, asks=True), Ending.STEP)
        assert not program.moves
        return [(instruction.op, instruction.target is not None) for instruction in program.instructions]

    with torch.no_grad():
        assert operations(fo.sgd(momentum=0.9)) == [("add", True), ("add", True)]
        # With decay no sum of gradient and parameter is stored: m ← μ m + g, m ← m + λ p.
        assert operations(fo.sgd(momentum=0.9, weight_decay=0.1)) == [("add", True)] * 3
        in_place = operations(fo.adamw())
        # √v and the step need memory of their own, the rest none.
        assert [op for op, inside in in_place if not inside] == ["sqrt"]
        assert sorted(op for op, _ in in_place) == sorted(["add", "addcmul", "sqrt", "add", "addcdiv", "mul", "mul", "mul"])


def test_a_step_allocates_nothing_the_size_of_the_model():
    for transform in (fo.chain(fo.clip_by_global_norm(), fo.adamw()), fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm())):
        eager = OptimizerAdapter(parameters([(1000, 1000), *SHAPES]), transform)
        run(eager, steps=2)
        with torch.profiler.profile(profile_memory=True) as profile:
            eager.step()
        assert max((event.cpu_memory_usage for event in profile.events()), default=0) < 100_000


def test_matrices_that_are_taken_together_are_only_so_many():
    """40 of 128 × 128 are 2.6 MB; of 16 there is 1 MB at a time, and the iteration needs several."""
    optimizer = OptimizerAdapter(parameters([(128, 128)] * 40), fo.muon())
    run(optimizer, steps=2)
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    assert 0 < max(event.cpu_memory_usage for event in profile.events()) < 1_100_000


def test_slots_are_ordinary_tensors():
    """No view of a common buffer, of which a file would hold the whole."""
    eager = OptimizerAdapter(parameters([(5,)] * 200), fo.adamw())
    run(eager, steps=2)
    tensors = [
        x for state in eager.state.values() for name, x in state.items() if name != "step"
    ]  # Of counts it may: 4 bytes each.
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors)
    file = io.BytesIO()
    torch.save(eager.state[params_of(eager)[0]], file)
    assert file.tell() < 4000


def test_the_parameters_are_written_in_place_and_autograd_sees_it():
    eager = OptimizerAdapter(parameters(SHAPES), fo.sgd())
    losses = [(p * p).sum() for p in params_of(eager) if p.numel()]
    places = [p.data_ptr() for p in params_of(eager)]
    run(eager, steps=1)
    assert in_lists(eager) and places == [p.data_ptr() for p in params_of(eager)]
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# What takes the way round: calling the transform.


@fo.elementwise()
def divided_by_the_largest(hp):
    """Says that it is elementwise, and is not."""
    return lambda u, p: u / u.abs().max()


@fo.elementwise()
def branching_on_a_tensor(hp):
    return lambda u, p: u if u.ndim == 1 else 2 * u


@fo.elementwise()
def with_random_numbers(hp):
    return lambda u, p: u + 0 * torch.rand_like(u)


@pytest.mark.parametrize("link", [divided_by_the_largest, branching_on_a_tensor, with_random_numbers], ids=lambda x: x.__name__)
def test_rules_that_cannot_be_written_down_are_called(link):
    plain, eager = pair(fo.chain(link(), fo.sgd(momentum=0.9)), [(3, 4), (7,), (2, 3)])
    run(plain, eager, steps=3)
    assert ways(eager) == {"CALLED"}
    assert all(torch.equal(p, q) for p, q in zip(params_of(plain), params_of(eager), strict=True))


@pytest.mark.parametrize("link", [by_hand, scale_rows, fo.monitor, fo.centralize], ids=lambda x: x.__name__)
def test_a_link_that_is_no_elementwise_rule_costs_itself(link):
    """First, last and between, with slots before and behind it."""
    first, second = fo.trace(0.5), fo.scale_by_adam(eps=0.1)
    for links in ([link(), first, second], [first, link(), second], [first, second, link()]):
        plain, eager = pair(fo.chain(*links, fo.scale_by_learning_rate()), [(3, 4), (150, 100), (7,), (2, 3)], lr=0.1)
        run(plain, eager, steps=3)
        assert in_lists(eager)
        assert_same_progress(plain, eager, torch.float64)


@fo.elementwise(slots=("m",))
def failing_from_the_third_step(hp, t):
    if t > 2:
        raise ValueError(f"no more than 2 steps, but this is number {t}")
    return lambda u, p, m: (u + m, u)


def test_what_a_rule_raises_comes_through_and_nothing_has_changed():
    _, eager = pair(fo.chain(fo.trace(), failing_from_the_third_step(), fo.scale_by_learning_rate()))
    run(eager, steps=2)
    assert in_lists(eager)
    before = copy.deepcopy([[p, *eager.state[p].values()] for p in params_of(eager)])
    with pytest.raises(ValueError, match="no more than 2 steps, but this is number 3"):
        run(eager, steps=1)
    for old, p in zip(before, params_of(eager), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(old, [p, *eager.state[p].values()], strict=True))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_bad_gradient_in_another_group_changes_nothing(steps):
    p, q = parameters([(3,), (4, 4)])
    optimizer = RMSprop([{"params": [p], "momentum": 0.9}, {"params": [q]}], lr=0.1)
    run(optimizer, steps=steps)
    before = copy.deepcopy([p, q, *optimizer.state[p].values()])
    p.grad, q.grad = torch.ones_like(p), torch.ones(4, 4).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(before, [p, q, *optimizer.state[p].values()], strict=True))
    q.grad = torch.ones(4, 4)
    optimizer.step()
    assert in_lists(optimizer)


def test_a_capturable_step_keeps_its_counts_where_they_are():
    p = parameters([(3,)])
    optimizer = AdamW(p, capturable=True)
    run(optimizer, steps=2)
    assert not in_lists(optimizer)
    assert optimizer.state[p[0]]["step"] == 2
