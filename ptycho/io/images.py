"""Single images: masks, dark and gain that are read, pictures that are written."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.io.formats import open_source
from ptycho.io.numpy_file import load_npy


def read_image(key: str, image: str | os.PathLike[str] | NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A mask or dark image of this shape from npy, tiff or an array. Raises DataError for anything else; ``key`` is the recipe's."""
    if isinstance(image, np.ndarray):
        array, name = image, key
    else:
        path = Path(image)
        array, name = _load_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else load_npy(path), str(path)
    if array.shape != shape or array.dtype.kind not in "biuf":
        raise DataError(f"{name}: {key} has the shape {array.shape}; {shape[0]} x {shape[1]} is needed")
    return array


def _load_tiff(path: Path) -> NDArray[Any]:
    """The image of a file of one, else the first two."""
    source = open_source(path, "tiff")
    try:
        images = source.read(np.arange(min(2, source.header.n_frames)))
    finally:
        source.close()
    return images[0] if len(images) == 1 else images


def image_tiff(image: NDArray[Any], step_A: tuple[float, float], unit: str) -> bytes:
    """A float32 TIFF file of an image (y, x) with ImageJ's scale in Å for each axis; ``unit`` of the values is in its description.

    ImageJ shows it between the 0.1 and 99.9 percentiles.
    """
    import tifffile  # late: reading a mask needs none of it

    known = image[np.isfinite(image)]
    low, high = np.percentile(known, (0.1, 99.9)) if known.size else (0.0, 1.0)
    metadata = {"axes": "YX", "unit": _ascii("Å"), "Info": f"values in {_ascii(unit)}", "min": float(low), "max": float(high)}
    content = io.BytesIO()
    tifffile.imwrite(content, image.astype(np.float32), imagej=True, resolution=(1 / step_A[1], 1 / step_A[0]), metadata=metadata)
    return content.getvalue()


def _ascii(text: str) -> str:
    """As ImageJ escapes it: its header is ASCII."""
    return "".join(letter if letter.isascii() else f"\\u{ord(letter):04X}" for letter in text)
