"""What all readers share: frames at fixed places in a file, frames in memory, and the gain of a detector from its data."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data import FrameSource, Quantity
from ptycho.errors import DataError

#: Unit of every value that a file or a user can give, by the recipe's name.
UNITS = {
    "voltage_kV": "kV",
    "semiangle_mrad": "mrad",
    "defocus_A": "Å",
    "step_A": "Å",
    "rotation_deg": "°",
    "pixel_invA": "1/Å",
    "pixel_mrad": "mrad",
    "adu_per_electron": "ADU",
    "camera_length_m": "m",
    "exposure_ms": "ms",
}


def runs(frames: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, number) of every run of consecutive numbers in sorted, distinct frames."""
    ends = np.flatnonzero(np.diff(frames) != 1) + 1
    for run in np.split(frames, ends):
        if len(run):
            yield int(run[0]), len(run)


def gather(
    frames: NDArray[np.int64],
    frame_shape: tuple[int, int],
    dtype: np.dtype[Any],
    read_run: Callable[[int, NDArray[Any]], None],
) -> NDArray[Any]:
    """Frames (n, ky, kx) in the order asked for, read in the order of the file: ``read_run(first, out)`` fills consecutive ones."""
    frames = np.asarray(frames, np.int64)
    distinct, back = np.unique(frames, return_inverse=True)
    out = np.empty((len(distinct), *frame_shape), dtype)
    at = 0
    for first, number in runs(distinct):
        read_run(first, out[at : at + number])
        at += number
    return out if np.array_equal(distinct, frames) else out[back.reshape(-1)]


