"""That the benchmark measures what it says: the bytes, the turns, the same task for all; on sizes that take no time."""

import math

import pure
import pytest
import torch
from contestants import CONTESTANTS, COPY, FUSED, MODULES, OURS, TASKS, TINY_ONLY, missing
from measure import Result, measure
from report import plot, remarks, table, targets
from shapes import MODELS, Stage

SHAPES = [(3, 4), (5,), ()]
TORCH = "torch for-loop"
# What compiles is covered by test_fused.py, and HeavyBall would take a minute.
QUICK = [name for name in CONTESTANTS if name != FUSED and name not in TINY_ONLY]


def test_the_models_have_the_tensors_and_elements_they_are_known_for():
    counts = {name: (len(shapes), sum(math.prod(shape) for shape in shapes)) for name, shapes in MODELS.items()}
    # transformers' GPT2Model and torchvision's resnet50 count the same.
    assert counts["gpt2"] == (148, 124_439_808)
    assert counts["resnet50"] == (161, 25_557_032)
    assert counts["tiny"] == (52, 206_208)


@pytest.mark.parametrize(
    ("task", "tensors"),
    [
        ("adamw", 7),  # reads g, p, m, v; writes p, m, v
        ("clip", 8),  # and reads g once more, for the norm
        ("sgd", 5),  # reads g, p, m; writes p, m
        ("lion", 5),
        ("chain", 8),  # and reads g and m once more, to count where they agree
    ],
)
def test_bytes_of_an_ideal_step(task, tensors):
    assert TASKS[task].bytes_moved(1000) == tensors * 4000


def test_the_rate_is_bytes_over_the_median_time():
    result = Result(TASKS["adamw"], 10**9, {"a": [1.0, 2.0, 50.0], COPY: [0.5, 4.0, 5.0]}, {})
    assert result.rate("a") == 14.0  # 28 GB in 2 s
    assert result.ratio("a", COPY)[1] == 2.0  # the median of 2, 0.5 and 10, not the ratio of medians, 0.5


@pytest.mark.filterwarnings("ignore")  # other libraries' own
@pytest.mark.parametrize("task", TASKS)
def test_all_that_are_installed_do_the_same_task(task):
    torch.manual_seed(0)
    stage = Stage(SHAPES)
    ways = {name: CONTESTANTS[name](stage.params) for name in QUICK if not missing([name])}
    builders = {name: way[task] for name, way in ways.items() if task in way}
    assert OURS in builders
    result = measure(stage, TASKS[task], builders, 0, least=3)
    assert {len(times) for times in result.seconds.values()} == {3}
    # Parameters of about 0.05, rounded to 2e-9 three times, after a way of three steps of 1e-4.
    assert all(deviation < 1e-4 for deviation in result.deviation.values()), result.deviation


def test_every_step_finds_the_same_gradients():
    stage, seen = Stage(SHAPES), []

    def step():
        grads = [p.grad for p in stage.params if p.grad is not None]
        seen.append([g.clone() for g in grads])
        for p, g in zip(stage.params, grads, strict=True):
            p.detach().sub_(g.mul_(2))
            p.grad = None

    measure(stage, TASKS["sgd"], {"one": lambda: step, "other": lambda: step}, 0, least=2)
    assert len(seen) == 2 * (3 + 2)
    assert all(torch.equal(g, first) for grads in seen for g, first in zip(grads, seen[0], strict=True))


def test_one_who_leaves_a_parameter_behind_is_found_out():
    stage = Stage(SHAPES)

    def step():
        for p in stage.params[:-1]:
            p.detach().sub_(1)

    with pytest.raises(RuntimeError, match="idle left 1 of 3"):
        measure(stage, TASKS["sgd"], {"idle": lambda: step}, 0)


def test_a_copy_counts_for_as_many_bytes_as_the_task(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    stage = Stage(SHAPES)
    result = measure(stage, TASKS["sgd"], {TORCH: CONTESTANTS[TORCH](stage.params)["sgd"]}, 0, least=2)
    assert result.seconds == {TORCH: [1.0, 1.0], COPY: [2.5, 2.5]}  # 20 bytes an element, where a copy moves 8


def test_what_is_printed(tmp_path):
    seconds = {OURS: [0.002, 0.004, 0.003], TORCH: [0.002, 0.002, 0.002], COPY: [0.001, 0.001, 0.001]}
    results = {("tiny", "adamw"): Result(TASKS["adamw"], 10**6, seconds, {OURS: 2e-6, TORCH: 0.0})}
    rows = table(results["tiny", "adamw"]).splitlines()
    assert rows[0] == "| contestant | step | GB/s | of copy speed | time / a copy of as many bytes | quartiles | deviation |"
    assert rows[2] == "| a copy of as many bytes | 1 ms | 28.0 | 100% | 1.00 | 1.00 … 1.00 |  |"
    assert rows[4] == "| ours, eager | 3 ms | 9.3 | 33% | 3.00 | 2.00 … 4.00 | 2e-06 |"
    assert targets(results).splitlines()[2:] == [
        "| tiny, AdamW: ours, eager / torch for-loop | 1.50 | 1.00 … 2.00 | 1.05 | missed |"
    ]
    assert targets({}) == ""
    assert remarks(list(MODULES), ["TorchOpt"]).splitlines()[-1] == "- Not installed, and so left out: TorchOpt."
    pytest.importorskip("matplotlib", reason="of the extra `demo`")
    plot(results, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore")  # other libraries' own
def test_pure_steps_lead_to_the_same_parameters():
    ways = pure.steps(SHAPES)
    ends = {}
    for name, step in ways.items():
        step()
        if hasattr(step, "shows"):
            step.shows = True
        ends[name] = step()
    expected = ends["update + apply_updates"]
    for name, end in ends.items():
        for key, p in expected.items():
            # Parameters of about 0.05, rounded to 2e-9 twice, after a way of two steps of 1e-3.
            torch.testing.assert_close(end[key].detach(), p, rtol=0, atol=1e-7, msg=name)
    assert {name: len(times) for name, times in pure.take_turns(ways, 3).items()} == dict.fromkeys(ways, 3)
