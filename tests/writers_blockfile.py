"""NanoMEGAS block files for tests."""

import struct
from pathlib import Path

from numpy.typing import NDArray

HEADER_BYTES = 4096


def write_blockfile(path: Path, patterns: NDArray, *, step_nm: tuple[float, float] = (1.2, 1.5), voltage_V: int = 200_000) -> None:
    """Patterns (slow, fast, n, n) of values below 256 as a ``.blo`` file."""
    slow, fast, side, _ = patterns.shape
    first = HEADER_BYTES + slow * fast
    fields = (b"IMGBLO", 0x0102, HEADER_BYTES, first, 131141, side, 0, fast, slow, 2500, step_nm[1], step_nm[0], voltage_V, 5000, 4000)
    header = struct.pack("<6sHIIIHHHHHddIHI", *fields) + bytes(8 * 23)
    parts = [header.ljust(HEADER_BYTES, b"\0"), bytes(slow * fast)]
    for number, pattern in enumerate(patterns.reshape(-1, side, side)):
        parts += [b"\xaa\x55", struct.pack("<I", number), pattern.astype("u1").tobytes()]
    path.write_bytes(b"".join(parts))
