"""What a person must say of files that do not describe themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ptycho.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class RawLayout:
    """Where the frames are in a file that has only numbers: the recipe's [data.layout].

    ``dtype`` is NumPy's name with its byte order ("<u2", ">u2", "float32"); ``frame_shape`` (ky, kx); ``offset_bytes`` come before the first
    frame, ``before_bytes`` and ``after_bytes`` before and after the pixels of every frame; ``column_major`` for frames written column by
    column (MATLAB, Fortran).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # for recipe.py

    dtype: str
    frame_shape: tuple[int, int]
    offset_bytes: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    column_major: bool = False

    def __post_init__(self) -> None:
        try:
            real = np.dtype(self.dtype).kind in "uif" and np.dtype(self.dtype).itemsize <= 8
        except (TypeError, ValueError, SyntaxError):
            real = False
        if not real:
            raise RecipeError(f'data.layout.dtype = "{self.dtype}": a type of real numbers is needed, as "uint16", ">u2" or "float32"')
        pixels = tuple(self.frame_shape)
        if len(pixels) != 2 or not all(_is_whole(n) and 1 <= n <= 65536 for n in pixels):
            raise RecipeError(f"data.layout.frame_shape = {list(pixels)}: [ky, kx] from 1 to 65536 pixels is needed")
        for name in ("offset_bytes", "before_bytes", "after_bytes"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 0:
                raise RecipeError(f"data.layout.{name} = {getattr(self, name)}: 0 or more bytes are needed")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True)
class Options:
    """What a reader is told beside the path: the data set after "::", and what the user wrote."""

    dataset: str | None = None
    scan_shape: tuple[int, int] | None = None
    layout: RawLayout | None = None
    calibration_file: Path | None = None
