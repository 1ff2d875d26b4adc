"""Solvers: frozen records of numbers, each with one generator ``run(model, patterns)`` that yields after every epoch."""

from ptycho.solvers.base import Epoch, Updates
from ptycho.solvers.epie import EPIE
from ptycho.solvers.gradient import Gradient
from ptycho.solvers.lsqml import LSQML
from ptycho.solvers.mixed_state import MixedState
from ptycho.solvers.polish import Polish

Solver = Gradient | EPIE | MixedState | LSQML | Polish

__all__ = ["EPIE", "LSQML", "Epoch", "Gradient", "MixedState", "Polish", "Solver", "Updates"]
