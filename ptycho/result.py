"""What a reconstruction gives: plain NumPy arrays and the numbers that belong to them.

Lengths in Å, phases in rad, arrays (y, x). No torch is needed to look at an answer.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho.aberrations import Aberrations, name_aberrations
from ptycho.account import Account
from ptycho.examples import Examples
from ptycho.instrument import Instrument
from ptycho.quality import Quality, Residual
from ptycho.unwrap import unwrap_peaks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptycho.model import Ptychography


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the patterns.

    ``stage`` counts the recipe's stages from 0, ``kind`` is its solver, ``epoch`` counts from 1 through the whole run;
    ``loss`` is the deviance per measured pixel, ``seconds`` the time this epoch took. ``held_out`` is the reduced Poisson deviance of
    the patterns that were held out, 1 if only noise is left, None without any; ``note`` says what was out of the ordinary, and why a
    stage's last epoch was its last.
    """

    stage: int
    kind: str
    epoch: int
    loss: float
    seconds: float
    held_out: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """A finished reconstruction.

    ``object`` complex64 (states, slices, y, x), slice 0 where the beam enters, with ``occupancy`` (states,) adding up to one;
    ``probe`` complex64 (modes, y, x) in real space, its centre at pixel ``size // 2``, sum |probe|^2 = electrons per pattern,
    learned aberrations included; ``pixel_A`` is the pixel of both. ``slice_thickness_A`` (slices,) is the distance behind each
    slice. ``positions_A`` (N, 2) = (y, x) of each probe centre from the centre of ``phase[..., 0, 0]``; ``tilt_mrad`` (1, 2) or
    (N, 2). ``aberrations`` are the final ones, by Krivanek's names in Å and degrees; ``recipe`` is the complete TOML text as run.
    ``residual`` compares model and data by scattering angle; ``quality`` is known when two halves of the data were reconstructed too;
    ``instrument`` holds what is known of source and detector, ``examples`` are some patterns as measured and as modelled, and ``account`` says
    what the run was told, warned of and took.
    """

    object: NDArray[np.complex64] = field(repr=False)
    occupancy: NDArray[np.floating[Any]]
    pixel_A: float
    slice_thickness_A: NDArray[np.float64]
    probe: NDArray[np.complex64] = field(repr=False)
    positions_A: NDArray[np.float64] = field(repr=False)
    tilt_mrad: NDArray[np.float64] = field(repr=False)
    history: tuple[EpochRecord, ...] = field(repr=False)
    recipe: str = field(repr=False)
    versions: dict[str, str]
    voltage_kV: float
    semiangle_mrad: float
    aberrations: dict[str, float]
    residual: Residual | None = field(default=None, repr=False)
    quality: Quality | None = None
    instrument: Instrument | None = None
    examples: Examples | None = None
    account: Account | None = None

    @classmethod
    def of(
        cls,
        model: Ptychography,
        history: Sequence[EpochRecord],
        recipe: str,
        voltage_kV: float,
        semiangle_mrad: float,
        aberrations: Aberrations,
        final: bool = True,
    ) -> Result:
        """The state of ``model`` as a value. ``aberrations`` are the nominal ones; what the probe has learned is measured against them.

        Of a model that still learns, not ``final``, they stay the nominal ones: measuring them takes most of the time.
        """
        if final:
            from ptycho.probe_fit import total_aberrations  # late: a result is looked at without torch

            aberrations = total_aberrations(model.probe, aberrations, model.propagator.wavelength_A)
        return cls(
            object=_numpy(model.object.transmission).astype(np.complex64),
            occupancy=_numpy(model.object.occupancy),
            pixel_A=float(model.pixel_A),
            slice_thickness_A=_numpy(model.propagator.thickness_A).astype(np.float64),
            probe=np.fft.ifft2(_numpy(model.probe.mode_spectrum()), norm="ortho").astype(np.complex64),
            positions_A=_numpy(model.positions.value_px).astype(np.float64) * model.pixel_A,
            tilt_mrad=_numpy(model.propagator.tilt_rad).astype(np.float64) * 1e3,
            history=tuple(history),
            recipe=recipe,
            versions=_versions(),
            voltage_kV=float(voltage_kV),
            semiangle_mrad=float(semiangle_mrad),
            aberrations=name_aberrations(aberrations),
            instrument=Instrument.of(model),
        )

    @cached_property
    def phase(self) -> NDArray[np.float32]:
        """Phase of the mean transmission of the object states, float32 (slices, y, x), rad; peaks beyond pi are put back on top."""
        return unwrap_peaks(np.angle(self._mean_transmission))

    @cached_property
    def amplitude(self) -> NDArray[np.float32]:
        """Modulus of the mean transmission of the object states, float32 (slices, y, x); 1 is no absorption."""
        return np.asarray(np.abs(self._mean_transmission), np.float32)

    @property
    def scanned(self) -> tuple[slice, slice]:
        """Rows and columns of the pixels whose centres lie inside the scanned field, at least one of each."""
        rows, columns = (_inside(axis, self.pixel_A, size) for axis, size in zip(self.positions_A.T, self.object.shape[-2:], strict=True))
        return rows, columns

    def warned(self, sentence: str) -> Result:
        """The same with one more warning in its account."""
        account = self.account and replace(self.account, warnings=(*self.account.warnings, sentence))
        return replace(self, account=account)

    def plot(self) -> Figure:
        """One page: the summed phase, the probe and the loss. A notebook shows it by itself; ``savefig`` writes it."""
        from ptycho.plot import figure_of

        return figure_of(self)

    @property
    def _mean_transmission(self) -> NDArray[np.complexfloating[Any, Any]]:
        """(slices, y, x): one state as it is, so that its numbers stay the same to the last bit."""
        return self.object[0] if len(self.object) == 1 else np.tensordot(self.occupancy, self.object, 1)


def _numpy(tensor: Any) -> NDArray[Any]:
    """A copy: the model may go on."""
    return np.array(tensor.detach().cpu().numpy())


def _inside(positions_A: NDArray[np.float64], pixel_A: float, size: int) -> slice:
    # A thousandth of a pixel of tolerance: a position on a pixel's centre counts, whatever its rounding.
    first = int(np.clip(np.ceil(positions_A.min() / pixel_A - 1e-3), 0, size - 1))
    last = int(np.clip(np.floor(positions_A.max() / pixel_A + 1e-3), first, size - 1))
    return slice(first, last + 1)


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in ("ptycho", "torch", "numpy")} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from the source tree
        return "not installed"
