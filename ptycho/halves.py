"""Two independent halves of a data set: of the electrons of every pattern or, where electrons cannot be told apart, of the positions."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho.data import Dataset4D, Index
from ptycho.io.gain import charge_spread, sample_frames
from ptycho.survey import Survey

#: What is halved.
SplitBy = Literal["electrons", "positions"]

#: An electron whose charge makes several counts in neighbouring pixels would be in both halves: from this many on, positions are halved.
_SPREAD = 1.5


@dataclass(frozen=True)
class Half:
    """One half: its patterns, its ``positions`` int64 (n,) among those of the whole, and the part of a pattern's electrons it has."""

    data: Dataset4D
    positions: NDArray[np.int64]
    electrons: float


@dataclass(frozen=True, eq=False)
class HalfOfElectrons(Dataset4D):
    """A data set whose patterns hold half of the electrons of ``whole``, drawn one by one; members 0 and 1 add up to it.

    Of n independent electrons a member has Binomial(n, 1/2): the two are then as independent as two shorter exposures, since a thinned
    Poisson variable and its rest are. The draw depends on ``seed`` and the number of the stored frame alone, not on what is read when.
    A pixel that holds no whole number, as an integrating detector gives it, is drawn as the nearest one and shared out in that
    ratio; what is less than half an electron goes to either side as a whole, as the electron would. NaN stays NaN in both.
    """

    whole: Dataset4D | None = None
    member: int = 0
    seed: int = 0

    def patterns(self, index: Index = None) -> NDArray[np.float32]:
        """As the whole's, float32 (n, ky, kx): this member's electrons."""
        numbers = np.atleast_1d(np.arange(self.n_positions)[slice(None) if index is None else index])
        patterns = super().patterns(numbers)
        for pattern, frame in zip(patterns, self.frames[numbers].tolist(), strict=True):
            first = thinned(pattern, np.random.default_rng([self.seed, frame]))
            pattern[...] = first if self.member == 0 else pattern - first
        return patterns

    def survey(self) -> Survey:
        """That of the whole, so that the masks are the same, with half of its electrons."""
        assert self.whole is not None
        whole = self.whole.survey()
        return replace(whole, mean_pattern=whole.mean_pattern / 2, mean_electrons=whole.mean_electrons / 2)


def two_halves(data: Dataset4D, seed: int = 0) -> tuple[SplitBy, tuple[Half, Half]]:
    """How ``data`` were halved, and the halves; the same for the same seed."""
    if charge_spread(sample_frames(data.source), data.preparation.bin) > _SPREAD:
        first = _one_of_each_pair(data, seed)
        one, two = np.flatnonzero(first), np.flatnonzero(~first)
        return "positions", (Half(data.without(two), one, 1.0), Half(data.without(one), two, 1.0))
    given: dict[str, Any] = {f.name: getattr(data, f.name) for f in fields(Dataset4D)}
    everywhere = np.arange(data.n_positions)
    one_half, other_half = (Half(HalfOfElectrons(**given, whole=data, member=m, seed=seed), everywhere, 0.5) for m in (0, 1))
    return "electrons", (one_half, other_half)


def thinned(pattern: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Each electron of a pattern (ky, kx) with the probability 1/2; what is left is the other half, exactly."""
    held = np.nan_to_num(pattern, nan=0.0).astype(np.float64)
    some = held != 0
    charge = held[some]
    whole = np.maximum(np.rint(charge), 1)
    drawn = random.binomial(whole.astype(np.int64), 0.5)
    share = np.zeros(pattern.shape)
    share[some] = charge * (drawn / whole)
    share[np.isnan(pattern)] = np.nan
    return share.astype(np.float32)


def _one_of_each_pair(data: Dataset4D, seed: int) -> NDArray[np.bool_]:
    """Which positions (N,) are in the first half: of every two neighbours on the line of the scan one, by chance."""
    random = np.random.default_rng([seed, data.n_positions])
    first = random.random(-(-data.n_positions // 2)) < 0.5
    return np.stack([first, ~first], axis=1).ravel()[: data.n_positions]
