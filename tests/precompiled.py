"""Inductor's precompiled header, for processes that compile many files.

A program of a few files does without, since the header takes 7 s of the processor's time (see `functional_optim.inductor`). Tests
compile hundreds, each in 0.8 s with it and in 2.5 s without.
"""

from functional_optim import inductor

quick_start = inductor.quick_start  # What users have.


def use_header() -> None:
    """Compile every file with it from now on."""
    inductor.quick_start = lambda with_header, with_graphs=True: quick_start(True, with_graphs)
