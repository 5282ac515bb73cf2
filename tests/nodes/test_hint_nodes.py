"""The hint nodes that need no weights, as ComfyUI calls them: clips, cancel, masks and bad input."""

from __future__ import annotations

import logging
from itertools import pairwise

import comfy.model_management
import pytest
import torch
from hint_pictures import ASTRONAUT, noise_picture
from nextcontrol.nodes.host.progress import FRAMES_PER_CHUNK
from nextcontrol.preprocessors.table import PREPROCESSORS

NODES = {
    "NextControlCanny": "canny",
    "NextControlPalette": "palette",
    "NextControlPixel": "pixel",
    "NextControlGrayscale": "grayscale",
    "NextControlColorPrompt": "color_prompt",
    "NextControlBlur": "blur",
    "NextControlJpeg": "jpeg",
    "NextControlIllusion": "illusion",
    "NextControlShuffle": "shuffle",
    "NextControlInpaint": "inpaint",
    "NextControlOutpaint": "outpaint",
}
PER_FRAME = ("NextControlColorPrompt", "NextControlShuffle", "NextControlInpaint")
every_node = pytest.mark.parametrize("node_id", NODES)


@pytest.fixture
def run(pack_nodes, monkeypatch):
    """Calls a node with its defaults, and what differs from them; writing previews would take longer than the hints."""
    from nextcontrol.nodes.host import hint_output

    monkeypatch.setattr(hint_output.ui, "PreviewImage", len)

    def call(node_id: str, image: torch.Tensor, **changes):
        node = pack_nodes[node_id]
        arguments = {spec.id: spec.default for spec in node.GET_SCHEMA().inputs if getattr(spec, "default", None) is not None}
        if node_id == "NextControlColorPrompt":
            arguments["lines"] = torch.ones(1, *image.shape[1:])
        return node.execute(**{**arguments, "image": image, "resolution": 64, **changes}).result

    return call


@pytest.fixture
def clip() -> torch.Tensor:
    """Longer than two pieces."""
    return torch.cat([noise_picture(64, 64, seed) for seed in range(2 * FRAMES_PER_CHUNK + 3)])


def test_every_weightless_type_is_tested_here():
    assert sorted(NODES.values()) == sorted(name for name, row in PREPROCESSORS.items() if not row.task)


@every_node
def test_a_clip_in_pieces_is_the_clip_at_once(node_id, run, clip):
    (found, *_) = run(node_id, clip)
    options = {"mode": "pad"} if node_id == "NextControlOutpaint" else {}
    assert torch.equal(found, PREPROCESSORS[NODES[node_id]].make(clip, 64, **options))


@pytest.mark.parametrize("node_id", PER_FRAME)
def test_random_numbers_stay_through_a_clip_unless_asked_for(node_id, run):
    still = noise_picture(64, 64).expand(FRAMES_PER_CHUNK + 3, -1, -1, -1)
    (same, *_) = run(node_id, still, seed=4)
    (apart, *_) = run(node_id, still, seed=4, per_frame=True)
    assert all(torch.equal(frame, same[0]) for frame in same)
    assert torch.equal(apart[0], same[0])
    assert not any(torch.equal(a, b) for a, b in pairwise(apart))
    assert torch.equal(apart[-1], run(node_id, still[:1], seed=4 + FRAMES_PER_CHUNK + 2)[0][0])
    largest = 0xFFFFFFFFFFFFFFFF
    assert len(run(node_id, still, seed=largest, per_frame=True)[0]) == len(still)


def test_one_drawing_is_not_repeated_for_a_clip_and_several_stay_with_their_pictures(run, clip, monkeypatch):
    from nextcontrol.nodes import hint_colors

    make, seen = hint_colors.color_prompt, []
    monkeypatch.setattr(
        hint_colors,
        "color_prompt",
        lambda frames, side, lines, *more: seen.append(len(lines)) or make(frames, side, lines, *more),
    )
    (one,) = run("NextControlColorPrompt", clip, lines=clip[:1])
    assert seen == [1, 1, 1]
    (several,) = run("NextControlColorPrompt", clip, lines=clip[:1].expand(len(clip), -1, -1, -1))
    assert seen[3:] == [16, 16, 3]
    assert torch.equal(one, several)
    (own,) = run("NextControlColorPrompt", clip, lines=clip.flip(0))
    assert torch.equal(own[-1], run("NextControlColorPrompt", clip[-1:], lines=clip[:1])[0][0])


# The mask


@pytest.mark.parametrize("shape", ["rectangle", "brush"])
def test_the_mask_of_inpainting_is_the_hole(shape, run, clip):
    hints, mask = run("NextControlInpaint", clip.clamp(0.1), shape=shape, per_frame=True)
    assert mask.shape == hints.shape[:3]
    assert torch.equal(mask, (hints == 0).all(-1).float())


@pytest.mark.parametrize("mode", ["window", "pad"])
def test_the_mask_of_outpainting_is_the_black_part(mode, run):
    hints, mask = run("NextControlOutpaint", torch.ones(3, 80, 100, 3), mode=mode, keep_height=70, keep_width=40)
    assert mask.shape == hints.shape[:3]
    assert torch.equal(mask, (hints == 0).all(-1).float())
    assert 0.6 < mask.mean() < 0.8


