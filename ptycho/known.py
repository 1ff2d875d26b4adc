"""What is known of probe and object before a run: from earlier results, a measured vacuum pattern, or a direct method."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D
from ptycho.direct import METHODS
from ptycho.errors import DataError
from ptycho.io import read
from ptycho.io.numpy_file import load_npy
from ptycho.io.result_file import load_result
from ptycho.start import Known, ModelOptions

logger = logging.getLogger("ptycho")


def known_start(options: ModelOptions, data: Dataset4D) -> Known:
    """Probe, vacuum pattern and object from the files that the recipe names, or the object from a direct method."""
    probe = load_result(options.probe_file) if options.probe_file else None
    return known_object(
        options,
        data,
        Known(
            probe=None if probe is None else probe.probe,
            probe_pixel_A=0.0 if probe is None else probe.pixel_A,
            vacuum=_mean_pattern(options.vacuum_file) if options.vacuum_file else None,
        ),
    )


def known_object(options: ModelOptions, data: Dataset4D, known: Known) -> Known:
    """``known`` with the object that these data begin with."""
    if options.start != "flat":
        found, pixel_A, origin = METHODS[options.start](data).object(options.thicknesses_A)
        logger.info(f"the object begins as the {options.start.upper()} image")
        return replace(known, object=found, object_pixel_A=pixel_A, object_origin_A=origin)
    if not options.object_file:
        return known
    earlier = load_result(options.object_file)
    # Both scans are taken to be centred on the same place.
    shift = data.geometry.positions_A.mean(0) - earlier.positions_A.mean(0)
    return replace(known, object=earlier.object, object_pixel_A=earlier.pixel_A, object_origin_A=(float(shift[0]), float(shift[1])))


def _mean_pattern(path: str) -> NDArray[np.float32]:
    """A measured pattern without specimen: an image in .npy, or the mean of a data set. Raises DataError for one without electrons."""
    image = load_npy(Path(path)) if path.endswith(".npy") else np.empty(0)
    pattern = np.asarray(image if image.ndim == 2 else read(path).survey().mean_pattern, dtype=np.float32)
    if not np.nan_to_num(pattern).max(initial=0) > 0:
        raise DataError(f"{path}: there is no electron in this vacuum pattern; check model.vacuum_file")
    return pattern
