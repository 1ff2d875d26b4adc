"""Time PtyRAD's reconstruction pass (one iteration over all patterns) on the CPU, as a yardstick for ours.

Run it in an environment that has ptyrad (1.0.0 was used) and torch, on an otherwise idle machine; ptycho itself is not needed:

    python benchmarks/ptyrad_cpu.py DATA_DIR --modes 1 --slices 1 --batch 32 --epochs 3 --threads 2

DATA_DIR holds one EMPAD ``*.raw`` and the ``metadata.json`` beside it. One JSON line comes out on stdout; everything else goes to
stderr. ``seconds_per_pass`` is PtyRAD's own stopwatch around its loop over the batches and the constraints that close a pass: no
loading, saving, plotting or compiling. The first pass also warms up the memory and the threads, so compare the later ones.

What is timed is PtyRAD as it comes: Adam, the default loss, constraints and step sizes, object and probe updated. Only this differs
from its defaults: positions stay fixed (and start on the exact raster, without the default 0.15 px jitter), nothing is saved,
compilation is off (it is off by default), and the seed is set.

The OpenMP wait policy is left as the shell has it: unset, threads spin, which suits an idle machine and is slow on a busy
one (there set OMP_WAIT_POLICY=PASSIVE). ``--flush-denormals`` is not what PtyRAD's users have; it shows what denormals cost.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

SLICE_THICKNESS_A = 2.0


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


def init_params(folder: Path, modes: int, slices: int) -> dict[str, Any]:
    """PtyRAD's description of the experiment and of the starting point, from metadata.json."""
    meta = json.loads((folder / "metadata.json").read_text())
    (raw,) = folder.glob("*.raw")
    return {
        "probe_kv": meta["kv"],
        "probe_conv_angle": meta["alpha_mrad"],
        "probe_aberrations": {"defocus": meta["defocus_A"]},  # positive is underfocus in both
        "probe_pmode_max": modes,
        "meas_Npix": 128,
        "meas_source": "custom",
        "meas_params": read_empad(raw, meta["adu_per_electron"], meta["detector_rows_flipped"]),
        "meas_calibration": {"mode": "dk", "value": meta["dk_invA"]},
        "pos_N_scan_slow": meta["n"],
        "pos_N_scan_fast": meta["n"],
        "pos_scan_step_size": meta["step_A"],
        "pos_scan_rand_std": None,
        "obj_Nlayer": slices,
        "obj_slice_thickness": SLICE_THICKNESS_A,
    }


def read_empad(path: Path, adu_per_electron: float, rows_flipped: bool) -> np.ndarray:
    """Patterns (N, 128, 128) in electrons; each stored frame has two more rows that are not image."""
    frames = np.fromfile(path, "<f4").reshape(-1, 130, 128)[:, :128] / np.float32(adu_per_electron)
    return np.ascontiguousarray(frames[:, ::-1] if rows_flipped else frames)


def recon_params(batch: int, epochs: int) -> dict[str, Any]:
    """How long and in what batches; nothing is written."""
    return {"NITER": epochs, "BATCH_SIZE": {"size": batch}, "SAVE_ITERS": None, "copy_params": False, "compiler_configs": {"enable": False}}


def reconstruct(params: dict[str, Any], seed: int) -> Any:
    """Run PtyRAD on the CPU and return its model, which carries the answer and the seconds of every pass."""
    stub_plotting()
    declared = import_torchvision()  # noqa: F841 (held until PtyRAD is done)
    from ptyrad.params.ptyrad_params import PtyRADParams
    from ptyrad.solver import PtyRADSolver

    solver = PtyRADSolver(PtyRADParams(**params).model_dump(), device="cpu", seed=seed)
    solver.run()
    return solver.reconstruct_results


def save_phase(path: Path, model: Any) -> None:
    """Store the phase summed over slices (y, x) in rad, the pixel in Å and the probe centres (N, 2) = (y, x) in pixels of that phase."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    window = np.array(state["opt_probe"].shape[1:3])  # (modes, y, x, real and imaginary)
    np.savez(
        path,
        phase=np.tensordot(state["omode_occu"], state["opt_objp"].sum(1), 1),
        pixel_A=float(state["dx"]),
        positions_px=state["crop_pos"] + state["opt_probe_pos_shifts"] + window // 2,
    )


def report(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Say what was run and how long each pass took."""
    return {
        "package": "ptyrad",
        "version": importlib.metadata.version("ptyrad"),
        "torch": torch.__version__,
        "modes": model.opt_probe.shape[0],
        "slices": model.opt_objp.shape[1],
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "flush_denormals": args.flush_denormals,
        "seconds_per_pass": [round(float(seconds), 4) for seconds in model.iter_times],
        "loss_per_pass": [round(float(loss), 5) for _, loss in model.loss_iters],
    }


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--modes", type=int, default=1, help="probe modes")
    parser.add_argument("--slices", type=int, default=1, help=f"object slices, {SLICE_THICKNESS_A} Å each")
    parser.add_argument("--batch", type=int, default=32, help="patterns per update")
    parser.add_argument("--epochs", type=int, default=3, help="passes over all patterns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flush-denormals", action="store_true", help="let the CPU round denormal numbers to zero")
    parser.add_argument("--save-phase", type=Path, metavar="FILE.npz", help="store phase, pixel_A and positions_px, to be scored elsewhere")
    return parser.parse_args()


def main() -> None:
    """Run and print one JSON line."""
    args = parse_args()
    torch.set_flush_denormal(args.flush_denormals)  # before the thread pool starts: its threads inherit the setting
    torch.set_num_threads(args.threads)
    params = {"init_params": init_params(args.data, args.modes, args.slices), "recon_params": recon_params(args.batch, args.epochs)}
    params["model_params"] = {"update_params": {"probe_pos_shifts": {"start_iter": None, "lr": 0.0}}}
    with contextlib.redirect_stdout(sys.stderr):
        model = reconstruct(params, args.seed)
    if args.save_phase:
        save_phase(args.save_phase, model)
    print(json.dumps(report(args, model)))


if __name__ == "__main__":
    main()
