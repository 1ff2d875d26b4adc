"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real and simulated data sets: PTYCHO_TEST_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("PTYCHO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set PTYCHO_TEST_DATA")
    return folder


@pytest.fixture
def disk_patterns() -> NDArray[np.float32]:
    """Counts (6, 8, 32, 32) of a bright-field disk of 7.3 px radius about (16, 16), 20 electrons per pixel inside."""
    y, x = np.indices((32 * 8, 32 * 8)) / 8 - 16 + (0.5 / 8 - 0.5)  # 8 x 8 points in each pixel
    mean = 20.0 * (np.hypot(y, x) < 7.3).reshape(32, 8, 32, 8).mean((1, 3)) + 0.05
    return np.random.default_rng(1).poisson(mean, (6, 8, 32, 32)).astype(np.float32)
