"""Steps of single probe positions, in units of what the patterns know about them.

Every pattern says by its gradient and curvature where it would rather stand: a Newton step, the estimate of maximum likelihood. Taken as
it is, positions that were right walk off by the shot noise (0.4 px after 20 epochs at 1e4 electrons in a strong object). So they are shrunk:
a position is the smooth part of the scan, an affine map and the median of the neighbours, plus a displacement of its own, whose
variance over the scan is measured beyond what the noise explains (empirical Bayes: James & Stein 1961; Efron & Morris, J. Am. Stat.
Assoc. 68 (1973) 117). Without jitter the variance comes out zero and nothing moves alone.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ptycho.model import Ptychography
from ptycho.solvers.state import State, set_state, state_of

#: The smooth part of a position is the median over this many neighbours.
_NEIGHBOURS = 24
#: A position moves by at most this many pixels per visit.
_MOST_PX = 0.3
#: A displacement of its own beyond so many standard deviations of all (noise and jitter) is an outlier and is cut there.
_OUTLIER = 4.0


class PositionSteps:
    """State: the scan without displacements of single positions, where each pattern alone would put itself, and how well it knows."""

    def __init__(self, model: Ptychography, natural_step: float) -> None:
        self.model, self.natural_step = model, natural_step
        positions = model.positions.value_px.data
        self.scan = positions.clone()
        self.alone = positions.clone()
        self.variance = torch.zeros_like(positions)
        lever = positions - positions.mean(0)
        self.basis = torch.cat([torch.ones_like(lever[:, :1]), lever / lever.square().mean().sqrt().clamp_min(1e-6)], 1)
        self.project = torch.linalg.pinv(self.basis.double()).to(positions.dtype)
        count = min(_NEIGHBOURS, len(positions) - 1)
        # The nearest one is the position itself.
        near = cKDTree(positions.cpu().numpy()).query(positions.cpu().numpy(), k=range(2, count + 2))[1] if count else [[0]] * len(positions)
        self.neighbours = torch.as_tensor(near, device=positions.device)

    def state_dict(self) -> State:
        """What is to be remembered; neighbours and affine map are those of the scan as it was at the beginning."""
        return state_of(self, "scan", "alone", "variance", "basis", "project", "neighbours")

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        set_state(self, state, self.scan.device)

    def step(self, index: Tensor, gradient: Tensor, curvature: Tensor) -> None:
        """Move the positions ``index`` (B,) by gradient and curvature of the loss, (B, 2)."""
        positions = self.model.positions.value_px.data
        self.alone[index] = positions[index] - (gradient / curvature).clamp(-_MOST_PX, _MOST_PX)
        # -log likelihood is 2 natural_step times the loss; its curvature is the Fisher information.
        self.variance[index] = 0.5 / self.natural_step / curvature
        positions[index] = self._shrunk(index)
        self._keep_on_canvas(positions)

    def follow(self, centre: Tensor, change: Tensor) -> None:
        """Move with the scan's affine map, r <- r + change (r - centre)."""
        positions = self.model.positions.value_px.data
        moved = (self.scan - centre) @ change.mT
        for places in (self.scan, self.alone, positions):
            places += moved
        self._keep_on_canvas(positions)

    def _shrunk(self, index: Tensor) -> Tensor:
        """Where the patterns ``index`` and their neighbours together put the positions, (B, 2)."""
        own = self.alone - self.scan
        # The mean shift is the object's, the linear part the affine map's.
        own -= self.basis @ (self.project @ own)
        typical = own[self.neighbours].median(1).values
        own -= typical
        visited = (self.variance > 0).to(own.dtype)
        jitter = ((own.square() - self.variance) * visited).sum(0).clamp_min(0) / visited.sum(0)
        spread = jitter + self.variance[index]
        most = _OUTLIER * spread.sqrt()
        return self.scan[index] + typical[index] + own[index].clamp(-most, most) * (jitter / spread)

    def _keep_on_canvas(self, positions: Tensor) -> None:
        """A window has to stay on the canvas."""
        model = self.model
        half, (rows, columns) = model.size // 2, model.object.transmission.shape[-2:]
        low = torch.full((2,), float(half), device=positions.device)
        high = torch.tensor([rows, columns], device=positions.device) - (model.size - half) - 1.0
        positions.clamp_(low, high)
