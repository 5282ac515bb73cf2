"""OpenPose's skeletons: the package's search, CtrLoRA's drawing."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch
from nextcontrol.preprocessors.annotator import Annotator
from nextcontrol.preprocessors.aux_detector import import_aux
from nextcontrol.preprocessors.openpose import openpose
from nextcontrol.preprocessors.pose_draw_parts import COLORS
from torch import Tensor, nn

# Fractions of the picture, in OpenPose's order: a person with raised arms, facing us.
PERSON = (
    (0.50, 0.22), (0.50, 0.36), (0.40, 0.36), (0.30, 0.46), (0.22, 0.34), (0.60, 0.36), (0.70, 0.46), (0.78, 0.34),
    (0.43, 0.62), (0.42, 0.77), (0.41, 0.92), (0.57, 0.62), (0.58, 0.77), (0.59, 0.92), (0.46, 0.18), (0.54, 0.18),
    (0.42, 0.20), (0.58, 0.20),
)  # fmt: skip
# Limbs, and the two maps that point along each of them. Source: controlnet-aux 0.0.10 open_pose/body.py.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
MAPS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
STRIDE = 8
SIDE = 256


class Maps(nn.Module):
    """Answers every picture with the maps of given key points, as a perfect network would."""

    def __init__(self, points: tuple[tuple[float, float], ...], count: int, *, has_limbs: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.points, self.count, self.has_limbs = points, count, has_limbs

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Heat maps, and before them the limbs' directions if it has any."""
        height, width = pictures.shape[2] // STRIDE, pictures.shape[3] // STRIDE
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        places = [(px * width, py * height) for px, py in self.points]
        heat = torch.zeros(1, self.count, height, width)
        for joint, (px, py) in enumerate(places):
            heat[0, joint] = torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 2)
        if not self.has_limbs:
            return heat
        along = torch.zeros(1, 38, height, width)
        for (a, b), first in zip(LIMBS, MAPS, strict=True):
            (ax, ay), (bx, by) = places[a], places[b]
            length = max(((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5, 1e-3)
            dx, dy = (bx - ax) / length, (by - ay) / length
            share = (((x - ax) * dx + (y - ay) * dy) / length).clamp(0, 1)
            near = ((x - ax - share * (bx - ax)) ** 2 + (y - ay - share * (by - ay)) ** 2) < 2
            along[0, first], along[0, first + 1] = dx * near, dy * near
        return along, heat


def network(points=PERSON, count=19, *, has_limbs=True) -> Annotator:
    return Annotator("made", Maps(points, count, has_limbs=has_limbs), None)


def draw_by_package(body, face=None) -> np.ndarray:
    """What the package itself makes of the same maps."""
    import_aux("open_pose")
    package = importlib.import_module("controlnet_aux.open_pose")
    parts = []
    for kind, part in (("Body", body), ("Hand", None), ("Face", face)):
        parts.append(None if part is None else object.__new__(getattr(package, kind)))
        if part is not None:
            parts[-1].model = part.network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.OpenposeDetector(*parts)(
            np.full((SIDE, SIDE, 3), 90, np.uint8), SIDE, SIDE, include_face=face is not None, output_type="np"
        )


FRAMES = torch.full((1, SIDE, SIDE, 3), 90 / 255)


def test_a_body_is_drawn_as_the_package_draws_it():
    hint = openpose(FRAMES, SIDE, network())
    assert torch.equal(hint[0], torch.from_numpy(draw_by_package(network())) / 255)
    for joint in (4, 7, 10, 13):
        x, y = (int(part * SIDE) for part in PERSON[joint])
        around = hint[0, y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
        assert (around == torch.tensor(COLORS[joint]) / 255).all(1).any(), joint


def test_faces_are_drawn_as_the_package_draws_them():
    # Eyes and nose are far enough apart for a face's box of 20 pixels or more.
    face = network(tuple((0.2 + 0.6 * (i % 9) / 8, 0.2 + 0.6 * (i // 9) / 7) for i in range(71)), 71, has_limbs=False)
    face.network.forward = lambda pictures, forward=face.network.forward: [forward(pictures)]
    plain, found = openpose(FRAMES, SIDE, network()), openpose(FRAMES, SIDE, network(), face_annotator=face)
    assert torch.equal(found[0], torch.from_numpy(draw_by_package(network(), face)) / 255)
    assert (found == 1).all(-1).sum() > (plain == 1).all(-1).sum() + 100


def test_hands_are_looked_for_at_the_wrists():
    hand = network(tuple((0.2 + 0.03 * i, 0.3 + 0.02 * i) for i in range(21)), 22, has_limbs=False)
    found = openpose(FRAMES, SIDE, network(), hand, body=False)
    changed = found.any(-1)[0].nonzero()
    assert len(changed) > 100
    for wrist in (4, 7):
        near = [abs(x / SIDE - PERSON[wrist][0]) + abs(y / SIDE - PERSON[wrist][1]) < 0.35 for y, x in changed.tolist()]
        assert any(near)
        assert not all(near), "and at the other one"


def test_a_picture_without_people_is_black():
    nobody = network(((-9, -9),) * 18)
    hints = openpose(FRAMES.expand(2, -1, -1, -1), SIDE, nobody)
    assert hints.shape == (2, SIDE, SIDE, 3)
    assert not hints.any()


@pytest.mark.parametrize(("resolution", "size"), [(0, (248, 256)), (128, (128, 128)), (64, (64, 64))])
def test_a_body_is_found_at_any_size(resolution, size):
    hint = openpose(FRAMES[:, :250], resolution, network())
    assert hint.shape == (1, *size, 3)
    assert hint.any()
