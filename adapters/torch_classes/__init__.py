"""torch.optim's own classes, with its signatures and its checkpoints: each a sentence about which transform a group gets.

`fused=True` steps with compiled kernels, see `OptimizerAdapter`. `rounding`, which torch's classes have not, is how parameters of
low precision are rounded, see `with_rounding`. `foreach` is accepted, and kept in the groups, so that code and checkpoints that
were written for torch work: it asks for another execution of the same arithmetic. `capturable` keeps the counts on the device.
`differentiable=True` makes a step part of the graph: of gradients, parameters, slots, and numbers that are tensors. Give it
clones of the parameters, since a leaf can't be written to.
"""

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .asgd import ASGD
from .lbfgs import LBFGS
from .muon import Muon
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .sgd import SGD
from .sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "LBFGS",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
]
