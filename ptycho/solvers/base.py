"""What all solvers share: one loop over epochs and batches. A solver is a frozen record of numbers; it adds the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ptycho.adjoint import Likelihood
from ptycho.batches import hilbert_order, stratified_batches
from ptycho.constraint import Constraints, OrthogonalModes, PositivePhase, ProbePower, PurePhase, SliceSmoothing
from ptycho.constraint.base import scanned
from ptycho.constraint.object import expected_phase_rad
from ptycho.errors import RecipeError
from ptycho.holdout import Split
from ptycho.loss import Loss, LossName, choose_loss
from ptycho.model import Ptychography
from ptycho.patterns import Patterns
from ptycho.solvers.judge import Judge, deviances, seen
from ptycho.solvers.stop import Rescue, Stop, Verdict, Watch
from ptycho.threads import single_threaded

#: The loss is measured on every so many-th batch, random and spread over the field: its logarithm costs a tenth of a pass.
_MEASURED_EVERY = 4
#: Patterns that are looked at after each epoch to see whether the run diverges.
_SAMPLE = 8
#: Slices are smoothed along the beam with a Gaussian of this share of the depth of field, finer than what the data tell apart.
_SMOOTHING = 0.1
#: The least value of each whole number of the settings.
_LEAST = {"epochs": 1, "batch": 0, "chunk": 0, "seed": 0, "bin": 1, "detector_px": 0, "slices": 0, "probe_modes": 0}


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


class Step(Protocol):
    """The changing side of a solver: its state and what it does with a batch. Made anew after a divergence; inherit for the defaults."""

    def start_epoch(self, epoch: int, due: Due) -> None:
        """Called before the batches of an epoch."""

    def batch(self, index: Tensor, counts: Tensor) -> Tensor:
        """Update the model by one batch; the batch's summed loss before the update, on the device, if the likelihood measures it."""
        ...

    def end_epoch(self) -> None:
        """Called behind the batches of an epoch, before the constraints: for what is made of the whole pass."""
        return

    def anneal(self) -> bool:
        """Called when the held-out likelihood has come to rest: average more from here on. False if there is nothing left to lower."""
        return False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every solver has.

    ``epochs`` passes over the data in batches of ``batch`` patterns (0: all at once); ``loss`` auto is Poisson below about 5 electrons
    per pixel and amplitude above; ``floor_e`` electrons per pixel are added to model and data (Poisson: keeps dark pixels in bounds);
    ``power`` is the exponent of the power loss; ``chunk`` patterns are computed at a time (0: what suits the cache).

    What a stage computes with: ``bin`` x ``bin`` detector pixels as one (a smaller window), the central ``detector_px`` of them (0: all; fewer
    make a coarser object), the specimen in ``slices`` equal slices and ``probe_modes`` modes (0: as the model says). The next stage takes over.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}  # for recipe.py

    epochs: int = 12
    batch: int = 32
    loss: LossName = "auto"
    floor_e: float = 0.01
    power: float = 0.5
    chunk: int = 0
    seed: int = 0
    bin: int = 1
    detector_px: int = 0
    slices: int = 0
    probe_modes: int = 0
    update: Updates = field(default_factory=Updates)
    constraints: Constraints | None = None
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise RecipeError(f"{name} = {getattr(self, name)}: at least {least} is needed")
        if not self.floor_e >= 0 or not 0 < self.power <= 1:
            raise RecipeError(f"floor_e = {self.floor_e}, power = {self.power}: floor_e >= 0 and 0 < power <= 1 are needed")

    def loss_for(self, patterns: Patterns) -> Loss:
        """The loss that ``auto`` stands for with these data."""
        name = choose_loss(self.loss, patterns.electrons_per_pixel)
        return Loss(name, self.floor_e if name == "poisson" else 0.0, self.power)

    def constraints_for(self, loss: Loss, model: Ptychography) -> Constraints:
        """The constraints that act: the given ones, or those that suit the loss and the model."""
        if self.constraints is not None:
            return self.constraints
        few = loss.name == "poisson"
        # Many counts need no dose, and to know it is a transform of the whole canvas.
        constraints = default_constraints(few, _electrons_per_pixel(model) if few else math.inf)
        if model.object.transmission.shape[1] == 1:
            return constraints
        return replace(constraints, slice_smoothing=SliceSmoothing(sigma_A=_SMOOTHING * depth_of_field_A(model)))

    def last_start(self, loss: Loss, model: Ptychography) -> int:
        """The epoch from which on all that will be updated or imposed is."""
        acting = (constraint for constraint in vars(self.constraints_for(loss, model)).values() if constraint is not None)
        return max(*vars(self.update).values(), *(constraint.start for constraint in acting), 1)

    def run(self, model: Ptychography, patterns: Patterns, workers: int = 1, split: Split | None = None) -> Iterator[Epoch]:
        """Yield after each epoch; ``model`` is changed in place. ``split`` names the patterns to solve for and those that judge."""
        engine = Likelihood(model, self.loss_for(patterns), self.chunk or None, workers, patterns.missing)
        return run(self, engine, patterns, split or Split.whole(len(patterns)))

    def step(self, engine: Likelihood, split: Split, factor: float) -> Step:
        """The changing side of the solver, at its beginning, with all steps ``factor`` times as long as the settings say."""
        raise NotImplementedError


