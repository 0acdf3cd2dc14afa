"""The blocks of the guide for timm, Hugging Face and Lightning, run as a reader would who has these libraries.

`make test-frameworks` installs them; the blocks of libraries that are not installed are skipped.
"""

import csv
import re
from typing import Any

import pytest
import torch
from guides import DOCS
from regression import Regression, samples

import functional_optim as fo

GUIDE = DOCS / "guides" / "from_timm_and_hugging_face.md"

# What these packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def blocks(section: str) -> list[str]:
    """The programs of a section that need another library."""
    text = GUIDE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\{code-block\} python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(code: str, **given: Any) -> dict[str, Any]:
    exec(code, given)
    return given


def imported(name: str) -> Any:
    """The package, unless it is not installed or what it needs does not fit this torch."""
    return pytest.importorskip(name, exc_type=(ImportError, RuntimeError))


def test_timms_program_before_and_after_trains_the_same_model():
    timm = imported("timm")
    trained = []
    for code in blocks("timm"):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3, img_size=32, qkv_bias=False)
        optimizer = run(code, model=model)["optimizer"]
        for step in range(2):
            optimizer.zero_grad()
            images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            model(images).square().mean().backward()
            optimizer.step()
        trained.append((type(optimizer), dict(model.named_parameters())))
    (theirs, expected), (ours, found) = trained
    assert theirs is not ours and ours is fo.adapters.OptimizerAdapter
    for name, p in expected.items():
        # float32: each of two steps of up to 3e-4 is rounded at 6e-8 of a parameter of about 1. (The bias of keys has no slope
        # but for rounding, of which Adam would make whole steps.)
        torch.testing.assert_close(found[name], p, rtol=0, atol=1e-6)


def test_the_trainers_program_trains_and_logs(tmp_path):
    transformers = imported("transformers")
    imported("accelerate")
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    _, after = blocks("Hugging Face's Trainer")
    model = Regression()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = run(after, Trainer=transformers.Trainer, args=args, model=model, dataset=samples())["trainer"]
    trainer.train()
    assert not any(map(torch.equal, before, model.parameters()))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4 and all(entry["optimizer/grad_norm"] > 0 for entry in logged)


def test_lightnings_program_trains_and_logs(tmp_path, monkeypatch):
    imported("lightning")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("Lightning")
    scope = run(code.replace("max_epochs=10", "max_epochs=1, accelerator='cpu', log_every_n_steps=1"))

    class Module(scope["Module"]):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

    trainer = scope["trainer"]
    trainer.fit(Module(), torch.utils.data.DataLoader(samples(), batch_size=4))
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        rates = [float(row["optimizer/lr"]) for row in csv.DictReader(file)]
    schedule = fo.warmup_cosine(peak=3e-4, warmup_steps=500, total_steps=10_000)
    # That of the next step, in a warm-up.
    assert rates == pytest.approx([float(schedule(step)) for step in range(1, 7)])