def factor_pairs(number: int, limit: int = 8) -> str:
    """The (slow, fast) shapes that a number of frames allows, most square first: "36 x 64, 64 x 36"."""
    small = [n for n in range(int(number**0.5), 0, -1) if number % n == 0][: limit // 2]
    pairs = [pair for n in small for pair in dict.fromkeys([(n, number // n), (number // n, n)])]
    return ", ".join(f"{slow} x {fast}" for slow, fast in pairs)


def file_size(path: Path) -> int:
    """Size in bytes. Raises DataError for a missing file, a folder or an empty file."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: this is a folder; name a file in it")
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if not size:
        raise DataError(f"{path}: the file is empty")
    return size


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__


def unreadable(path: Path, error: Exception, what: str = "cannot be read") -> DataError:
    """A library's error about a file as one line."""
    return DataError(f"{path}: {what} ({_reason(error)}); is it complete and of the right format?")


class BinarySource:
    """Frames of one type and size, ``stride`` bytes apart, in a plain file. Implements FrameSource."""

    def __init__(
        self,
        path: Path,
        format: str,
        n_frames: int,
        frame_shape: tuple[int, int],
        dtype: np.dtype[Any],
        offset: int = 0,
        stride: int | None = None,
    ) -> None:
        """``offset`` of the first frame and ``stride`` are in bytes; frames touch each other by default."""
        self.path, self.format = path, format
        self.n_frames, self.frame_shape, self.dtype = n_frames, frame_shape, dtype
        self.scan_shape: tuple[int, int] | None = None
        self.metadata: dict[str, Quantity] = {}
        self.warnings: list[str] = []
        self.default_flip_rows = False
        self._offset = offset
        self._frame_bytes = int(np.prod(frame_shape)) * dtype.itemsize
        self._stride = stride or self._frame_bytes

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored. Raises DataError with the byte where the file ends too early."""
        try:
            # Reads of a file that is opened each time, not a memory map: a map of a file that shrinks kills the process.
            with FileIO(self.path) as file:
                return gather(frames, self.frame_shape, self.dtype, partial(self._read_run, file))
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from None

    def _read_run(self, file: FileIO, first: int, out: NDArray[Any]) -> None:
        """Consecutive frames in one read, from the first byte of the first to the last of the last."""
        wanted = (len(out) - 1) * self._stride + self._frame_bytes
        buffer = bytearray(len(out) * self._stride)
        start, done = self._offset + first * self._stride, 0
        file.seek(start)
        while done < wanted:
            got = file.readinto(memoryview(buffer)[done:wanted])
            if not got:
                raise DataError(f"{self.path}: the file ends at byte {start + done}, in frame {first + done // self._stride}; has it been cut?")
            done += got
        used = np.frombuffer(buffer, np.uint8).reshape(len(out), self._stride)[:, : self._frame_bytes]
        out[:] = np.ascontiguousarray(used).view(self.dtype).reshape(out.shape)

    def close(self) -> None:
        """Nothing to release: the file is open only while it is read."""


class ArraySource:
    """Frames of an array in memory. Implements FrameSource."""

    def __init__(self, array: NDArray[Any], path: Path = Path("array"), format: str = "array") -> None:
        """``array`` is (slow, fast, ky, kx) or (n, ky, kx), real. Raises DataError for anything else."""
        self.path, self.format = path, format
        self.scan_shape, self.n_frames, self.frame_shape = stack_shape(array.shape, array.dtype, str(path))
        self._frames = array.reshape(-1, *self.frame_shape)
        self.dtype = array.dtype
        self.metadata: dict[str, Quantity] = {}
        self.warnings: list[str] = []
        self.default_flip_rows = False

    def read(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """Frames (n, ky, kx) as stored, a copy."""
        return self._frames[np.asarray(frames, np.int64)]

    def close(self) -> None:
        """Nothing to release."""


def stack_shape(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> tuple[tuple[int, int] | None, int, tuple[int, int]]:
    """(scan shape or None, number of frames, frame shape) of an array. Raises DataError unless it is a stack of real images."""
    if dtype.kind not in "biuf":
        raise DataError(f"{name}: values of type {dtype} cannot be diffraction patterns; real numbers are needed")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{name}: the array has the shape {shape}; (scan_y, scan_x, ky, kx) or (n, ky, kx) is needed")
    *scan, height, width = (int(n) for n in shape)
    return (scan[0], scan[1]) if len(scan) == 2 else None, math.prod(scan), (height, width)


def sample_frames(source: FrameSource, number: int = 200) -> NDArray[Any]:
    """A few frames spread over the whole scan, at most 32 MB of them."""
    frame_bytes = max(1, int(np.prod(source.frame_shape)) * source.dtype.itemsize)
    number = max(1, min(number, source.n_frames, (32 << 20) // frame_bytes))
    return source.read(np.unique(np.linspace(0, source.n_frames - 1, number).astype(np.int64)))


def find_adu_per_electron(frames: NDArray[Any]) -> tuple[float, str] | None:
    """(ADU per electron, how it was found) from stored frames (n, ky, kx), or None when they do not show it.

    Counted data have levels at multiples of one value; an analogue detector has a peak of single electrons in its dark field.
    """
    values = np.where(np.isfinite(frames), frames, 0)
    step = _level_spacing(values)
    if step is not None:
        return step, f"values are multiples of {step:g}"
    if frames.dtype.kind in "biu":
        return 1.0, "counts are integers"
    if float(values.max()) < 50:
        return 1.0, "values are small"
    with np.errstate(over="ignore", invalid="ignore"):  # of a file that is no diffraction data at all
        peak = _single_electron_peak(values.astype(np.float32))
    return None if peak is None else (peak, "peak of single electrons in the dark field")


def _level_spacing(values: NDArray[Any]) -> float | None:
    """Spacing of the levels when all values are multiples of the smallest one."""
    positive = np.abs(values[values != 0].astype(np.float64))
    if len(positive) < 100:
        return None
    positive = np.sort(positive)[: len(positive) * 9 // 10]  # hot pixels and saturation are at the top
    first = positive[len(positive) // 1000]
    multiples = np.round(positive / first)
    low = (multiples > 0) & (multiples < 20)
    if low.sum() < 0.5 * len(positive) or np.mean(np.abs(positive / first - multiples)[low] < 0.02) < 0.999:
        return None
    if len(np.unique(multiples[low])) < 2 and low.all():
        return None  # one level alone has no spacing
    return float(positive[low].sum() / multiples[low].sum())


def _single_electron_peak(values: NDArray[np.float32]) -> float | None:
    """Charge of one electron from events that stand alone: the peak of 3 x 3 sums about local maxima in quiet surroundings.

    An electron shares its charge with its neighbours, so that the sum and not the highest pixel is its charge.
    """
    from scipy import ndimage  # late: it takes longer to import than to use

    noise = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    threshold = max(6 * noise, 1e-3 * float(values.max()))
    event = values > threshold
    dark_field = event.mean(0) < 0.05
    in_window = ndimage.uniform_filter(event.astype(np.float32), (1, 7, 7)) * 49
    in_centre = ndimage.uniform_filter(event.astype(np.float32), (1, 3, 3)) * 9
    alone = np.abs(in_window - in_centre) < 0.5
    highest = values == ndimage.maximum_filter(values, (1, 3, 3))
    sums = ndimage.uniform_filter(values, (1, 3, 3)) * 9
    charges = sums[event & alone & highest & dark_field]
    return _peak(charges) if len(charges) >= 200 else None


def _peak(charges: NDArray[Any]) -> float | None:
    """Centre of the main peak of a distribution; None when there is no clear one."""
    low, high = np.quantile(charges, [0.02, 0.9])
    if not 0 < low < high:
        return None
    histogram, edges = np.histogram(charges, bins=60, range=(low / 2, high * 1.5))
    smooth = np.convolve(histogram, [0.25, 0.5, 0.25], "same")
    centre = float((edges[:-1] + edges[1:])[smooth.argmax()] / 2)
    for _ in range(5):
        near = charges[np.abs(charges / centre - 1) < 0.25]
        centre = float(np.median(near)) if len(near) else centre
    return centre if len(near) > 0.4 * len(charges) else None


def read_csv(path: Path) -> NDArray[np.float64]:
    """Numbers separated by commas or blanks; a first line of names is allowed."""
    lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    lines = lines[1:] if lines and _is_heading(lines[0]) else lines
    if not lines:
        raise ValueError("there are no numbers in it")
    return np.loadtxt(lines, ndmin=2)


def _is_heading(line: str) -> bool:
    try:
        [float(word) for word in line.split()]
    except ValueError:
        return True
    return False


def read_image(key: str, image: str | os.PathLike[str] | NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A mask or dark image of this shape from npy, tiff or an array. Raises DataError for anything else; ``key`` is the recipe's."""
    if isinstance(image, np.ndarray):
        array, name = image, key
    else:
        path = Path(image)
        file_size(path)
        name = str(path)
        try:
            array = _load_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise unreadable(path, error, "not an image (npy or tiff)") from None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind not in "biuf":
        found = getattr(array, "shape", "no array")
        raise DataError(f"{name}: {key} has the shape {found}; {shape[0]} x {shape[1]} is needed")
    return array


def _load_tiff(path: Path) -> Any:
    import tifffile  # late: only for masks and dark images in this format

    return tifffile.imread(path)
