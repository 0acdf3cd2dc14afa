"""A chain as data: everything exported goes to plain data and back, through JSON, YAML and OmegaConf, and errors say where."""

import dataclasses
import json

import cases
import pytest
import torch
from cases import CASES, TABLE, params_for

import functional_optim as fo
from functional_optim import trees
from functional_optim.config import constructors
from functional_optim.trials import Trial, default_params


def half(step):
    return 0.5 / (1 + step)


def is_late(step):
    return step >= 1


def is_matrix(name, leaf):
    return leaf.ndim > 1


# What the table of cases has of its own.
OWN = {
    name: value
    for name, value in {**vars(cases), "half": half, "is_late": is_late, "is_matrix": is_matrix}.items()
    if callable(value) and name not in vars(fo) and getattr(value, "__module__", "") in ("cases", __name__)
}
LABELS = {"layers": [{"w": "a"}, {"w": "b"}], "head": "a"}
WRAPPED = {
    "schedules": fo.scheduled(fo.adamw(0.1), lr=half, weight_decay=fo.join([fo.linear(0.1, 0.0, 9), fo.constant(0.0)], [9])),
    "functions": fo.masked(fo.conditionally(fo.trace(), is_late, otherwise=fo.freeze()), is_matrix),
    "a growing batch": fo.accumulate(fo.sgd(), every=fo.piecewise_constant([1, 2, 4], [10, 20])),
    "names and options": fo.chain(fo.scale(2.0), fo.adam(amsgrad=True, state_dtype=torch.bfloat16), name="mine"),
    "labels by name": fo.partition({"z": fo.adamw(), "a": fo.sgd()}, fo.by_name({r"z": "z", r"b\.": "a", r".*": "z"})),
    "labels by ndim": fo.partition({"a": fo.adamw(), "b": fo.sgd()}, fo.by_ndim({2: "a", 1: "b"}, otherwise="b")),
    "a tree of labels": fo.partition({"a": fo.adamw(), "b": fo.sgd()}, LABELS),
    "renamed": fo.set_defaults(fo.rename_hparams(fo.adam(), lr="rate"), rate=0.5, betas=(0.5, 0.6)),
    "numbers of a function": fo.with_extra(fo.sam(fo.sgd()), value_fn=half, value=2.0),
    "infinite": fo.clip_by_global_norm(max_norm=1e30),
    "the empty chain": fo.chain(),
    **{
        f"a search: {name}": fo.with_line_search(fo.sgd(), getattr(fo.solvers, name)())
        for name in ("fixed", "zoom", "strong_wolfe", "hager_zhang")
    },
}
EVERY = {**TABLE, **WRAPPED}


