"""Solvers: frozen records of numbers, each with one generator ``run(model, patterns)`` that yields after every epoch."""

from ptycho.solvers.base import Epoch, Updates
from ptycho.solvers.epie import EPIE
from ptycho.solvers.gradient import Gradient
from ptycho.solvers.mixed_state import MixedState

Solver = Gradient | EPIE | MixedState

__all__ = ["EPIE", "Epoch", "Gradient", "MixedState", "Solver", "Updates"]