def test_a_mask_of_ones_own_is_blackened_at_the_hints_size(run):
    own = torch.zeros(1, 256, 256)
    own[:, 64:128, :] = 0.6
    hints, mask = run("NextControlInpaint", ASTRONAUT.expand(2, -1, -1, -1), mask=own, resolution=128)
    assert mask.shape == (2, 128, 128)
    assert mask[:, 32:64].all()
    assert not mask[:, :32].any()
    assert not mask[:, 64:].any()
    assert torch.equal((hints == 0).all(-1).float() * mask, mask)
    assert not (hints[:, 64:] == 0).all()


def test_a_mask_for_each_picture_stays_with_it(run):
    own = torch.zeros(FRAMES_PER_CHUNK + 2, 64, 64)
    for index, hole in enumerate(own):
        hole[index] = 1
    hints, mask = run("NextControlInpaint", torch.ones(len(own), 64, 64, 3), mask=own)
    assert torch.equal(mask, own)
    assert torch.equal(hints[..., 0], 1 - own)


def test_an_empty_mask_is_named_in_the_log(run, caplog):
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        run("NextControlInpaint", torch.ones(1, 64, 64, 3), mask=torch.zeros(1, 64, 64))
    assert [record.message for record in caplog.records] == ["The mask is empty, so nothing is blackened."]


def test_grey_pictures_are_counted_once(run, caplog):
    grey = torch.full((FRAMES_PER_CHUNK + 4, 64, 64, 3), 0.4)
    batch = torch.cat([grey, noise_picture(64, 64)])
    with caplog.at_level(logging.WARNING, "nextcontrol"):
        (hints,) = run("NextControlColorPrompt", batch)
    assert [record.message for record in caplog.records] == ["20 of 21 pictures have no colours, so they give no dots."]
    assert (hints[:-1] == 1).all()
    assert not (hints[-1] == 1).all()


# Cancel


@every_node
def test_a_clip_of_300_frames_can_be_cancelled_in_the_middle(node_id, run, cancel_at):
    told = cancel_at(150, 300)
    clip = ASTRONAUT[:, :32, :32].expand(300, -1, -1, -1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(node_id, clip)
    assert 150 <= told[-1] < 150 + FRAMES_PER_CHUNK
    assert len(run(node_id, clip[:2])[0]) == 2


# Bad input


@pytest.mark.parametrize(
    ("node_id", "change", "sentence"),
    [
        ("NextControlCanny", {"low_threshold": 300}, r"^low_threshold \(300\) must be from 0 to 255"),
        ("NextControlCanny", {"high_threshold": -1}, r"^high_threshold \(-1\) must be from 0 to 255"),
        ("NextControlPalette", {"cell": 4}, r"^cell \(4\) must be from 8 to 512"),
        ("NextControlPixel", {"colors": 1}, r"^colors \(1\) must be from 2 to 256"),
        ("NextControlPixel", {"seed": -1}, r"^seed \(-1\) must be 0 or more"),
        ("NextControlBlur", {"kernel": 54}, r"^kernel \(54\) must be odd"),
        ("NextControlBlur", {"sigma": "wide"}, r"^sigma is 'wide' and must be one of fixed, kernel"),
        ("NextControlJpeg", {"quality": 0}, r"^quality \(0\) must be from 1 to 100"),
        ("NextControlIllusion", {"channel": "red"}, r"^channel is 'red' and must be one of blue, value"),
        ("NextControlShuffle", {"seed": -2}, r"^seed \(-2\) must be 0 or more"),
        ("NextControlInpaint", {"shape": "star"}, r"^shape is 'star' and must be one of brush, rectangle"),
        ("NextControlInpaint", {"mask": torch.ones(3, 64, 64)}, r"^mask has 3 frames and image has 2: give one, or as many"),
        ("NextControlInpaint", {"mask": torch.ones(1, 64, 96)}, r"^mask is 96x64 and image is 64x64: connect one made from"),
        ("NextControlInpaint", {"mask": torch.full((1, 64, 64), float("nan"))}, r"^mask has NaN or infinite values"),
        ("NextControlOutpaint", {"mode": "both"}, r"^mode is 'both' and must be one of window, pad"),
        ("NextControlOutpaint", {"keep_width": 5}, r"^keep_width \(5\) must be from 10 to 100"),
        ("NextControlColorPrompt", {"lines": torch.ones(3, 64, 64, 3)}, r"^lines has 3 frames and image has 2"),
        ("NextControlColorPrompt", {"lines": torch.ones(2, 64, 96, 3)}, r"^lines is 96x64 and image is 64x64"),
        ("NextControlColorPrompt", {"lines": torch.ones(1, 64, 64, 1)}, r"^lines has 1 channels \(grayscale\)"),
        ("NextControlColorPrompt", {"resolution": -8}, r"^resolution \(-8\) must be 0 or more"),
    ],
)
def test_parameters_that_cannot_be_are_one_sentence(node_id, change, sentence, run):
    with pytest.raises(ValueError, match=sentence) as error:
        run(node_id, noise_picture(64, 64).expand(2, -1, -1, -1), **change)
    assert "\n" not in str(error.value)
