"""`find`: what there is, by name or by what it says of itself."""

import fnmatch
import inspect
import re
from collections.abc import Iterator
from typing import Any

# What people ask for in words that are not those of the docstrings, and what there is for it.
MEANT: dict[str, tuple[str, ...]] = {
    "accumulation": ("accumulate", "adapters.step_in_backward"),
    "bf16": ("with_rounding", "error_bits", "with_master_copy", "apply_updates"),
    "bilevel": ("meta.unroll", "meta.custom_root", "meta.custom_fixed_point"),
    "clipping": ("clip_by_global_norm", "clip_by_value", "clip_by_block_rms", "adaptive_grad_clip", "clip_by_adagc"),
    "differential privacy": ("per_example_global_norm_clip", "add_noise"),
    "ensemble": ("meta.unroll", "fused"),
    "hyperparameter": ("Hparam", "PerLeaf", "scheduled", "hparams_at", "set_defaults", "rename_hparams"),
    "layer wise": ("adapters.param_groups", "partition", "by_module", "PerLeaf", "lamb", "lars", "scale_by_trust_ratio"),
    "low precision": ("with_rounding", "quantized", "Blockwise", "Stochastic", "with_master_copy"),
    "low rank": ("galore", "fira", "apollo", "project", "dion", "adapters.param_groups"),
    "maml": ("meta.unroll", "meta.windowed_grad", "meta.forward_grad"),
    "memory": (
        "quantized",
        "adapters.step_in_backward",
        "adafactor",
        "adam_mini",
        "apollo",
        "came",
        "galore",
        "lion",
        "meta.remat",
    ),
    "mixed precision": ("with_rounding", "with_master_copy", "apply_if_finite"),
    "newton": ("minimize", "solvers.newton_cg", "solvers.lbfgs", "least_squares", "sophia"),
    "no learning rate": ("prodigy", "schedule_free", "mechanize", "dog", "dowg", "dadapt_adam", "momo"),
    "per example": ("per_example_global_norm_clip",),
    "schedule": ("scheduled", "scale_by_schedule", "adapters.as_lr_scheduler", "warmup_cosine", "cosine", "linear", "join"),
    "second order": ("shampoo", "rotate", "psgd_kron", "sophia", "minimize", "least_squares"),
    "sharpness": ("sam", "asam"),
    "skip nan": ("apply_if_finite", "skip_large_updates", "zero_nans"),
}

# The modules that a user opens, beside the package itself.
MODULES = ("adapters", "meta", "solvers")


class Found(dict[str, str]):
    """Name to what it is in one line; at a prompt, and by `print`, one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {line}" for name, line in self.items()) or "There is nothing of this kind."


def find(what: str = "*") -> Found:
    """What this library has: optimizers, rules, wrappers, schedules, solvers, adapters, with a line each.

    Args:
        what: a name, in which `*` stands for anything, `"adam*"`; or words, `"weight decay"`. Each of them begins a word of the
            name or of its line; what has these words in its docstring only comes after, where there is little else. Hyphens and
            plurals make no difference.

    Raises:
        TypeError: `what` is no text.

    >>> find("*momentum*")
    There is nothing of this kind.
    >>> find("sign*")
    sign_sgd  signSGD: `p ← p − η sign(g)`.
    signum    Signum: `p ← p − η sign(m)`, with `m ← β m + (1 − β) g`.
    >>> list(find("8bit"))[:2]
    ['Blockwise', 'quantized']
    """
    if not isinstance(what, str):
        raise TypeError(f"what = {what!r}: expected a name or words, as in find('adam*').")
    docs = {name: inspect.getdoc(value) or "" for name, value in _public()}
    lines = {name: " ".join(doc.partition("\n\n")[0].split()) for name, doc in docs.items()}
    if any(mark in what for mark in "*?["):
        found = [name for name in lines if any(fnmatch.fnmatch(each, what) for each in (name, name.rpartition(".")[2]))]
    else:
        found = _by_words(_words(what), lines, docs)
    return Found({name: lines[name] for name in found})


# So many are enough to choose from.
ENOUGH = 5


def _by_words(words: list[str], lines: dict[str, str], docs: dict[str, str]) -> list[str]:
    """The names that fit, best first."""
    known = (names for asked, names in MEANT.items() if f" {' '.join(_words(asked))}" in f" {' '.join(words)}")
    meant = [name for names in known for name in names]
    found = dict.fromkeys([*_with(words, dict.fromkeys(lines, "")), *meant, *_with(words, lines)])
    if len(found) < ENOUGH:
        found |= dict.fromkeys(_with(words, docs))
    return list(found)


def _with(words: list[str], texts: dict[str, str]) -> list[str]:
    """The names that, with their texts, hold all these words, or longer ones that begin so."""
    held = {name: " ".join(["", *_words(f"{name} {text}")]) for name, text in texts.items()}
    return [name for name, text in held.items() if all(f" {word}" in text for word in words)]


def _words(text: str) -> list[str]:
    """The words of a text in small letters, without a plural's s: numbers, units and each part of a class's name too."""
    return [word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-zà-ž]+|[A-Z]+|\d+", text)]


def _public() -> Iterator[tuple[str, Any]]:
    """Everything public, by the name that one writes after `fo.`."""
    import functional_optim as fo

    for name in sorted(fo.__all__):
        yield name, getattr(fo, name)
    yield "testing.check_transform", fo.testing.check_transform
    for module in MODULES:
        opened = getattr(fo, module)
        for name in sorted(getattr(opened, "__all__", ())):
            if name not in fo.__all__ or getattr(opened, name) is not getattr(fo, name):
                yield f"{module}.{name}", getattr(opened, name)
