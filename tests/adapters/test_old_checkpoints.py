"""Checkpoints that earlier versions wrote are loaded without a word and go on with the numbers that the run had."""

import pytest
import torch
from old_runs import AFTER, BEFORE, FOLDER, RUNS, go_on, groups, values

from functional_optim.adapters import load_by_name


def by_position(optimizer, checkpoint):
    optimizer.load_state_dict(checkpoint)


def by_name(optimizer, checkpoint):
    assert not load_by_name(optimizer, checkpoint)


@pytest.mark.parametrize("load", [by_position, by_name])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_earlier_version_goes_on(name, load):
    saved = torch.load(FOLDER / f"{name}.pt")
    optimizer = RUNS[name](groups(name))
    for p, value in zip((p for group in optimizer.param_groups for p in group["params"]), saved["params"], strict=True):
        p.data.copy_(value)
    load(optimizer, saved["optimizer"])
    go_on(name, optimizer, BEFORE, AFTER)
    for found, expected in zip(values(optimizer), saved["later"], strict=True):
        # A version may compute in another order, a machine round otherwise; a step moves a parameter by 0.01.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_file_is_of_a_run():
    assert {file.stem for file in FOLDER.glob("*.pt")} == RUNS.keys()
