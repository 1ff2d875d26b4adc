"""Is this experiment one that ptychography can reconstruct, and is the recipe one that can do it? Numbers, verdicts, remedies, before a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ptycho.data import Dataset4D
from ptycho.errors import OutOfMemoryError
from ptycho.forecast import Load, disk_bytes, epoch_seconds, peak_bytes
from ptycho.geometry import Geometry
from ptycho.memory import free_bytes
from ptycho.solvers import Solver
from ptycho.start import ModelOptions, defocus_blur_A, object_pixel_A, window_px

#: Neighbouring probes should share so much of their diameter, and each place be seen so many times: by a thin specimen, by a thick one.
_LINEAR, _AREAL, _AREAL_THICK = 0.6, 5.0, 10.0
#: The probe should fill less of the window than this, the disk have this radius in pixels, the detector reach so many times as far.
_FILLED, _DISK_PX, _DARK_FIELD = 0.75, 5.0, 1.25
#: Numbers measured for each one that is asked for.
_DETERMINED = 2.0
#: A detail of so much phase shall stand out of the noise by this factor, at the dose efficiency of a good reconstruction.
_DETAIL_RAD, _SIGNAL_TO_NOISE, _DQE = 0.1, 3.0, 0.2
#: Share of the free memory and of the free disk that a run may take, and the hours after which someone should have been asked.
_MEMORY, _DISK, _HOURS = 0.9, 0.5, 12.0
#: Scan points without a pattern.
_MISSING = 0.01


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its ``value`` in words, and the ``remedy`` when it is not good, "" when it is."""

    name: str
    value: str
    remedy: str = ""

    @property
    def good(self) -> bool:
        """True when there is nothing to mend."""
        return not self.remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, eq=False)
class Plan:
    """A run that could begin: its data, the [model] section, the stages, the folder for the results, the device."""

    data: Dataset4D
    options: ModelOptions
    stages: tuple[Solver, ...]
    directory: Path
    device: torch.device

    @property
    def geometry(self) -> Geometry:
        """Of the data."""
        return self.data.geometry

    @property
    def depth_A(self) -> float:
        """Depth at which the last slice acts below the first."""
        return sum(self.options.thicknesses_A[:-1])

    @property
    def probe_A(self) -> float:
        """Diameter of the probe where it is widest: of the defocus, or of the diffraction."""
        return max(defocus_blur_A(self.geometry, self.depth_A), 1.22 * self.geometry.wavelength_A / (self.geometry.semiangle_mrad * 1e-3))

    @property
    def area_A2(self) -> float:
        """Area of the specimen for each pattern."""
        return max(self.geometry.scan_area_A2 / self.data.n_positions, 1e-9)

    @property
    def dose_e_per_A2(self) -> float:
        """Electrons on each Å²."""
        return self.geometry.dose_e_per_A2(self.data.beam_electrons)


def check(plan: Plan) -> tuple[Check, ...]:
    """Everything, in a fixed order; what it takes (memory, time, disk) at the end. Raises what reading the data raises."""
    return (*physics(plan), *memory_and_disk(plan), run_time(plan))


def warnings_of(plan: Plan) -> tuple[str, ...]:
    """One sentence for each thing that is not good, for the beginning of a run."""
    return tuple(str(found) for found in (*physics(plan), *memory_and_disk(plan)) if not found.good)


def physics(plan: Plan) -> tuple[Check, ...]:
    """What the microscope and the recipe decide."""
    looks: Sequence[Callable[[Plan], Check]] = (
        _scan, _linear_overlap, _areal_overlap, _window, _disk, _detector, _propagated, _determined, _dose, _slices,
    )  # fmt: skip
    return tuple(look(plan) for look in looks)


