"""The script for machines with a GPU: that it can be run, by a rehearsal on the host, and what it says where there is none."""

import device
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(capsys):
    assert device.main() == 0
    assert capsys.readouterr().out == f"{device.NO_GPU}\n"


@pytest.mark.full
def test_a_rehearsal_on_the_host(capsys):
    """Only CUDA can be asked what was read, and captured; the rest must be right."""
    assert device.report(torch.device("cpu"), device.Clock(60), models=["tiny"], cases=["adamw-0", "muon-0", "momo-0"]) == 1
    out = capsys.readouterr().out
    assert "| the host's numbers in float64, to 1e-08 | 3 | 3 | 3 |" in out and "3 failures" in out


def test_what_there_is_no_time_for_is_said(capsys):
    failures = []
    device.compare_table(torch.device("cpu"), device.Clock(-1), failures, ["adamw-0", "lion-0"])
    assert "No time was left for 2 of them: adamw-0, lion-0." in capsys.readouterr().out and not failures
