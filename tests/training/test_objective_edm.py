"""SVD's loss: the reference's numbers, and what follows from the formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from nextcontrol.training.objective_edm import EdmObjective
from seeded import seeded_tensor
from torch.testing import assert_close

EDM = EdmObjective()
SIGMAS = {0.0: 700.0, 0.1: 5.8530, 0.25: 2.0283, 0.5: 0.70847, 0.75: 0.24797, 0.9: 0.086712, 1.0: 0.002}


@pytest.mark.parametrize(("place", "sigma"), SIGMAS.items())
def test_the_distribution_has_the_references_levels(place, sigma):
    assert EDM.level_at(torch.tensor([place])).item() == pytest.approx(sigma, rel=2e-5)


def test_a_draw_is_the_level_of_an_even_number():
    expected = EDM.level_at(torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(EDM.draw(torch.Generator().manual_seed(3)), expected)


def test_the_sampling_steps_are_the_references():
    sigmas = EDM.sigmas(25)
    assert sigmas[:4].tolist() == pytest.approx([700, 545.729, 421.569, 322.454], rel=1e-6)
    assert sigmas[12].item() == pytest.approx(15.58997, rel=1e-6)
    assert sigmas[22:].tolist() == pytest.approx([0.02480, 0.00788, 0.002], rel=5e-4)
    _, times = EDM.network_input(torch.zeros(25, 4, 1, 1), sigmas.float())
    assert times[[0, 1, 12, 24]].tolist() == pytest.approx([1.63777, 1.57553, 0.68666, -1.55365], rel=1e-5)


def test_the_loss_is_the_weighted_error_of_the_clean_latents():
    latents, noise, predicted = (seeded_tensor(name, [3, 4, 2, 2]).double() for name in ("latents", "noise", "predicted"))
    levels = torch.tensor([0.002, 0.7, 700.0])
    weights = torch.tensor([[[[1.0, 4.2], [1.0, 1.0]]]]).expand(3, 1, 2, 2)
    sigma = levels.double()[:, None, None, None]
    noisy = latents + sigma * noise
    clean = -sigma / (sigma**2 + 1).sqrt() * predicted + noisy / (sigma**2 + 1)
    errors = (1 + sigma**2) / sigma**2 * (clean - latents) ** 2
    plain, weighted = errors.mean(), (errors * weights).mean()
    given = (predicted.float(), latents.float(), noise.float(), levels, 0.0)
    assert_close(EDM.loss(*given, {}).double(), plain, rtol=1e-5, atol=0)
    assert_close(EDM.loss(*given, {"weights": weights}).double(), weighted, rtol=1e-5, atol=0)


def test_the_loss_of_a_hand_made_example():
    """Noise 1, latent 2, sigma 3: x is 5, the best v (1 - 6) / sqrt(10); a prediction of 0 leaves 25 / 10."""
    ones = torch.ones(1, 1, 1, 1)
    level = torch.tensor([3.0])
    assert EDM.add_noise(2 * ones, ones, level).item() == 5
    assert EDM.loss(0 * ones, 2 * ones, ones, level, 0.0, {}).item() == pytest.approx(2.5)
    # The ratio of signal to noise is 1 / 9: cut to 0.05, and divided by 1 / 9 + 1.
    assert EDM.loss(0 * ones, 2 * ones, ones, level, 0.05, {}).item() == pytest.approx(2.5 * 0.05 / (1 / 9 + 1))
    assert EDM.loss(-5 / 10**0.5 * ones, 2 * ones, ones, level, 0.0, {}).item() == pytest.approx(0, abs=1e-12)
    assert EDM.denoised(-5 / 10**0.5 * ones, 5 * ones, level).item() == pytest.approx(2)


def test_the_network_sees_latents_of_variance_1():
    noise, levels = seeded_tensor("noise", [2, 4, 64, 64]), torch.tensor([2.0, 300.0])
    latents = seeded_tensor("latents", [2, 4, 64, 64])
    seen, _ = EDM.network_input(EDM.add_noise(latents, noise, levels), levels)
    assert seen.var(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.03)


def test_sampling_with_a_perfect_prediction_gives_the_picture():
    picture = seeded_tensor("picture", [2, 4, 4, 4])

    def predict(x, levels):
        sigma = levels[:, None, None, None]
        return (x / (sigma**2 + 1) - picture) * (sigma**2 + 1).sqrt() / sigma

    assert_close(EDM.sample(predict, seeded_tensor("noise", [2, 4, 4, 4]), 8), picture, atol=1e-4, rtol=0)


def test_sampling_follows_eulers_steps():
    """Against the formula written out, with a prediction that is no perfect one."""
    noise = seeded_tensor("noise", [1, 4, 2, 2])
    sigmas = [*EDM.sigmas(3).tolist(), 0.0]
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    for now, later in itertools.pairwise(sigmas):
        v = 0.1 * x / (now**2 + 1) ** 0.5
        clean = x / (now**2 + 1) - now / (now**2 + 1) ** 0.5 * v
        x = x + (x - clean) / now * (later - now)
    found = EDM.sample(lambda x, levels: 0.1 * EDM.network_input(x, levels)[0], noise, 3)
    assert_close(found, x, rtol=1e-4, atol=1e-4)
