"""What this module held is a file for each class: optimizers that were pickled whole still look for the classes here."""

from . import *  # noqa: F403
