"""Training under Hugging Face's Trainer, Lightning and accelerate: three short examples, each resumed bit for bit.

Needs the packages of the extra `frameworks`; what is not installed is skipped.
"""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter

# What these packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (pip install '.[frameworks]')")


class Regression(nn.Module):
    """A model as Hugging Face's Trainer calls it: it gets a sample's fields and returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.layers(x).squeeze(-1)
        return {"loss": (y - labels).square().mean(), "logits": y}


def samples() -> list[dict[str, Any]]:
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": row.prod()} for row in x]


def loader(dataset) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(dataset, batch_size=4)


def clipped() -> fo.Transform:
    """A chain with a whole-tree norm, slots and counts."""
    return fo.chain(fo.clip_by_global_norm(0.1), fo.scale_by_adam(amsgrad=True), fo.trace(0.5), fo.scale_by_learning_rate())


def scheduled() -> fo.Transform:
    """A chain whose learning rate follows a schedule of its own."""
    return fo.scheduled(fo.adamw(), lr=fo.linear(0.05, 0.02, steps=6))


def branches() -> fo.Transform:
    """Branches with learning rates of their own."""
    return fo.partition({"matrix": fo.adamw(lr=0.05), "vector": fo.sgd(lr=0.02)}, fo.by_ndim({2: "matrix"}, otherwise="vector"))


# An optimizer as a class and its arguments; the instance is `cls(params, **kwargs)`.
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {"lr": 0.05, "betas": (0.8, 0.9)}),
    "a chain": (OptimizerAdapter, {"transform": clipped(), "lr": 0.05}),
    # In these `lr` is a factor.
    "a schedule": (OptimizerAdapter, {"transform": scheduled()}),
    "branches": (OptimizerAdapter, {"transform": branches()}),
}
# The yardstick.
TORCH = (torch.optim.AdamW, OPTIMIZERS["AdamW"][1])


def halving(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5**step)


# The examples. Each trains to step 6 and leaves a checkpoint of step 3 in `folder`, or goes on from that checkpoint.


def train_with_hugging_face(folder, optimizer_class, kwargs, resume=False, as_class=False) -> nn.Module:
    from transformers import Trainer, TrainingArguments

    model = Regression()
    if as_class:  # The Trainer makes the groups (no decay for biases and norms) and the schedule.
        how: dict[str, Any] = {"optimizer_cls_and_kwargs": (optimizer_class, dict(kwargs))}
    else:
        optimizer = optimizer_class(model.parameters(), **kwargs)
        how = {"optimizers": (optimizer, halving(optimizer))}
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=4,
        weight_decay=0.1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(model, args, train_dataset=samples(), **how)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    assert trainer.state.global_step == 6
    return model


def train_with_lightning(folder, optimizer_class, kwargs, resume=False) -> nn.Module:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = optimizer_class(self.parameters(), **kwargs)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving(optimizer), "interval": "step"}}

    module = Module()
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning can't go on in the middle of an ordinary loader, so step 3 is the end of an epoch.
    trainer.fit(module, loader(samples()[:12]), ckpt_path=folder / "step=3.ckpt" if resume else None)
    assert trainer.global_step == 6
    return module.model


def train_with_accelerate(folder, optimizer_class, kwargs, resume=False) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Regression()
    optimizer = optimizer_class(model.parameters(), **kwargs)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(samples()), halving(optimizer))
    if resume:
        accelerator.load_state(str(folder / "step-3"))
        batches = accelerator.skip_first_batches(batches, 3)
    for step, batch in enumerate(batches, 3 if resume else 0):
        if step == 3 and not resume:
            accelerator.save_state(str(folder / "step-3"))
        optimizer.zero_grad()
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        scheduler.step()
    return accelerator.unwrap_model(model)


# What they must do.


@pytest.fixture
def steps():
    """Every step that any optimizer takes."""
    taken = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: taken.append(type(optimizer)))
    yield taken
    handle.remove()


EXAMPLES: dict[str, Callable[..., nn.Module]] = {
    "hugging_face": train_with_hugging_face,
    "hugging_face, class": lambda *args, **options: train_with_hugging_face(*args, **options, as_class=True),
    "lightning": train_with_lightning,
    "accelerate": train_with_accelerate,
}
NEEDS = {
    "hugging_face": ("transformers", "accelerate"),
    "hugging_face, class": ("transformers", "accelerate"),
    "lightning": ("lightning",),
    "accelerate": ("accelerate",),
}


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(*NEEDS[name])) for name in EXAMPLES])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_framework_resumes_bit_for_bit(framework, name, steps, tmp_path):
    train = EXAMPLES[framework]
    straight = train(tmp_path, *OPTIMIZERS[name])
    assert len(steps) == 6
    resumed = train(tmp_path, *OPTIMIZERS[name], resume=True)
    assert len(steps) == 6 + 3
    start = Regression()
    for key, expected in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], expected), key
        assert not torch.equal(start.state_dict()[key], expected), f"{key} was not trained"


@pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(*NEEDS[name])) for name in EXAMPLES])
def test_a_framework_trains_as_it_does_with_torchs_own_class(framework, tmp_path):
    ours = EXAMPLES[framework](tmp_path / "ours", *OPTIMIZERS["AdamW"])
    theirs = EXAMPLES[framework](tmp_path / "theirs", *TORCH)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        # float32: six steps of 0.05 and less, each rounded at 6e-8 of a parameter of about 1.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# A scheduler that the framework makes by itself.


def trained_by_hugging_face(folder, transform, lr_scheduler_type):
    """The model, of an optimizer without a scheduler: the Trainer makes one."""
    from transformers import Trainer, TrainingArguments

    model = Regression()
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        lr_scheduler_type=lr_scheduler_type,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,  # The Trainer logs the groups' lr.
        save_strategy="no",
    )
    optimizer = OptimizerAdapter(model.named_parameters(), transform)
    trainer = Trainer(model, args, train_dataset=samples(), optimizers=(optimizer, None))
    trainer.train()
    return model, [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def same_as_without_a_scheduler(folder, model, transform):
    """Whether a model is what the Trainer makes of this transform with a scheduler that leaves everything alone."""
    witness, _ = trained_by_hugging_face(folder, transform, "constant")
    return all(torch.allclose(p, q, rtol=0, atol=1e-6) for p, q in zip(model.parameters(), witness.parameters(), strict=True))


@needs("transformers", "accelerate")
def test_the_trainers_own_schedule_drives_the_branches_alike(tmp_path):
    model, rates = trained_by_hugging_face(tmp_path / "ours", branches(), "linear")
    assert rates == pytest.approx([1 - t / 6 for t in range(6)], abs=1e-9)
    decayed = {"matrix": fo.adamw(), "vector": fo.sgd()}
    by_hand = {
        label: fo.scheduled(tx, lr=fo.linear(rate, 0.0, steps=6))
        for (label, tx), rate in zip(decayed.items(), (0.05, 0.02), strict=True)
    }
    labels = fo.by_ndim({2: "matrix"}, otherwise="vector")
    assert same_as_without_a_scheduler(tmp_path / "by hand", model, fo.partition(by_hand, labels))


@needs("transformers", "accelerate")
def test_the_trainers_own_schedule_and_the_chains_multiply_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="something drives lr.*the two multiply.*lr_scheduler_type='constant'") as record:
        model, _ = trained_by_hugging_face(tmp_path / "ours", scheduled(), "linear")
    assert sum("something drives lr" in str(each.message) for each in record) == 1
    both = fo.scheduled(fo.adamw(), lr=lambda step: fo.linear(0.05, 0.02, steps=6)(step) * fo.linear(1.0, 0.0, steps=6)(step))
    assert same_as_without_a_scheduler(tmp_path / "by hand", model, both)


@needs("transformers", "accelerate")
def test_a_constant_schedule_leaves_the_chains_alone(tmp_path):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        _, rates = trained_by_hugging_face(tmp_path, scheduled(), "constant")
    assert rates == [1.0] * 6 and not any("something drives lr" in str(each.message) for each in record)


@needs("lightning")
@pytest.mark.parametrize("make", [scheduled, branches], ids=["a schedule", "branches"])
def test_lightnings_monitor_shows_the_factor(make, tmp_path):
    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = OptimizerAdapter(self.named_parameters(), make())
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving(optimizer), "interval": "step"}}

    monitor = LearningRateMonitor(logging_interval="step")
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader(samples()))
    assert list(monitor.lrs.values()) == [[1.0, 0.5, 0.25, 0.125]]


# Evaluating the average: frameworks call `optimizer.eval()` and `optimizer.train()` where these exist.


def averaging() -> fo.Transform:
    """A chain that evaluates elsewhere than it trains."""
    return fo.chain(fo.clip_by_global_norm(), fo.schedule_free_adamw(lr=0.05))


@needs("transformers", "accelerate")
def test_the_trainer_evaluates_and_ships_the_average_and_resumes_training(tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Seen(TrainerCallback):
        """The parameters of the model while it is evaluated, by step."""

        def __init__(self) -> None:
            self.at: dict[int, dict[str, Tensor]] = {}

        def on_evaluate(self, args, state, control, model=None, **others):
            assert model is not None
            self.at[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def train(resume=False):
        model, seen = Regression(), Seen()
        optimizer = OptimizerAdapter(model.named_parameters(), averaging())
        args = TrainingArguments(
            str(tmp_path),
            max_steps=6,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(
            model,
            args,
            train_dataset=samples(),
            eval_dataset=samples(),
            optimizers=(optimizer, halving(optimizer)),
            callbacks=[seen],
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        optimizer.train()
        return fo.adapters.functional_state(optimizer), seen.at

    straight, seen = train()
    resumed, again = train(resume=True)
    assert set(seen) == {3, 6} and set(again) == {6}
    average = fo.evaluated(averaging(), straight.state, straight.params)
    for name, p in straight.params.items():
        assert torch.equal(resumed.params[name], p) and torch.equal(again[6][name], seen[6][name]), name
        assert torch.equal(seen[6][name], average[name]) and not torch.equal(seen[6][name], p), name


@needs("accelerate")
def test_accelerate_switches_the_mode():
    from accelerate import Accelerator

    model = Regression()
    optimizer = OptimizerAdapter(model.named_parameters(), averaging())
    model, prepared = Accelerator(cpu=True).prepare(model, optimizer)
    model(torch.ones(2, 3), torch.ones(2))["loss"].backward()
    prepared.step(), prepared.step()
    trained = [p.detach().clone() for p in model.parameters()]
    prepared.eval()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))
    prepared.train()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))


def test_torchs_classes_have_no_mode_as_in_torch():
    assert not hasattr(AdamW, "train") and not hasattr(AdamW, "eval")
