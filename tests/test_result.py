"""A result is made from a model, survives its file to the last bit, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from matplotlib.figure import Figure

from ptycho.aberrations import parse_aberrations
from ptycho.detector import Detector
from ptycho.errors import DataError, OutputError
from ptycho.io.result_file import _plain, load_result, save_result
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import probe_wave
from ptycho.plot import figure_of, phase_png, robust_limits, scale_bar_length_A
from ptycho.probe import Probe, seed_modes
from ptycho.propagator import Propagator
from ptycho.quality import Correlation, Quality, Residual
from ptycho.result import EpochRecord, Result

PNG = b"\x89PNG\r\n\x1a\n"


def make(states: int = 2, slices: int = 3, epochs: int = 4, **changes: object) -> Result:
    random = np.random.default_rng(5)

    def waves(*shape: int) -> np.ndarray:
        return np.exp(1j * random.normal(0.3, 0.2, shape)).astype(np.complex64)

    values = {
        "object": waves(states, slices, 30, 34),
        "occupancy": np.array([0.7, 0.3], np.float32)[:states],
        "pixel_A": 0.21,
        "slice_thickness_A": np.array([5.0, 6.0, 7.5])[:slices],
        "probe": waves(2, 16, 16),
        "positions_A": random.uniform(1.3, 4.9, (20, 2)),
        "tilt_mrad": random.normal(size=(20, 2)),
        "history": tuple(EpochRecord(i // 2, "epie" if i < 2 else "gradient", i + 1, 1.1 + 1 / (i + 1), 0.25) for i in range(epochs)),
        "recipe": '[data]\npath = "WS₂ 0.7 Å.raw"\n',
        "versions": {"ptycho": "0.1", "torch": "2.6", "numpy": "2.2", "python": "3.11"},
        "voltage_kV": 80.0,
        "semiangle_mrad": 24.9,
        "aberrations": {"C10": -350.0, "C12": 20.0, "phi12_deg": 30.1},
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


def residual() -> Residual:
    return Residual(*np.random.default_rng(2).random((5, 9)), noise_scale=0.4)


def quality(fsc: bool = True) -> Quality:
    """Of the result that ``make`` makes."""
    random = np.random.default_rng(1)

    def curve() -> Correlation:
        return Correlation(*random.random((3, 14)), half_bit_A=0.8, fixed_A=0.7, outermost_A=float("inf"))

    error = random.random((30, 34)).astype(np.float32)
    error[0] = np.nan
    return Quality("electrons", curve(), curve() if fsc else None, error, random.random((30, 34)).astype(np.float32), error > 0.5, error_rad=0.01)


def assert_identical(one: object, two: object) -> None:
    assert type(one) is type(two)
    for field in dataclasses.fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        elif dataclasses.is_dataclass(a):
            assert_identical(a, b)
        else:
            assert a == b, field.name


def model(states: int = 1) -> Ptychography:
    size, pixel, wavelength = 24, 0.3, 0.04
    wave = 30 * probe_wave(size, pixel, wavelength, 20.0, parse_aberrations({"C10": -40.0}))
    transmission = torch.polar(torch.ones(states, 2, 40, 44), torch.rand(states, 2, 40, 44, generator=torch.Generator().manual_seed(0)))
    return Ptychography(
        Object(transmission),
        Probe(seed_modes(wave[None], 2), pixel, wavelength, parse_aberrations({"C10": 1.0, "C12": 1.0})),
        Propagator(size, pixel, wavelength, torch.tensor([8.0, 9.0]), torch.tensor([[1e-3, -2e-3]])),
        Positions(torch.tensor([[13.5, 14.0], [20.0, 25.25]], dtype=torch.float64)),
        Detector(size, torch.ones(size, size)),
        pixel,
    )


def test_a_model_becomes_numpy_with_units():
    m = model()
    result = Result.of(m, [EpochRecord(0, "epie", 1, 1.0, 0.1)], "seed = 0", 80, 24.9, parse_aberrations({"defocus_A": 40.0}))
    assert result.object.dtype == np.complex64 and result.probe.dtype == np.complex64 and result.positions_A.dtype == np.float64
    assert np.allclose(result.positions_A, [[4.05, 4.2], [6.0, 7.575]]) and np.allclose(result.tilt_mrad, [[1.0, -2.0]])
    assert result.slice_thickness_A.tolist() == [8.0, 9.0] and result.aberrations["C10"] == pytest.approx(-40.0, abs=1e-3)
    assert result.aberrations["C12"] == pytest.approx(0.0, abs=1e-3)
    assert np.allclose(result.probe, m.probe.wave.detach().numpy(), atol=1e-5)
    assert result.phase.dtype == result.amplitude.dtype == np.float32 and result.phase.shape == (2, 40, 44)
    assert np.allclose(result.phase, np.angle(m.object.transmission.detach().numpy()[0]), atol=1e-6)
    assert result.scanned == (slice(14, 21), slice(14, 26))
    assert set(result.versions) == {"ptycho", "torch", "numpy", "python"} and result.versions["torch"].startswith("2")
    m.object.transmission.data.zero_()
    assert result.amplitude.min() > 0.9  # a copy: the model may go on


def test_learned_aberrations_are_in_the_probe_and_in_the_numbers():
    m = model()
    m.probe.correction_A.data = torch.tensor([5.0, 3.0, -4.0], dtype=m.probe.correction_A.dtype)
    result = Result.of(m, [], "", 80, 24.9, parse_aberrations({"C10": -40.0}))
    assert result.aberrations == pytest.approx({"C10": -35.0, "C12": 5.0, "phi12_deg": np.degrees(np.arctan2(-4, 3)) / 2}, rel=1e-3)
    spectrum = np.fft.fft2(result.probe, norm="ortho")
    assert np.allclose(spectrum, m.probe.spectrum().detach().numpy(), atol=1e-5)


def test_states_are_averaged_before_the_angle_is_taken():
    result = make(states=2)
    mean = 0.7 * result.object[0] + 0.3 * result.object[1]
    assert np.allclose(result.phase, np.angle(mean), atol=1e-6) and np.allclose(result.amplitude, np.abs(mean), atol=1e-6)


@pytest.mark.parametrize(
    "result",
    [
        make(),
        make(states=1, slices=1, residual=residual()),
        make(epochs=0, recipe="", tilt_mrad=np.zeros((1, 2))),
        make(residual=residual(), quality=quality()),
        make(quality=quality(fsc=False)),
    ],
    ids=range(5),
)
def test_round_trip_is_bit_for_bit(tmp_path: Path, result):
    path = save_result(result, tmp_path / "new" / "run")
    assert sorted(p.name for p in path.parent.iterdir()) == ["phase.png", "phase.tif", "result.h5"]
    for where in (path, path.parent, str(path.parent)):
        assert_identical(load_result(where), result)


def test_numpy_numbers_make_the_same_file(tmp_path: Path):
    records = tuple(EpochRecord(np.int64(0), "epie", np.int32(i), np.float32(1.5), 1) for i in range(2))  # type: ignore[arg-type]
    result = make(history=records, pixel_A=np.float64(0.2), voltage_kV=80, aberrations={"C10": np.float32(-350)})
    loaded = load_result(save_result(result, tmp_path))
    assert loaded.history == records and type(loaded.pixel_A) is float and loaded.aberrations == {"C10": -350.0}


def test_every_dataset_has_a_unit_and_a_checksum(tmp_path: Path):
    found = {}
    with h5py.File(save_result(make(quality=quality(), residual=residual()), tmp_path)) as file:
        file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        assert all(isinstance(item.attrs["units"], bytes) and item.fletcher32 for item in found.values())
        assert found["object/data"].attrs["units"] == b"1" and found["positions"].attrs["units"].decode() == "Å"
        assert found["quality/standard_error_rad"].attrs["units"] == b"rad" and found["residual/measured_e"].attrs["units"] == b"electrons"
        assert found["quality/frc/frequency_invA"].attrs["units"].decode() == "1/Å" and file["quality/frc"].attrs["half_bit_A_units"].decode() == "Å"
        assert file["object"].attrs["emd_group_type"] == 1 and file.attrs["complete"] == 1
        assert [file[f"object/dim{i}"].attrs["name"] for i in (1, 2, 3, 4)] == [b"state", b"z", b"y", b"x"]
        assert file["object/dim2"][()].tolist() == [0, 5, 11] and file["object/dim4"][1] == pytest.approx(0.21)
        assert file["recipe"][0].decode() == make().recipe


def test_the_tiff_has_imagejs_scale(tmp_path: Path):
    result = make()
    save_result(result, tmp_path)
    with tifffile.TiffFile(tmp_path / "phase.tif") as tiff:
        image, metadata = tiff.asarray(), tiff.imagej_metadata
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
    assert image.dtype == np.float32 and np.array_equal(image, result.phase)
    assert numerator / denominator == pytest.approx(1 / result.pixel_A, rel=1e-6)
    assert metadata is not None and metadata["slices"] == 3 and metadata["spacing"] == pytest.approx(18.5 / 3) and metadata["unit"] == "\\u00C5"
    assert metadata["min"] < metadata["max"]


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_one_sentence(tmp_path: Path, seed):
    """One bit, or the end of the file: nothing is harmless, as the whole file is sealed."""
    result, random = make(), np.random.default_rng(seed)
    content = save_result(result, tmp_path).read_bytes()
    damaged = tmp_path / "damaged.h5"
    for _ in range(60):
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        for part in (bytes(flipped), content[: random.integers(len(content))]):
            damaged.write_bytes(part)
            with pytest.raises(DataError, match=r"damaged\.h5") as told:
                load_result(damaged)
            assert "\n" not in str(told.value)


def _edited(path: Path, edit) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    # HDF5 has cut off what was behind its end: the damage is one that the checksum of the bytes does not show.
    content = path.read_bytes()
    path.write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode())
    return path


def _external(file):
    with h5py.File(Path(file.filename).parent / "other.h5", "w") as other:
        other["occupancy"] = file["occupancy"][()]
    del file["occupancy"]
    file["occupancy"] = h5py.ExternalLink("other.h5", "occupancy")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda file: file.attrs.__setitem__("complete", 0), "not written to its end"),
        (lambda file: file.attrs.__setitem__("format_version", 99), "update ptycho"),
        (lambda file: file.attrs.__setitem__("format", "other"), "not a result of ptycho"),
        (lambda file: file.attrs.__delitem__("format"), "not a result of ptycho"),
        (lambda file: file.attrs.__setitem__("pixel_A", 0.3), "checksum"),
        (lambda file: file["positions"].write_direct(np.zeros((20, 2))), "checksum"),
        (lambda file: file.__delitem__("probe"), "not a complete result"),
        (_external, "not stored in the file"),
    ],
)
def test_foreign_and_unfinished_files_are_refused(tmp_path: Path, edit, says):
    path = _edited(save_result(make(), tmp_path), edit)
    with pytest.raises(DataError, match=says) as error:
        load_result(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_files_from_before_there_was_a_quality_are_read(tmp_path: Path):
    """The checksum of an older version: every field of a Result that has no quality and no residual."""
    result = make()
    with h5py.File(save_result(result, tmp_path)) as file:
        assert not {"quality", "residual"} & set(file)
        written = bytes(file.attrs["sha256"]).decode()
    sha = hashlib.sha256()
    for field in dataclasses.fields(Result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray):
            sha.update(f"{field.name} {value.shape} {value.dtype.str}".encode())
            sha.update(np.ascontiguousarray(value).data)
        elif value is not None:
            sha.update(f"{field.name} {_plain(value)!r}".encode())
    assert sha.hexdigest() == written


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda file: file["quality/frc/correlation"].write_direct(np.zeros(14)), "checksum"),
        (lambda file: file["quality"].attrs.__setitem__("error_rad", 0.0), "checksum"),
        (lambda file: file.__delitem__("quality/fsc"), "checksum"),
        (lambda file: file.__delitem__("quality/constrained"), "not a complete result"),
        (lambda file: file["quality/frc"].attrs.__delitem__("fixed_A"), "not a complete result"),
    ],
)
def test_a_damaged_quality_is_noticed(tmp_path: Path, edit, says):
    with pytest.raises(DataError, match=says):
        load_result(_edited(save_result(make(quality=quality()), tmp_path), edit))


def test_maps_of_another_canvas_are_refused(tmp_path: Path):
    wrong = dataclasses.replace(quality(), constrained=np.ones((30, 33), bool))
    with pytest.raises(DataError, match="maps of quality have the shapes"):
        load_result(save_result(make(quality=wrong), tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(DataError, match=r"no result\.h5"):
        load_result(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_result(tmp_path / "nothing")
    (tmp_path / "result.h5").write_text("hello")
    with pytest.raises(DataError, match="not a complete result"):
        load_result(tmp_path)


def test_a_huge_claim_takes_no_memory(tmp_path: Path):
    def claim(file):
        del file["occupancy"]
        file.create_dataset("occupancy", (10**12,), "f4", chunks=(1000,))

    with pytest.raises(DataError, match="not stored completely"):
        load_result(_edited(save_result(make(), tmp_path), claim))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_result(tmp_path: Path, monkeypatch, failing):
    old = make(epochs=1)
    save_result(old, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OutputError, match=r"No space left on device.*needs 0\.\d MB, .* MB free on") as error:
            save_result(make(epochs=2), tmp_path)
    assert error.value.exit_code == 5 and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phase.png", "phase.tif", "result.h5"]
    assert_identical(load_result(tmp_path), old)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"result\.h5: cannot be written"):
        save_result(make(), tmp_path / "file" / "run")


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path):
    mask = os.umask(0o027)
    try:
        path = save_result(make(), tmp_path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("result", [make(), make(slices=1, states=1), make(epochs=0)], ids=range(3))
def test_figures_are_drawn_without_pyplot(result):
    page = result.plot()
    assert isinstance(page, Figure) and page._repr_png_().startswith(PNG)
    assert phase_png(result).startswith(PNG)
    file = io.BytesIO()
    figure_of(result).savefig(file, format="pdf")
    assert file.getvalue().startswith(b"%PDF")


def test_odd_results_can_be_drawn():
    flat = make(object=np.ones((1, 1, 30, 34), np.complex64), occupancy=np.ones(1, np.float32), slice_thickness_A=np.ones(1))
    line = make(positions_A=np.stack([np.full(9, 3.0), np.linspace(1, 6, 9)], 1))
    point = make(positions_A=np.full((1, 2), 3.0), tilt_mrad=np.zeros((1, 2)))
    for result in (flat, line, point):
        assert phase_png(result).startswith(PNG) and result.plot()._repr_png_().startswith(PNG)


@pytest.mark.parametrize(("width", "length"), [(33.0, 5), (100.0, 20), (3.0, 0.5), (80.0, 20), (7.9, 1), (4000.0, 1000)])
def test_scale_bars_are_round(width, length):
    assert scale_bar_length_A(width) == pytest.approx(length)


def test_wild_pixels_do_not_take_the_contrast():
    image = np.random.default_rng(0).uniform(0, 1, (100, 100))
    image[3, 4], image[50, 50] = 1e6, -1e6
    low, high = robust_limits(image)
    assert 0 <= low < 0.01 and 0.99 < high <= 1
    assert robust_limits(np.ones((4, 4))) == (0.5, 1.5)


def test_source_and_detector_are_told_and_kept(tmp_path):
    m = model()
    plain = Result.of(m, [], "seed = 0", 80, 24.9, ())
    assert plain.instrument is not None and plain.instrument.summary == "" and plain.instrument.descan_px.shape == (0, 2)
    m.probe.source_A2.data, m.detector.blur_px2.data = torch.tensor([0.16]), torch.tensor([0.25])
    m.detector.background.data.fill_(0.125)
    m.detector.descan_px.data = torch.tensor([[0.5, -1.0], [1.5, 2.0]])
    m.probe.variations.data = m.probe.wave.data[1:] / torch.linalg.vector_norm(m.probe.wave.data[1])
    m.probe.coefficients.data = torch.tensor([[3.0], [-3.0]])
    result = Result.of(m, [], "seed = 0", 80, 24.9, ())
    found = result.instrument
    assert found is not None and (found.source_A, found.detector_blur_px) == (pytest.approx(0.4), 0.5)
    assert np.allclose(found.opr_modes, m.probe.variations.detach().numpy(), atol=1e-6)
    assert found.summary.split("; ") == [
        "source 0.400 Å",
        "detector blur 0.500 px",
        "background 0.125 electrons per pixel",
        "descan from 0.50 to 1.50 px in y, -1.00 to 2.00 px in x",
        "probe varies by 3 √electrons rms",
    ]
    for number, kept in enumerate((plain, result)):
        assert_identical(load_result(save_result(kept, tmp_path / str(number))), kept)
    with h5py.File(tmp_path / "1" / "result.h5") as file:
        units = {name: data.attrs["units"].decode() for name, data in file["instrument"].items()}
    assert units == {"background_e": "electrons", "descan_px": "pixel", "opr_modes": "1", "opr_coefficients": "√electrons"}
