"""Merlin files byte by byte, independently of the reader: ``.mib`` with its ``.hdr``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_THRESHOLDS = "1.200000E+1,5.110000E+2" + ",0.000000E+0" * 6
_DACS = "3RX,023,511,000,000,000,000,000,000,100,255,100,125,100,100,080,100,090,030,128,004,255,126,128,174,172,511,511"
_PIXELS = {1: ("U08", ">u1"), 6: ("U08", ">u1"), 12: ("U16", ">u2"), 24: ("U32", ">u4")}


def write_mib(
    path: Path,
    patterns: NDArray[Any],
    *,
    bits: int = 12,
    raw: bool = False,
    exposure_s: float | Sequence[float] = 1e-3,
    sequence: Sequence[int] | None = None,
    times_s: Sequence[float] | None = None,
    scan: bool = True,
    hdr_lines: Sequence[str] = (),
    stream: bool = False,
) -> Path:
    """Write counts (slow, fast, ky, kx) as ``path`` (.mib) and its ``.hdr``; ``bits`` is the counter depth 1, 6, 12 or 24.

    Patterns 512 wide are a quad's, others a single chip's (RAW: 256 or 512 wide only). ``exposure_s`` and ``times_s`` may be given for each
    frame, ``sequence`` are the frames' numbers, ``scan`` = False leaves ScanX and ScanY out, ``stream`` writes a recorded stream (no .hdr).
    """
    slow, fast, ky, kx = patterns.shape
    n = slow * fast
    exposures = np.broadcast_to(exposure_s, n)
    times = np.arange(n) * 2 * float(np.median(exposures)) if times_s is None else times_s
    numbers = range(1, n + 1) if sequence is None else sequence
    hdr = _hdr(bits, kx, (slow, fast) if scan else None, n, hdr_lines)
    with open(path, "wb") as file:
        if stream:
            file.write(b"MPX,%010d,%s" % (len(hdr) + 1, hdr))
        for frame, number, time, exposure in zip(patterns.reshape(n, ky, kx), numbers, times, exposures, strict=True):
            image = _raw(frame.astype(np.int64), bits) if raw else frame.astype(_PIXELS[bits][1]).tobytes()
            header = frame_header((ky, kx), bits, raw, int(number), float(time), float(exposure))
            if stream:
                file.write(b"MPX,%010d," % (len(header) + len(image) + 1))
            file.write(header + image)
    if not stream:
        path.with_suffix(".hdr").write_bytes(hdr)
    return path


def frame_header(shape: tuple[int, int], bits: int, raw: bool, number: int, time_s: float, exposure_s: float) -> bytes:
    """The text before a frame: 384 bytes for one chip, 768 for a quad."""
    ky, kx = shape
    chips, layout, mask, length = (4, "2x2", "0F", 768) if kx == 512 else (1, "1x1", "01", 384)
    if raw:
        ky, kx = ky // 2 if chips == 4 else ky, 256 * chips * (2 if bits == 24 else 1)
    clock = f"{int(time_s) // 3600:02}:{int(time_s) // 60 % 60:02}:{time_s % 60:012.9f}"
    text = (
        f"MQ1,{number:06},{length:05},{chips:02},{kx:04},{ky:04},{'R64' if raw else _PIXELS[bits][0]},   {layout},{mask},"
        f"2024-07-02 {clock[:-3]},{exposure_s:.6f},0,0,0,{_THRESHOLDS},{','.join([_DACS] * chips)},"
        f"MQ1A,2024-07-02T{clock}Z,{round(exposure_s * 1e9)}ns,{bits},"
    )
    return text.encode().ljust(length, b"\0")


def _hdr(bits: int, kx: int, scan: tuple[int, int] | None, n: int, lines: Sequence[str]) -> bytes:
    shape = [] if scan is None else [f"ScanX:\t{scan[1]}", f"ScanY:\t{scan[0]}"]
    text = [
        "HDR,\t",
        "Time and Date Stamp (day, mnth, yr, hr, min, s):\t02/07/2024 13:46:43",
        f"Assembly Size (NX1, 2X2):\t   {'2x2' if kx == 512 else '1x1'}",
        f"Counter Depth (number):\t{bits}",
        "Gap Fill Mode:\tNone",
        "Flat Field File:\tNone",
        f"Frames in Acquisition (Number):\t{n}",
        "Frames per Trigger (Number):\t1",
        "Software Version:\t1.5.0.197",
        *shape,
        *lines,
        "End\t",
    ]
    return "\r\n".join(text).encode().ljust(2048)


def _raw(image: NDArray[np.int64], bits: int) -> bytes:
    """A frame as the chips give it: words of 64 bits, highest byte first, whose lowest bits are the first pixel."""
    if image.shape[1] == 512:
        half = len(image) // 2
        upper, lower = image[:half], image[half:][::-1, ::-1]  # the lower chips stand on their heads
        image = np.concatenate([lower[:, :256], lower[:, 256:], upper[:, 256:], upper[:, :256]], axis=1)
    if bits == 24:
        return _raw_words(image >> 12, 12) + _raw_words(image & 0xFFF, 12)
    return _raw_words(image, bits)


def _raw_words(image: NDArray[np.int64], bits: int) -> bytes:
    width = {1: 1, 6: 8, 12: 16}[bits]
    pixels = image.astype(np.uint64).reshape(-1, 64 // width)
    shifts = np.arange(0, 64, width, dtype=np.uint64)
    return np.bitwise_or.reduce(pixels << shifts, axis=1).astype(">u8").tobytes()
