"""``ptycho image``: which pictures there are, what is written, and what is said of those that cannot be made."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from command import run, write_npy

from ptycho.errors import RecipeError
from ptycho.io import read
from ptycho.io.images import image_tiff
from ptycho.pictures import KINDS, Kind, Looks, Picture, make_pictures
from ptycho.plot_pictures import contact_sheet_png, picture_png
from ptycho.virtual import annulus, virtual_images

KNOWN = {"voltage_kV": 80.0, "semiangle_mrad": 20.0, "step_A": 0.5, "adu_per_electron": 1.0}
ALL = [kind.name for kind in KINDS]
#: They read the bright field by themselves.
DIRECT = ("tcbf", "tcbf_phase", "ssb")


@pytest.fixture
def wide(disk_patterns):
    """The detector reaches to six radii of the disk."""
    return np.pad(disk_patterns, ((0, 0), (0, 0), (32, 32), (32, 32)))


def test_all_pictures_are_made_in_one_pass(wide, monkeypatch):
    data, calls = read(wide, **KNOWN), []
    original = type(data.preparation).apply
    look = Looks(data)
    _ = data.mask
    monkeypatch.setattr(
        type(data.preparation), "apply", lambda self, stored, shifts=None: calls.append(len(stored)) or original(self, stored, shifts)
    )
    names = [name for name in ALL if name not in DIRECT]
    pictures, missing = make_pictures(look, names)
    assert [picture.name for picture in pictures] == names and not missing
    assert sum(calls) == data.n_positions
    bright = virtual_images(data, annulus(data, 0, 0.5, "alpha")[None])[0]
    np.testing.assert_allclose(pictures[0].image, bright, rtol=1e-6)
    assert pictures[0].title == "bright field, 0 to 10 mrad" and pictures[0].unit == "electrons"


def test_what_cannot_be_made_is_said_and_the_rest_is_made(disk_patterns):
    flat = disk_patterns[:, :, 8:-8, 8:-8]  # the detector ends at 1.1 radii
    _, missing = make_pictures(Looks(read(flat, **KNOWN, pixel_invA=0.0655)))
    assert {name for name, _ in missing} == {"adf", "haadf"}
    assert all("the detector ends at 1.09 radii of the bright-field disk, this one begins at" in why for _, why in missing)
    pictures, missing = make_pictures(Looks(read(disk_patterns)))
    assert [picture.name for picture in pictures] == ["bf", "abf", "adf"] and len(missing) == len(ALL) - 3
    assert pictures[0].title == "bright field, 0 to 0.5 disk radii" and "step_A is not in the file" in missing[1][1]


def test_one_line_adds_a_kind(wide, monkeypatch):
    new = Kind("mean", "mean", "electrons", "grey", lambda look: look.data.on_raster(look.sums.total))
    monkeypatch.setattr("ptycho.pictures.KINDS", (new,))
    pictures, _ = make_pictures(Looks(read(wide, **KNOWN)), ["mean"])
    np.testing.assert_array_equal(pictures[0].image, wide.sum((2, 3)))
    with pytest.raises(RecipeError, match='no picture "bf"; there are mean'):
        make_pictures(Looks(read(wide, **KNOWN)), ["bf"])


def test_tiff_has_the_scale_of_each_axis_and_the_values(tmp_path):
    image = np.random.default_rng(0).random((5, 7))
    (tmp_path / "a.tif").write_bytes(image_tiff(image, (0.5, 0.25), "1/Å"))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.asarray(), image.astype(np.float32))
        tags = file.pages[0].tags
        assert [round(tags[name].value[0] / tags[name].value[1], 4) for name in ("XResolution", "YResolution")] == [4, 2]
        assert file.imagej_metadata["unit"] == "\\u00C5" and file.imagej_metadata["Info"] == "values in 1/\\u00C5"


@pytest.mark.parametrize("step", [None, (0.5, 0.5), (0.5, 2.0)])
def test_sheets_are_drawn_whatever_is_missing(step):
    image = np.random.default_rng(0).random((9, 12))
    image[0, 0] = np.nan
    pictures = [Picture(style, style, "1/Å", style, image * 100) for style in ("grey", "signed", "phase", "angle")]
    empty = Picture("e", "empty", "rad", "phase", np.full((9, 12), np.nan))
    for shown in (pictures, [*pictures, empty], []):
        assert contact_sheet_png(shown, step, "scan", ["a note"]).startswith(b"\x89PNG")
    assert picture_png(pictures[3], step).startswith(b"\x89PNG")


def test_the_command_writes_everything(tmp_path, wide):
    path = write_npy(tmp_path, wide)
    code, out, err = run("image", path, "-o", tmp_path / "out", "--voltage-kV", 80, "--semiangle-mrad", 20, "--step-A", "0.5", "--highpass", "noise")
    assert (code, err) == (0, "") and out.rstrip().endswith(f"{len(ALL)} pictures: " + str(tmp_path / "out" / "contact_sheet.png"))
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"contact_sheet.png"} | {f"{name}.{suffix}" for name in ALL for suffix in ("tif", "png")}
    code, out, _ = run("image", path, "-o", tmp_path / "two", "--only", "bf,idpc")
    assert code == 0 and "no idpc: " in out and "1 pictures" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["missing.npy"], 4, "no such file"),
        (["scan.npy", "--only", "colour"], 3, 'no picture "colour"'),
        (["scan.npy", "--highpass", "much"], 2, "--highpass"),
        (["scan.npy", "--descan", "all"], 2, "--descan"),
        (["scan.npy", "-o", "scan.npy"], 5, "folder"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, disk_patterns, words, code, said):
    monkeypatch.chdir(tmp_path)
    write_npy(tmp_path, disk_patterns)
    found = run("image", *words)
    assert found.code == code and found.err.count("\n") == 1 and said in found.err
