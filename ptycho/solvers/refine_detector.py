"""Steps of what lies before and behind the specimen: source size, varying probe, descan, blur, background; no rate to tune.

What all patterns share takes part in the common Gauss-Newton step of ``refine.py``. Source and blur enter it by their variances: patterns
are linear in them where they are small, so that their slope does not vanish there. What each pattern has for itself is drawn
after every pass to a polynomial of the scan position: beam and descan drift, they do not jump.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptycho.adjoint import Gradients
from ptycho.errors import RecipeError
from ptycho.model import Ptychography
from ptycho.probe import Probe
from ptycho.solvers.scalar import TURN_RAD, Scalar
from ptycho.solvers.state import State, set_state, state_of

if TYPE_CHECKING:
    from ptycho.solvers.base import Due

#: Order of the polynomial of the scan position that the descan, and the coefficients of a varying probe, follow.
_DESCAN_ORDER, _OPR_ORDER = 2, 3
#: Variance of the blur in squared pixels, and shift in pixels, that change patterns about as much as other parameters by their unit.
_BLUR_PX2, _DESCAN_PX = 0.05, 0.05
#: The same of the background, as a share of the mean intensity: in the dark field a little changes much.
_BACKGROUND = 2e-3
#: A varying probe takes this many times the batch's share of its step, so that batches are averaged, and half of it at most.
_PASS, _RELAXATION = 3.0, 0.5
#: Share of its own step that a pattern's coefficient takes: the variations are to settle first, or each pattern bends the scan to its noise.
_OWN = 0.1


def switch_on(model: Ptychography, due: Due) -> None:
    """Give the model the parameters that are due and that it does not have yet.

    Raises RecipeError for a varying probe without variations.
    """
    probe, detector = model.probe, model.detector
    if due.source and len(probe.source_A2) == 0:
        probe.source_A2.data = probe.source_A2.new_full((1,), _source_change(probe))
    if due.blur and not detector.blurs:
        detector.blur_px2.data = detector.blur_px2.new_full((1,), _BLUR_PX2)
    if due.descan and not detector.descans:
        detector.descan_px.data = torch.zeros_like(model.positions.value_px.data)
    if due.opr and not probe.varies:
        if len(probe.variations) == 0:
            raise RecipeError("update.opr: the probe has nothing to vary in; set opr_modes in [model], 1 or 2 to begin with")
        probe.coefficients.data = _first_coefficients(model)
    if due.background and model.detector.background.numel() > 1:
        # What is multiplied has to be there.
        detector.background.data.clamp_(min=float(1e-4 * _mean_intensity(model)))


def keep_bounds(model: Ptychography) -> None:
    """Variances stay positive, the background is not negative, in place."""
    model.probe.source_A2.data.clamp_(min=0.01 * _source_change(model.probe))
    model.detector.blur_px2.data.clamp_(min=0.01 * _BLUR_PX2)
    model.detector.background.data.clamp_(min=0)


class DetectorSide:
    """Steps on the parameters of source and detector that are due."""

    def __init__(self, model: Ptychography, natural_step: float) -> None:
        self.model, self.natural_step = model, natural_step
        self._seen = 0
        self._smoothers: dict[int, Tensor] = {}
        #: Variations begin at zero, and only what has been normalised has a step for its coefficients.
        self._normalised = False

    def state_dict(self) -> State:
        """What is to be remembered."""
        return state_of(self, "_seen", "_smoothers", "_normalised")

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        set_state(self, state, self.model.probe.wave.device)

    def scalars(self, found: Gradients, due: Due) -> list[Scalar]:
        """The parameters that all patterns share, for the common Gauss-Newton step."""
        probe, detector, scalars = self.model.probe, self.model.detector, []
        if due.source and found.spectrum is not None:
            # Of the mean probe: what varies of it is small.
            change = probe.source_A2.new_tensor(_source_change(probe))
            scalars.append(Scalar(probe.source_A2.data, probe.source_slope(found.spectrum), change))
        if due.blur and found.blur is not None:
            scalars.append(Scalar(detector.blur_px2.data, found.blur, found.blur.new_tensor(_BLUR_PX2)))
        if due.background and found.background is not None and found.background.numel() == 1:
            scalars.append(Scalar(detector.background.data[0], found.background[0], _BACKGROUND * _mean_intensity(self.model)))
        return scalars

    def descan(self, found: Gradients) -> list[Scalar]:
        """The descan's shifts along y and x, one for each pattern."""
        if found.descan is None:
            return []
        shifts, change = self.model.detector.descan_px.data, found.descan.new_tensor(_DESCAN_PX)
        return [Scalar(shifts[:, i], found.descan[:, i], change) for i in (0, 1)]

    def step(self, index: Tensor, found: Gradients, due: Due) -> None:
        """What has no part in the common step; bounds; behind the last batch of a pass what is made of the whole of it."""
        if due.background and found.background is not None and found.background.numel() > 1:
            self._background(found.background, len(index))
        if due.opr and found.variations is not None and found.coefficients is not None:
            self._vary(index, found.variations, found.coefficients)
        keep_bounds(self.model)
        self._seen += len(index)
        if self._seen >= len(self.model.positions.value_px):
            self._seen = 0
            self._end_pass(due)

    def _end_pass(self, due: Due) -> None:
        detector, probe = self.model.detector, self.model.probe
        if due.source:
            probe.refit_source()
        if due.descan:
            detector.descan_px.data = self._smooth(detector.descan_px.data, _DESCAN_ORDER)
        if due.opr:
            probe.coefficients.data = self._smooth(probe.coefficients.data, _OPR_ORDER)
            probe.normalise_variations()
            self._normalised = True

    def _background(self, slope: Tensor, patterns: int) -> None:
        """Each pixel its own: b <- b mean(D / I), expectation-maximisation, which stays positive (Richardson 1972, Lucy 1974)."""
        share = self._share(patterns)
        # The slope of Poisson's loss is 1 - D / I, that of the others about half of it.
        self.model.detector.background.data.mul_((1 - share * 2 * self.natural_step / patterns * slope).clamp(0.5, 2))

    def _vary(self, index: Tensor, by_variations: Tensor, by_coefficients: Tensor) -> None:
        """The step of the probe itself (the majoriser of the amplitude loss), along coefficients and variations."""
        probe, natural = self.model.probe, 0.5 * self.natural_step
        power = probe.coefficients.data.square().mean(0) * len(index)
        change = probe.pull_back(by_variations.flatten(0, 1)) * (natural * self._share(len(index)))
        if self._normalised:
            probe.coefficients.data[index] -= natural * _OWN * by_coefficients
        # One that has died out does not come back with a leap.
        probe.variations.data -= change / (power + 1e-3 * power.max() + 1e-30)[:, None, None]

    def _share(self, patterns: int) -> float:
        return min(_RELAXATION, _PASS * patterns / len(self.model.positions.value_px))

    def _smooth(self, values: Tensor, order: int) -> Tensor:
        """The polynomial of the scan position that is nearest to ``values`` (N, n)."""
        if order not in self._smoothers:
            self._smoothers[order] = _polynomials(self.model.positions.value_px.data, order)
        basis = self._smoothers[order]
        return basis @ (basis.mT @ values)


