"""Writes TIFF stacks for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiff(path: Path, patterns, **options) -> Path:
    """Patterns (slow, fast, ky, kx) as tifffile writes them."""
    import tifffile

    tifffile.imwrite(path, np.asarray(patterns), **({} if options.get("imagej") else {"photometric": "minisblack"}), **options)
    return path


def write_pages(path: Path, patterns, **options) -> Path:
    """Patterns (slow, fast, ky, kx) as pages without any description, each page's list of tags beside its pixels, as cameras write them."""
    import tifffile

    with tifffile.TiffWriter(path) as file:
        for frame in np.asarray(patterns).reshape(-1, *np.shape(patterns)[-2:]):
            file.write(frame, metadata=None, photometric="minisblack", contiguous=False, **options)
    return path
