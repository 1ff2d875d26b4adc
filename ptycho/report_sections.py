"""What report.html says of a result: each function gives one section, or None when the result does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ptycho.quality import Residual
from ptycho.report_page import Section, browser, code, facts, figure, paragraph, row, table, warnings_list
from ptycho.result import EpochRecord, Result

#: More slices than these are shown in part: the page stays small.
_MOST_SLICES = 24
_MOST_MODES = 6
#: A modulus that varies by less is that of a pure phase object.
_PURE_PHASE = 1e-3


def all_sections(result: Result, warnings: Sequence[str]) -> Iterator[Section | None]:
    """In the order in which they are read."""
    yield Section("summary", "Summary", facts(_summary(result)))
    yield Section("warnings", "Warnings", warnings_list(warnings)) if warnings else None
    yield phase(result)
    yield slices(result)
    yield depth(result)
    yield amplitude(result)
    yield quality(result)
    yield convergence(result)
    yield patterns(result)
    yield angles(result)
    yield probe(result)
    yield positions(result)
    yield tilt(result)
    yield calibration(result)
    yield Section("recipe", "Recipe", code(result.recipe)) if result.recipe else None
    yield effort(result)


def phase(result: Result) -> Section:
    """The summed phase."""
    from ptycho.plot_object import summed_phase_picture  # matplotlib only when there is something to draw

    several = len(result.phase) > 1
    caption = f"Phase {f'summed over {len(result.phase)} slices' if several else 'of the object'} in the scanned field."
    if several:
        caption += " The triangles at its edges point at the row and the column of the sections below."
    return Section("phase", "Phase", figure(summed_phase_picture(result), caption, "large"))


def slices(result: Result) -> Section | None:
    """Every slice, one at a time."""
    if len(result.phase) < 2:
        return None
    from ptycho.plot_object import slice_pictures

    count = len(result.phase)
    numbers = sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST_SLICES))})
    edges = np.concatenate([[0], np.cumsum(result.slice_thickness_A)])
    same = "the beam enters at 0. All in the same colours."
    captions = [f"Slice {i + 1} of {count}: depth {edges[i]:.3g} to {edges[i + 1]:.3g} Å, {same}" for i in numbers]
    body = browser([str(i + 1) for i in numbers], slice_pictures(result, numbers), captions, len(numbers) // 2)
    return Section("slices", "Slices", paragraph("Choose a slice; the arrow keys step through them.", quiet=True) + body)


def depth(result: Result) -> Section | None:
    """Sections along the beam."""
    if len(result.phase) < 2:
        return None
    from ptycho.plot_object import section_pictures, strongest_column

    row_, column = strongest_column(result)
    along_x, along_y = section_pictures(result)
    figures = (
        figure(along_x, f"x and depth, at y = {(row_ + 0.5) * result.pixel_A:.3g} Å through the strongest column. The beam comes from above."),
        figure(along_y, f"y and depth, at x = {(column + 0.5) * result.pixel_A:.3g} Å through the same column. Depth has a scale of its own."),
    )
    return Section("depth", "Depth", row(figures))


def amplitude(result: Result) -> Section:
    """The modulus, as a picture where it is not one."""
    from ptycho.plot_object import amplitude_picture, total_amplitude

    if float(np.ptp(total_amplitude(result))) < _PURE_PHASE:
        return Section("amplitude", "Amplitude", paragraph("The object is a pure phase object: its amplitude is the same everywhere."))
    return Section("amplitude", "Amplitude", figure(amplitude_picture(result), "Amplitude behind all slices; 1 is no absorption."))


def quality(result: Result) -> Section | None:
    """Correlation of the halves and standard error."""
    found = result.quality
    if found is None:
        return None
    from ptycho.plot_quality import correlation_picture, error_picture

    figures = (
        figure(correlation_picture(found), "Correlation of the two halves by spatial frequency; lines stand at the half-bit resolution."),
        figure(error_picture(result, found), "Standard error of the summed phase; white is not constrained by the data."),
    )
    return Section("quality", "Resolution and error", paragraph(found.summary() + ".") + row(figures) + paragraph(_reading(found.split), quiet=True))


def convergence(result: Result) -> Section | None:
    """Loss by epoch, and the stages with why each ended."""
    if not result.history:
        return None
    from ptycho.plot_fit import loss_picture

    judged = any(record.held_out is not None for record in result.history)
    caption = "Deviance per pixel of every epoch; " + (
        "held out: reduced deviance of patterns that were not fitted, 1 if only noise is left." if judged else "no patterns were held out."
    )
    stages = [[r for r in result.history if r.stage == stage] for stage in sorted({r.stage for r in result.history})]
    heads = ("stage", "solver", "epochs", "time", "loss", "held out", "how it ended")
    body = figure(loss_picture(result), caption, "large") + table(heads, [_stage(number, records) for number, records in enumerate(stages, 1)])
    told = [f"epoch {r.epoch}: {r.note}" for records in stages for r in records[:-1] if r.note]
    return Section("convergence", "Convergence", body + "".join(paragraph(note, quiet=True) for note in told))


def patterns(result: Result) -> Section | None:
    """Measured against modelled."""
    shown = result.examples
    if shown is None:
        return None
    from ptycho.plot_fit import pattern_picture

    names = ("Mean pattern", "A typical pattern", "The pattern that fits worst")
    where = ("", *(f" (position {position}, χ² {chi:.3g})" for position, chi in zip(shown.positions, shown.chi_squared, strict=True)))
    figures = [figure(pattern_picture(shown, i), f"{name}{place}.") for i, (name, place) in enumerate(zip(names, where, strict=True))]
    text = "Logarithmic, the same colours on both sides. χ² is 1 where only noise is left; less means that the fit follows the noise."
    return Section("patterns", "Patterns", row(figures) + paragraph(text, quiet=True))


def angles(result: Result) -> Section | None:
    """Residual by scattering angle."""
    if result.residual is None:
        return None
    from ptycho.plot_fit import electrons_picture, residual_picture

    figures = (
        figure(electrons_picture(result.residual), "Electrons per pixel by scattering angle."),
        figure(residual_picture(result.residual), _verdict(result.residual)),
    )
    return Section("angles", "Residual by angle", row(figures))


def probe(result: Result) -> Section:
    """Its modes, their powers, its aberrations."""
    from ptycho.plot_beam import mode_picture

    power = (np.abs(result.probe) ** 2).sum((1, 2))
    total = float(power.sum())
    count = len(power)
    share = 100 * power / max(total, 1e-30)
    shown = range(min(count, _MOST_MODES))
    figures = [figure(mode_picture(result, i), f"Mode {i + 1} of {count}: {share[i]:.3g} % of the electrons.") for i in shown]
    lines = [("electrons per pattern", f"{total:.4g}")]
    if result.aberrations:
        lines.append(("aberrations at the end", _aberrations(result)))
    if result.instrument is not None and result.instrument.summary:
        lines.append(("source and detector", result.instrument.summary))
    note = "Amplitude, each picture with its own brightness; the dotted circle is the aperture's edge."
    return Section("probe", "Probe", row(figures) + paragraph(note, quiet=True) + facts(lines))


def positions(result: Result) -> Section:
    """Where the probe stood, and how far that is from where it was said to be."""
    from ptycho.plot_beam import positions_picture

    moved = result.account.moved_A if result.account is not None else np.zeros((0, 2))
    caption = f"{len(result.positions_A)} positions."
    if len(moved):
        shift = moved - moved.mean(0)
        rms, most = float(np.sqrt((shift**2).sum(1).mean())), float(np.hypot(*shift.T).max())
        caption += f" They were learned: moved by {rms:.3g} Å root mean square, {most:.3g} Å at most, without their common shift."
        caption += " Arrows are enlarged."
    return Section("positions", "Positions", figure(positions_picture(result, moved), caption))


def tilt(result: Result) -> Section | None:
    """A map, where each position has its own."""
    if len(result.tilt_mrad) < 2:
        return None
    from ptycho.plot_beam import tilt_pictures

    figures = (figure(picture, f"Tilt along {name}.") for picture, name in zip(tilt_pictures(result), "yx", strict=True))
    y, x = result.tilt_mrad.mean(0)
    return Section("tilt", "Tilt", row(figures) + paragraph(f"Mean: {y:.3g} mrad along y, {x:.3g} mrad along x.", quiet=True))


def calibration(result: Result) -> Section | None:
    """Every value that was known, with where it is from."""
    if result.account is None:
        return None
    return Section("calibration", "Calibration", table(("name", "value", "source"), result.account.calibration))


def effort(result: Result) -> Section:
    """Versions, time and memory."""
    lines = [("written by", ", ".join(f"{package} {number}" for package, number in sorted(result.versions.items())))]
    took = result.account
    if took is not None:
        lines += [("computed on", took.device), ("time", _duration(took.seconds))]
        known = ((took.peak_memory_GB, "of the machine"), (took.gpu_memory_GB, "of the GPU"))
        peak = ", ".join(f"{size:.2f} GB {where}" for size, where in known if np.isfinite(size))
        lines += [("memory at its peak", peak)] if peak else []
    elif result.history:
        lines.append(("time in epochs", _duration(sum(record.seconds for record in result.history))))
    return Section("effort", "Versions, time and memory", facts(lines))


def _summary(result: Result) -> Iterator[tuple[str, str]]:
    """What a person asks first, each with its name."""
    states, count, height, width = result.object.shape
    field = " x ".join(f"{(axis.stop - axis.start) * result.pixel_A:.4g}" for axis in result.scanned)
    yield "microscope", f"{result.voltage_kV:g} kV, {result.semiangle_mrad:g} mrad"
    yield "scanned field", f"{field} Å (y, x), {len(result.positions_A)} positions"
    thick = f", {result.slice_thickness_A.sum():.4g} Å thick" if count > 1 else ""
    yield "object", f"{height} x {width} pixels of {result.pixel_A:.4g} Å, {_number(count, 'slice')}{thick}, {_number(states, 'state')}"
    yield "probe", f"{_number(len(result.probe), 'mode')}, {float((np.abs(result.probe) ** 2).sum()):.4g} electrons per pattern"
    if len(result.tilt_mrad) == 1 and result.tilt_mrad.any():
        yield "tilt", "{:.3g} mrad along y, {:.3g} mrad along x".format(*result.tilt_mrad[0])
    if result.history:
        last = result.history[-1]
        held_out = "" if last.held_out is None else f", held out {last.held_out:.4g} (1: only noise is left)"
        yield "fit", f"loss {last.loss:.4g} (deviance per pixel){held_out}, after {_number(last.epoch, 'epoch')}"
    if result.quality is not None:
        share = float(result.quality.constrained[result.scanned].mean())
        floor = 1e3 * float(np.nanmedian(result.quality.shot_noise_rad[result.scanned]))
        yield "resolution and error", result.quality.summary()
        yield "constrained by the data", f"{100 * share:.3g} % of the scanned field"
        yield "shot noise", f"{floor:.3g} mrad at least, at that resolution and dose"


def _stage(number: int, records: list[EpochRecord]) -> tuple[str, ...]:
    last = records[-1]
    held_out = "" if last.held_out is None else f"{last.held_out:.4g}"
    seconds = _duration(sum(record.seconds for record in records))
    return str(number), last.kind, str(len(records)), seconds, f"{last.loss:.4g}", held_out, last.note


def _verdict(residual: Residual) -> str:
    """Where the model is worst, in a sentence."""
    worst = int(np.argmax(residual.chi_squared))
    found = f"largest {residual.chi_squared[worst]:.3g} at {residual.angle_mrad[worst]:.3g} mrad"
    return f"Model against data by scattering angle; {found}. Above 1 the model lacks something there, below it the fit follows the noise."


def _reading(split: str) -> str:
    """How to read the figures of quality."""
    how = "every electron went to one of two halves by chance" if split == "electrons" else "every second position, by chance, made one half"
    return (
        f"For this, {how}, and each half was reconstructed by the same recipe. Noise is what they differ by; what they share, a wrong defocus "
        "or an artefact of the raster included, counts as specimen. Of a perfect crystal the resolution is optimistic."
    )


def _aberrations(result: Result) -> str:
    return ", ".join(f"{term} = {value:.4g} {'°' if term.endswith('_deg') else 'Å'}" for term, value in sorted(result.aberrations.items()))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
