"""Searches along a line: how far to go, whatever says where. `functional_optim.solvers` has them all."""
