"""How well an orientation and aberrations explain the bright-field images, if the object were a weak phase object.

Then the images' spatial frequencies are G(k, Q) = i Phi(Q) gamma(k, Q) with gamma = P*(k) P(k - Q) - P(k) P*(k + Q) (Rodenburg, McCallum &
Nellist, Ultramicroscopy 48 (1993) 304): for each Q one number, Phi, behind the images of all k. What least squares explain,

    sum over Q of |sum over k of gamma* G|^2 / (sum over k of |gamma|^2 sigma^2),

is twice the gain of the log-likelihood over no object at all. Its maximum has the sharpness of the displacement of the images, of the double
overlap of the disks, and of the contrast transfer together, in focus or not. (-A, -C, -Phi) explains the same as (A, C, Phi): of the two, the
one whose phase has positive peaks is that of atoms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import skew
from torch import Tensor

from ptycho.aberrations import Aberration, Aberrations
from ptycho.bright_field import BrightField, spectra
from ptycho.pose import MIRROR, Matrix, turn

#: Spatial frequencies of the scan that are looked at: the strongest; those nearest to zero belong to the window.
_FREQUENCIES, _LEAST_CYCLES = 250, 1.5
#: Share of the images that a frequency needs to have transfer from before it counts.
_FLOOR = 0.01
#: Twofold astigmatism beyond this share of the defocus, and the radians at the disk's edge that are free, is not believed.
_ASTIGMATISM, _FREE_RAD = 0.3, 0.5
#: Frequencies and parts of the disk that a first choice is made of.
_COARSE_FREQUENCIES, _COARSE_PARTS = 100, 200
#: The coarse grid near focus: angles in degrees and radians at the disk's edge.
_SCAN_ANGLES, _SCAN_RADIANS = tuple(range(5, 180, 12)), tuple(range(-8, 9))


@dataclass(frozen=True)
class Optics:
    """An orientation A, (slow, fast) to (y, x), as a turn behind a mirror (y -> -y) if ``mirrored``, and C10, C12a, C12b in Å."""

    angle_deg: float
    mirrored: bool
    C10_A: float
    C12a_A: float = 0.0
    C12b_A: float = 0.0

    @property
    def orientation(self) -> Matrix:
        """The matrix A."""
        return MIRROR @ turn(self.angle_deg) if self.mirrored else turn(self.angle_deg)

    @property
    def curvature_A(self) -> Matrix:
        """C of chi = pi lambda k.C.k, (y, x): what displaces the image of k, by -lambda C k."""
        return np.array([[self.C10_A - self.C12a_A, self.C12b_A], [self.C12b_A, self.C10_A + self.C12a_A]])

    @property
    def twin(self) -> Optics:
        """The other optics that the likelihood cannot tell from these: the scan turned by 180 degrees, the aberrations reversed."""
        return Optics(self.angle_deg % 360 - 180, self.mirrored, -self.C10_A, -self.C12a_A, -self.C12b_A)

    @property
    def aberrations(self) -> Aberrations:
        """As the model takes them."""
        return (Aberration(1, 0, self.C10_A), Aberration(1, 2, self.C12a_A, self.C12b_A))

    @classmethod
    def of(cls, orientation: Matrix, C10_A: float, C12a_A: float = 0.0, C12b_A: float = 0.0) -> Optics:
        """From an orthogonal matrix."""
        mirrored = bool(np.linalg.det(orientation) < 0)
        a = MIRROR @ orientation if mirrored else orientation
        return cls(float(np.degrees(np.arctan2(a[0, 1], a[1, 1]))), mirrored, C10_A, C12a_A, C12b_A)


class WeakPhase:
    """The likelihood of optics, given the bright-field images."""

    def __init__(self, bright: BrightField, frequencies: int = _FREQUENCIES, parts: int = 0) -> None:
        spectrum, variance = spectra(bright)
        self.bright, (slow, fast) = bright, bright.scan_shape
        qy, qx = np.meshgrid(np.fft.fftfreq(slow), np.fft.fftfreq(fast), indexing="ij")
        self.q_grid = np.stack([qy / bright.step_A[0], qx / bright.step_A[1]], -1).reshape(-1, 2)
        g = spectrum[bright.inside].reshape(-1, slow * fast)
        every = max(1, len(g) // parts) if parts else 1
        self.k = torch.from_numpy(bright.k_inside_invA[::every]).float()
        power = (np.abs(g) ** 2).mean(0)
        inner = np.hypot(qy * slow, qx * fast).ravel() <= _LEAST_CYCLES
        # What is not explained by counting is noise as well: the weakest frequencies show how much there is.
        variance = max(min(variance, float(np.quantile(power[~inner], 0.25))), 1e-30)
        half = (qy.ravel() > 0) | ((qy.ravel() == 0) & (qx.ravel() > 0))
        within = np.linalg.norm(self.q_grid, axis=1) < 2 * bright.aperture_invA
        strength = np.where(half & within & ~inner, power / variance, 0.0)
        chosen = np.argsort(-strength, kind="stable")[: min(frequencies, int((strength > 0).sum()))]
        self.q = torch.from_numpy(self.q_grid[chosen]).float()
        self.g = torch.from_numpy(np.ascontiguousarray(g[::every, chosen].T / math.sqrt(variance)).astype(np.complex64))
        self.signal = max(float((self.g.abs() ** 2 - 1).sum()), 1.0)
        #: Å of defocus that make one radian at the edge of the disk.
        self.radian_A = 1 / (math.pi * bright.wavelength_A * bright.aperture_invA**2)
        #: What is explained of noise alone, and five standard deviations more, as a share of the signal.
        self.chance = (len(self.q) + 5 * math.sqrt(len(self.q))) / self.signal
        self._edge = float(np.diff(bright.k_invA[0]).mean())

    def transfer(self, optics: Optics, q: Tensor) -> Tensor:
        """gamma (q, k) for spatial frequencies ``q`` (n, 2) of the scan in 1/Å."""
        numbers = torch.tensor([math.radians(optics.angle_deg), optics.C10_A, optics.C12a_A, optics.C12b_A])
        return self._transfer(numbers, optics.mirrored, q)

    def displacement(self, optics: Optics, q: Tensor) -> Tensor:
        """exp(2 pi i lambda k.C.Q), (q, k): what the displacement of the image of k makes of frequencies ``q`` (n, 2) of the scan in 1/Å."""
        angle = 2 * math.pi * self.bright.wavelength_A * (q @ torch.from_numpy(optics.orientation.T @ optics.curvature_A).float() @ self.k.T)
        return torch.polar(torch.ones_like(angle), angle)

    def _transfer(self, numbers: Tensor, mirrored: bool, q: Tensor) -> Tensor:
        angle, c10, c12a, c12b = numbers
        cosine, sine = torch.cos(angle), torch.sin(angle)
        y = q[:, 0, None] * cosine + q[:, 1, None] * sine
        x = q[:, 1, None] * cosine - q[:, 0, None] * sine
        y = -y if mirrored else y
        ky, kx = self.k[:, 0], self.k[:, 1]
        cy, cx = (c10 - c12a) * y + c12b * x, c12b * y + (c10 + c12a) * x
        # With chi = pi lambda k.C.k: gamma = exp(2 pi i lambda k.C.Q) (A(k - Q) exp(-i pi lambda Q.C.Q) - A(k + Q) exp(i pi lambda Q.C.Q)).
        wavelength = self.bright.wavelength_A
        ramp = 2 * math.pi * wavelength * (ky * cy + kx * cx)
        half = math.pi * wavelength * (y * cy + x * cx)
        minus, plus = (self._aperture(ky + sign * y, kx + sign * x) for sign in (-1, 1))
        inner = torch.complex((minus - plus) * torch.cos(half), -(minus + plus) * torch.sin(half))
        return torch.polar(torch.ones_like(ramp), ramp) * inner

    def _aperture(self, ky: Tensor, kx: Tensor) -> Tensor:
        return ((self.bright.aperture_invA - torch.hypot(ky, kx)) / self._edge + 0.5).clamp(0, 1)

    def _explained(self, numbers: Tensor, mirrored: bool) -> Tensor:
        gamma = self._transfer(numbers, mirrored, self.q)
        weight = (gamma.real**2 + gamma.imag**2).sum(1) + _FLOOR * len(self.k)
        found = (gamma.conj() * self.g).sum(1)
        return ((found.real**2 + found.imag**2) / weight).sum()

    @torch.no_grad()
    def explained(self, optics: Optics) -> float:
        """The explained share of the signal, about 0 without any agreement (it can exceed 1 where the noise is less than estimated)."""
        numbers = torch.tensor([math.radians(optics.angle_deg), optics.C10_A, optics.C12a_A, optics.C12b_A])
        return float(self._explained(numbers, optics.mirrored)) / self.signal

    def fit(self, start: Optics, astigmatic: bool = True, evaluations: int = 40) -> tuple[float, Optics]:
        """(explained share, optics) at the maximum near ``start``, by L-BFGS; without astigmatism unless ``astigmatic``."""
        unit = torch.tensor([0.1, self.radian_A, self.radian_A, self.radian_A])
        first = torch.tensor([math.radians(start.angle_deg), start.C10_A, start.C12a_A, start.C12b_A])
        if not astigmatic:
            unit[2:] = first[2:] = 0

        def cost(change: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            numbers = (first + unit * torch.from_numpy(change).float()).requires_grad_()
            beyond = torch.hypot(numbers[2], numbers[3] + 1e-3) - _ASTIGMATISM * numbers[1].abs()
            penalty = torch.relu(beyond / self.radian_A - _FREE_RAD) ** 2 if astigmatic else 0.0
            value = -self._explained(numbers, start.mirrored) / self.signal + penalty
            (slope,) = torch.autograd.grad(value, numbers)
            return float(value.detach()), (slope * unit).double().numpy()

        best, *_ = optimize.fmin_l_bfgs_b(cost, np.zeros(4), maxfun=evaluations, factr=1e8, pgtol=1e-6)
        angle, c10, c12a, c12b = (first + unit * torch.from_numpy(best).float()).tolist()
        optics = Optics(math.degrees(angle), start.mirrored, c10, c12a, c12b)
        return self.explained(optics), optics

    def skewness(self, optics: Optics) -> float:
        """Of the phase under a Hann window: positive for sparse positive peaks."""
        return float(skew(self.phase(optics), axis=None))

    @torch.no_grad()
    def phase(self, optics: Optics) -> NDArray[np.float64]:
        """The phase image (slow, fast) in rad under a Hann window: Phi from all frequencies that have transfer, weighted by it.

        Only of an object made with all parts of the disk.
        """
        spectrum, _ = spectra(self.bright)
        g = torch.from_numpy(np.ascontiguousarray(spectrum[self.bright.inside].reshape(-1, len(self.q_grid)).T))
        image = np.zeros(len(self.q_grid), complex)
        inside = np.flatnonzero((np.linalg.norm(self.q_grid, axis=1) < 2 * self.bright.aperture_invA) & (self.q_grid != 0).any(1))
        for block in np.array_split(inside, max(1, len(inside) // 256)):
            gamma = self.transfer(optics, torch.from_numpy(self.q_grid[block]).float())
            weight = gamma.abs().square().sum(1)
            found = (gamma.conj() * g[block]).sum(1) / 1j
            # Least squares, with the frequencies that hardly transfer held back.
            image[block] = (found / (weight + 0.05 * g.shape[1])).numpy()
        return np.fft.ifft2(image.reshape(self.bright.scan_shape)).real


def coarse_likelihood(bright: BrightField) -> WeakPhase:
    """The likelihood from fewer frequencies and parts of the disk: ten times as fast, to choose among many guesses."""
    return WeakPhase(bright, _COARSE_FREQUENCIES, _COARSE_PARTS)


def scan_optics(coarse: WeakPhase) -> list[Optics]:
    """The best optics of either handedness among those within a few radians of focus, on a coarse grid: where displacements say little."""
    best = []
    for mirrored in (False, True):
        # Half a turn is enough: the other half are the twins.
        guesses = [Optics(angle, mirrored, n * coarse.radian_A) for angle in _SCAN_ANGLES for n in _SCAN_RADIANS]
        best.append(max(guesses, key=coarse.explained))
    return best
