"""The other packages themselves, where they are installed: their readers open our files, and their models make our patterns.

They are no dependencies, not even of the tests: pip install ptyrad==1.0.0, py4DSTEM, phaserEM into an environment of their own.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_result import make

from ptycho.exchange import export, import_run
from ptycho.exchange.patterns import patterns_of
from ptycho.result import Result

# Their warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
INDEX = np.arange(0, 20, 3)


@pytest.fixture(scope="module")
def result() -> Result:
    positions = np.random.default_rng(3).uniform((8.6, 8.6), (21.4, 25.4), (20, 2)) * 0.21
    return replace(make(states=1), positions_A=positions, tilt_mrad=np.array([[3.0, -5.0]]), slice_thickness_A=np.full(3, 20.0))


def test_ptyrad_there_and_back(test_data: Path, monkeypatch: pytest.MonkeyPatch):
    """PtyRAD's model from its own parameters, one iteration, its own file: our patterns are its own to 1e-3, and so are those of our file in it."""
    for name in ("ptyrad", "torchvision", "sklearn"):
        if importlib.util.find_spec(name) is None:  # to import torchvision would fail beside a torch of another kind, which is mended below
            pytest.skip(f"{name} is not installed: PtyRAD needs it")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    before = set(sys.modules)
    try:
        from exchange_ptyrad import compare, parse_args

        found = compare(parse_args([str(test_data / "ws2_empad"), "--scan", "6", "--slices", "3", "--modes", "2"]))
    finally:
        for name in set(sys.modules) - before:  # stubs of its plotting must not reach another test
            if name.startswith("ptyrad"):
                del sys.modules[name]
    for way in ("there", "back"):
        assert found[way]["max"] < 1e-3 and found[way]["rms"] < 1e-3 and found[way]["scale"] == pytest.approx(1, abs=1e-3), (way, found[way])


def test_py4dstem_opens_its_own_class(result: Result, tmp_path: Path):
    package = pytest.importorskip("py4DSTEM", reason="py4DSTEM is not installed with what it needs")
    for slices, modes, name in ((3, 1, "MultislicePtychography"), (1, 1, "SingleslicePtychography"), (1, 2, "MixedstatePtychography")):
        some = replace(result, object=result.object[:, :slices], slice_thickness_A=result.slice_thickness_A[:slices], probe=result.probe[:modes])
        path = export(some, tmp_path / f"{name}.h5", "py4dstem")
        opened = package.read(str(path))
        assert type(opened).__name__ == name and opened.sampling == pytest.approx((0.21, 0.21), rel=1e-4)
        np.testing.assert_array_equal(np.squeeze(opened.object), np.squeeze(some.object))
        saved = tmp_path / f"{name}_again.h5"
        package.save(str(saved), opened)
        back = import_run(saved).result
        np.testing.assert_allclose(back.probe, some.probe, atol=1e-6)
        np.testing.assert_allclose(patterns_of(back, INDEX), patterns_of(some, INDEX), rtol=1e-2, atol=1e-3 * patterns_of(some, INDEX).max())


def test_phaser_opens_its_own_state(result: Result, tmp_path: Path):
    state = pytest.importorskip("phaser.state", reason="phaser is not installed")
    opened = state.ReconsState.read_hdf5(export(result, tmp_path / "state.h5", "phaser"))
    np.testing.assert_array_equal(opened.object.data, result.object[0])
    np.testing.assert_allclose(opened.object.sampling.sampling, 0.21)
    np.testing.assert_allclose(opened.object.thicknesses, 20.0)
    opened.write_hdf5(tmp_path / "again.h5")
    back = import_run(tmp_path / "again.h5").result
    np.testing.assert_allclose(patterns_of(back, INDEX), patterns_of(result, INDEX), rtol=1e-4, atol=1e-4 * patterns_of(result, INDEX).max())
