"""Augmented views: what each does, that a seed fixes it, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tweaknn.errors import DataError, InputError
from tweaknn.inputs.augment import augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=64, c=3, h=8, w=10):
    return torch.randn(n, c, h, w, generator=generator(5))


def test_flip_mirrors_about_half_and_leaves_the_rest():
    x = pictures()
    out = augmentation("flip")(x, generator())
    same = torch.tensor([torch.equal(a, b) for a, b in zip(x, out)])
    mirrored = torch.tensor([torch.equal(a.flip(-1), b) for a, b in zip(x, out)])
    assert bool((same ^ mirrored).all())
    assert 10 < int(mirrored.sum()) < 54


def test_shift_moves_each_picture_by_at_most_an_eighth_and_repeats_the_border():
    x = pictures(h=16, w=24)
    out = augmentation("shift")(x, generator())
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="replicate")
    for before, after in zip(padded, out):
        crops = [before[:, i : i + 16, j : j + 24] for i in range(5) for j in range(7)]
        assert any(torch.equal(crop, after) for crop in crops)


def test_noise_is_a_tenth_of_the_spread_of_each_column():
    x = torch.randn(4000, 3, generator=generator(1)) * torch.tensor([1.0, 100.0, 0.0])
    added = augmentation("noise")(x, generator()) - x
    torch.testing.assert_close(added.std(0), torch.tensor([0.1, 10.0, 0.0]), rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("spec", ["flip", "shift", "noise", "flip,shift", "shift, noise"])
def test_a_seed_fixes_it_and_inputs_stay_as_they_are(spec):
    x = pictures()
    before = x.clone()
    one, two = (augmentation(spec)(x, generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(x, before)
    assert not torch.equal(one, augmentation(spec)(x, generator(4)))


def test_the_users_own_function(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def darker(x, g):\n    return x * 0.5\ndef wrong(x, g):\n    return x[:1]\ndef bad(x, g):\n    1 / 0\n")
    x = pictures()
    made = augmentation(f"{file}:darker")
    assert torch.equal(made(x, generator()), x * 0.5)
    assert "0.5" in made.source, "a changed function is another augmentation to a stored table"
    with pytest.raises(DataError, match="like the one it was given"):
        augmentation(f"{file}:wrong")(x, generator())
    with pytest.raises(DataError, match="ZeroDivisionError"):
        augmentation(f"{file}:bad")(x, generator())


@pytest.mark.parametrize(
    ("spec", "x", "said"),
    [
        ("flip", torch.randn(4, 9), "--augment noise"),
        ("shift", torch.zeros(4, 30, dtype=torch.int64), "for pictures"),
        ("noise", torch.zeros(4, 30, dtype=torch.int64), "floating-point"),
    ],
)
def test_what_does_not_fit_is_refused(spec, x, said):
    with pytest.raises(InputError, match=said):
        augmentation(spec)(x, generator())


@pytest.mark.parametrize("spec", ["mirror", "", "flip,,turn", "nothere.py:f"])
def test_unknown_names(spec):
    with pytest.raises(InputError):
        augmentation(spec)
