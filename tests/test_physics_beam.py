"""Beams and scans that are not what was written down: a source of finite size, a wrong focus, wrong positions; and twins that believe it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from physics import THIN, blind, known_probe, solve

from ptycho.constraint import Constraints, OrthogonalModes, PositivePhase, PurePhase
from ptycho.patterns import Patterns
from ptycho.result import Result
from ptycho.simulation import Simulated, forward_model, simulate
from ptycho.solvers import Updates
from ptycho.solvers.stop import Stop
from ptycho.start import ModelOptions, start

#: The weak prior of few electrons that a source spreads over many pixels.
WEAK = Constraints(pure_phase=PurePhase(), positive_phase=PositivePhase(mean_phase_rad=1.0), orthogonal_modes=OrthogonalModes())
MANY = replace(THIN, dose_e_per_A2=1e6)


def test_mixed_state_beats_a_single_state_at_375_electrons() -> None:
    """WS2 with vacancies and a source of 0.4 Å (Chen et al., Nat. Commun. 11 (2020) 2994): the source's modes against one wave."""
    simulated = simulate(replace(THIN, dose_e_per_A2=375.0, source_A=0.4, scan_shape=(16, 16), step_A=0.85))
    stage = blind(8, constraints=WEAK, stop=Stop(patience=0))
    mixed, single = (simulated.compare(solve(simulated, stage, source_A=size), 1 / 1.2) for size in (0.4, 0.0))
    assert mixed.correlation > single.correlation + 0.05
    assert abs(mixed.slope - 1) < abs(single.slope - 1) - 0.1


def test_the_size_of_the_source_is_found() -> None:
    """Started at 0.25 Å; with it the strongest of its modes has the share of the truth's. Twin: a point source explains less."""
    simulated = simulate(replace(MANY, source_A=0.4, scan_shape=(12, 12)))
    data = simulated.dataset()
    losses = []
    for size, update in ((0.25, Updates(probe=0, source=2)), (0.0, Updates(probe=0))):
        model = start(data.geometry, ModelOptions(source_A=size), data.beam_electrons, data.mask)
        losses.append([epoch.loss for epoch in known_probe(10, update=update).run(model, Patterns(data, torch.device("cpu")))][-1])
        if size:
            assert model.probe.source_A == pytest.approx(0.4, abs=0.04)
            power = torch.linalg.vector_norm(model.probe.spectrum().detach(), dim=(1, 2)) ** 2
            true = forward_model(simulated.simulation)[0].probe.power()
            assert float(power.max() / power.sum()) == pytest.approx(float(true[0] / true.sum()), abs=0.1)
    assert losses[0] < 0.8 * losses[1]


def test_a_wrong_focus_is_found() -> None:
    """Started 1.6 nm wrong. The specimen acts in its middle, half of 4.7 Å below the entrance: there the underfocus is 77.6 Å."""
    simulated = simulate(MANY)
    stage = known_probe(15, update=Updates(probe=0, aberrations=2))
    for wrong in (0.8, 1.2):
        result = solve(simulated, stage, {"defocus_A": wrong * MANY.defocus_A})
        assert -result.aberrations["C10"] == pytest.approx(77.6, abs=3)
        kept = solve(simulated, known_probe(15), {"defocus_A": wrong * MANY.defocus_A})
        assert kept.history[-1].loss > 1.1 * result.history[-1].loss


def test_wrong_positions_are_found() -> None:
    """0.3 Å rms come back to 0.1 Å, after what an affine map explains; twin: believed, the phase suffers."""
    simulated = simulate(replace(MANY, jitter_A=0.3))
    refined, kept = (solve(simulated, blind(18, update=Updates(positions=p))) for p in (2, 0))
    assert position_rms_A(refined, simulated) <= 0.1 < 0.28 < position_rms_A(kept, simulated)
    found, believed = simulated.compare(refined), simulated.compare(kept)
    assert found.correlation > 0.99 and found.rms_rad < 0.5 * believed.rms_rad


def position_rms_A(result: Result, simulated: Simulated) -> float:
    """Per axis, of what is left when the positions' best affine map is taken away."""
    nominal = np.column_stack([np.ones(len(simulated.positions_A)), simulated.simulation.raster_A])
    error = result.positions_A - simulated.positions_A
    return float(np.sqrt(np.mean((error - nominal @ np.linalg.lstsq(nominal, error, rcond=None)[0]) ** 2)))
