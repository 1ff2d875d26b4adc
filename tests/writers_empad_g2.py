"""EMPAD-G2 files byte by byte: words that a detector with these maps would write, combined frames, and the maps."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

ADU = 200.0  # one electron


def typical_maps(seed: int = 0) -> dict[str, np.ndarray]:
    """Linear maps (2, 128, 128) that differ between pixels and stores, with flat field and background."""
    rng = np.random.default_rng(seed)
    shape = (2, 128, 128)
    store = np.array([-1.0, 1.0])[:, None, None]
    maps = {
        "G1": rng.normal(18.5, 0.3, shape),
        "G2": rng.normal(1.05e5, 1e3, shape),
        "B2": rng.normal(900, 20, shape),
        "FF": rng.normal(1, 0.03, shape),
        "mean_background": rng.normal(1500, 30, shape) + 100 * store,
    }
    return {name: values.astype(np.float32) for name, values in maps.items()}


def quadratic_maps(seed: int = 1) -> dict[str, np.ndarray]:
    """Quadratic maps (128, 128, 2) with a flat field."""
    rng = np.random.default_rng(seed)
    typical = {"Ml": 14.8, "alpha": 2e-4, "Md": 1.086e5, "Oh": -1.24e5, "Ot": 7.9e3, "FF": 1.0}
    return {name: (value * rng.normal(1, 0.01, (128, 128, 2))).astype(np.float32) for name, value in typical.items()}


def write_maps(path: Path, maps: dict[str, np.ndarray], apart: bool = False) -> Path:
    """The calibration file; ``apart`` as G1A and G1B instead of G1."""
    with h5py.File(path, "w") as file:
        for name, values in maps.items():
            if apart:
                file[f"{name}A"], file[f"{name}B"] = values
            else:
                file[name] = values
    return path


def words_of(values: np.ndarray, maps: dict[str, np.ndarray], store: int) -> np.ndarray:
    """Words uint32 of a frame that combine to ``values`` in ADU, within half a step of the analog signal: 0.5 ADU, in low gain G1 / 2."""
    g1, g2, b2 = (maps[name][store].astype(float) for name in ("G1", "G2", "B2"))
    total = values / maps["FF"][store] + maps["mean_background"][store]
    low = total > 12000
    digital = np.where(low, total // g2, 0)
    analog = np.round(np.where(low, (total - digital * g2) / g1 + b2, total))
    assert analog.min() >= 0 and analog.max() < 1 << 14 and digital.max() < 1 << 16
    return (analog.astype("<u4") | (digital.astype("<u4") << 14) | (low.astype("<u4") << 31)).astype("<u4")


def write_empad_g2(path: Path, electrons: np.ndarray, maps: dict[str, np.ndarray], offsets: np.ndarray | None = None) -> Path:
    """Patterns (slow, fast, 128, 128) as words; the column tells the store. ``offsets`` (slow, fast) in ADU are added to whole frames."""
    slow, fast = electrons.shape[:2]
    offsets = np.zeros((slow, fast)) if offsets is None else offsets
    frames = [words_of(electrons[y, x] * ADU + offsets[y, x], maps, x % 2) for y in range(slow) for x in range(fast)]
    path.write_bytes(b"".join(frame.tobytes() for frame in frames))
    return path


def write_empad_combined(path: Path, patterns: np.ndarray, adu_per_electron: float = ADU) -> Path:
    """Patterns (slow, fast, 128, 128) as combined frames."""
    path.write_bytes((patterns * adu_per_electron).astype("<f4").tobytes())
    return path
