"""Normals of surfaces whose normals are known."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.annotator import load_annotator
from nextcontrol.preprocessors.depth import estimate_nearness, stretch
from nextcontrol.preprocessors.normal import normal, normal_from_depth, normals_of

pytestmark = pytest.mark.usefixtures("one_thread")

Z = 0.2 * np.pi
FLAT = torch.tensor([127, 127, 255]) / 255


def slopes(surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's 3x3 slopes, written out; the picture continues mirrored about its outermost pixels."""
    padded = np.pad(surface.astype(np.float64), 1, mode="reflect")
    height, width = surface.shape
    at = {(y, x): padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    right = sum(weight * (at[y, 1] - at[y, -1]) for y, weight in ((-1, 1), (0, 2), (1, 1)))
    down = sum(weight * (at[1, x] - at[-1, x]) for x, weight in ((-1, 1), (0, 2), (1, 1)))
    return right, down


def expected_bytes(surface: np.ndarray, background: float = 0.02, strength: float = 1.0) -> np.ndarray:
    """The formula of the reference in double precision."""
    right, down = slopes(surface)
    is_near = (surface - surface.min()) / (surface.max() - surface.min()) >= background
    vectors = np.stack([strength * right * is_near, strength * down * is_near, np.full(surface.shape, Z)], axis=2)
    vectors /= np.sqrt((vectors**2).sum(axis=2, keepdims=True))
    return np.floor(vectors * 127.5 + 127.5)


def sphere(size: int = 64) -> np.ndarray:
    """A ball in front of a wall, on the scale of DPT-Large."""
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
    return (20 * np.sqrt(np.clip(1 - (x**2 + y**2) / (0.4 * size) ** 2, 0, None)) + 3).astype(np.float32)


@pytest.mark.parametrize(("background", "strength"), [(0.02, 1.0), (0.5, 1.0), (0.02, 0.3), (0.0, 4.0)])
def test_a_sphere_is_the_formula(background, strength):
    surface = sphere()
    found = normals_of(torch.from_numpy(surface)[None], background, strength)[0].numpy() * 255
    difference = np.abs(found - expected_bytes(surface, background, strength))
    assert difference.max() <= 1.001
    assert (difference > 0.01).mean() < 0.01  # single precision on the edge of a step


def test_red_is_right_green_is_down_blue_is_the_camera():
    ramp = torch.arange(32.0).expand(32, 32)
    to_right, to_bottom = normals_of(torch.stack([ramp, ramp.T]), 0.0)[:, 16, 16] * 255
    # Sobel weighs a slope of 1 with 8.
    length = np.hypot(8, Z)
    steep, forward = np.floor(8 / length * 127.5 + 127.5), np.floor(Z / length * 127.5 + 127.5)
    assert to_right.round().tolist() == [steep, 127, forward]
    assert to_bottom.round().tolist() == [127, steep, forward]
    assert normals_of(-torch.stack([ramp]), 0.0)[0, 16, 16, 0] < 1 / 255


def test_the_background_faces_the_camera():
    surface = torch.from_numpy(sphere())[None]
    found = normals_of(surface)
    is_far = stretch(surface) < 0.02
    assert torch.allclose(found[is_far], FLAT)
    assert not torch.allclose(normals_of(surface, 0.0)[is_far], FLAT)


def test_a_flat_wall_and_no_strength_face_the_camera():
    for found in (normals_of(torch.full((1, 8, 8), 5.0)), normals_of(torch.from_numpy(sphere())[None], strength=0.0)):
        assert torch.allclose(found, FLAT.expand_as(found))


def test_a_depth_picture_is_taken_at_dpt_larges_range():
    surface = sphere()
    grey = (surface - surface.min()) / (surface.max() - surface.min())
    picture = torch.from_numpy(0.2 + 0.6 * grey)[None, ..., None].repeat(1, 1, 1, 3)
    found = normal_from_depth(picture, 0)[0].numpy() * 255
    difference = np.abs(found - expected_bytes(26.642 * grey))
    assert difference.max() <= 1.001
    assert (difference > 0.01).mean() < 0.01


def test_a_depth_picture_is_resized_before_its_slopes_are_taken():
    ramp = torch.linspace(0, 1, 128).expand(1, 64, 128)[..., None].repeat(1, 1, 1, 3)
    found = normal_from_depth(ramp, 128) * 255
    assert found.shape == (1, 128, 256, 3)
    slope = 8 * 26.642 / 255
    expected = np.floor(slope / np.hypot(slope, Z) * 127.5 + 127.5)
    assert (found[0, 64, 32:-32, 0] - expected).abs().max() < 2


def test_normals_of_midas_are_those_of_its_own_values(tmp_path):
    annotator = load_annotator(tiny.save_dpt(tmp_path / "midas"), "depth")
    picture = ASTRONAUT[:, :300, :400]
    raw = estimate_nearness(picture, 64, annotator)
    assert torch.equal(normal(picture, 64, annotator), normals_of(raw))
    assert not torch.equal(normal(picture, 64, annotator), normals_of(26.642 * stretch(raw)))


def test_normals_of_other_networks_are_brought_to_that_scale(tmp_path):
    annotator = load_annotator(tiny.save_depth_anything(tmp_path / "other"), "depth")
    pictures = torch.cat([ASTRONAUT, 1 - ASTRONAUT])[:, :300, :400]
    found = normal(pictures, 64, annotator, 0.1, 2.0)
    assert torch.equal(found, normals_of(26.642 * stretch(estimate_nearness(pictures, 64, annotator)), 0.1, 2.0))
    assert found.shape == (2, 64, 64, 3)
