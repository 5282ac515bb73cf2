"""Drawings of key points against the references' pictures, and what each style leaves in and out."""

from __future__ import annotations

import numpy as np
import torch
from hint_pictures import golden_hint
from nextcontrol.preprocessors.pose_draw import Drawing, draw_pose
from nextcontrol.preprocessors.pose_points import to_people
from seeded import seeded_tensor


def kp(name: str, count: int) -> np.ndarray:
    return np.clip(0.18 * seeded_tensor(name, [count, 2]).numpy().astype(np.float64) + 0.5, 0.03, 0.97)


def sc(name: str, count: int) -> np.ndarray:
    return np.clip(0.5 + 0.25 * seeded_tensor(name, [count]).numpy().astype(np.float64), 0, 1)


def points(name: str, count: int, score: str = "") -> np.ndarray:
    scores = sc(score, count) if score else np.ones(count)
    return np.concatenate([kp(name, count), scores[:, None]], axis=1)


def golden_body():
    body = points("body", 18)
    body[5] = 0
    return to_people(body[None], 512, 384)


def golden_person():
    hands = np.stack([points(f"hand{i}", 21, f"hand{i}_score") for i in (0, 1)])
    face = points("face", 68, "face_score")
    return to_people(points("body", 18, "body_score")[None], 320, 192, hands[None], face[None])


def test_the_openpose_body_is_the_reference_pixel_for_pixel():
    assert torch.equal(draw_pose([golden_body()], (512, 384), Drawing("openpose")), golden_hint("openpose_body"))


def test_the_svd_pose_is_the_reference_pixel_for_pixel():
    assert torch.equal(draw_pose([golden_person()], (320, 192), Drawing("svd_v2")), golden_hint("svd_dwpose"))
