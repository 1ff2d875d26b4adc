"""Passes of PtyRAD (1.0.0 was used) on an EMPAD scan; see peer_common.py and peers.py. ptycho itself is not needed.

    python benchmarks/peer_ptyrad.py DATA_DIR --modes 1 --slices 1 --batch 32 --epochs 3 --threads 2

What is timed is PtyRAD as it comes: Adam, the default loss, constraints and step sizes, object and probe updated; a pass is its loop over the
batches with the constraints that close it: no loading, saving or plotting. The first pass also warms up memory and threads. Only this
differs from its defaults: positions stay fixed (and start on the exact raster, without the default 0.15 px jitter), nothing is saved, the seed
is set. Compilation is off, as by default; ``--compile`` turns it on. ``--flush-denormals`` is not what its users have; it shows what
denormals cost.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types
from typing import Any

import numpy as np
import torch
from peer_common import SLICE_THICKNESS_A, Passes, Scan, arguments  # first: it sets how threads wait


def stub_plotting() -> None:
    """Put empty functions in the place of ptyrad.plotting: no figures are wanted, and one of its files needs Python 3.12 to parse."""
    package = types.ModuleType("ptyrad.plotting")
    package.__path__ = []
    for name, function in (("basic", "plot_pos_grouping"), ("model", "plot_summary")):
        module = types.ModuleType(f"ptyrad.plotting.{name}")
        setattr(module, function, lambda *args, **kwargs: None)
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    sys.modules[package.__name__] = package


def import_torchvision() -> torch.library.Library | None:
    """Import torchvision even where its compiled half was built for another torch (a CUDA wheel beside a CPU torch).

    PtyRAD takes only gaussian_blur from it, which is Python. The import stops at two operators that the compiled half should have
    declared; declaring them is enough. Keep the returned handle: the declarations live as long as it does.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401

        return library
    return None


def init_params(scan: Scan, modes: int, slices: int) -> dict[str, Any]:
    """PtyRAD's description of the experiment and of the starting point."""
    meta = scan.meta
    return {
        "probe_kv": meta["kv"],
        "probe_conv_angle": meta["alpha_mrad"],
        "probe_aberrations": {"defocus": meta["defocus_A"]},  # positive is underfocus in both
        "probe_pmode_max": modes,
        "meas_Npix": 128,
        "meas_source": "custom",
        "meas_params": scan.patterns,
        "meas_calibration": {"mode": "dk", "value": meta["dk_invA"]},
        "pos_N_scan_slow": meta["n"],
        "pos_N_scan_fast": meta["n"],
        "pos_scan_step_size": meta["step_A"],
        "pos_scan_rand_std": None,
        "obj_Nlayer": slices,
        "obj_slice_thickness": SLICE_THICKNESS_A,
    }


def recon_params(batch: int, epochs: int, compiled: bool) -> dict[str, Any]:
    """How long and in what batches; nothing is written."""
    return {"NITER": epochs, "BATCH_SIZE": {"size": batch}, "SAVE_ITERS": None, "copy_params": False, "compiler_configs": {"enable": compiled}}


def reconstruct(params: dict[str, Any], passes: Passes) -> Any:
    """Run PtyRAD and return its model; each pass is timed from outside."""
    stub_plotting()
    declared = import_torchvision()  # noqa: F841 (held until PtyRAD is done)
    from ptyrad.params.ptyrad_params import PtyRADParams
    from ptyrad.solver import PtyRADSolver, reconstruction

    step = reconstruction.recon_step

    def timed(batches: Any, grad_accumulation: Any, model: Any, *others: Any, **options: Any) -> Any:
        passes.start()
        losses = step(batches, grad_accumulation, model, *others, **options)
        passes.stop(lambda: phase_of(model))
        return losses

    reconstruction.recon_step = timed
    solver = PtyRADSolver(PtyRADParams(**params).model_dump(), device=passes.args.device, seed=0)
    solver.run()
    return solver.reconstruct_results


def phase_of(model: Any) -> np.ndarray:
    """Summed over slices and averaged over states, (y, x) in rad."""
    return np.tensordot(model.omode_occu.detach().cpu().numpy(), model.opt_objp.detach().cpu().numpy().sum(1), 1)


def main() -> None:
    """Run and print one JSON line."""
    args = arguments(__doc__, compile="torch.compile on", flush_denormals="let the CPU round denormal numbers to zero")
    torch.set_flush_denormal(args.flush_denormals)  # before the thread pool starts: its threads inherit the setting
    torch.set_num_threads(args.threads)
    scan, passes = Scan.read(args.folder), Passes(args)
    params = {
        "init_params": init_params(scan, args.modes, args.slices),
        "recon_params": recon_params(args.batch, args.epochs, args.compile),
        "model_params": {"update_params": {"probe_pos_shifts": {"start_iter": None, "lr": 0.0}}},
    }
    with contextlib.redirect_stdout(sys.stderr):
        model = reconstruct(params, passes)
    state = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    window = np.array(state["opt_probe"].shape[1:3])  # (modes, y, x, real and imaginary)
    positions = state["crop_pos"] + state["opt_probe_pos_shifts"] + window // 2
    more = {"flush_denormals": args.flush_denormals, "compile": args.compile, "torch": torch.__version__}
    passes.report("ptyrad", importlib.metadata.version("ptyrad"), float(state["dx"]), positions, **more)


if __name__ == "__main__":
    main()
