"""Cross normalization and the multipliers, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from nextcontrol.models.injection import INJECTIONS, cross_normalize, match_statistics, standardize
from torch.nn import functional as F
from torch.testing import assert_close


def test_the_formula_gives_the_numbers_of_the_specification():
    feature, control = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0], [0.0, 8.0]]]])
    found = cross_normalize(control, feature, INJECTIONS["sd15"])
    assert_close(found.flatten(), torch.tensor([1.854503, 1.854503, 1.854503, 4.436492]), rtol=0, atol=1e-6)
    expected = torch.tensor([1.649076, 2.649076, 3.649076, 5.552772])
    assert_close((feature + 0.35 * found).flatten(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", INJECTIONS)
def test_statistics_are_per_sample_and_the_order_of_pooling_counts(variant):
    injection = INJECTIONS[variant]
    feature, control = torch.randn(3, 8, 4, 6) * 5 + 2, torch.randn(3, 8, 8, 12)
    found = cross_normalize(control, feature, injection)
    for row in range(3):
        c, h = control[row], feature[row]
        pool = lambda x: F.adaptive_avg_pool2d(x, (4, 6))  # noqa: E731
        c = pool(c) if injection.is_pooled_first else c
        c = (c - c.mean()) * (h.std() / (c.std() + injection.epsilon)) + h.mean()
        assert_close(found[row], c if injection.is_pooled_first else pool(c), rtol=1e-4, atol=1e-4)


def test_a_standardized_control_serves_any_feature():
    injection, control = INJECTIONS["sdxl"], torch.randn(1, 8, 8, 12)
    standard = standardize(control, (8, 12), injection)
    features = torch.randn(4, 8, 8, 12) * torch.tensor([1.0, 2, 3, 4])[:, None, None, None]
    expected = torch.cat([cross_normalize(control, feature[None], injection) for feature in features])
    assert_close(match_statistics(standard, features, injection), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_features_have_exact_statistics():
    feature = (torch.randn(1, 64, 32, 32) * 100).half()
    control = torch.randn(1, 64, 32, 32) * 1e-3
    found = cross_normalize(control, feature, INJECTIONS["sd15"])
    assert found.dtype == torch.float32
    assert_close(found, cross_normalize(control, feature.float(), INJECTIONS["sd15"]))
    assert torch.isfinite(cross_normalize(control.half(), feature, INJECTIONS["sd15"])).all()


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (1, 4, 4, 4)])
def test_another_batch_or_width_is_refused(shape):
    with pytest.raises(ValueError, match=r"batch and channels must be equal"):
        cross_normalize(torch.zeros(shape), torch.zeros(1, 8, 4, 4), INJECTIONS["sd15"])


@pytest.mark.parametrize(
    ("variant", "scale", "cond", "uncond"),
    [
        ("sd15", None, 1.0, 1.0), ("sdxl", None, 1.0, 1.0), ("sd15_v0", 0.4, 0.4, 0.4), ("svd_v2", None, 0.2, 0.0),
        ("svd_v1", 0.0, 0.65, 0.65), ("svd_v1", 0.8766, 0.917952, 0.65), ("svd_v1", 1.0, 0.950376, 0.65),
    ],
)  # fmt: skip
def test_multipliers_are_the_references(variant, scale, cond, uncond):
    injection = INJECTIONS[variant]
    assert injection.multiplier(scale, is_uncond=False) == pytest.approx(cond, abs=1e-6)
    assert injection.multiplier(scale, is_uncond=True) == pytest.approx(uncond, abs=1e-6)
    assert injection.multiplier(scale, is_uncond=True, rule="on") == pytest.approx(cond, abs=1e-6)
    assert injection.multiplier(scale, is_uncond=True, rule="off") == 0.0
    assert injection.multiplier(scale, is_uncond=False, rule="off") == pytest.approx(cond, abs=1e-6)


def test_the_learned_scale_of_svd_v1_passes_a_sigmoid():
    assert INJECTIONS["svd_v1"].multiplier(2.0, is_uncond=False) == pytest.approx(1.3 / (1 + math.exp(-2)))
