"""The optimizers of torch.optim, each a sentence made of `chain`. A link whose number is None is left out."""

from functional_optim.optimizers.torch_optim.adam import adam, adamax, adamw, amsgrad, nadam, radam, sparse_adam
from functional_optim.optimizers.torch_optim.descent import asgd, rprop, sgd
from functional_optim.optimizers.torch_optim.muon import muon
from functional_optim.optimizers.torch_optim.squares import adadelta, adafactor, adagrad, rmsprop

__all__ = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "amsgrad",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sparse_adam",
]