def default_constraints(few_counts: bool, electrons_per_pixel: float) -> Constraints:
    """What acts on a thin object when the recipe says nothing of constraints; ``electrons_per_pixel`` of the object, in the scanned field.

    Few counts: a positive pure phase, half the unknowns for the same information, with a prior by the dose. Many: positive phase, free amplitude.
    """
    # Three digits: a recipe shows it.
    expected_rad = float(f"{expected_phase_rad(electrons_per_pixel):.3g}")
    return Constraints(
        pure_phase=PurePhase() if few_counts else None,
        positive_phase=PositivePhase(mean_phase_rad=expected_rad) if few_counts else PositivePhase(),
        probe_power=None if few_counts else ProbePower(),
        orthogonal_modes=OrthogonalModes(),
    )


def _electrons_per_pixel(model: Ptychography) -> float:
    light = model.illumination()
    return float(light[scanned(light)].mean())


def depth_of_field_A(model: Ptychography) -> float:
    """lambda / alpha^2 in Å, from the extent of the probe's spectrum."""
    return 1 / (model.propagator.wavelength_A * (2 * model.probe.width_invA) ** 2)


def run(settings: Settings, engine: Likelihood, patterns: Patterns, split: Split) -> Iterator[Epoch]:
    """The loop: yields after every epoch, when the model holds its result; ends when the held-out patterns say so.

    Raises DivergedError when halving the steps does not keep the loss in bounds.
    """
    try:
        yield from _epochs(settings, engine, patterns, split)
    finally:
        engine.close()


def _epochs(settings: Settings, engine: Likelihood, patterns: Patterns, split: Split) -> Iterator[Epoch]:
    model = engine.model
    watch = Watch(settings.stop, settings.last_start(engine.loss, model))
    passes = _Passes(settings, engine, patterns, split)
    judge = Judge(engine, patterns, split, settings.floor_e) if len(split.held) > 1 else None
    rescue = Rescue(model, passes.state(), patterns.mean_electrons / (patterns.shape[0] * patterns.shape[1]))
    step = settings.step(engine, split, 1.0)
    best = rescue.good
    for epoch in range(1, settings.epochs + 1):
        loss, notes = passes(step, epoch), []
        while rescue.diverged(state := passes.state()):
            notes.append(rescue.back(epoch, state))
            step = settings.step(engine, split, 0.5**rescue.returns)
            loss = passes(step, epoch)
        verdict, held_out = Verdict.GO_ON, None
        if judge is not None:
            deviances, held_out = judge(settings.update.due(epoch))
            verdict = watch.told(deviances)
        rescue.keep(state)
        if watch.best == epoch:
            best = rescue.good
        if epoch == settings.epochs:
            verdict = Verdict.OVER_FITTING if watch.over_fitting else Verdict.GO_ON
        elif verdict is not Verdict.GO_ON and step.anneal():
            watch.restart()
            verdict = Verdict.GO_ON
        if verdict is Verdict.OVER_FITTING:
            best.restore(model)
            notes.append(f"over-fitting: back to epoch {watch.best}, the best for the held-out patterns")
        elif verdict is Verdict.AT_REST:
            notes.append("plateau of the held-out likelihood")
        elif epoch == settings.epochs:
            notes.append("all epochs done")
        yield Epoch(epoch, loss, held_out, "; ".join(notes))
        if verdict is not Verdict.GO_ON:
            return


class _Passes:
    """One pass over the patterns that are solved for after another."""

    def __init__(self, settings: Settings, engine: Likelihood, patterns: Patterns, split: Split) -> None:
        self.settings, self.engine, self.patterns = settings, engine, patterns
        self.constraints = settings.constraints_for(engine.loss, engine.model)
        self.order = split.train[hilbert_order(engine.model.positions.value_px.detach().cpu().numpy()[split.train])]
        self.batch = min(settings.batch, len(self.order)) or len(self.order)
        self.least = patterns.least(engine.loss, engine.model.detector.mask)
        # A few patterns, spread over the field, show after each epoch whether all is well.
        few = np.linspace(0, len(self.order) - 1, min(_SAMPLE, len(self.order))).astype(np.int64)
        self.sample = [self.order[few]]

    def __call__(self, step: Step, epoch: int) -> float:
        """All batches, then the constraints; the deviance per pixel, on the way."""
        mask = self.engine.model.detector.mask
        total, measured = torch.zeros((), dtype=torch.float64, device=mask.device), 0
        with single_threaded():
            step.start_epoch(epoch, self.settings.update.due(epoch))
            plan = stratified_batches(self.order, self.batch, self.settings.seed, epoch)
            for number, (index, counts) in enumerate(self.patterns.batches(plan)):
                self.engine.measures = number % _MEASURED_EVERY == 0
                loss = step.batch(index, counts)
                if self.engine.measures:
                    total += loss - self.least[index].sum()
                    measured += len(index)
            step.end_epoch()
            if self._finite():
                self.constraints.apply(self.engine.model, epoch, self.settings.update.due(epoch).held)
        return 2 * float(total) / (measured * float(mask.sum()))

    @torch.no_grad()
    def state(self) -> float:
        """The deviance per pixel of the model as it is; NaN if any number of it is not finite."""
        if not self._finite():
            return math.nan
        (index, counts), *_ = self.patterns.batches(self.sample)
        image, counts, weight = seen(self.engine.model, index, counts)
        return float(deviances(self.engine.loss, image, counts, weight).sum() / weight.sum())

    def _finite(self) -> bool:
        numbers = (torch.view_as_real(p) if p.is_complex() else p for p in self.engine.model.parameters())
        return all(bool(torch.isfinite(p).all()) for p in numbers)
