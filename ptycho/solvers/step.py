"""What a solver's loop and its steps say to each other: what is due, what a step does and remembers, what is known after an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ptycho.errors import RecipeError
from ptycho.solvers.state import State


@dataclass(frozen=True)
class Updates:
    """From which epoch on (1: the first; 0: never) each part of the model is updated.

    Of the geometry: single ``positions``, the ``affine`` map of the scan, ``tilt``, the ``thickness`` of each slice or ``total_thickness``, one
    change for all, and the probe's ``aberrations``. Beside it: ``source`` (its size), ``opr`` (the probe's ``opr_modes`` over the scan, its
    current with it), ``descan`` (the pattern's place on the detector, smooth over the scan), ``background`` and ``blur`` of the detector.
    A camera that is rotated or scaled has no number of its own: it is the scan's affine map seen from the other side, with all lengths of
    probe and object.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    object: int = 1
    probe: int = 2
    positions: int = 0
    affine: int = 0
    tilt: int = 0
    thickness: int = 0
    total_thickness: int = 0
    aberrations: int = 0
    source: int = 0
    opr: int = 0
    descan: int = 0
    background: int = 0
    blur: int = 0

    def __post_init__(self) -> None:
        for name, epoch in vars(self).items():
            if epoch < 0:
                raise RecipeError(f"update.{name} = {epoch}: an epoch from 1 on, or 0 for never, is needed")

    def due(self, epoch: int) -> Due:
        """What is updated in this epoch."""
        return Due(**{name: first > 0 and epoch >= first for name, first in vars(self).items()})


@dataclass(frozen=True)
class Due:
    """Which parts of the model are updated now."""

    object: bool
    probe: bool
    positions: bool
    affine: bool
    tilt: bool
    thickness: bool
    total_thickness: bool
    aberrations: bool
    source: bool = False
    opr: bool = False
    descan: bool = False
    background: bool = False
    blur: bool = False

    @property
    def held(self) -> frozenset[str]:
        """Which of object and probe stay as they are."""
        return frozenset(name for name in ("object", "probe") if not getattr(self, name))

    @property
    def refines(self) -> bool:
        """Whether there is more to do than object and probe."""
        return any(due for name, due in vars(self).items() if name not in ("object", "probe"))


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch: its number from 1 and the deviance per measured pixel, 2 (loss - loss of a perfect model) / pixels.

    ``held_out`` is the reduced Poisson deviance of the patterns that were held out, 1 if only noise is left, and None without any;
    ``note`` tells what was out of the ordinary, and why the last epoch was the last.
    """

    number: int
    loss: float
    held_out: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bookmark:
    """Where a run begins, and who is told between its batches.

    ``begin`` is a state that an earlier run gave (the model is to be as it was then); None for the beginning. ``after_batch`` is called behind every
    batch with a function that gives the state, as a tree of numbers and tensors which the next batch overwrites; what it raises ends the run.
    """

    begin: State | None = None
    after_batch: Callable[[Callable[[], State]], None] = lambda state: None


class Step(Protocol):
    """The changing side of a solver: its state and what it does with a batch. Made anew after a divergence; inherit for the defaults."""

    #: What is updated in the present epoch.
    due: Due

    @property
    def recordable(self) -> bool:
        """Whether all batches of this epoch do the same, on the device alone: no numbers that Python counts or looks at."""
        return False

    def start_epoch(self, epoch: int, due: Due) -> None:
        """Called before the batches of an epoch."""

    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """Update the model by one batch; the batch's summed loss before the update, on the device, if the likelihood measures it."""
        ...

    def end_epoch(self) -> None:
        """Called behind the batches of an epoch, before the constraints: for what is made of the whole pass."""
        return

    def state_dict(self) -> State:
        """All that a new one needs to go on from here, to the last bit; called between two batches."""
        ...

    def load_state_dict(self, state: State, due: Due) -> None:
        """Go on from there, in the midst of an epoch in which ``due`` is updated; in place of :meth:`start_epoch`."""
        ...

    def anneal(self) -> bool:
        """Called when the held-out likelihood has come to rest: average more from here on. False if there is nothing left to lower."""
        return False
