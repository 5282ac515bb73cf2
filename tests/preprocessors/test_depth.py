"""Depth hints against the network's own output and against formulas."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tiny_annotators as tiny
import torch
from hint_pictures import ASTRONAUT
from nextcontrol.preprocessors.annotator import evaluate, load_annotator
from nextcontrol.preprocessors.canvas import resize, to_bytes
from nextcontrol.preprocessors.depth import depth, estimate_nearness, gives_distance, is_midas, stretch

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURES = torch.cat([ASTRONAUT, 1 - ASTRONAUT, ASTRONAUT.flip(2) ** 2])[:, :300, :400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("depth")


@pytest.fixture(scope="module")
def relative(folder):
    return load_annotator(tiny.save_depth_anything(folder / "relative"), "depth")


@pytest.fixture(scope="module")
def metric(folder):
    return load_annotator(tiny.save_depth_anything(folder / "metric", depth_estimation_type="metric", max_depth=20), "depth")


@pytest.fixture(scope="module")
def midas(folder):
    return load_annotator(tiny.save_dpt(folder / "midas"), "depth")


def resized(height: int, width: int) -> list[np.ndarray]:
    return [resize(picture, (height, width)) for picture in to_bytes(PICTURES)]


def by_transformers(annotator, height: int, width: int) -> torch.Tensor:
    """What transformers' own pipeline gives for each picture by itself."""
    depths = []
    for picture in resized(height, width):
        inputs = annotator.processor(images=picture, return_tensors="pt")
        output = annotator.network(**inputs)
        (result,) = annotator.processor.post_process_depth_estimation(output, [(height, width)])
        depths.append(result["predicted_depth"])
    return torch.stack(depths)


def test_depth_is_the_networks_own_output_stretched(relative):
    expected = by_transformers(relative, 128, 192)
    assert expected.std() > 0.1
    torch.testing.assert_close(estimate_nearness(PICTURES, 128, relative), expected, rtol=1e-4, atol=1e-4)
    found = depth(PICTURES, 128, relative, "plain")
    assert found.shape == (3, 128, 192, 3)
    for hint, values in zip(found, expected.numpy(), strict=True):
        grey = (values - values.min()) / (values.max() - values.min())
        assert np.allclose(hint.numpy(), grey[..., None].repeat(3, 2), atol=1e-4)


def test_ctrlora_gets_the_bytes_that_the_reference_cuts_off(relative):
    plain, found = (depth(PICTURES, 128, relative, kind) for kind in ("plain", "ctrlora"))
    assert torch.equal(found, (plain * 255).to(torch.uint8).float() / 255)
    assert not torch.equal(found, (plain * 255).round() / 255)
    assert found.amax(dim=(1, 2, 3)).eq(1).all()
    assert found.amin(dim=(1, 2, 3)).eq(0).all()


def test_controlnext_gets_the_distance_in_viridis(relative):
    plain = depth(PICTURES, 128, relative, "plain")[..., 0]
    found = depth(PICTURES, 128, relative, "controlnext")
    distance = np.uint8((1 - plain).numpy() * 255)
    expected = cv2.applyColorMap(distance[0], cv2.COLORMAP_VIRIDIS)[..., ::-1] / np.float32(255)
    assert np.abs(found[0].numpy() - expected).max() <= 4.5 / 255  # one step, by rounding
    near, far = plain[0].argmax(), plain[0].argmin()
    # The ends of matplotlib's viridis.
    assert found[0].flatten(0, 1)[near].mul(255).round().tolist() == [68, 1, 84]
    assert found[0].flatten(0, 1)[far].mul(255).round().tolist() == [253, 231, 37] or (
        torch.allclose(found[0].flatten(0, 1)[far] * 255, torch.tensor([253.0, 231.0, 37.0]), atol=2)
    )


@pytest.mark.parametrize("hint_for", ["ctrlora", "controlnext", "plain"])
def test_a_batch_is_its_pictures_one_by_one(relative, hint_for):
    found = depth(PICTURES, 128, relative, hint_for)
    single = torch.cat([depth(picture[None], 128, relative, hint_for) for picture in PICTURES])
    assert (found - single).abs().gt(4.5 / 255).sum() == 0
    assert (found - single).abs().gt(1e-4).float().mean() < 0.001  # a value on the edge of a step


def test_near_is_bright_for_networks_that_give_metres(metric):
    metres = by_transformers(metric, 128, 192)
    assert gives_distance(metric)
    nearness = depth(PICTURES, 128, metric, "plain")[..., 0]
    for found, values in zip(nearness, metres, strict=True):
        assert found.flatten()[values.argmin()] == 1
        assert found.flatten()[values.argmax()] == 0
    torch.testing.assert_close(nearness, stretch(1 / metres), atol=1e-4, rtol=0)


