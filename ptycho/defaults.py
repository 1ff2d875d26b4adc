"""The stages of a run whose recipe names none: coarse first, then all that was measured."""

from __future__ import annotations

import math
from dataclasses import replace

from ptycho.constraint import Amplitude, Constraints, SliceSmoothing
from ptycho.geometry import Geometry
from ptycho.solvers import Gradient, Updates
from ptycho.solvers.base import default_constraints
from ptycho.solvers.stop import Stop
from ptycho.stages import coarse_view, seen_through
from ptycho.start import ModelOptions, object_pixel_A, probe_diameter_A

#: While a thick object finds its columns its slices are all but one: smoothed over this many depths of field.
_TOGETHER = 2.5
#: Then slices go their own ways, and at the end as far as the data tell them apart.
_APART, _FREE = 0.4, 0.1

#: What a slice may do to the amplitude when there are counts enough to tell.
_ABSORBING = Amplitude(min=0.5, max=1.0)
#: What is refined from the first stage on, while the object follows fast, and what waits for the last stage; by the names in ``update``.
_EARLY = ("affine", "aberrations", "tilt", "descan")
_LATE = ("positions", "thickness", "source", "opr", "background", "blur")
#: From this epoch of a stage on.
_FROM = 3


def default_stages(geometry: Geometry, options: ModelOptions, electrons: float, few_counts: bool) -> tuple[Gradient, ...]:
    """What suits the geometry and the ``electrons`` per pattern; ``few_counts`` is whether the loss will be Poisson's.

    A thin object converges in a few passes, the first of them on a coarse grid. A thick one started flat sits for many passes on a plateau
    where each slice takes what it can of the low-order beams; it falls through it when the slices move together and the steps are many:
    a batch visits each place about once. (Measured on 20 nm of SrTiO3 and 40 nm of ZSM-5: with slices free to differ, or with four times
    as many patterns to a step, it stays there for good.) On a coarse grid a pass costs a tenth. With many
    counts slices may absorb, for what is scattered beyond the detector, but not amplify: free amplitudes of many slices run away.
    """
    view = coarse_view(geometry, sum(options.thicknesses_A) if options.slices > 1 else 0.0)
    bins, size = (view.bin, view.shape[0]) if view is not None else (1, 0)
    early, late = _updates(options.refine, _EARLY), _updates(options.refine, (*_EARLY, *_LATE))
    if options.slices == 1:
        first = Gradient(epochs=4, memory=(0.1, 0.2), bin=bins, detector_px=size, update=early)
        fine = Gradient(epochs=40, memory=(0.2, 1.0), anneal_epochs=8, update=late, stop=Stop(patience=4, min_epochs=12))
        return (replace(fine, memory=(0.1, 1.0), anneal_epochs=12),) if view is None else (first, fine)

    def smoothed(share: float, seen: Geometry) -> Constraints:
        smoothing = SliceSmoothing(sigma_A=float(f"{share * geometry.depth_of_field_A:.3g}"))
        common = default_constraints(few_counts, geometry.dose_e_per_A2(electrons) * object_pixel_A(seen, options) ** 2)
        return replace(common, slice_smoothing=smoothing, amplitude=None if few_counts else _ABSORBING)

    coarse = seen_through(geometry, view)
    probes = geometry.scan_area_A2 / (math.pi / 4 * probe_diameter_A(geometry, sum(options.thicknesses_A)) ** 2)
    batch = min(max(4, round(probes)), 64)
    together = Gradient(epochs=40, batch=batch, memory=(0.05, 0.5), constraints=smoothed(_TOGETHER, coarse), bin=bins, detector_px=size, update=early)
    apart = Gradient(epochs=30, batch=batch, memory=(0.3, 1.0), constraints=smoothed(_APART, coarse), bin=bins, detector_px=size, update=early)
    fine = Gradient(epochs=24, batch=32, memory=(0.5, 1.0), constraints=smoothed(_FREE, geometry), update=late)
    return (
        replace(together, anneal_epochs=24, stop=Stop(patience=6, min_epochs=30)),
        replace(apart, anneal_epochs=12, stop=Stop(patience=5, min_epochs=17)),
        replace(fine, anneal_epochs=8, stop=Stop(patience=4, min_epochs=12)),
    )


def _updates(refine: tuple[str, ...], names: tuple[str, ...]) -> Updates:
    """What of ``names`` the recipe wants refined; the affine map is what it calls the scan."""
    wanted = ["affine" if name == "scan" else name for name in refine]
    return Updates(**{name: _FROM for name in names if name in wanted})
