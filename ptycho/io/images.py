"""Masks, dark and gain images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.errors import DataError
from ptycho.io.files import file_size, unreadable


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
