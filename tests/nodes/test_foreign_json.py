"""JSON that people and programs write into our inputs: whatever it holds, it is taken or refused in one short sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nextcontrol.nodes.host.make_hints import read_options
from nextcontrol.nodes.host.pose import draw_keypoints
from nextcontrol.nodes.host.train_script import read_job
from nextcontrol.preprocessors.pose_draw import Drawing

HUGE = 10**400
DEEP: Any = 7
for _ in range(900):
    DEEP = [DEEP]
ODD = [
    None,
    True,
    7,
    -1,
    HUGE,
    -HUGE,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x\ud800\n" * 30_000,
    [],
    [7],
    {},
    {"x": 1},
    DEEP,
]
TEXTS = [
    "[" * 200_000, '{"a":' * 200_000, "9" * 5000, "-", "{", "\x00", "\ud800", "7", "[]", "null",
    '"x"', "\ufeff{}x", "{'a': 1}", '{"a": 1, "a": 2}',
    json.dumps({"x\ud800\n" * 30_000: 1}), json.dumps({f"key {i}": 1 for i in range(20_000)}),
]  # fmt: skip


def check_sentence(action, *arguments: Any) -> None:
    """Done, or refused in one line."""
    text = ""
    try:
        action(*arguments)
    except (ValueError, FileNotFoundError) as error:
        text = f"not Unicode: {error!r}" if isinstance(error, UnicodeError) else str(error)
    assert not text.startswith("not Unicode")
    assert not text or text.isprintable(), text[:300]
    assert len(text) < 700, text[:300]


@pytest.mark.parametrize("hint_type", ["canny", "palette", "shuffle", "grayscale", "inpaint", "depth"])
def test_options_of_make_pairs(hint_type):
    for text in TEXTS:
        check_sentence(read_options, hint_type, text)
    for name in ("low_threshold", "cell", "kernel", "x"):
        for value in ODD:
            check_sentence(read_options, hint_type, json.dumps({name: value}))


WHOLE = {
    "method": "ctrlora", "checkpoint": "x.safetensors", "base": "b.ckpt", "name": "x",
    "dataset": {"folder": "x", "resolution": 64},
    "options": {}, "training": {"steps": 10}, "resume": True,
}  # fmt: skip
PLACES = [
    *((key,) for key in WHOLE),
    *(
        ("dataset", key)
        for key in ("folder", "folders", "resolution", "prompt_dropout", "bad_pairs", "shards", "hint_type", "x")
    ),
    *(("training", key) for key in ("steps", "learning_rate", "seed", "optimizer", "x")),
    ("clips",),
    ("dataset", "shards", "size"),
    ("options", "layout"),
    ("options", "x"),
]


@pytest.mark.parametrize("method", ["ctrlora", "ctrlora_base", "controlnet", "controlnext"])
def test_a_training_s_configuration(method):
    for text in TEXTS:
        check_sentence(read_job, text)
    for place in PLACES:
        for value in ODD:
            job = json.loads(json.dumps({**WHOLE, "method": method}))
            part = job
            for key in place[:-1]:
                part = part.setdefault(key, {})
            part[place[-1]] = value
            check_sentence(read_job, json.dumps(job))


def test_key_points_from_any_program():
    whole = {"people": [{"pose_keypoints_2d": [0.5, 0.5, 1.0] * 18}], "canvas_height": 64, "canvas_width": 64}
    places = [(), ("people",), ("people", 0), ("people", 0, "pose_keypoints_2d"), ("people", 0, "pose_keypoints_2d", 0),
              ("people", 0, "face_keypoints_2d"), ("canvas_height",), ("canvas_width",)]  # fmt: skip
    for place in places:
        for value in [*ODD, [[1, 2, 3]] * 18, ["1", "2", "x"], [1e30] * 54]:
            frame = json.loads(json.dumps(whole))
            part: Any = frame
            for key in place[:-1]:
                part = part[key]
            if place:
                part[place[-1]] = value
            check_sentence(draw_keypoints, [frame] if place else value, 64, Drawing())
