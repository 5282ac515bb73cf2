"""Drawings of key points against the references' pictures, and what each style leaves in and out."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from hint_pictures import golden_hint
from nextcontrol.preprocessors.pose_draw import STYLES, Drawing, draw_pose
from nextcontrol.preprocessors.pose_draw_body25 import to_body25
from nextcontrol.preprocessors.pose_points import People, nobody, to_people
from seeded import seeded_tensor

SIZE = (320, 192)


def points(name: str, count: int, score: str = "") -> np.ndarray:
    """Key points by name, as the golden pictures have them."""
    places = np.clip(0.18 * seeded_tensor(name, [count, 2]).numpy().astype(np.float64) + 0.5, 0.03, 0.97)
    scores = np.ones(count)
    if score:
        scores = np.clip(0.5 + 0.25 * seeded_tensor(score, [count]).numpy().astype(np.float64), 0, 1)
    return np.concatenate([places, scores[:, None]], axis=1)


def golden_person() -> People:
    hands = np.stack([points(f"hand{i}", 21, f"hand{i}_score") for i in (0, 1)])
    face = points("face", 68, "face_score")
    return to_people(points("body", 18, "body_score")[None], *SIZE, hands[None], face[None])


def sure(people: People) -> People:
    """The same people, every score 1."""
    parts = {name: np.copy(getattr(people, name)) for name in ("bodies", "hands", "faces")}
    for part in parts.values():
        part[..., 2] = 1
    return dataclasses.replace(people, **parts)


def one_limb(*places: tuple[int, float, float], score: float = 1.0) -> People:
    body = np.zeros((1, 18, 3))
    for joint, x, y in places:
        body[0, joint] = x, y, score
    return to_people(body, 256, 256)


def bytes_at(picture: torch.Tensor, x: float, y: float) -> list[int]:
    height, width = picture.shape[1:3]
    return (picture[0, int(y * height), int(x * width)] * 255).round().int().tolist()


def test_the_openpose_body_is_the_reference_pixel_for_pixel():
    body = points("body", 18)
    body[5] = 0
    people = to_people(body[None], 512, 384)
    assert torch.equal(draw_pose([people], (512, 384), Drawing("openpose")), golden_hint("openpose_body"))


def test_the_svd_pose_is_the_reference_pixel_for_pixel():
    assert torch.equal(draw_pose([golden_person()], SIZE, Drawing("svd_v2")), golden_hint("svd_dwpose"))


def test_dwpose_is_openpose_with_hands_and_a_face():
    person = golden_person()
    full = draw_pose([person], SIZE, Drawing("dwpose"))
    assert torch.equal(
        draw_pose([person], SIZE, Drawing("dwpose", has_hands=False, has_face=False)),
        draw_pose([person], SIZE, Drawing("openpose")),
    )
    only = {part: draw_pose([person], SIZE, Drawing("dwpose", *flags)) for part, flags in {
        "body": (True, False, False), "hands": (False, True, False), "face": (False, False, True),
    }.items()}  # fmt: skip
    assert all(0 < picture.sum() < full.sum() for picture in only.values())
    assert not torch.equal(only["hands"], only["face"])
    white = (only["face"] == 1).all(-1)
    assert torch.equal(full[white], only["face"][white]), "faces are drawn last"


def test_the_svd_style_is_dwpose_in_exchanged_colours():
    person = sure(golden_person())
    svd = draw_pose([person], (2160, 2160), Drawing("svd_v2"))
    assert torch.equal(svd.flip(-1), draw_pose([person], (2160, 2160), Drawing("dwpose")))


def test_the_line_from_neck_to_right_shoulder_tells_the_styles_apart():
    person = one_limb((1, 0.5, 0.25), (2, 0.25, 0.25))
    colours = {style: bytes_at(draw_pose([person], (256, 256), Drawing(style)), 0.375, 0.25) for style in STYLES}
    assert colours["openpose"] == colours["dwpose"] == [153, 0, 0]
    assert colours["body25"] == [153, 51, 0]
    red, green, blue = colours["svd_v2"]
    assert red == green == 0 < blue, "thinned by the smaller picture"


def test_svd_colours_follow_the_scores_and_the_others_do_not():
    sure_one, unsure = (one_limb((1, 0.5, 0.5), (2, 0.25, 0.5), score=score) for score in (1.0, 0.5))
    full, dim = (draw_pose([person], (2160, 2160), Drawing("svd_v2")) for person in (sure_one, unsure))
    assert bytes_at(full, 0.375, 0.5) == [0, 0, 153]
    assert bytes_at(dim, 0.375, 0.5) == [0, 0, int(int(255 * 0.25) * 0.6)]
    assert bytes_at(dim, 0.25, 0.5) == [0, 85, 127]
    for style in ("openpose", "dwpose", "body25"):
        assert torch.equal(*(draw_pose([person], (256, 256), Drawing(style)) for person in (sure_one, unsure)))


@pytest.mark.parametrize("style", STYLES)
def test_points_up_to_the_threshold_are_left_out(style):
    person = one_limb((1, 0.5, 0.5), (2, 0.25, 0.5), (3, 0.3, 0.8), score=0.4)
    assert draw_pose([person], (256, 256), Drawing(style, threshold=0.39)).sum() > 0
    assert draw_pose([person], (256, 256), Drawing(style, threshold=0.4)).sum() == 0


@pytest.mark.parametrize("style", STYLES)
def test_nobody_is_a_black_picture(style):
    pictures = draw_pose([nobody(64, 64), nobody(64, 64)], (64, 128), Drawing(style))
    assert pictures.shape == (2, 64, 128, 3)
    assert pictures.max() == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_clip_is_its_frames_one_by_one(style):
    person = golden_person()
    moved = dataclasses.replace(person, bodies=person.bodies * (0.8, 0.9, 1))
    clip = [person, nobody(*SIZE), moved]
    together = draw_pose(clip, SIZE, Drawing(style))
    assert torch.equal(together, torch.cat([draw_pose([people], SIZE, Drawing(style)) for people in clip]))
    assert together[1].max() == 0
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("style", STYLES)
def test_everyone_is_drawn(style):
    left = one_limb((2, 0.1, 0.2), (3, 0.1, 0.6), (4, 0.2, 0.8))
    right = one_limb((2, 0.8, 0.2), (3, 0.8, 0.6), (4, 0.9, 0.8))
    both = to_people(np.concatenate([left.bodies, right.bodies]), 256, 256)
    alone = [draw_pose([people], (256, 256), Drawing(style)) for people in (left, right)]
    assert torch.equal(draw_pose([both], (256, 256), Drawing(style)), alone[0] + alone[1])


@pytest.mark.parametrize("style", STYLES)
def test_points_outside_the_picture_are_no_trouble(style):
    far = one_limb((1, 0.5, 0.5), (2, -0.5, 1.5), (3, 1e12, -1e12), (4, 7.9, 7.9))
    inside = one_limb((1, 0.5, 0.5), (2, -0.5, 1.5))
    assert torch.equal(*(draw_pose([people], (256, 256), Drawing(style)) for people in (far, inside)))


def test_lines_that_follow_the_resolution_are_the_references_at_512_and_wider_above():
    person = one_limb((1, 0.5, 0.25), (2, 0.5, 0.75))
    fixed, following = ({side: draw_pose([person], (side, side), Drawing("dwpose", line_width=width)) for side in (512, 1024)}
                        for width in ("reference", "resolution"))  # fmt: skip
    assert torch.equal(fixed[512], following[512])
    count = [int((picture[1024][0, 512] > 0).any(-1).sum()) for picture in (fixed, following)]
    assert count == [9, 17], "half widths 4 and 8"


def test_widths_of_the_styles_that_follow_by_themselves_do_not_change():
    person = golden_person()
    for style in ("svd_v2", "body25"):
        pictures = [draw_pose([person], SIZE, Drawing(style, line_width=width)) for width in ("reference", "resolution")]
        assert torch.equal(*pictures)


def test_body25_puts_a_mid_hip_between_the_hips_and_feet_at_the_end():
    body = np.zeros((1, 18, 3))
    body[0, 8], body[0, 11] = (0.4, 0.5, 0.9), (0.6, 0.7, 0.5)
    body[0, 14] = 0.1, 0.2, 0.3
    feet = np.arange(18).reshape(1, 6, 3) / 18
    found = to_body25(to_people(body, 64, 64, feet=feet))
    assert found.shape == (1, 25, 3)
    np.testing.assert_allclose(found[0, 8], (0.5, 0.6, 0.5))
    np.testing.assert_array_equal(found[0, [9, 12, 15]], body[0, [8, 11, 14]])
    np.testing.assert_array_equal(found[0, 19:], feet[0])
    body[0, 11] = 0
    assert not to_body25(to_people(body, 64, 64))[0, 8].any(), "no mid-hip with one hip"


def test_body25_blends_joints_over_limbs():
    person = one_limb((1, 0.5, 0.25), (2, 0.25, 0.25))
    picture = draw_pose([person], (512, 512), Drawing("body25"))
    limb, joint = (153, 51, 0), (255, 85, 0)
    assert bytes_at(picture, 0.251, 0.25) == [round(0.4 * a + 0.6 * b) for a, b in zip(limb, joint, strict=True)]
    assert int((picture[0, :, 192] > 0).any(-1).sum()) == 9, "512 / 120 on each side"


def test_a_long_clip_needs_one_canvas_beside_its_pictures():
    clip = [golden_person()] * 12
    draw_pose(clip[:1], SIZE, Drawing("svd_v2"))
    tracemalloc.start()
    draw_pose(clip, SIZE, Drawing("svd_v2"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    canvas = 2160 * 3600 * 3
    assert canvas < peak < 1.2 * canvas


def test_a_narrow_strip_does_not_need_gigabytes():
    tracemalloc.start()
    picture = draw_pose([one_limb((1, 0.2, 0.5), (2, 0.8, 0.5))], (8, 2048), Drawing("svd_v2"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.max() > 0
    assert peak < 10e6
