"""What a step reads and writes: at most half as much again as gradient, parameter and slots are, but for some transforms."""

import pytest
import torch
from cases import TABLE, params_for
from engines import parameters, params_of, set_gradients

from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.buckets import Way
from functional_optim.combinators.compared import ARRIVED
from functional_optim.form import nested

GIVEN = "its own functions are called: nothing is known of them"
TREES = "it is given a tree beside the gradients"
ALL = "it takes all tensors at once"
NOISE = "each element gets noise by its place among all"
TWICE = "it asks for gradients elsewhere, or keeps several states of what is inside"
MATRICES = "it multiplies matrices"
ROWS = "it asks for sums over rows or columns"

# Where more is moved, and why; a line that is not true any more has to go.
REASONS = {
    "Transform-0": GIVEN,
    "add_noise-0": NOISE,
    "noisy_sgd-0": NOISE,
    "scale_by_lbfgs-0": ALL,
    "with_line_search-0": TWICE,
    "with_line_search-1": TWICE,
    "asam-0": TWICE,
    "sam-0": TWICE,
    "mechanize-0": TWICE,
    "graft-0": TWICE,
    "graft-1": TWICE,
    "whole_tree-0": ALL,
    "elementwise-1": TREES,
    "with_extra-0": TREES,
    "sophia-0": TREES,
    "scale_by_sophia-0": TREES,
    "adamuon-0": MATRICES,
    "muon-0": MATRICES,
    "per_matrix-0": MATRICES,
    "normuon-0": MATRICES,
    "orthogonalize-0": MATRICES,
    "orthogonalize-1": MATRICES,
    "psgd_kron-0": MATRICES,
    "rotate-0": MATRICES,
    "rotate-1": MATRICES,
    "scale_by_muon-0": MATRICES,
    "scale_by_muon-1": MATRICES,
    "scale_by_psgd_kron-0": MATRICES,
    "scale_by_shampoo-0": MATRICES,
    "shampoo-0": MATRICES,
    "soap-0": MATRICES,
    "apollo-0": MATRICES,
    "blocked-0": MATRICES,
    "dion-0": MATRICES,
    "dion2-0": MATRICES,
    "fira-0": MATRICES,
    "galore-0": MATRICES,
    "kl_shampoo-0": MATRICES,
    "kl_soap-0": MATRICES,
    "project-0": MATRICES,
    "project-1": MATRICES,
    "project-2": MATRICES,
    "rotate-2": MATRICES,
    "rotate-3": MATRICES,
    "scale_by_dion-0": MATRICES,
    "scale_by_dion-1": MATRICES,
    "scale_by_dion2-0": MATRICES,
    "scale_by_kl_shampoo-0": MATRICES,
    "scale_by_lmo-0": MATRICES,
    "scale_by_lmo-1": MATRICES,
    "scale_by_splus-0": MATRICES,
    "scion-0": MATRICES,
    "splus-0": MATRICES,
    "adafactor-0": ROWS,
    "adam_mini-0": ROWS,
    "adaptive_grad_clip-0": ROWS,
    "adaptive_grad_clip-1": ROWS,
    "came-0": ROWS,
    "centralize-0": ROWS,
    "per_tensor-0": ROWS,
    "scale_by_adam_mini-0": ROWS,
    "scale_by_came-0": ROWS,
    "scale_by_factored_rms-0": ROWS,
    "scale_by_row_rms-0": ROWS,
    "scale_by_sm3-0": ROWS,
    "sm3-0": ROWS,
    "row_floor-0": ROWS,
    "scale_by_mean_side-0": ROWS,
}


def moved(case):
    """Of each kind of parameters the bytes for each element that the stages read and write, None where a link is called, and
    those that gradient, parameter and slots are. What is read for a sum is left out: it is once for each."""
    own = params_for(case)
    # As many of each kind, where there are two, as of no other.
    shapes = [tuple(p.shape) for p in own.values()] if own else [(6, 4), (5,), ()]
    # Of float64, so that slots of a dtype of their own have it, too.
    optimizer = OptimizerAdapter(parameters(shapes, torch.float64), TABLE[case])
    for step in range(2):
        set_gradients(step, params_of(optimizer))
        optimizer.step(lambda: torch.tensor(1.0))
    kinds = {}
    for stage in optimizer.explain().stages:
        kinds.setdefault(stage.parameters, []).append(stage)
    found = []
    for stages in kinds.values():
        is_called = any(stage.way == Way.CALLED.value for stage in stages)
        traffic = sum(stage.reads + stage.writes for stage in stages)
        found.append((None if is_called else traffic, 3 * 8 + 2 * sum(stage.state for stage in stages)))
    return found or [(None, 0)]


def moves_more(case):
    """Whether it is much more than has to be."""
    if any({*form.needs.trees} - {ARRIVED} for _, form in nested(TABLE[case])):
        return True
    return any(traffic is None or traffic > 1.5 * least for traffic, least in moved(case))


@pytest.mark.parametrize("case", TABLE)
def test_no_more_is_moved_than_has_to_be(case):
    assert moves_more(case) == (case in REASONS)
