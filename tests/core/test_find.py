"""What there is, found by name or by words."""

import pytest

import functional_optim as fo
from functional_optim.find import MEANT

EVERYTHING = fo.find()


def test_every_public_name_has_a_line():
    modules = {"adapters": fo.adapters, "meta": fo.meta, "solvers": fo.solvers}
    public = [*fo.__all__, *(f"{name}.{own}" for name, module in modules.items() for own in module.__all__)]
    lacking = [name for name in public if not EVERYTHING.get(name) and name.rpartition(".")[2] not in EVERYTHING]
    assert not lacking
    assert all(line and "\n" not in line for line in EVERYTHING.values())


@pytest.mark.parametrize(
    ("what", "among"),
    [
        ("adam*", {"adam", "adamw", "adamax"}),
        ("AdamW", {"adamw", "adapters.AdamW"}),
        ("Adam*", {"adapters.AdamW"}),
        ("weight decay", {"adamw", "adapters.WeightDecay"}),
        ("cosine", {"cosine", "warmup_cosine"}),
        ("batched by torch.vmap", set()),
        ("norm gradient clip", {"per_example_global_norm_clip"}),
        ("Defazio", {"schedule_free"}),
        ("8bit", {"quantized"}),
        ("8-bit", {"quantized"}),
        ("low rank", {"galore", "project"}),
        ("low memory", {"quantized", "adapters.step_in_backward", "adafactor"}),
        ("gradient clipping", {"clip_by_global_norm"}),
        ("sharpness", {"sam"}),
        ("MAML", {"meta.unroll"}),
    ],
)
def test_names_and_words_find(what, among):
    found = fo.find(what)
    assert among <= set(found) and len(found) < 60
    assert ("adam" in found) == (what == "adam*")


def test_what_people_ask_for_is_there():
    assert {name for names in MEANT.values() for name in names} <= set(EVERYTHING)


def test_names_come_before_what_mentions_them():
    assert next(iter(fo.find("sam"))) == "sam" and next(iter(fo.find("adamw"))) == "adamw"


def test_it_prints_a_line_each():
    lines = repr(fo.find("*cosine*")).splitlines()
    assert [line.split()[0] for line in lines] == ["cosine", "cosine_restarts", "warmup_cosine"]
    assert len({line.index(fo.find("*cosine*")[line.split()[0]]) for line in lines}) == 1
    assert repr(fo.find("*nothing like it*")) == "There is nothing of this kind."
    with pytest.raises(TypeError, match="expected a name or words"):
        fo.find(fo.adam)