def functions_in(value):
    """The functions that were given somewhere inside."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from functions_in(each)
    elif isinstance(value, fo.Transform) and value.recipe:
        yield from functions_in(list(value.recipe.bound.arguments.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from functions_in(list(vars(value).values()))
    elif callable(value):
        yield value


def names_of(tx):
    """A name for whatever has none, or none that a file could have for it."""
    lambdas = {f"f{i}": f for i, f in enumerate(functions_in(tx)) if f.__name__ == "<lambda>"}
    return {**OWN, **lambdas, **({"by_hand": tx} if tx.recipe is None else {})}


def is_plain(config):
    if isinstance(config, dict):
        return all(type(key) is str and is_plain(value) for key, value in config.items())
    return all(map(is_plain, config)) if type(config) is list else type(config) in (str, int, float, bool, type(None))


def through_json(config):
    return json.loads(json.dumps(config))


def through_sorted_json(config):
    return json.loads(json.dumps(config, sort_keys=True))


def through_yaml(config):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(yaml.safe_dump(config))


def through_omegaconf(config):
    return pytest.importorskip("omegaconf").OmegaConf.create(config)


def two_steps(tx, case):
    """The leaves of parameters and state after them, or why it does not take such parameters."""
    try:
        return trees.leaves(Trial(tx, params_for(case) or default_params()).run(2))
    except (TypeError, ValueError) as refusal:
        return [str(refusal)]


@pytest.mark.parametrize("case", EVERY)
def test_everything_is_plain_data_and_comes_back_the_same(case):
    tx, names = EVERY[case], names_of(EVERY[case])
    config = fo.to_config(tx, names)
    assert is_plain(config), config
    again = fo.from_config(through_json(config), names)
    assert again.declared == tx.declared and again.name == tx.name and repr(again) == repr(tx)
    for x, y in zip(two_steps(again, case), two_steps(tx, case), strict=True):
        assert torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y


@pytest.mark.parametrize("carried", [through_sorted_json, through_yaml, through_omegaconf])
@pytest.mark.parametrize("case", WRAPPED)
def test_other_ways_carry_it_too(case, carried):
    config = fo.to_config(WRAPPED[case], OWN)
    assert fo.to_config(fo.from_config(carried(config), OWN), OWN) == config


def test_sorting_does_not_change_which_pattern_wins():
    tx = WRAPPED["labels by name"]
    again = fo.from_config(through_sorted_json(fo.to_config(tx)))
    assert repr(again.form.labels) == repr(tx.form.labels)


def test_the_cases_name_every_constructor():
    named = json.dumps([fo.to_config(tx, names_of(tx)) for tx in EVERY.values()])
    schedules = {name for name in fo.schedules.__all__ if name != "Schedule"}
    lacking = {name for name in constructors() if f'"{name}"' not in named} - schedules
    assert not lacking and schedules <= set(constructors())
    made = {"Transform", "elementwise", "per_tensor", "whole_tree"}
    assert set(CASES) - made <= set(constructors())


SCHEDULES = [
    fo.constant(0.1),
    fo.cosine(0.1, 0.0, 10),
    fo.cosine_restarts(0.1, 0.0, 10),
    fo.exponential(0.1, 0.9),
    fo.inverse_sqrt(0.1, 10),
    fo.join([fo.constant(0.1), half], [3]),
    fo.linear(0.1, 0.0, 10),
    fo.noam(64, 10),
    fo.one_cycle(0.1, 10),
    fo.piecewise_constant([0.1, 0.2], [3]),
    fo.piecewise_interpolate([0.1, 0.2], [3], shape="cosine"),
    fo.polynomial(0.1, 0.0, 2.0, 10),
    fo.warmup_cosine(0.1, 2, 10),
    fo.warmup_stable_decay(0.1, 2, 4, 10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_every_schedule_comes_back_equal(schedule):
    names = {"half": half}
    config = json.loads(json.dumps(fo.to_config(fo.scheduled(fo.sgd(), lr=schedule), names)))
    assert fo.from_config(config, names).form.schedules["lr"] == schedule


def test_no_schedule_is_forgotten():
    assert {type(schedule).__name__ for schedule in SCHEDULES} == set(fo.schedules.__all__) - {"Schedule"}


# What people write.


def test_a_file_may_leave_out_what_can_be_left_out():
    yaml = pytest.importorskip("yaml")
    text = """
    chain:
      - monitor: [grad]
      - clip_by_global_norm: {max_norm: 0.5}
      - partition:
          branches:
            decay: {adamw: {betas: [0.9, 0.95]}}
            plain: sgd
            rest: {freeze: }
          labels: {by_name: {patterns: {weight: decay, bias: plain, .*: rest}}}
    """
    branches = {"decay": fo.adamw(betas=(0.9, 0.95)), "plain": fo.sgd(), "rest": fo.freeze()}
    labels = fo.by_name({"weight": "decay", "bias": "plain", ".*": "rest"})
    expected = fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(0.5), fo.partition(branches, labels))
    assert repr(fo.from_config(yaml.safe_load(text))) == repr(expected)
    assert repr(fo.from_config("adamw")) == repr(fo.adamw())


def test_ones_own_constructors_functions_and_transforms_go_by_the_names_given():
    names = {"signs": cases.sign_of_average, "clip": fo.clip_by_global_norm(2.0), "f": half}
    links = ["clip", {"signs": {"beta": 0.5}}, {"scheduled": {"transform": "sgd", "lr": "f"}}]
    tx = fo.from_config({"chain": links}, names)
    assert list(map(repr, tx.recipe.bound.args)) == [
        "clip_by_global_norm(max_norm=2.0)",
        repr(cases.sign_of_average(beta=0.5)),
        "scheduled(sgd(lr=0.001), lr=half)",
    ]
    assert fo.to_config(tx, names)["chain"][:2] == ["clip", {"signs": {"lr": 0.001, "beta": 0.5}}]


def test_a_tensor_is_written_as_its_number():
    config = fo.to_config(fo.adam(lr=torch.tensor(0.5), betas=(torch.tensor(0.25), 0.5)))
    assert config == {"adam": {"lr": 0.5, "betas": [0.25, 0.5], "eps": 1e-8}}


def test_nothing_is_imported_or_looked_up_by_what_a_file_says():
    for text in ("os.system", "torch.load", "__import__", "functional_optim.adamw", "apply_updates", "from_config", "Transform"):
        with pytest.raises(ValueError, match="there is no transform or function"):
            fo.from_config({text: {}})
        with pytest.raises(ValueError, match=r"scheduled\.lr: there is no function"):
            fo.from_config({"scheduled": {"transform": "sgd", "lr": text}})
    with pytest.raises(ValueError, match=r"adam\.state_dtype: 'os' is no dtype"):
        fo.from_config({"adam": {"state_dtype": "os"}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chain": ["sgd", {"adamW": {}}]}, r"^chain\[1\]: there is no transform or function 'adamW'. Did you mean 'adamw'\?"),
        (
            {"chain": ["sgd", "sgd", {"masked": {"transform": {"adamw": {"lr": -1}}, "mask": {"w": True}}}]},
            r"^chain\[2\]\.masked\.transform\.adamw: lr = -1 is outside \[0, inf\)",
        ),
        ({"adamw": {"learning_rate": 1.0}}, r"^adamw: adamw has no argument 'learning_rate'.*Did you mean 'lr'"),
        ({"adamw": {"lr": "1e-3"}}, r"^adamw: lr = '1e-3' is a str.*YAML takes 1e-3 for text"),
        ({"adamw": 0.1}, r"^adamw: expected its arguments, a dict by name or a list in order, but got 0.1"),
        ({"adamw": {}, "sgd": {}}, r"^the config: expected one name with its arguments.*but got 'adamw', 'sgd'"),
        ({"chain": [{"adamw": {}, "lr": 0.1}]}, r"^chain\[0\]: expected one name with its arguments.*but got 'adamw', 'lr'"),
        ({"conditionally": {"transform": "sgd", "condition": "late"}}, r"^conditionally\.condition: there is no function 'late'"),
        ({"partition": {"branches": {"a": {"sgdd": {}}}, "labels": "a"}}, r"^partition\.branches\.a: there is no .*'sgdd'"),
        ({"scheduled": {"transform": "sgd", "lr": {"linear": {"start": 1}}}}, r"^scheduled\.lr\.linear: .*missing.*'end'"),
        ({"by_name": {"patterns": [["a", "b", "c"]]}}, r"^by_name\.patterns\[0\] is \['a', 'b', 'c'\]: expected a pair"),
        ({"by_ndim": {"labels": {"two": "a"}}}, r"^by_ndim\.labels: the key 'two' is no whole number"),
        ([{"sgd": {}}], r"^from_config: a tuple is not a Transform"),
        (None, r"^from_config: None is not a Transform"),
        ({"linear": {"start": 1, "end": 0, "steps": 1}}, r"^from_config: .*is not a Transform"),
    ],
)
def test_errors_say_where_in_the_file(config, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fo.from_config(config)


def test_what_cannot_be_written_says_where():
    with pytest.raises(ValueError, match=r"^chain\[1\]\.masked\.mask: .*has no name: give it one"):
        fo.to_config(fo.chain(fo.sgd(), fo.masked(fo.sgd(), lambda name, leaf: True)))
    by_hand = dataclasses.replace(fo.sgd(), name="mine")
    with pytest.raises(ValueError, match=r"^accumulate\.transform: .* was made by hand, or changed afterwards"):
        fo.to_config(fo.accumulate(by_hand, every=2))
    with pytest.raises(ValueError, match=r"with_extra\.data: .* is a set"):
        fo.to_config(fo.with_extra(fo.sgd(), data={1}))
    with pytest.raises(TypeError, match=r"to_config\(transform\): .*sgd.*Did you mean to call it"):
        fo.to_config(fo.sgd)


def test_two_functions_of_one_name_are_told_apart():
    def made(factor):
        def schedule(step):
            return factor * step

        return schedule

    one, other = made(1.0), made(2.0)
    tx = fo.scheduled(fo.adamw(), lr=one, weight_decay=other)
    with pytest.raises(ValueError, match=r"^scheduled\.weight_decay: .* is called 'schedule', and so is .*'other_schedule'"):
        fo.to_config(tx)
    with pytest.raises(ValueError, match=r"^scheduled\.lr: .* is called 'schedule', and so is"):
        fo.to_config(tx, {"schedule": other})
    config = fo.to_config(tx, {"other_schedule": other})["scheduled"]
    assert (config["lr"], config["weight_decay"]) == ("schedule", "other_schedule")
    assert fo.to_config(fo.scheduled(fo.adamw(), lr=one, weight_decay=one))["scheduled"]["weight_decay"] == "schedule"


def test_numbers_of_other_libraries_are_plain_numbers():
    numpy = pytest.importorskip("numpy")
    adam = fo.adam(lr=numpy.float64(0.5), betas=numpy.array([0.25, 0.5]))
    config = fo.to_config(fo.chain(adam, fo.clip_by_value(numpy.float32(2))))
    assert is_plain(config) and config["chain"][1] == {"clip_by_value": {"clip_value": 2.0}}
    assert config["chain"][0] == {"adam": {"lr": 0.5, "betas": [0.25, 0.5], "eps": 1e-8}}


def test_a_name_of_the_library_means_the_librarys():
    def linear(step):
        return step

    with pytest.raises(ValueError, match=r"scheduled\.lr: .* is called 'linear', as something of the library: .*'my_linear'"):
        fo.to_config(fo.scheduled(fo.sgd(), lr=linear))
    for act in (fo.to_config, lambda tx, names: fo.from_config("sgd", names)):
        with pytest.raises(ValueError, match="names: 'linear' is a name of the library"):
            act(fo.sgd(), {"linear": linear})
    config = fo.to_config(fo.scheduled(fo.sgd(), lr=linear), {"mine": linear})
    assert config["scheduled"]["lr"] == "mine"