def memory_and_disk(plan: Plan) -> tuple[Check, ...]:
    """Whether there is room for the run and its results."""
    peak, free = peak_bytes(plan.data, plan.options, plan.stages, plan.device), free_bytes(plan.device)
    where = "on the GPU" if plan.device.type == "cuda" else "free"
    much = "bin the patterns, use fewer slices or a smaller batch, or set [data] memory_GB to leave the patterns on the disk"
    # The program itself is in memory already when this is asked, which is little beside the rest of what is short.
    memory = Check("memory", f"peak about {_size(peak)} of {_size(free)} {where}", much if peak > _MEMORY * free else "")
    there = next(parent for parent in (plan.directory.absolute(), *plan.directory.absolute().parents) if parent.is_dir())
    needed, space = disk_bytes(plan.geometry, plan.options, plan.stages), shutil.disk_usage(there).free
    room = f"make room in {there}, or choose another folder with -o" if needed > _DISK * space else ""
    return memory, Check("disk space", f"results of about {_size(needed)}, {_size(space)} free", room)


def check_room(plan: Plan) -> None:
    """Raise OutOfMemoryError when not even one copy of the object, or one pattern, has room: such a run would end in its first moment."""
    free = free_bytes(plan.device)
    for number, stage in enumerate(plan.stages):
        load = Load.of(plan.geometry, plan.options, stage)
        if load.least_bytes > free:
            height, width = load.canvas
            what = f"solve.{number}: an object of {load.slices} x {height} x {width} px and patterns of {load.size} x {load.size} px"
            raise OutOfMemoryError(f"{what} do not fit into {_size(free)}: check scan.step_A, pad, oversample and slices, or bin the patterns")


def run_time(plan: Plan) -> Check:
    """How long the run may take: a short timing of this machine, not a promise."""
    each = [epoch_seconds(plan.geometry, plan.options, stage, plan.device) for stage in plan.stages]
    total = sum(seconds * stage.epochs for seconds, stage in zip(each, plan.stages, strict=True))
    passes = " + ".join(f"{stage.epochs} x {_duration(seconds)}" for seconds, stage in zip(each, plan.stages, strict=True))
    slow = "use a GPU, fewer epochs, a part of the scan (scan_region) or binned patterns" if total > _HOURS * 3600 else ""
    return Check("time", f"at most about {_duration(total)} on {plan.device.type}: {passes} a pass", slow)


def _scan(plan: Plan) -> Check:
    data, (slow, fast) = plan.data, plan.data.scan_shape
    missing = slow * fast - data.n_positions
    remedy = "check scan.shape, flyback and skip_frames against the file" if missing > _MISSING * slow * fast else ""
    return Check("scan", f"{slow} x {fast} points, {data.n_positions} patterns" + (f", {missing} points without one" if missing else ""), remedy)


def _linear_overlap(plan: Plan) -> Check:
    step = math.sqrt(plan.area_A2)
    overlap = 1 - step / plan.probe_A
    best = (1 - _LINEAR) * plan.probe_A
    remedy = "" if overlap >= _LINEAR else f"scan with a step of {best:.2g} Å or less, or with more defocus"
    return Check("overlap", f"{max(overlap, 0):.0%} of the probe's diameter of {plan.probe_A:.3g} Å (step {step:.3g} Å)", remedy)


def _areal_overlap(plan: Plan) -> Check:
    if min(plan.data.scan_shape) == 1:
        return Check("areal oversampling", "a scan of one line covers no area")
    area = math.pi / 4 * plan.probe_A**2
    times, least = area / plan.area_A2, _AREAL if plan.options.slices == 1 else _AREAL_THICK
    remedy = "" if times >= least else f"{least:g} are wanted: scan with a step of {math.sqrt(area / least):.2g} Å or less, or with more defocus"
    return Check("areal oversampling", f"each place is seen by {times:.3g} probes", remedy)


