"""The patterns of PtyRAD's own model, from its own file, by our forward model; and our result by PtyRAD's reader and model.

Run it in an environment that has both packages (ptyrad 1.0.0 was used) and torch:

    python benchmarks/exchange_ptyrad.py DATA_DIR --slices 4 --modes 3 --epochs 1

DATA_DIR holds one EMPAD ``*.raw`` and the ``metadata.json`` beside it (as for peers.py); the middle of the scan is used. PtyRAD builds its
model from its parameters, runs ``--epochs`` iterations, so that object and probe are no longer the start, and saves its model with its own function.
One JSON line comes out: the largest difference of the patterns relative to the largest pixel, and the root mean square relative to the patterns',
both ways. ``there`` is PtyRAD's file in our model, ``back`` is what PtyRAD's model makes of the file that we write of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_common import Scan
from peer_ptyrad import import_torchvision, init_params, stub_plotting

import ptycho
from ptycho.exchange.patterns import patterns_of


def ptyrad_params(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of PtyRAD for the middle of the scan, tilted, with its own default jitter of positions."""
    init = init_params(Scan.read(args.data), args.modes, args.slices)
    n, kept = init["pos_N_scan_slow"], args.scan
    first = (n - kept) // 2
    patterns = init["meas_params"].reshape(n, n, 128, 128)[first : first + kept, first : first + kept]
    init |= {
        "meas_params": np.ascontiguousarray(patterns.reshape(-1, 128, 128)),
        "pos_N_scan_slow": kept,
        "pos_N_scan_fast": kept,
        "pos_scan_rand_std": 0.15,
        "obj_slice_thickness": args.thickness_A,
        "tilt_params": {"tilt_type": "all", "init_tilts": [[3.0, -2.0]]},
    }
    recon = {"NITER": args.epochs, "BATCH_SIZE": {"size": 16}, "SAVE_ITERS": None, "copy_params": False, "compiler_configs": {"enable": False}}
    return {"init_params": init, "recon_params": recon}


def built(params: dict[str, Any]) -> Any:
    """PtyRAD's solver after its run; its model carries the answer."""
    stub_plotting()
    held = import_torchvision()
    from ptyrad.params.ptyrad_params import PtyRADParams
    from ptyrad.solver import PtyRADSolver

    solver = PtyRADSolver(PtyRADParams(**params).model_dump(), device="cpu", seed=0)
    solver.run()
    solver.held = held
    return solver


def save(path: Path, model: Any, params: dict[str, Any]) -> None:
    """PtyRAD's model file, by its own functions."""
    from ptyrad.io.save import make_save_dict, save_dict_to_hdf5

    plain = {"init_params": {key: value for key, value in params["init_params"].items() if key != "meas_params"}}
    plain["recon_params"] = params["recon_params"] | {"save_result": ["model"]}
    indices = np.arange(len(model.crop_pos))
    optimizer = torch.optim.Adam(model.optimizable_params)
    content = make_save_dict(str(path.parent), model, plain, optimizer, None, len(model.loss_iters), indices, {"total": [0.0]})
    save_dict_to_hdf5(content, str(path))


def their_patterns(model: Any, index: np.ndarray) -> np.ndarray:
    """Patterns (n, ky, kx) of PtyRAD's forward model."""
    with torch.no_grad():
        return model(torch.from_numpy(index)).numpy()


def loaded(path: Path, params: dict[str, Any]) -> Any:
    """PtyRAD's model that starts from a model file: probe, positions, object and tilts of it."""
    sources = {f"{part}_source": "PtyRAD" for part in ("probe", "pos", "obj", "tilt")}
    paths = {f"{part}_params": str(path) for part in ("probe", "pos", "obj", "tilt")}
    init = {**params["init_params"], **sources, **paths, "pos_scan_rand_std": None}
    from ptyrad.core.models import PtychoModel
    from ptyrad.init import Initializer
    from ptyrad.params.ptyrad_params import PtyRADParams

    whole = PtyRADParams(init_params=init, recon_params=params["recon_params"]).model_dump()
    start = Initializer(whole["init_params"], seed=0)
    start.init_all()
    return PtychoModel(start.init_variables, whole["model_params"], device="cpu")


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Relative to the largest pixel, and root mean squares, after the scale that a normalisation leaves free."""
    scale = float((ours * theirs).sum() / (ours * ours).sum())
    rest = ours * scale - theirs
    return {"scale": scale, "max": float(abs(rest).max() / theirs.max()), "rms": float(np.sqrt((rest**2).mean() / (theirs**2).mean()))}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways."""
    params = ptyrad_params(args)
    model = built(params).reconstruct_results
    index = np.arange(0, len(model.crop_pos), max(1, len(model.crop_pos) // 16))
    theirs = their_patterns(model, index)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model_iter0001.hdf5"
        save(file, model, params)
        imported = ptycho.import_run(file)
        there = difference(patterns_of(imported.result, index), theirs)
        again = ptycho.export(imported.result, Path(folder) / "again.hdf5", "ptyrad")
        back = difference(their_patterns(loaded(again, params), index), theirs)
    return {"there": there, "back": back, "positions": len(index), "pixel_A": imported.result.pixel_A, "warnings": imported.warnings}


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--modes", type=int, default=3, help="probe modes")
    parser.add_argument("--slices", type=int, default=4, help="object slices")
    parser.add_argument("--thickness-A", type=float, default=10.0, help="distance between slices")
    parser.add_argument("--scan", type=int, default=8, help="side of the part of the scan that is used")
    parser.add_argument("--epochs", type=int, default=1, help="iterations of PtyRAD before its model is saved")
    return parser.parse_args(words)


def main() -> None:
    """Run and print one JSON line."""
    args = parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        found = compare(args)
    print(json.dumps({"ptyrad": importlib.metadata.version("ptyrad"), "slices": args.slices, "modes": args.modes, **found}))


if __name__ == "__main__":
    main()
