"""What the microscope was set to: wavelength, sampling and where the probe stood.

Lengths in Å, spatial frequencies in Å⁻¹ (cycles, no 2 pi), angles in the unit of the name. Arrays are (y, x).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import Aberrations

# CODATA 2022, exact but for the electron mass; scipy.constants takes longer to import than opening a file.
_PLANCK_JS, _LIGHT_M_S, _CHARGE_C, _MASS_KG = 6.62607015e-34, 299792458.0, 1.602176634e-19, 9.1093837139e-31
#: An electronvolt in joules.
JOULE_PER_EV = _CHARGE_C
_REST_ENERGY_EV = _MASS_KG * _LIGHT_M_S**2 / _CHARGE_C


def wavelength_A(voltage_kV: float) -> float:
    """Relativistic electron wavelength in Å.

    lambda = h c / sqrt(E (E + 2 m c^2)) with E the kinetic energy (Reimer & Kohl, Transmission Electron Microscopy, eq. 2.5).
    """
    energy = voltage_kV * 1e3
    hc_eVA = _PLANCK_JS * _LIGHT_M_S / _CHARGE_C * 1e10
    return float(hc_eVA / np.sqrt(energy * (energy + 2 * _REST_ENERGY_EV)))


def voltage_kV_of(wavelength_A: float) -> float:
    """Acceleration voltage in kV of electrons of this wavelength: :func:`wavelength_A` the other way round."""
    hc_eVA = _PLANCK_JS * _LIGHT_M_S / _CHARGE_C * 1e10
    return float((np.sqrt((hc_eVA / wavelength_A) ** 2 + _REST_ENERGY_EV**2) - _REST_ENERGY_EV) * 1e-3)


def interaction_parameter(voltage_kV: float) -> float:
    """sigma in rad / (V Å): the phase is sigma times the projected potential.

    sigma = (2 pi / (lambda U)) (m c^2 + e U) / (2 m c^2 + e U) (Kirkland, Advanced Computing in Electron Microscopy, eq. 5.6).
    """
    energy = voltage_kV * 1e3
    ratio = (_REST_ENERGY_EV + energy) / (2 * _REST_ENERGY_EV + energy)
    return float(2 * np.pi / (wavelength_A(voltage_kV) * energy) * ratio)


def raster_positions_A(
    shape: tuple[int, int],
    step_A: tuple[float, float],
    rotation_deg: float = 0.0,
    affine: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0)),
) -> NDArray[np.float64]:
    """Probe centres of a raster scan, (N, 2) = (y, x) in Å about the centre of the scan, fast axis innermost.

    ``affine`` acts on (y, x) first, then the scan turns by ``rotation_deg`` relative to the detector: positive turns the x axis
    towards the y axis, y' = y cos + x sin, x' = x cos - y sin.
    """
    slow = (np.arange(shape[0]) - (shape[0] - 1) / 2) * step_A[0]
    fast = (np.arange(shape[1]) - (shape[1] - 1) / 2) * step_A[1]
    raster = np.stack(np.meshgrid(slow, fast, indexing="ij"), axis=-1).reshape(-1, 2)
    angle = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    positions: NDArray[np.float64] = raster @ (turn @ np.asarray(affine, float)).T
    return positions


@dataclass(frozen=True)
class Geometry:
    """All that the physics needs to know about one data set.

    ``positions_A`` is (N, 2), (y, x) in Å about an arbitrary origin, one row for each pattern that is used;
    ``pixel_invA`` the detector pixel in Å⁻¹ and ``pattern_shape`` the (ky, kx) of the patterns as they are used.
    """

    voltage_kV: float
    semiangle_mrad: float
    pixel_invA: float
    pattern_shape: tuple[int, int]
    positions_A: NDArray[np.float64] = field(repr=False)
    aberrations: Aberrations = ()

    @property
    def wavelength_A(self) -> float:
        """Relativistic electron wavelength in Å."""
        return wavelength_A(self.voltage_kV)

    @property
    def aperture_invA(self) -> float:
        """Radius of the probe-forming aperture in Å⁻¹."""
        return self.semiangle_mrad * 1e-3 / self.wavelength_A

    @property
    def disk_radius_px(self) -> float:
        """Radius of the bright-field disk in detector pixels."""
        return self.aperture_invA / self.pixel_invA

    @property
    def depth_of_field_A(self) -> float:
        """lambda / alpha^2 in Å."""
        return 1 / (self.wavelength_A * self.aperture_invA**2)

    @property
    def defocus_A(self) -> float:
        """Nominal defocus in Å, positive for underfocus (-C10)."""
        return -sum(term.a for term in self.aberrations if (term.n, term.m) == (1, 0))

    @property
    def scan_area_A2(self) -> float:
        """Area of the scanned field in Å²: the bounding parallelogram of a raster, good enough for a dose."""
        centred = self.positions_A - self.positions_A.mean(0)
        # A uniform distribution over an area A has a covariance determinant of A^2 / 144, whatever its rotation or shear.
        covariance = centred.T @ centred / max(len(centred), 1)
        return float(12 * np.sqrt(max(np.linalg.det(covariance), 0.0)))

    def dose_e_per_A2(self, electrons: float) -> float:
        """Electrons per Å² of the scanned field, from those per pattern."""
        return electrons * len(self.positions_A) / max(self.scan_area_A2, 1e-9)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return repr(self) == repr(other) and np.array_equal(self.positions_A, other.positions_A)

    __hash__ = None  # type: ignore[assignment]
