"""Steps of the scan's affine map: steps of the raster, rotation, shear and linear drift are its four numbers.

The gradient of every position, times its lever, is the map's; the curvature likewise. The object settles on a wrong scan and takes up most of
the misfit: batches take small Newton steps, and momentum adds up what lasts. Begin early, while the object follows fast. In a field much
wider than the probe the object holds the scan ever firmer, and a step that was wrong by a percent comes back slowly; there
:func:`ptycho.scan_fit.fit_scan` looks at a part of the field beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho.model import Ptychography
from ptycho.solvers.state import State, set_state, state_of

#: No position moves by more than this many pixels at a step.
_MOST_PX = 0.3
#: A batch takes its share of the data of a Newton step, at most this much of it.
_SHARE, _MOMENTUM = 0.1, 0.9
#: A step's damping is this share of the mean curvature.
_DAMPING = 1e-2


class AffineSteps:
    """State: the velocity (2, 2) of the map about the scan's centre."""

    def __init__(self, model: Ptychography) -> None:
        self.model = model
        self.centre = model.positions.value_px.data.mean(0)
        self._velocity = self.centre.new_zeros(2, 2)

    def state_dict(self) -> State:
        """What is to be remembered."""
        return state_of(self, "centre", "_velocity")

    def load_state_dict(self, state: State) -> None:
        """As it was."""
        set_state(self, state, self.centre.device)

    def step(self, index: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
        """The change (2, 2) that the positions are to follow, from gradient and curvature (B, 2) of the positions ``index``."""
        positions = self.model.positions.value_px.data
        lever = positions[index] - self.centre
        slope = lever.mT @ gradient
        matrix = torch.einsum("bi,bj,ba->aij", lever, lever, curvature)
        damping = _DAMPING * matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        matrix += damping * torch.eye(2, dtype=matrix.dtype, device=matrix.device) + 1e-30
        self._velocity *= _MOMENTUM
        self._velocity -= min(_SHARE, len(index) / len(positions)) * torch.linalg.solve(matrix, slope.mT[..., None])[..., 0]
        reach = (positions - self.centre) @ self._velocity.mT
        self._velocity *= (_MOST_PX / reach.abs().max().clamp_min(1e-30)).clamp(max=1)
        return self._velocity