def _window(plan: Plan) -> Check:
    window = plan.options.oversample / plan.geometry.pixel_invA
    filled = plan.probe_A / window
    wider = math.ceil(plan.options.oversample * filled / _FILLED)
    otherwise = f", or set [model] oversample = {wider}" if wider <= 4 else ""
    remedy = "" if filled <= _FILLED else f"bin less, or record with less defocus or a longer camera length{otherwise}"
    return Check("window", f"the probe of {plan.probe_A:.3g} Å fills {filled:.0%} of the {window:.3g} Å", remedy)


def _disk(plan: Plan) -> Check:
    radius = plan.geometry.disk_radius_px
    return Check("bright-field disk", f"radius {radius:.3g} px", "" if radius >= _DISK_PX else "bin less, or record with a longer camera length")


def _detector(plan: Plan) -> Check:
    g = plan.geometry
    reach = min(g.pattern_shape) / 2 * g.pixel_invA / g.aperture_invA
    remedy = "" if reach >= _DARK_FIELD else "crop less, or record with a shorter camera length: without dark field there are no finer details"
    return Check("detector", f"ends at {reach:.3g} times the semiangle ({reach * g.semiangle_mrad:.3g} mrad)", remedy)


def _propagated(plan: Plan) -> Check:
    g, o = plan.geometry, plan.options
    pixel = object_pixel_A(g, o)
    if o.slices == 1:
        return Check("band limit", f"object pixel {pixel:.3g} Å, one slice: nothing is propagated")
    passed = o.band_limit / (2 * pixel) / g.aperture_invA
    pad = math.ceil((window_px(g, o) / passed - max(g.pattern_shape)) / 2)
    remedy = "" if passed >= 1 else f"the probe itself is cut off: set [model] pad = {pad}, or a higher band_limit"
    return Check("band limit", f"object pixel {pixel:.3g} Å; frequencies up to {passed:.3g} semiangles are propagated", remedy)


def _determined(plan: Plan) -> Check:
    o, pixel = plan.options, object_pixel_A(plan.geometry, plan.options)
    asked = 2 * o.slices * o.object_states * plan.area_A2 / pixel**2
    mean = np.sort(np.where(plan.data.mask, plan.data.survey().mean_pattern, 0).clip(0), axis=None)[::-1]
    lit = int(np.searchsorted(np.cumsum(mean), 0.99 * mean.sum())) + 1
    remedy = "" if lit >= _DETERMINED * asked else "use fewer or thicker slices or fewer states, crop the detector, or scan with a finer step"
    return Check("measured per unknown", f"{lit / asked:.3g} ({lit} pixels with signal, {asked:.0f} unknowns a pattern)", remedy)


def _dose(plan: Plan) -> Check:
    """The shot-noise law: a detail of phase p and width d has the signal to noise n at the dose n^2 / (4 DQE p^2 d^2)."""
    dose, g = plan.dose_e_per_A2, plan.geometry
    finest = _SIGNAL_TO_NOISE / (2 * _DETAIL_RAD * math.sqrt(_DQE * dose))
    direct = 1 / (2 * g.aperture_invA)
    value = f"{dose:.3g} e/Å², {plan.data.beam_electrons:.3g} a pattern: a detail of {_DETAIL_RAD} rad is seen from {finest:.2g} Å on"
    remedy = f"for {direct:.2g} Å (lambda / 2 alpha) {dose * (finest / direct) ** 2:.2g} e/Å² are needed, or the mean over many equal places"
    return Check("dose", value, remedy if finest > direct else "")


def _slices(plan: Plan) -> Check:
    g, thicknesses = plan.geometry, plan.options.thicknesses_A
    field = g.depth_of_field_A
    if len(thicknesses) == 1:
        return Check("slices", f"one, for specimens thinner than about {field / 2:.2g} Å (depth of field {field:.3g} Å)")
    total, thickest = sum(thicknesses), max(thicknesses)
    remedy = "" if thickest <= field else f"set slices = {math.ceil(total / field)} or more for the same {total:.4g} Å"
    return Check("slices", f"{len(thicknesses)} of {thickest:.3g} Å, depth of field {field:.3g} Å", remedy)


def _size(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
