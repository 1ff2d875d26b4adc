"""HDF5 as different programs write it: one table from what is in the file to its reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ptycho.errors import DataError
from ptycho.frames import FrameSource
from ptycho.io import counted, cxi, dectris, emd, event_files, foldslice, hdf5, hyperspy, matlab, nexus, nion, ptypy, ptyrad, velox
from ptycho.io.files import unreadable
from ptycho.io.options import Options

if TYPE_CHECKING:
    import h5py

Recognise: TypeAlias = "Callable[[h5py.File], bool]"
Open: TypeAlias = "Callable[[Path, h5py.File, Options], FrameSource]"

#: Tried in this order; a file that none of them knows is read as any HDF5 file.
DIALECTS: tuple[tuple[Recognise, Open], ...] = (
    (matlab.recognise_matlab, matlab.open_matlab),
    (dectris.recognise_dectris, dectris.open_dectris),
    (counted.recognise_stempy, counted.open_stempy),
    (event_files.recognise_events, event_files.open_events),
    (velox.recognise_velox, velox.open_velox),
    (emd.recognise_emd, emd.open_emd),
    (hyperspy.recognise_hyperspy, hyperspy.open_hyperspy),
    (nion.recognise_nion, nion.open_nion),
    (cxi.recognise_cxi, cxi.open_cxi),
    (ptypy.recognise_ptypy, ptypy.open_ptypy),
    (ptyrad.recognise_ptyrad, ptyrad.open_ptyrad),
    (ptyrad.recognise_ptylab, ptyrad.open_ptylab),
    (foldslice.recognise_foldslice, foldslice.open_foldslice),
    (nexus.recognise_nexus, nexus.open_nexus),
)


def open_hdf5(path: Path, options: Options) -> FrameSource:
    """Frames of an HDF5 file of any program. Raises DataError naming what is there."""
    file = hdf5.open_file(path)
    try:
        for recognise, open_dialect in DIALECTS:
            if recognise(file):
                return open_dialect(path, file, options)
        return hdf5.open_generic(path, file, options)
    except DataError:
        file.close()
        raise
    except hdf5.ERRORS as error:
        file.close()
        raise unreadable(path, error) from None