def _source_change(probe: Probe) -> float:
    """The variance in Å^2 that lowers the visibility of two waves of the probe by ``TURN_RAD``."""
    # Two waves of the probe differ by twice its rms frequency.
    return TURN_RAD / (2 * math.pi**2 * 4 * probe.width_invA**2)


def _mean_intensity(model: Ptychography) -> Tensor:
    """Electrons per pixel and pattern, ()."""
    return model.initial_power / model.detector.mask.numel()


def _first_coefficients(model: Ptychography) -> Tensor:
    """(N, k), rms 1: the simplest ways in which something may change over the scan, linear in y and in x, then quadratic and so on."""
    count = len(model.probe.variations)
    order = next(n for n in range(1, count + 2) if (n + 1) * (n + 2) // 2 > count)
    basis = _polynomials(model.positions.value_px.data, order)[:, 1 : 1 + count]
    if basis.shape[1] < count:
        raise RecipeError(f"opr_modes = {count}: this scan can tell at most {basis.shape[1]} variations of the probe apart")
    return basis * math.sqrt(len(basis))


def _polynomials(positions: Tensor, order: int) -> Tensor:
    """Orthonormal polynomials of the positions (N, 2) up to a total order, the constant first, (N, terms)."""
    place = positions.double()
    place = (place - place.mean(0)) / place.std(0).clamp_min(1e-9)
    terms = [place[:, 0] ** (n - i) * place[:, 1] ** i for n in range(order + 1) for i in range(n + 1)]
    basis, scale = torch.linalg.qr(torch.stack(terms, 1))
    # A single line of scan knows nothing of the other direction, nor few points of high orders.
    told = scale.diagonal().abs() > 1e-6 * scale[0, 0].abs()
    return basis[:, told].to(positions.dtype)
