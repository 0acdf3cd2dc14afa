"""The contract of torch.optim.Optimizer, on every drop-in class and three chains: a whole train step inside `torch.compile`."""

import pytest
import torch
from subjects import EAGER, FUSED, Subject, every_one, params_in
from torch._dynamo.testing import CompileCounter

# Forward and loss. The backward is a break in every train step, as torch has it; the optimizer's step runs untraced.
GRAPHS = 1


def train(subject, steps, tensor_rate, backend):
    """Some steps of a small model, compiled or not, under a scheduler; the optimizer and the losses."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = subject.make(subject.of(model), lr=torch.tensor(0.05) if tensor_rate else 0.05)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    x = torch.linspace(-1, 1, 12).reshape(4, 3)

    def step(x):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(step, backend=backend) if backend else step
    losses = []
    for _ in range(steps):
        losses.append(compiled(x).item())
        scheduler.step()
    return optimizer, losses


# torch itself looks at the gradient of a loss that is carried over a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "subject, tensor_rate",
    [*((subject, False) for subject in EAGER), *((subject, True) for subject in (*EAGER[:1], *FUSED))],
    ids=lambda each: each.name if isinstance(each, Subject) else "tensor" if each else "number",
)
def test_a_whole_train_step_is_one_graph_whatever_the_rate(subject, tensor_rate):
    torch.compiler.reset()
    counter = CompileCounter()
    compiled, losses = train(subject, 10, tensor_rate, counter)
    eager, expected = train(subject, 10, tensor_rate, None)
    assert counter.frame_count == GRAPHS
    assert losses == expected and losses[-1] < losses[0]  # The counting backend runs the graph as it was traced.
    for p, q in zip(params_in(compiled), params_in(eager), strict=True):
        assert torch.equal(p, q)
        assert compiled.state[p].keys() == eager.state[q].keys()


@every_one
def test_compiling_the_step_itself_changes_nothing(subject):
    torch.compiler.reset()
    counter = CompileCounter()
    optimizer, twin = subject.pair()
    step = torch.compile(optimizer.step, backend=counter)
    calls = []
    optimizer.register_step_post_hook(lambda *arguments: calls.append(1))
    for t in range(3):
        for one in (optimizer, twin):
            for p in params_in(one):
                p.grad = torch.full_like(p, 0.5 + t)
            one.param_groups[0]["lr"] = 0.1 / (1 + t)
        step()
        twin.step()
    assert counter.frame_count == 0 and len(calls) == 3
    assert all(torch.equal(p, q) for p, q in zip(params_in(optimizer), params_in(twin), strict=True))
