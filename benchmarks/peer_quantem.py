"""Passes of quantem (0.1.10 was used) on an EMPAD scan; see peer_common.py and peers.py. ptycho itself is not needed.

Its high-level PtychoLite as it comes: AdamW on object and probe with the default rates, amplitude loss, positions and descan fixed, the rotation
that the scan has. A pass is one call of ``reconstruct`` for one iteration.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys

import numpy as np
import torch
from peer_common import SLICE_THICKNESS_A, Passes, Scan, arguments
from quantem.core.datastructures import Dataset4dstem
from quantem.diffractive_imaging.dataset_models import PtychographyDatasetRaster
from quantem.diffractive_imaging.ptychography_lite import PtychoLite


def main() -> None:
    """Run and print one JSON line."""
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    scan, passes = Scan.read(args.folder), Passes(args)
    m = scan.meta
    with contextlib.redirect_stdout(sys.stderr):
        patterns = scan.patterns.reshape(m["n"], m["n"], 128, 128)
        sampling = [m["step_A"], m["step_A"], m["dk_invA"], m["dk_invA"]]
        data = PtychographyDatasetRaster.from_dataset4dstem(Dataset4dstem.from_array(patterns, sampling=sampling, units=["A", "A", "A^-1", "A^-1"]))
        plain = {"force_com_rotation": m["scan_detector_rotation_deg"], "force_com_transpose": False, "plot_rotation": False, "plot_com": False}
        data.preprocess(com_fit_function="constant", **plain)
        solver = PtychoLite.from_dataset(
            data, num_slices=args.slices, slice_thicknesses=SLICE_THICKNESS_A if args.slices > 1 else None, num_probes=args.modes,
            energy=m["kv"] * 1e3, defocus=m["defocus_A"], semiangle_cutoff=m["alpha_mrad"], device=args.device, verbose=0, rng=0,
        )  # fmt: skip
        for _ in range(args.epochs):
            passes.start()
            solver.reconstruct(num_iters=1, batch_size=args.batch, verbose=0)
            passes.stop(lambda: np.angle(solver.obj_model.obj.detach().cpu().numpy()).sum(0))
        positions = data.scan_positions_px.detach().cpu().numpy()
        pixel_A = float(np.atleast_1d(data.obj_sampling)[0])
    passes.report("quantem", importlib.metadata.version("quantem"), pixel_A, positions, torch=torch.__version__)


if __name__ == "__main__":
    main()
