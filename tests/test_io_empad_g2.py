"""EMPAD of the second generation: the detector's words with its maps, combined frames, and telling the kinds of a .raw apart."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from writers_empad_g2 import ADU, quadratic_maps, typical_maps, words_of, write_empad_combined, write_empad_g2, write_maps

from ptycho.errors import DataError, OutputError
from ptycho.io.empad import FRAME_BYTES, open_empad, open_empad_g1, write_empad
from ptycho.io.empad_g2 import G2_FRAME_BYTES, open_empad_combined, open_empad_g2, write_calibration
from ptycho.io.empad_g2_maps import debounce_offsets, read_calibration
from ptycho.io.options import Options


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    return typical_maps()


@pytest.fixture(scope="module")
def electrons() -> np.ndarray:
    """Electrons (3, 5, 128, 128): a disk, a few pixels that are as bright as low gain and the charge counter can be, dark outside."""
    y, x = np.indices((128, 128)) - 64
    counts = np.random.default_rng(2).poisson(np.where(np.hypot(y + 9, x) < 20, 3.0, 0.01), (3, 5, 128, 128)).astype(float)
    counts[:, :, 60:63, 30:90] = np.geomspace(70, 1e6, 60)
    return counts


@pytest.fixture
def raw(tmp_path: Path, electrons, maps) -> Path:
    return write_empad_g2(tmp_path / "scan_x5_y3.raw", electrons, maps)


@pytest.fixture
def options(tmp_path: Path, maps) -> Options:
    return Options(calibration_file=write_maps(tmp_path / "maps.h5", maps))


def every(source) -> np.ndarray:
    return source.read(np.arange(source.header.n_frames))


def test_words_with_their_maps_are_electrons(raw: Path, options: Options, electrons):
    source = open_empad_g2(raw, options)
    header = source.header
    assert (header.format, header.n_frames, header.frame_shape, header.dtype, header.scan_shape) == ("empad_g2", 15, (128, 128), np.float32, (3, 5))
    assert not header.flip_rows and header.bad_pixels is None
    values = every(source)
    assert values.dtype == np.float32
    expected = electrons.reshape(15, 128, 128) * ADU
    assert np.ptp(words_of(expected[0], typical_maps(), 0) >> 31) == 1 and (words_of(expected[0], typical_maps(), 0) >> 14 & 0xFFFF).max() > 1000
    high = expected < 9000
    np.testing.assert_allclose(values[high], expected[high], atol=0.7)
    np.testing.assert_allclose(values[~high], expected[~high], atol=12, rtol=3e-7)


def test_order_and_repetition_of_frames(raw: Path, options: Options):
    source = open_empad_g2(raw, options)
    chosen = np.array([7, 2, 7, 14])
    np.testing.assert_array_equal(source.read(chosen), every(source)[chosen])


@pytest.mark.parametrize("layout", ["first", "last", "apart"])
def test_the_maps_may_be_laid_out_in_three_ways(raw: Path, options: Options, maps, tmp_path: Path, layout: str):
    stored = {name: np.moveaxis(values, 0, 2) for name, values in maps.items()} if layout == "last" else maps
    other = Options(calibration_file=write_maps(tmp_path / "other.h5", stored, apart=layout == "apart"))
    np.testing.assert_array_equal(every(open_empad_g2(raw, other)), every(open_empad_g2(raw, options)))


def word_by_word(word: int, pixel: tuple[int, int], store: int, maps: dict[str, np.ndarray]) -> float:
    """The published formulas, one pixel at a time."""
    analog, digital, gain = word & 0x3FFF, (word & 0x3FFFC000) >> 14, word >> 31
    if "G1" in maps:
        g1, g2, b2, background, flat = (float(maps[name][store][pixel]) for name in ("G1", "G2", "B2", "mean_background", "FF"))
        return (analog * (1 - gain) + g1 * (analog - b2) * gain + g2 * digital - background) * flat
    ml, alpha, md, oh, ot, flat = (float(maps[name][pixel][store]) for name in ("Ml", "alpha", "Md", "Oh", "Ot", "FF"))
    return (analog * (1 - gain) + ml * analog * gain + alpha * (analog * gain) ** 2 + md * digital + oh * gain - ot) * flat


@pytest.mark.parametrize("model", [typical_maps(3), quadratic_maps(4)], ids=["linear", "quadratic"])
def test_both_models_are_the_published_formulas(tmp_path: Path, model):
    words = np.random.default_rng(5).integers(0, 1 << 32, (4, 128, 128), dtype=np.uint32)
    words[2:] &= 0x80003FFF  # nothing counted
    path = write_maps(tmp_path / "maps.h5", model)
    with h5py.File(path, "a") as file:
        file.attrs["debounce"] = 0
    (tmp_path / "scan_x2_y2.raw").write_bytes(words.tobytes())
    values = every(open_empad_g2(tmp_path / "scan_x2_y2.raw", Options(calibration_file=path)))
    for frame, y, x in np.random.default_rng(6).integers(0, [4, 128, 128], (500, 3)):
        expected = word_by_word(int(words[frame, y, x]), (y, x), frame % 2, model)
        assert values[frame, y, x] == pytest.approx(expected, rel=1e-6, abs=0.1)


def test_the_column_tells_the_store(raw: Path, options: Options, tmp_path: Path, maps):
    # By the number of the frame the second line of five would begin with store B.
    source = open_empad_g2(raw, options)
    assert any("5 columns" in w and "stripes" in w for w in source.header.warnings)
    dark = slice(0, 40)
    assert abs(every(source)[:, dark, :20].mean((1, 2)) - ADU * 0.01).max() < 5
    unnamed = raw.rename(tmp_path / "other.raw")
    np.testing.assert_array_equal(
        every(open_empad_g2(unnamed, Options(scan_shape=(3, 5), calibration_file=options.calibration_file))), every(source_of(unnamed, options, 5))
    )
    assert abs(every(open_empad_g2(unnamed, options))[5:10, dark, :20].mean((1, 2))).max() > 50


def source_of(raw: Path, options: Options, columns: int):
    return open_empad_g2(raw, Options(scan_shape=(1, columns), calibration_file=options.calibration_file))


def test_swapped_maps_give_stripes(tmp_path: Path, electrons, maps):
    """Self test of a calibration: with A and B exchanged, every second column of a dark-field image is brighter."""
    path = write_empad_g2(tmp_path / "scan_x4_y3.raw", electrons[:, :4], maps)
    dark_field = {}
    for name, stored in (("right", maps), ("swapped", {key: values[::-1] for key, values in maps.items()})):
        calibration = write_maps(tmp_path / f"{name}.h5", stored)
        frames = every(open_empad_g2(path, Options(calibration_file=calibration)))
        dark_field[name] = frames[:, 100:].mean((1, 2)).reshape(3, 4)
    stripes = {name: abs(np.mean(image[:, ::2]) - np.mean(image[:, 1::2])) for name, image in dark_field.items()}
    assert stripes["right"] < 2 and stripes["swapped"] > 100


def test_the_offset_of_a_frame_is_taken_off(tmp_path: Path, electrons, maps, options: Options):
    rng = np.random.default_rng(8)
    offsets = rng.uniform(-90, 90, (3, 4))
    noisy = electrons[:, :4] + rng.normal(0, 10 / ADU, (3, 4, 128, 128))
    path = write_empad_g2(tmp_path / "scan_x4_y3.raw", noisy, maps, offsets)
    values = every(open_empad_g2(path, options))
    dark = values[:, 100:].reshape(12, -1)
    assert np.abs(np.median(dark, axis=1)).max() < 2.5
    with h5py.File(options.calibration_file, "a") as file:
        file.attrs["debounce"] = 0
    kept = every(open_empad_g2(path, options))[:, 100:].reshape(12, -1)
    np.testing.assert_allclose(np.median(kept, axis=1), offsets.ravel(), atol=2.5)


def test_no_offset_is_found_where_there_is_none():
    rng = np.random.default_rng(9)
    frames = np.stack(
        [
            rng.normal(30, 12, (128, 128)),
            rng.uniform(1e4, 1e5, (128, 128)),  # nothing dark
            rng.normal(-199, 12, (128, 128)),  # at the end of the histogram
            np.where(rng.random((128, 128)) < 0.002, 0, 1e4),  # too few dark pixels
            np.full((128, 128), np.nan),
        ]
    )
    assert debounce_offsets(frames.astype(np.float32)) == pytest.approx([30, 0, 0, 0, 0], abs=0.5)


def test_background_from_a_beam_off_scan(tmp_path: Path, electrons, maps, options: Options, raw: Path):
    off = write_empad_g2(tmp_path / "off_x5_y7.raw", np.zeros((7, 5, 128, 128)), maps)
    plain = {name: values for name, values in maps.items() if name != "mean_background"}
    made = write_calibration(tmp_path / "made.h5", plain, beam_off=off)
    with h5py.File(made) as file:
        np.testing.assert_allclose(file["mean_background"], maps["mean_background"], atol=0.51)
    np.testing.assert_allclose(every(open_empad_g2(raw, Options(calibration_file=made))), every(open_empad_g2(raw, options)), atol=1.1, rtol=1e-6)
    bare = open_empad_g2(raw, Options(calibration_file=write_calibration(tmp_path / "bare.h5", plain)))
    assert any("no mean_background" in w for w in bare.header.warnings)
    assert every(bare)[:, 100:].mean() > 1000
    assert not list(tmp_path.glob(".*"))


def test_a_calibration_that_cannot_be_written(tmp_path: Path, maps):
    with pytest.raises(DataError, match="'G3' is not the name"):
        write_calibration(tmp_path / "a.h5", {**maps, "G3": maps["G2"]})
    with pytest.raises(DataError, match="not complete"):
        write_calibration(tmp_path / "a.h5", {"G1": maps["G1"]})
    with pytest.raises(OutputError, match="cannot be written"):
        write_calibration(tmp_path / "none" / "a.h5", maps)
    assert not list(tmp_path.iterdir())


def test_a_pixel_without_a_value_in_the_maps_is_bad(tmp_path: Path, raw: Path, maps):
    holes = {name: values.copy() for name, values in maps.items()}
    holes["G2"][1, 85, 90], holes["FF"][0, 3, 4] = np.nan, np.inf
    source = open_empad_g2(raw, Options(calibration_file=write_maps(tmp_path / "holes.h5", holes)))
    assert np.argwhere(source.header.bad_pixels).tolist() == [[3, 4], [85, 90]]
    values = every(source)
    assert np.isnan(values[1, 85, 90]) and np.isnan(values[0, 3, 4]) and np.isfinite(values[0, 85, 90])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__delitem__("G2"), "the maps are not complete"),
        (lambda file: (file.__delitem__("G2"), file.__setitem__("G2", np.zeros((2, 64, 64)))), "G2: float64 of the shape"),
        (lambda file: (file.__delitem__("G2"), file.create_dataset("G2", (1 << 20, 1 << 20), "f4", chunks=(1, 128))), "is no map of 128 x 128"),
        (lambda file: (file.__delitem__("FF"), file.__setitem__("FFA", np.zeros((128, 128)))), "FFA and FFB are needed"),
        (lambda file: (file.__delitem__("B2"), file.__setitem__("B2", h5py.ExternalLink("/etc/passwd", "x"))), "link into"),
        (lambda file: (file.__delitem__("B2"), file.create_group("B2")), "B2 is a group"),
        (lambda file: (file.__delitem__("B2"), file.__setitem__("B2", np.full((2, 128, 128), b"x"))), "B2: "),
    ],
)
def test_maps_that_cannot_be_used(raw: Path, options: Options, change, message: str):
    with h5py.File(options.calibration_file, "a") as file:
        change(file)
    with pytest.raises(DataError, match=message) as error:
        open_empad_g2(raw, options)
    assert str(error.value).startswith(str(options.calibration_file)) and "\n" not in str(error.value)


def test_without_maps_the_remedy_is_told(raw: Path):
    for opener in (open_empad, open_empad_g2):
        with pytest.raises(DataError, match=r'15 uncombined EMPAD-G2 frames \(scan 3 x 5\).*calibration_file = "maps.h5"'):
            opener(raw, Options())
    with pytest.raises(DataError, match="no such file"):
        open_empad_g2(raw, Options(calibration_file=raw.with_name("none.h5")))
    with pytest.raises(DataError, match="not an HDF5 file"):
        open_empad_g2(raw, Options(calibration_file=raw))


def test_combined_frames(tmp_path: Path, electrons):
    path = write_empad_combined(tmp_path / "scan_x5_y3.raw", electrons)
    for source in (open_empad(path, Options()), open_empad_combined(path, Options())):
        assert (source.header.format, source.header.scan_shape, source.header.dtype) == ("empad_combined", (3, 5), np.dtype("<f4"))
        np.testing.assert_array_equal(every(source), (electrons * ADU).astype("<f4").reshape(15, 128, 128))


# Telling the kinds apart


@pytest.fixture(scope="module")
def patterns() -> np.ndarray:
    """Electrons (8, 8, 128, 128): a disk that stands still."""
    y, x = np.indices((128, 128)) - 64
    return np.random.default_rng(2).poisson(np.where(np.hypot(y, x) < 20, 1.0, 0.005), (8, 8, 128, 128)).astype(np.float32)


def test_a_size_that_fits_one_kind(tmp_path: Path, patterns, maps, options: Options):
    first = write_empad(tmp_path / "a.raw", patterns[:3, :5], adu_per_electron=ADU)
    assert open_empad(first, options).header.format == "empad"
    second = write_empad_combined(tmp_path / "b.raw", patterns[:3, :5])
    assert open_empad(second, Options()).header.format == "empad_combined"
    words = write_empad_g2(tmp_path / "c.raw", patterns[:3, :5], maps)
    assert open_empad(words, options).header.format == "empad_g2"
    tiny = write_empad_combined(tmp_path / "d.raw", patterns[:3, :5], 1e-6)  # any unit: no number is denormal
    assert open_empad(tiny, Options()).header.format == "empad_combined"


@pytest.mark.parametrize("kind", ["empad", "empad_combined", "empad_g2"])
def test_a_size_that_fits_both_generations(tmp_path: Path, patterns, maps, options: Options, kind: str):
    """64 frames of 66560 bytes are 65 of 65536: the scan in the name tells, else the content."""
    many = np.concatenate([patterns.reshape(-1, 128, 128), patterns[0, :1]])[None]
    scans = {"empad": "x8_y8", "empad_combined": "x13_y5", "empad_g2": "x13_y5"}
    for name in (f"scan_{scans[kind]}.raw", "unnamed.raw", "scan_x8_y20.raw"):
        path = tmp_path / name
        if kind == "empad":
            write_empad(path, many[:, :64], adu_per_electron=ADU)
            path.with_suffix(".xml").unlink()
        elif kind == "empad_combined":
            write_empad_combined(path, many)
        else:
            write_empad_g2(path, many, maps)
        assert path.stat().st_size == 64 * FRAME_BYTES
        source = open_empad(path, options)
        assert source.header.format == kind
        path.unlink()


def test_a_scan_that_was_cut(tmp_path: Path, patterns, maps, options: Options):
    for write, format in ((write_empad_combined, "empad_combined"), (lambda path, p: write_empad_g2(path, p, maps), "empad_g2")):
        path = write(tmp_path / "scan_x8_y8.raw", patterns)
        with open(path, "r+b") as file:
            file.truncate(50 * G2_FRAME_BYTES + 333)
        header = open_empad(path, options).header
        assert (header.format, header.n_frames, header.scan_shape) == (format, 50, (6, 8))
        assert any("333 bytes after the last whole frame" in w for w in header.warnings) and any("6 whole scan lines" in w for w in header.warnings)
        with open(path, "r+b") as file:
            file.truncate(1000)
        with pytest.raises(DataError, match="1000 bytes are less than one"):
            open_empad_combined(path, options)


def test_what_cannot_be_told_is_asked(tmp_path: Path, options: Options):
    path = tmp_path / "empty.raw"
    for size, formats in ((64 * FRAME_BYTES, "first generation"), (15 * G2_FRAME_BYTES, "as the detector writes it")):
        with open(path, "wb") as file:
            file.truncate(size)
        with pytest.raises(DataError, match=rf"\[data\] format = .*{formats}") as error:
            open_empad(path, Options())
        assert len(str(error.value)) < 250 + len(str(path))
    assert open_empad(path, options).header.format == "empad_g2"
    with open(path, "wb") as file:
        file.truncate(64 * FRAME_BYTES)
    assert open_empad(path, Options(scan_shape=(8, 8))).header.format == "empad"
    assert open_empad_g1(path, Options()).header.n_frames == 64
    assert open_empad_combined(path, Options()).header.n_frames == 65


def test_a_file_that_shrinks_while_open_is_an_error(raw: Path, options: Options):
    source = open_empad_g2(raw, options)
    with open(raw, "r+b") as file:
        file.truncate(10 * G2_FRAME_BYTES + 40)
    with pytest.raises(DataError, match=f"ends at byte {10 * G2_FRAME_BYTES + 40}, in frame 10"):
        every(source)


def test_damaged_maps_are_an_error_of_one_line(raw: Path, options: Options):
    """Bits of the calibration file turned over in its header: it opens, or says why not."""
    rng = np.random.default_rng(12)
    good = options.calibration_file.read_bytes()
    refused = []
    for _ in range(40):
        data = bytearray(good)
        for place in rng.integers(0, 2000, 3):
            data[place] ^= 1 << rng.integers(8)
        options.calibration_file.write_bytes(data)
        try:
            read_calibration(options.calibration_file)
        except DataError as error:
            refused.append(str(error))
    assert refused and all("\n" not in text and len(text) < 250 + len(str(options.calibration_file)) for text in refused)
