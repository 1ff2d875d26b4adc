"""Every constraint can be written in a recipe, and what is wrong there is told."""

from dataclasses import MISSING, fields
from typing import get_args, get_type_hints

import pytest
import torch
from small import counts_of, make

from ptycho.constraint import Constraints
from ptycho.errors import RecipeError
from ptycho.recipe import Recipe

#: What has no default, and what differs from it.
NUMBERS = {
    "low_pass": {"cutoff_invA": 1.2},
    "probe_support": {"radius_A": 20},
    "probe_aperture": {"semiangle_mrad": 21.4, "flat": 1.0},
    "total_variation": {"xy_rad_per_A": 0.05, "z_rad_per_A2": 1e-3},
    "slice_coupling": {"strength": 25.0},
}
ENTRIES = [f.name for f in fields(Constraints)]


def parse(constraints):
    recipe = Recipe.parse({"data": {"path": "scan.h5"}, "solve": [{"kind": "gradient", "constraints": constraints}]})
    return recipe, recipe.solve[0].constraints


def kind_of(entry):
    return get_args(get_type_hints(Constraints)[entry])[0]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_read_and_written(entry):
    table = {"start": 3, "stop": 9, "every": 2, **NUMBERS.get(entry, {})}
    recipe, found = parse({entry: table})
    assert found == Constraints(**{entry: kind_of(entry)(**table)})
    text = recipe.text()
    assert all(f"{f.name} = " in text for f in fields(kind_of(entry)))
    required = [f.name for f in fields(kind_of(entry)) if f.default is MISSING]
    if required:
        with pytest.raises(RecipeError, match=rf"solve.0.constraints.{entry}.{required[0]}: missing"):
            parse({entry: {}})
    else:
        assert parse({entry: {}})[1] == Constraints(**{entry: kind_of(entry)()})


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_stands_in_the_table(entry):
    assert any(line.strip().startswith(entry + " ") for line in Constraints.__doc__.splitlines())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_wrong_key_is_told(entry):
    with pytest.raises(RecipeError, match=rf"solve.0.constraints.{entry}.strngth: unknown key"):
        parse({entry: {**NUMBERS.get(entry, {}), "strngth": 1.0}})


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"total_variaton": {}}, 'did you mean "total_variation"'),
        ({"tikhonov": {"xy_rad_per_A": "steep"}}, "tikhonov.xy_rad_per_A"),
        ({"probe_aperture": {"semiangle_mrad": 20, "flat": 3}}, "flat = 3"),
        ({"pure_phase": {}, "absorption": {}}, "leave one of them out"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(constraints, said):
    with pytest.raises(RecipeError) as caught:
        parse(constraints)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_what_a_run_has(entry, slices):
    """Single precision, states, modes, one slice or several: finite, of the same types and shapes."""
    model = make(scan=(4, 4), size=24, slices=slices, states=2, modes=2)
    before = counts_of(model)
    constraint = kind_of(entry)(**NUMBERS.get(entry, {}))
    shapes = {name: (value.shape, value.dtype) for name, value in model.named_parameters()}
    Constraints(**{entry: constraint}).apply(model, 1)
    assert {name: (value.shape, value.dtype) for name, value in model.named_parameters()} == shapes
    after = counts_of(model)
    assert torch.isfinite(after).all() and 0.5 < after.sum() / before.sum() < 2