def test_the_viridis_of_metres_is_linear_in_metres(metric):
    metres = by_transformers(metric, 128, 192)
    steps = np.uint8(stretch(metres).numpy()[0] * 255)
    expected = cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS)[..., ::-1] / np.float32(255)
    found = depth(PICTURES, 128, metric, "controlnext")[0].numpy()
    assert np.abs(found - expected).max() <= 4.5 / 255


@pytest.mark.parametrize("saver", [tiny.save_glpn, tiny.save_zoedepth, tiny.save_dpt_hybrid])
def test_networks_of_every_kind_are_served_and_near_is_bright(saver, tmp_path):
    annotator = load_annotator(saver(tmp_path / "network"), "depth")
    assert gives_distance(annotator) is (saver is not tiny.save_dpt_hybrid)
    assert not is_midas(annotator)
    values = by_transformers(annotator, 128, 192)
    assert values.std() > 1e-4
    expected = stretch(1 / values.clamp(min=1e-3) if gives_distance(annotator) else values)
    found = depth(PICTURES, 128, annotator, "plain")[..., 0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert depth(PICTURES[:1, :40, :72], 0, annotator).shape == (1, 40, 72, 3)


@pytest.mark.parametrize("hint_for", ["plain", "ctrlora"])
def test_invert_exchanges_near_and_far(relative, hint_for):
    ahead, inverted = (depth(PICTURES[:1], 128, relative, hint_for, is_inverted) for is_inverted in (False, True))
    assert (ahead + inverted - 1).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("changes", "is_distance"),
    [
        ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, False),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, True),
        ({"model_type": "prompt_depth_anything", "depth_estimation_type": "metric"}, True),
        ({"model_type": "dpt", "add_projection": False}, False), ({"model_type": "dpt", "add_projection": True}, True),
        ({"model_type": "zoedepth"}, True), ({"model_type": "glpn"}, True), ({"model_type": "depth_pro"}, True),
    ],
)  # fmt: skip
def test_the_configuration_tells_metres_from_nearness(changes, is_distance):
    from types import SimpleNamespace

    annotator = SimpleNamespace(config=SimpleNamespace(**changes))
    assert gives_distance(annotator) is is_distance


def test_a_midas_network_sees_the_hints_own_pixels(midas, relative):
    """As the reference runs it; transformers' processor would squeeze every picture into one square."""
    assert is_midas(midas)
    assert not is_midas(relative)
    seen = []
    hook = midas.network.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["pixel_values"]), with_kwargs=True)
    depth(PICTURES, 128, midas)
    hook.remove()
    expected = np.stack(resized(128, 192)).transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.allclose(seen[0], expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 12), (12, 8)])
def test_a_midas_network_is_right_about_pictures_that_are_not_square(midas, rows, columns):
    """Against its parts, called one after the other."""
    pictures = PICTURES[:, :300, :300] if rows == columns else PICTURES if rows < columns else PICTURES.transpose(1, 2)
    found = estimate_nearness(pictures, 128, midas)
    bytes_of = np.stack([resize(picture, (16 * rows, 16 * columns)) for picture in to_bytes(pictures)])
    pixels = torch.from_numpy(bytes_of).movedim(-1, 1) / 127.5 - 1  # BHWC -> BCHW
    tokens = midas.network.dpt(pixels, output_hidden_states=True).hidden_states[1:]
    expected = midas.network.head(midas.network.neck(list(tokens), rows, columns))
    assert expected.shape == (3, 16 * rows, 16 * columns)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_midas_network_is_left_as_it_was(midas):
    picture = torch.rand(1, 3, 32, 32)
    before = midas.network(picture).predicted_depth
    depth(PICTURES[:1], 64, midas)
    assert torch.equal(midas.network(picture).predicted_depth, before)


def test_a_flat_depth_is_black_and_finite():
    assert torch.equal(stretch(torch.full((2, 4, 4), 3.0)), torch.zeros(2, 4, 4))


def test_every_size_is_served(relative, midas):
    for annotator in (relative, midas):
        assert depth(PICTURES[:1, :24, :40], 0, annotator).shape == (1, 24, 40, 3)
        assert depth(PICTURES[:1, :100, :37], 64, annotator).shape == (1, 192, 64, 3)


def test_pictures_are_shown_in_bytes(relative):
    """Out of range is cut off, not wrapped."""
    output = evaluate(relative, to_bytes(PICTURES[:1] * 3 - 1)).predicted_depth
    assert torch.equal(output, evaluate(relative, to_bytes((PICTURES[:1] * 3 - 1).clamp(0, 1))).predicted_depth)
