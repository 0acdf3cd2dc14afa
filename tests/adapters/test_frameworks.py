"""Training under Hugging Face's Trainer, Lightning and accelerate: three short examples, each resumed bit for bit.

Needs the packages of the extra `frameworks`; what is not installed is skipped.
"""

import csv
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from regression import Regression, samples
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


# Logging what the optimizer knows.


def watched() -> fo.Transform:
    """A chain with a schedule of its own and the norm of the gradients."""
    return fo.chain(fo.monitor("grad"), fo.scheduled(fo.sgd(), lr=fo.linear(0.5, 0.0, steps=5)))


@needs("transformers", "accelerate")
@pytest.mark.parametrize("first", [False, True])
def test_the_trainer_logs_the_rate_in_force(first, tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Reporter(TrainerCallback):
        """As those that report to TensorBoard."""

        seen: list[dict[str, float]] = []

        def on_log(self, args, state, control, logs=None, **others):
            self.seen.append(dict(logs or {}))

    model = Regression()
    optimizer = OptimizerAdapter(model.named_parameters(), watched())
    args = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        logging_steps=2,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    callback, reporter = fo.adapters.trainer_callback(["*lr", "*norm"]), Reporter()
    reporter.seen = []
    callbacks = [reporter] if first else [reporter, callback]
    trainer = Trainer(model, args, train_dataset=samples(), optimizers=(optimizer, None), callbacks=callbacks)
    if first:
        trainer.callback_handler.callbacks.insert(0, callback)
    trainer.train()
    rates = [entry["optimizer/lr"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.3, 0.1])
    assert any("optimizer/grad_norm" in logs for logs in reporter.seen) == first


@needs("lightning")
def test_lightning_logs_the_rate_in_force_and_validates_the_average(tmp_path):
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()
            self.validated: list[Tensor] = []

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def validation_step(self, batch, index):
            self.validated.append(torch.cat([p.detach().flatten() for p in self.model.parameters()]))

        def configure_optimizers(self):
            return OptimizerAdapter(self.model.named_parameters(), fo.chain(fo.monitor("grad"), fo.ema_params(watched(), 0.5)))

    module = Module()
    logger = CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        val_check_interval=2,
        num_sanity_val_steps=1,
        callbacks=[fo.adapters.lightning_callback(["*lr", "*norm"])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(samples()), loader(samples()[:4]))
    (optimizer,) = trainer.optimizers
    trained = torch.cat([p.detach().flatten() for p in module.model.parameters()])
    with fo.adapters.eval_params(optimizer):
        average = torch.cat([p.detach().flatten() for p in module.model.parameters()])
    assert torch.equal(module.validated[-1], average) and not torch.equal(average, trained)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        logged = list(csv.DictReader(file))
    assert [float(row["optimizer/lr"]) for row in logged] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert all(float(row[name]) > 0 for row in logged for name in row if name.endswith("grad_norm"))
    assert sum(name.endswith("grad_norm") for name in logged[0]) == 2


# Groups.


@needs("peft")
def test_lora_plus_has_the_rates_of_peft():
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = get_peft_model(Regression(), LoraConfig(target_modules=["0", "2"], r=2))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    ours = OptimizerAdapter(fo.adapters.param_groups(model, 1e-3, lora_ratio=16), fo.adamw())
    rates = [{p: group["lr"] for group in each.param_groups for p in group["params"]} for each in (theirs, ours)]
    assert rates[0] == rates[1] and set(rates[0].values()) == {1e-3, 16e-3}
    labels = fo.by_name({"lora_B": "b", ".*": "a"})
    OptimizerAdapter(fo.adapters.param_groups(model, lora_ratio=16), fo.partition({"a": fo.adamw(), "b": fo.sgd()}, labels))


def timm() -> Any:
    """The package, unless what it needs does not fit this torch."""
    try:
        import timm.optim
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm can't be imported: {error} (pip install timm, and torchvision for this torch)")
    return timm


@needs("timm")
def test_timm_makes_our_optimizers_by_name():
    optim = timm().optim
    names = fo.adapters.register_with_timm(mine=clipped)
    assert names == fo.adapters.register_with_timm() + ["fo-mine"] and {"fo-adamw", "fo-schedule-free-adamw"} <= set(names)
    model = Regression()
    ours = optim.create_optimizer_v2(model, "fo-adamw", lr=0.05, weight_decay=0.1, betas=(0.8, 0.9))
    theirs = optim.create_optimizer_v2(model, "adamw", lr=0.05, weight_decay=0.1, betas=(0.8, 0.9))
    assert isinstance(ours, OptimizerAdapter) and repr(ours.transform).startswith("adamw(")
    for name in ("lr", "weight_decay", "betas"):
        assert [group[name] for group in ours.param_groups] == [group[name] for group in theirs.param_groups]
    for name in names:
        assert isinstance(optim.create_optimizer_v2(Regression(), name, lr=0.05), OptimizerAdapter), name


@needs("timm")
def test_layers_decay_as_timms_do_whose_groups_are_taken_too():
    package = timm()
    model = package.create_model("vit_tiny_patch16_224", depth=3, num_classes=5)
    spared = model.no_weight_decay()
    theirs = package.optim.param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=spared)
    ours = fo.adapters.param_groups(model, 1.0, weight_decay=0.1, layer_decay=0.5)
    names = {p: name for name, p in model.named_parameters()}
    expected = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    found = {name: (group["lr"], group["weight_decay"]) for group in ours for name, _ in group["params"]}
    for name in ("norm.weight", "norm.bias"):  # That after the layers counts there as one of the last layer.
        assert found.pop(name) == (1.0, 0.0) and expected.pop(name) == (0.5, 0.0)
    assert found == expected and len({rate for rate, _ in found.values()}) == 5
    OptimizerAdapter(theirs, fo.adamw())


@needs("omegaconf")
def test_any_sequence_is_a_pair():
    from omegaconf import OmegaConf

    betas = OmegaConf.create({"betas": [0.5, 0.75]}).betas
    w = nn.Parameter(torch.ones(2))
    assert fo.adamw(betas=betas).hparams["betas"] == (0.5, 0.75)
    made = [
        OptimizerAdapter([w], fo.adamw(), betas=betas),
        OptimizerAdapter([w], fo.adamw(betas=betas)),
        OptimizerAdapter([{"params": [w], "betas": betas}], fo.adamw()),
        AdamW([w], betas=betas),
        OptimizerAdapter([w], fo.adamw(betas=(0.5, 0.75))),
    ]
    results = []
    for optimizer in made:
        with torch.no_grad():
            w.fill_(1.0)
        for g in (1.0, -2.0):
            w.grad = torch.full_like(w, g)
            optimizer.step()
        results.append(w.detach().clone())
    for result in results:
        torch.testing.assert_close(result, results[-1], rtol=0, atol=1e-7)  # float32
    tx, p = fo.adamw(), torch.ones(2)
    updates = [tx.update(p, tx.init_state(p), p, {"betas": each})[0] for each in (betas, (0.5, 0.75))]
    assert torch.equal(*updates)
