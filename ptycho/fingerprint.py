"""What tells one data set from another: not where it lies, but what is in it."""

from __future__ import annotations

import hashlib

import numpy as np

from ptycho.data import Dataset4D

#: So many patterns, spread over the scan, are looked at pixel by pixel, beside the sum of all.
_SAMPLE = 64


def fingerprint(data: Dataset4D) -> str:
    """SHA-256 of what a reconstruction sees: positions, mask, mean pattern, and some of the patterns, as they are used."""
    survey, sha = data.survey(), hashlib.sha256()
    some = np.unique(np.linspace(0, data.n_positions - 1, _SAMPLE).astype(np.int64))
    for array in (data.geometry.positions_A, data.mask, survey.mean_pattern, data.patterns(some)):
        content = np.ascontiguousarray(array)
        sha.update(f"{content.shape} {content.dtype.str}".encode())
        sha.update(content.data)
    return sha.hexdigest()
