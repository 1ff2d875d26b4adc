"""Passes of ptycho on an EMPAD scan; see peer_common.py and peers.py.

    python benchmarks/peer_ptycho.py DATA_DIR --modes 1 --slices 1 --batch 32 --epochs 6 --threads 2

Object and probe are updated from the first pass on. Also prints the seconds of a pass's Fourier transforms alone, 4 per mode, slice and
pattern, timed after each pass. ``--point-pixels`` leaves out the integration over a pixel's area, as packages do that lack it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peer_common import SLICE_THICKNESS_A, Passes, arguments  # first: it sets how threads wait

import ptycho
from ptycho.adjoint import Likelihood
from ptycho.benchmark import Bench, Case
from ptycho.loss import Loss
from ptycho.patterns import Patterns
from ptycho.solvers import Gradient, Updates
from ptycho.start import ModelOptions, start


def data_set(folder: Path) -> ptycho.Dataset4D:
    """The scan with the values of its metadata."""
    m = json.loads((folder / "metadata.json").read_text())
    return ptycho.read(
        next(folder.glob("*.raw")), voltage_kV=m["kv"], semiangle_mrad=m["alpha_mrad"], defocus_A=m["defocus_A"], step_A=m["step_A"],
        pixel_invA=m["dk_invA"], adu_per_electron=m["adu_per_electron"], flip_rows=m["detector_rows_flipped"],
    )  # fmt: skip


def main() -> None:
    """Parse, run, print."""
    a = arguments(__doc__, point_pixels="no integration over the pixel area")
    data, device = data_set(a.folder), torch.device(a.device)
    options = ModelOptions(probe_modes=a.modes, slices=a.slices, slice_thickness_A=SLICE_THICKNESS_A, pixel_area=not a.point_pixels, pad=0)
    model = start(data.geometry, options, data.survey().mean_electrons, data.mask).to(device)
    patterns, passes = Patterns(data, device), Passes(a)
    bench = Bench(device, a.threads if device.type == "cpu" else 1, 1)
    case = Case(round(data.n_positions**0.5), data.pattern_shape[0], a.modes, a.slices, a.batch)
    group, alone = min(Likelihood(model, Loss()).chunk, a.batch), list[float]()
    solver = Gradient(epochs=a.epochs, batch=a.batch, update=Updates(probe=1))
    passes.start()
    for _ in solver.run(model, patterns, bench.workers):
        passes.stop(lambda: torch.angle(model.object.transmission.detach()).sum((0, 1)).cpu())
        alone.append(bench._transforms(case, data.n_positions, group))
        passes.start()
    passes.report("ptycho", ptycho.__version__, model.pixel_A, model.positions.value_px.detach().cpu().numpy(), transforms_s=alone)


if __name__ == "__main__":
    main()
