"""A whole training step through torch's real compiler: the laws trace every transform, this one also runs the generated code."""

import torch

import functional_optim as fo


def test_a_compiled_training_step_computes_what_the_eager_one_does():
    tx = fo.chain(fo.clip_by_global_norm(), fo.trace(nesterov=True), fo.adamw(weight_decay=0.1))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 3, generator=generator), torch.randn(16, 1, generator=generator)
    params = {"w": torch.randn(3, 4, generator=generator), "b": torch.zeros(4), "v": torch.randn(4, 1, generator=generator)}

    def loss(params):
        return ((torch.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2).mean()

    def step(params, state, hparams):
        updates, state = tx.update(torch.func.grad(loss)(params), state, params, hparams)
        return fo.apply_updates(params, updates), state

    compiled = torch.compile(step, fullgraph=True)
    eager_params, eager_state = params, tx.init_state(params)
    state = eager_state
    for lr in (0.1, 0.03, 0.01):
        hparams = {"lr": torch.tensor(lr)}
        params, state = compiled(params, state, hparams)
        eager_params, eager_state = step(eager_params, eager_state, hparams)
    # float32, three steps; the compiler may contract multiply and add
    torch.testing.assert_close((params, state), (eager_params, eager_state), rtol=1e-5, atol=1e-6)
