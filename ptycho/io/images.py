"""Masks, dark and gain images."""

from __future__ import annotations

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
