"""Calibration against truth: simulated scans in all eight orientations at four rotations, from voltage, semiangle and step alone.

    python benchmarks/calibrate_truth.py [--sets ws2,focus] [--rotations 0,17,90,-126] [--flips 8]

Prints one line for each data set and how many of them are right: the orientation's angle and handedness against the truth, defocus and centre.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace

import numpy as np

import ptycho
from ptycho.calibration import calibrate
from ptycho.pose import Pose, angle_between_deg, turn
from ptycho.preparation import Preparation
from ptycho.simulation import Simulation, simulate

SETS = {
    "ws2": Simulation(scan_shape=(28, 28), step_A=0.7, defocus_A=180.0, pattern_px=48, pixel_invA=1 / 18, dose_e_per_A2=1e5),
    "over": Simulation(scan_shape=(28, 28), step_A=0.7, defocus_A=-150.0, pattern_px=48, pixel_invA=1 / 18, dose_e_per_A2=1e5),
    "focus": Simulation(scan_shape=(32, 32), step_A=0.45, defocus_A=10.0, pattern_px=48, pixel_invA=1 / 18, dose_e_per_A2=1e5),
    "sto": Simulation(
        specimen="SrTiO3", thickness_A=40.0, scan_shape=(28, 28), step_A=0.6, defocus_A=150.0, pattern_px=48, pixel_invA=1 / 16, dose_e_per_A2=1e5,
        voltage_kV=300.0, semiangle_mrad=21.4,
    ),
    "low": Simulation(scan_shape=(40, 40), step_A=0.7, defocus_A=300.0, pattern_px=64, pixel_invA=1 / 24, dose_e_per_A2=3e3),
    "astigmatic": Simulation(
        scan_shape=(28, 28), step_A=0.7, defocus_A=180.0, pattern_px=48, pixel_invA=1 / 18, dose_e_per_A2=1e5,
        aberrations={"C12": 30.0, "phi12_deg": 25.0},
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--rotations", default="0,17,90,-126")
    parser.add_argument("--flips", type=int, default=8)
    arguments = parser.parse_args()
    for name in arguments.sets.split(","):
        right, sure, done = 0, 0, 0
        for rotation in map(float, arguments.rotations.split(",")):
            simulated = simulate(replace(SETS[name], rotation_deg=rotation))
            for flips in list(itertools.product((False, True), repeat=3))[: arguments.flips]:
                ok, is_sure = one(name, simulated, Pose(*flips))
                right, sure, done = right + ok, sure + is_sure, done + 1
        print(f"{name}: {right} of {done} right, {sure} sure", flush=True)


def one(name, simulated, flips):
    s = simulated.simulation
    shape = simulated.patterns.shape
    turned = Preparation(transpose=flips.transpose, flip_rows=flips.flip_rows, flip_columns=flips.flip_columns)
    patterns = np.ascontiguousarray(turned.turn(simulated.patterns.reshape(-1, *shape[2:]))).reshape(shape)
    data = ptycho.read(patterns, voltage_kV=s.voltage_kV, semiangle_mrad=s.semiangle_mrad, step_A=s.step_A, adu_per_electron=1.0)
    began = time.perf_counter()
    found = calibrate(data)
    seconds = time.perf_counter() - began
    away = angle_between_deg(found.pose.matrix, flips.flips @ turn(s.rotation_deg))
    middle = s.defocus_A - simulated.thickness_A / 2
    error = found.defocus_A - middle
    # A flip of an even number of pixels puts the centre one pixel off; reading may have moved the window after it.
    true_centre = np.array([n // 2 - flip for n, flip in zip(shape[2:], (flips.flip_rows, flips.flip_columns), strict=True)], float)
    box = data.preparation.box or (0, 0, 0, 0)
    off = np.hypot(*(np.array(found.disk.centre) + [box[0], box[2]] - true_centre))
    ok = away < 1 and abs(error) < max(10, 0.05 * abs(middle)) and off < 0.2
    print(
        f"{name} {s.rotation_deg:6.0f}° {str(flips)[:-17]:<38} off by {away:6.2f}°, defocus {found.defocus_A:7.1f} of {middle:7.1f} Å, "
        f"centre {off:.2f} px, {seconds:.1f} s: {'right' if ok else 'WRONG'}, {found.verdict[:150]}",
        flush=True,
    )
    return ok, found.sure


if __name__ == "__main__":
    main()
