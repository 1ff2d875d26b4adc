"""The pictures that ``ptycho image`` makes: a table of names and functions. A new kind of picture is one more line of ``KINDS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptycho.centre_of_mass import Descan, in_scan_axes, on_detector, phase_of, quadrants, segment_weights, without_descan
from ptycho.data import Dataset4D
from ptycho.direct import ssb
from ptycho.errors import DataError, PtychoError, RecipeError
from ptycho.integrate import Field, minus_divergence
from ptycho.sums import Sums, weighted_sums
from ptycho.tilt_corrected import Parallax, parallax
from ptycho.virtual import annulus, pixels_per

#: "grey": amounts; "signed": zero is the middle; "phase"; "angle": degrees, drawn as hues.
Style: TypeAlias = Literal["grey", "signed", "phase", "angle"]

#: Inner and outer radius of each detector in radii of the bright-field disk; outermost is the edge of the detector.
_EDGE = np.inf
_RINGS = {"bf": (0.0, 0.5), "abf": (0.5, 1.0), "adf": (1.25, 3.0), "haadf": (3.0, _EDGE)}


@dataclass(frozen=True, eq=False)
class Picture:
    """``image`` (slow, fast) in ``unit``; ``strength`` is how bright an angle is shown, 0 to 1."""

    name: str
    title: str
    unit: str
    style: Style
    image: Field
    strength: Field | None = None


class Looks:
    """What pictures of one data set share, each made when it is first asked for; the patterns are read once."""

    def __init__(self, data: Dataset4D, descan: Descan = "plane", highpass_invA: float | Literal["noise"] = 0.0) -> None:
        self.data, self.descan, self.highpass_invA = data, descan, highpass_invA

    def detector(self, name: str) -> Field:
        """Electrons on one of the ring detectors. Raises DataError saying why there is none."""
        if name not in self._masks:
            raise DataError(self._no_masks[name])
        return self.data.on_raster(self.sums.masks[list(self._masks).index(name)])

    def com(self) -> Field:
        """Centre of mass (2, slow, fast) in 1/Å in scan axes, without the descan."""
        return self._field(self.sums.centre_px)

    def dpc(self) -> Field:
        """The same as four quadrants see it."""
        if "dpc_y" not in self._masks:
            raise DataError(self._no_masks["dpc_y"])
        place = list(self._masks).index("dpc_y")
        total = self.sums.total
        return self._field(self.sums.masks[place : place + 2] / np.where(total > 0, total, np.nan))

    def integrated(self, field: Field) -> Field:
        """The phase in rad of which the field is the gradient."""
        return phase_of(field, self.data.scan_step_A, self.descan, self.highpass_invA)

    def ring_title(self, name: str) -> str:
        """Its angles in mrad, or in radii of the disk when the voltage is not known."""
        inner, outer = _RINGS[name]
        edge = min(self.data.pattern_shape) // 2
        try:
            to_mrad = pixels_per(self.data, "alpha") / pixels_per(self.data, "mrad")
        except PtychoError:
            return f"{inner:g} to {outer:g} disk radii" if np.isfinite(outer) else f"{inner:g} disk radii to the edge"
        outer_mrad = outer * to_mrad if np.isfinite(outer) else edge / pixels_per(self.data, "mrad")
        return f"{inner * to_mrad:.3g} to {outer_mrad:.3g} mrad"

    @cached_property
    def parallax(self) -> Parallax:
        """The tilt-corrected bright field on the points of the scan."""
        return parallax(self.data, upsample=1)

    @cached_property
    def sums(self) -> Sums:
        """The one pass: all masks and the centre of mass."""
        self.data.check_raster()
        stack = np.array(list(self._masks.values())) if self._masks else None
        return weighted_sums(self.data, stack)

    @cached_property
    def _masks(self) -> dict[str, NDArray[np.float64]]:
        """Weights (ky, kx) by name; what cannot be made goes to ``_no_masks``."""
        self._no_masks: dict[str, str] = {}
        masks: dict[str, NDArray[np.float64]] = {}
        for name, (inner, outer) in _RINGS.items():
            try:
                masks[name] = self._ring(inner, outer).astype(float)
            except PtychoError as error:
                self._no_masks[name] = str(error)
        try:
            masks["dpc_y"], masks["dpc_x"] = segment_weights(self.data, quadrants(self.data))
        except PtychoError as error:
            self._no_masks["dpc_y"] = str(error)
        return masks

    def _ring(self, inner: float, outer: float) -> NDArray[np.bool_]:
        edge = min(self.data.pattern_shape) // 2 / pixels_per(self.data, "alpha")
        if inner >= edge - 0.1:
            raise DataError(f"the detector ends at {edge:.2f} radii of the bright-field disk, this one begins at {inner:g}")
        return annulus(self.data, inner, min(outer, edge), "alpha")

    def _field(self, centre_px: NDArray[np.float64]) -> Field:
        self.data.scan_step_A  # noqa: B018  raises when directions mean nothing
        return in_scan_axes(self.data, without_descan(on_detector(self.data, centre_px), self.descan))


@dataclass(frozen=True)
class Kind:
    """One line of the table: ``make`` gives the image (slow, fast), or raises a PtychoError that says why there is none."""

    name: str
    title: str
    unit: str
    style: Style
    make: Callable[[Looks], Field]


def direction_deg(field: Field) -> Field:
    """Direction (slow, fast) of a field in degrees from the fast axis towards the slow one, -180 to 180."""
    return np.rad2deg(np.arctan2(field[0], field[1]))


#: What is made, in this order.
KINDS: tuple[Kind, ...] = (
    Kind("bf", "bright field", "electrons", "grey", lambda look: look.detector("bf")),
    Kind("abf", "annular bright field", "electrons", "grey", lambda look: look.detector("abf")),
    Kind("adf", "annular dark field", "electrons", "grey", lambda look: look.detector("adf")),
    Kind("haadf", "high-angle dark field", "electrons", "grey", lambda look: look.detector("haadf")),
    Kind("com_y", "CoM along the slow axis", "1/Å", "signed", lambda look: look.com()[0]),
    Kind("com_x", "CoM along the fast axis", "1/Å", "signed", lambda look: look.com()[1]),
    Kind("com_direction", "CoM direction", "°", "angle", lambda look: direction_deg(look.com())),
    Kind("dcom", "dCoM (- divergence)", "1/Å²", "grey", lambda look: minus_divergence(look.com(), look.data.scan_step_A)),
    Kind("idpc", "iDPC (integrated CoM)", "rad", "phase", lambda look: look.integrated(look.com())),
    Kind("dpc_y", "DPC of quadrants, slow axis", "1/Å", "signed", lambda look: look.dpc()[0]),
    Kind("dpc_x", "DPC of quadrants, fast axis", "1/Å", "signed", lambda look: look.dpc()[1]),
    Kind("idpc_quadrants", "iDPC of quadrants", "rad", "phase", lambda look: look.integrated(look.dpc())),
    Kind("tcbf", "tilt-corrected bright field", "of its mean", "grey", lambda look: look.parallax.bright_field.astype(np.float64)),
    Kind("tcbf_phase", "phase of tilt-corrected bright field", "rad", "phase", lambda look: look.parallax.phase.astype(np.float64)),
    Kind("ssb", "SSB (single side band)", "rad", "phase", lambda look: ssb(look.data).phase.astype(np.float64)),
)


def make_pictures(look: Looks, names: Iterable[str] = ()) -> tuple[list[Picture], list[tuple[str, str]]]:
    """(pictures of these names, by default of all; name and reason of each that could not be made).

    Raises RecipeError for a name that is not in ``KINDS``, DataError when the positions are a list or the file cannot be read.
    """
    wanted, known = tuple(names), {kind.name: kind for kind in KINDS}
    for name in wanted:
        if name not in known:
            raise RecipeError(f'there is no picture "{name}"; there are {", ".join(known)}')
    look.data.check_raster()
    _ = look.sums  # a file that cannot be read is no reason to leave out one picture after the other
    made, missing = [], []
    for kind in (known[name] for name in wanted or known):
        try:
            image = kind.make(look)
        except PtychoError as error:
            missing.append((kind.name, str(error)))
            continue
        title = f"{kind.title}, {look.ring_title(kind.name)}" if kind.name in _RINGS else kind.title
        made.append(Picture(kind.name, title, kind.unit, kind.style, image, _strength(look) if kind.style == "angle" else None))
    return made, missing


def _strength(look: Looks) -> Field:
    """Length of the centre of mass against its 99th percentile."""
    length = np.hypot(*look.com())
    return (np.nan_to_num(length) / (float(np.nanpercentile(length, 99)) or 1.0)).clip(0, 1)
