"""The analytic adjoint is the gradient of the readable model, for every parameter, in float64 to 1e-10."""

import pytest
import torch
from torch import Tensor

from ptycho.aberrations import parse_aberrations
from ptycho.adjoint import Likelihood
from ptycho.detector import Detector
from ptycho.differentiable import likelihood
from ptycho.loss import Loss
from ptycho.model import Positions, Ptychography
from ptycho.multislice import Object
from ptycho.optics import probe_wave
from ptycho.probe import Probe, seed_modes
from ptycho.propagator import Propagator

SIZE, COUNT = 24, 7


def small_model(
    states: int = 1,
    slices: int = 1,
    modes: int = 1,
    tilts: int = 1,
    oversample: int = 1,
    shape: tuple[int, int] = (SIZE, SIZE),
    source_A: float = 0.0,
    opr: int = 0,
    descan: bool = False,
) -> Ptychography:
    """A random model in float64 with everything non-trivial."""
    random = torch.Generator().manual_seed(7)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=random, dtype=torch.float64)

    pixel, wavelength = 0.3, 0.04
    canvas = (states, slices, 40, 44)
    transmission = torch.polar(1 + 0.05 * normal(*canvas), 0.5 * normal(*canvas))
    wave = probe_wave(SIZE, pixel, wavelength, 20.0, parse_aberrations({"defocus_A": 40.0}))
    terms = parse_aberrations({"C10": 1.0, "C12": 1.0, "C21": 1.0, "C30": 1.0})
    probe = Probe(seed_modes(30 * wave[None], modes), pixel, wavelength, terms, source_A=source_A)
    probe.correction_A.data += normal(len(probe.correction_A)) * 5
    positions = 15 + torch.rand(COUNT, 2, generator=random, dtype=torch.float64) * 9
    mask = (torch.rand(shape, generator=random, dtype=torch.float64) > 0.1).double()
    probe.variations.data = normal(opr, SIZE, SIZE) + 1j * normal(opr, SIZE, SIZE)
    probe.coefficients.data = normal(COUNT if opr else 0, opr)
    model = Ptychography(
        Object(transmission, torch.tensor([0.7, 0.3])[:states]),
        probe,
        Propagator(SIZE, pixel, wavelength, 8 + normal(slices), 0.01 * normal(tilts, 2)),
        Positions(positions),
        Detector(SIZE, mask, background=0.1 + 0 * mask, blur_px=0.4, oversample=oversample),
        pixel,
    )
    model.detector.descan_px.data = normal(COUNT if descan else 0, 2)
    return model


def gradients(model: Ptychography, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = {
    "one": {},
    "modes and states": {"modes": 3, "states": 2},
    "slices": {"slices": 3, "modes": 2},
    "everything": {"slices": 3, "modes": 2, "states": 2, "tilts": COUNT},
    "binned": {"slices": 2, "oversample": 2, "shape": (12, 12)},
    "source": {"slices": 2, "modes": 2, "source_A": 0.2},
    "varying probe": {"slices": 2, "modes": 2, "states": 2, "opr": 2, "source_A": 0.2},
    "descan": {"slices": 2, "states": 2, "descan": True},
    "both, one slice, binned": {"opr": 1, "descan": True, "oversample": 2, "shape": (12, 12)},
    "cropped rectangle": {"slices": 2, "shape": (15, 20)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", [Loss("amplitude"), Loss("anscombe"), Loss("poisson", floor=0.1), Loss("power", power=0.3)], ids=lambda x: x.name)
def test_adjoint_equals_autograd(case: str, loss: Loss) -> None:
    model = small_model(**CASES[case])  # type: ignore[arg-type]
    index = torch.tensor([5, 0, 3, 6, 2])
    counts = torch.poisson(model(index).detach() * 1.3, generator=torch.Generator().manual_seed(3))
    expected_loss = (loss.value(model(index), counts) * model.detector.mask).sum()
    expected = gradients(model, expected_loss)
    value = likelihood(Likelihood(model, loss, chunk=2, workers=2), index, counts)
    found = gradients(model, value)
    assert value.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    assert found.keys() >= expected.keys()
    for name, gradient in found.items():
        wanted = expected.get(name, torch.zeros_like(gradient))
        scale = wanted.abs().max()
        assert (gradient - wanted).abs().max() <= 1e-10 * scale, name
        assert scale > 0 or (model.object.transmission.shape[1] == 1 and "propagator" in name) or not gradient.numel(), name
