"""Clips: which pairs are the frames of one, what a draw takes of them, and what is refused."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from nextcontrol.training.backbone import Share
from nextcontrol.training.clip_hands import fit_box, read_hands, weights_of
from nextcontrol.training.clip_source import ClipSource, drop_reference, held_out_clips
from nextcontrol.training.clips import ClipSettings, choose_frames, clip_of, even_frames, group_clips
from nextcontrol.training.config import TrainConfig
from nextcontrol.training.objective_edm import EdmObjective
from nextcontrol.training.pair import Pair
from PIL import Image
from tiny_clips import SMALL, Vision, encoded_clips, write_clip, write_clips
from tiny_training import Encoders, write_pairs
from torch.testing import assert_close

EDM = EdmObjective()
CONFIG = TrainConfig(steps=40, batch_size=2, accumulation_steps=2, validation_pairs=0, preview_every=0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "set", {"a": 12, "b/c": 9, "d": 10})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_frames_of_a_clip_are_those_of_one_sub_folder_by_number(folder):
    clips = {clip.name: clip for clip in encoded_clips(folder).clips}
    assert list(clips) == ["a", "b/c", "d"]
    names = [frame.item.name for frame in clips["a"].frames]
    assert names == [f"target/a/{number}.png" for number in range(12)]


@pytest.mark.parametrize(
    ("name", "clip"),
    [("target/a/1.png", "a"), ("images/b/c/1.png", "b/c"), ("target/1.png", ""), ("1.png", ""), ("walk/1.png", "walk")],
)
def test_the_folder_of_all_targets_is_no_clip(name, clip):
    assert clip_of(name) == clip


def test_frames_are_evenly_spaced_behind_a_random_reference():
    settings = ClipSettings(frames=4, interval=3)
    drawn = [choose_frames(20, settings, generator(seed)) for seed in range(300)]
    assert all(len(places) == 4 and min(places) >= 0 and max(places) < 20 for places in drawn)
    assert {b - a for places in drawn for a, b in itertools.pairwise(places[1:])} == {3}
    # Frame 0 lies before the first that is left: from 0 to 10 for a span of 9 frames.
    assert {places[1] - 3 for places in drawn} == set(range(11))
    assert {places[0] for places in drawn} == set(range(20))


def test_the_interval_is_cut_to_the_clip_or_drawn_from_2_to_7():
    assert choose_frames(4, ClipSettings(frames=4, interval=3), generator())[1:] == [1, 2, 3]

    def intervals(length):
        settings = ClipSettings(frames=4, interval=0)
        return {places[2] - places[1] for places in (choose_frames(length, settings, generator(i)) for i in range(200))}

    assert intervals(40) == {2, 3, 4, 5, 6, 7}
    assert intervals(14) == {2, 3, 4}
    assert intervals(5) == {1}
    assert even_frames(20, ClipSettings(frames=4, interval=3)) == [0, 3, 6, 9]
    assert even_frames(5, ClipSettings(frames=4, interval=3)) == [0, 1, 2, 3]


def test_a_batch_has_the_reference_and_its_pose_as_frame_0(folder):
    encoders, vision = Encoders(), Vision()
    encoded = encoded_clips(folder, encoders=encoders, vision=vision)
    clip = encoded.clips[0]
    batch = encoded.frames(clip, [7, 2, 4], 0)
    assert batch.hints.shape == (3, 3, 64, 64)
    assert_close(batch.hints[:, :, 0, 0] * 255, torch.tensor([[0.0, 140, 200], [0, 40, 200], [0, 80, 200]]))
    # The stand-in's latents: the colours times 2 minus 1; the dataset's scale is 0.5.
    red = torch.tensor([140.0, 40, 80]) / 255
    assert_close(batch.latents[:, 0, 0, 0], (red * 2 - 1) * 0.5)
    assert batch.context.shape == (1, 1, 16)
    reference = batch.extras["reference"]
    assert reference.shape == (1, 4, 8, 8)
    assert reference[0, 0].mean().item() == pytest.approx(140 / 255 * 2 - 1, abs=2e-3)
    assert batch.extras["numbers"].tolist() == [[6, 127, pytest.approx(0.02)]]
    assert "weights" not in batch.extras


def test_the_reference_has_noise_of_half_the_level_in_pixels(tmp_path):
    seen = []

    class Noted(Encoders):
        def encode(self, given, is_hint=None):
            seen.append(given)
            return super().encode(given, is_hint)

    write_clip(tmp_path / "set", "a", 3)
    encoded_clips(tmp_path / "set", ClipSettings(frames=3, augmentation=0.1), Noted())
    noise = torch.stack([pixels - pixels.median(-1, keepdim=True)[0].median(-2, keepdim=True)[0] for pixels in seen[3:]])
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert not torch.equal(noise[0], noise[1])


def test_red_and_blue_of_hints_are_exchanged_when_asked(folder):
    encoded = encoded_clips(folder, ClipSettings(frames=3, exchange_red_blue=True))
    batch = encoded.frames(encoded.clips[0], [3, 1, 2], 0)
    assert_close(batch.hints[0, :, 0, 0] * 255, torch.tensor([200.0, 60, 0]))


def test_a_mirrored_clip_is_mirrored_in_all_its_parts(tmp_path):
    write_clip(tmp_path / "set", "a", 3)
    for kind in ("target", "source"):
        path = tmp_path / "set" / kind / "a" / "1.png"
        picture = Image.open(path)
        picture.paste((255, 255, 255), (0, 0, 32, 64))
        picture.save(path)
    encoded = encoded_clips(tmp_path / "set", has_flip=True)
    plain, mirrored = (encoded.frames(encoded.clips[0], [1, 1, 2], side) for side in (0, 1))
    assert torch.equal(mirrored.hints, plain.hints.flip(-1))
    assert torch.equal(mirrored.latents, plain.latents.flip(-1))
    assert not torch.equal(mirrored.hints, plain.hints)
    assert_close(mirrored.extras["reference"], plain.extras["reference"].flip(-1), atol=0.02, rtol=0)


def test_what_is_drawn_depends_on_seed_step_and_place_alone(folder):
    encoded = encoded_clips(folder)
    source = ClipSource(encoded, encoded.clips, CONFIG, EDM)
    first, second = source.batches(5)
    assert first.latents.shape == (6, 4, 8, 8)
    assert first.timesteps.shape == (6,)
    assert first.context.shape == (2, 1, 16)
    assert first.extras["reference"].shape == (2, 4, 8, 8)
    noises = [*first.noise.split(3), *second.noise.split(3), source.batches(6)[0].noise[:3]]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(noises, 2))
    again = ClipSource(encoded, encoded.clips, CONFIG, EDM)
    for rank, expected in enumerate((first, second)):
        (own,) = again.batches(5, Share(rank, 2))
        assert all(torch.equal(a, b) for a, b in zip(own[:5], expected[:5], strict=True))
        assert all(torch.equal(own.extras[name], tensor) for name, tensor in expected.extras.items())
    (other,) = ClipSource(encoded, encoded.clips, TrainConfig(steps=40, batch_size=2, seed=1), EDM).batches(5)
    assert not torch.equal(other.noise, first.noise)


def test_the_frames_of_a_clip_have_one_level_and_an_update_covers_the_distribution(folder):
    encoded = encoded_clips(folder)
    source = ClipSource(encoded, encoded.clips, CONFIG, EDM)
    bounds = EDM.level_at(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    for step in range(5):
        levels = torch.cat([batch.timesteps for batch in source.batches(step)]).view(4, 3)
        assert (levels == levels[:, :1]).all()
        for place, level in enumerate(levels[:, 0]):
            assert bounds[place + 1] <= level <= bounds[place]


def test_the_reference_is_left_out_as_in_the_reference(folder):
    encoded = encoded_clips(folder)
    batch = encoded.frames(encoded.clips[0], [0, 1, 2], 0)

    def left(number):
        dropped = drop_reference(batch, number, 0.1)
        return bool(dropped.context.any()), bool(dropped.extras["reference"].any())

    assert left(0.05) == (False, True)
    assert left(0.15) == (False, False)
    assert left(0.25) == (True, False)
    assert left(0.35) == (True, True)
    source = ClipSource(encoded, encoded.clips, TrainConfig(steps=100), EDM)
    drawn = [drop for step in range(100) for drop in source.batches(step)]
    kinds = Counter((bool(batch.context.any()), bool(batch.extras["reference"].any())) for batch in drawn)
    assert kinds[True, True] == pytest.approx(70, abs=15)
    assert min(kinds.values()) > 3
    assert len(kinds) == 4
    assert all(batch.hints.any() for batch in drawn)


def test_held_out_clips_are_the_same_each_time(folder):
    encoded = encoded_clips(folder)
    one, two = (held_out_clips(encoded, encoded.clips[:2], 0, EDM) for _ in range(2))
    assert [batch.names for batch in one] == [("a",), ("b/c",)]
    assert one[0].timesteps.tolist() == [pytest.approx(0.70847, rel=1e-4)] * 3
    assert all(torch.equal(a.noise, b.noise) and torch.equal(a.latents, b.latents) for a, b in zip(one, two, strict=True))


def test_nothing_is_encoded_twice(folder):
    encoded_clips(folder)
    encoders, vision = Encoders(), Vision()
    encoded_clips(folder, encoders=encoders, vision=vision)
    assert (len(encoders.pictures), vision.count) == (0, 0)
    other = Vision(identity="other")
    encoded_clips(folder, encoders=encoders, vision=other)
    assert other.count == 12  # colours, the same in all clips


# Hands


def test_cells_in_boxes_of_hands_count_more_but_not_on_the_reference(tmp_path):
    write_clips(tmp_path / "set", {"a": 4, "b": 4})
    hands = {"1.png": [{"box": [0.5, 0.5, 0.625, 0.75], "score": 0.9}, {"box": [0, 0, 1, 1], "score": 0.5}]}
    hands["0.png"] = [{"box": [0, 0, 1, 1], "score": 0.9}]
    (tmp_path / "set" / "target" / "a" / "hands.json").write_text(json.dumps(hands))
    encoded = encoded_clips(tmp_path / "set")
    weights = encoded.frames(encoded.clips[0], [0, 1, 2], 0).extras["weights"]
    assert weights.shape == (3, 1, 8, 8)
    assert (weights[0] == 1).all()
    assert (weights[2] == 1).all()
    # 32 to 40 and 32 to 48 pixels with 10 more on each side: 22 to 50 and 22 to 58.
    across = torch.tensor([0, 0, 0.25, 1, 1, 1, 0.25, 0])
    down = torch.tensor([0, 0, 0.25, 1, 1, 1, 1, 0.25])
    assert_close(weights[1, 0], 1 + 3.2 * down[:, None] * across)
    assert (encoded.frames(encoded.clips[1], [0, 1, 2], 0).extras["weights"] == 1).all()


def test_boxes_follow_the_cut_and_the_mirror():
    # 200x100 to 64x64: cut to the middle, 100 pixels become 64.
    box = fit_box((0.25, 0.0, 0.5, 0.5), (200, 100), (64, 64))
    assert box == pytest.approx((-10, -10, 32 + 10, 32 + 10))
    plain, mirrored = (weights_of([(0, 0, 8, 16)], (64, 64), 2.0, is_mirrored) for is_mirrored in (False, True))
    assert plain[0, :2, 0].tolist() == [2, 2]
    assert plain.sum() == 66
    assert torch.equal(mirrored, plain.flip(-1))
    assert (weights_of([(-30, -30, -20, -20)], (64, 64), 2.0, is_mirrored=False) == 1).all()


def test_frames_are_in_order_whatever_digits_their_names_have():
    names = [f"target/a/{name}.png" for name in ("frame10", "frame9", "x²", "x2²2", "٣", "x" + "1" * 240)]
    clips = group_clips([Pair(name, Path(name), Path(name), "") for name in names])
    assert sorted(frame.name for frame in clips["a"]) == sorted(names)
    assert [frame.name for frame in clips["a"] if "frame" in frame.name] == ["target/a/frame9.png", "target/a/frame10.png"]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[1]", "null", '{"a": [{"box": [0, 0, 1, 1]}]}', '{"a": [{"box": [0, 0, 9, 1], "score": 1}]}', "[" * 100_000,
        '{"a": [{"box": [0, 0, 1, 1%s], "score": 1}]}' % ("0" * 400), '{"a": [{"box": [0, 0, 1, NaN], "score": 1}]}',
        '{"a": [{"box": "0101", "score": 1}]}', '{"a": [{"box": [0, 0, 1], "score": "\\ud800"}]}', '{"a": 5}', '{"a": [[]]}',
    ],
)  # fmt: skip
def test_a_damaged_file_of_hands_is_named(tmp_path, text):
    (tmp_path / "hands.json").write_text(text)
    with pytest.raises(ValueError, match=r"'hands\.json' of the clip 'walk' cannot be read") as caught:
        read_hands(tmp_path, "walk")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# What is refused


def test_pairs_without_sub_folders_are_no_clips(tmp_path):
    write_pairs(tmp_path / "set", count=4)
    with pytest.raises(ValueError, match="'set' holds 4 pairs of pictures and no clips, and SVD is trained on clips: put"):
        encoded_clips(tmp_path / "set")


def test_clips_that_are_all_too_short_are_refused_with_the_longest(tmp_path):
    write_clips(tmp_path / "set", {"a": 2, "b": 5})
    with pytest.raises(ValueError, match="has 2 clips and none of 14 frames or more, the longest is 'b' with 5"):
        encoded_clips(tmp_path / "set", ClipSettings())


def test_a_short_clip_a_mixed_one_and_lost_pairs_are_named_or_skipped(tmp_path, caplog):
    folder = write_clips(tmp_path / "set", {"a": 2, "b": 5, "c": 2})
    for kind in ("target", "source"):
        Image.new("RGB", (128, 64)).save(folder / kind / "c" / "9.png")
        Image.new("RGB", (64, 64)).save(folder / kind / "lost.png")
    with pytest.raises(ValueError, match="'a' has 2 frames and 3 are asked for") as caught:
        encoded_clips(folder, has_buckets=True, resolution=256)
    assert "'c' has frames of several shapes; 1 pair lies in no sub-folder" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        encoded = encoded_clips(folder, has_buckets=True, resolution=256, bad_pairs="skip")
    assert [clip.name for clip in encoded.clips] == ["b"]
    assert "Left out: 'a' has 2 frames" in caplog.text


def test_a_clip_too_short_without_its_unreadable_frames_is_left_out(tmp_path):
    folder = write_clips(tmp_path / "set", {"a": 3, "b": 3})

    def damage(name):
        """A picture whose header alone can be read."""
        path = folder / "target" / name / "1.png"
        path.unlink()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path.with_suffix(".jpg"))
        path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:2000])

    damage("a")
    encoded = encoded_clips(folder, bad_pairs="skip")
    assert [clip.name for clip in encoded.clips] == ["b"]
    damage("b")
    with pytest.raises(ValueError, match="'set' has no clip of 3 readable frames"):
        encoded_clips(folder, bad_pairs="skip")


def test_settings_that_contradict_are_refused_all_at_once():
    with pytest.raises(ValueError, match=r"frames \(1\) must be 2 or more; interval \(-1\) must be 0 or more; dropout \(0.4\)"):
        ClipSettings(frames=1, interval=-1, dropout=0.4)
    with pytest.raises(ValueError, match=r"frame is no setting of clips; frames \('9'\) must be of the type int"):
        ClipSettings.from_values({"frame": 2, "frames": "9"})
    assert ClipSettings.from_values({"frames": 21, "augmentation": 0}) == ClipSettings(frames=21, augmentation=0.0)


def test_group_clips_keeps_the_pairs():
    assert SMALL.frames == 3
    assert group_clips([]) == {}
