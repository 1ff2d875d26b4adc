"""Solvers: frozen records of numbers, each with one generator ``run(model, patterns)`` that yields after every epoch."""

from ptycho.solvers.base import Epoch, Updates
from ptycho.solvers.epie import EPIE
from ptycho.solvers.gradient import Gradient
from ptycho.solvers.lsqml import LSQML
from ptycho.solvers.mixed_state import MixedState

Solver = Gradient | EPIE | MixedState | LSQML

__all__ = ["EPIE", "LSQML", "Epoch", "Gradient", "MixedState", "Solver", "Updates"]
