"""CtrLoRA through the HTTP API of a real ComfyUI, applied by ComfyUI's own node."""

from __future__ import annotations

import pytest
from demo_checkpoint import CHECKPOINT, CTRLORA_BASE, CTRLORA_CANNY
from real_server import CTRLORA, failure, node_of, pixels, small_graph

BASE, LORA = (name.partition("/")[2] for name in (CTRLORA_BASE, CTRLORA_CANNY))
STYLE = "ctrlora_two_conditions"


@pytest.fixture(scope="module")
def full(server):
    """The picture with everything as the workflow has it."""
    picture = pixels(server, small_graph(CTRLORA))
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 5
    return picture


@pytest.mark.parametrize("change", [{"strength": 0.0}, {"lora_strength": 0.0}], ids=["control", "lora"])
def test_the_strength_of_control_and_lora_change_the_picture(server, full, change):
    assert abs(full - pixels(server, small_graph(CTRLORA, **change))).max() > 10


def test_the_same_seed_gives_the_same_picture_and_another_another(server, full):
    # What ComfyUI keeps is of the last prompt only: the first one is really run again after another.
    other = pixels(server, small_graph(CTRLORA, seed=2))
    assert abs(full - other).max() > 10
    assert (full == pixels(server, small_graph(CTRLORA))).all()


def style_graph(**changes):
    """The style recipe on the demo's checkpoint."""
    return small_graph(STYLE, ckpt_name=CHECKPOINT.partition("/")[2], **changes)


def test_two_conditions_on_one_base_run_and_both_count(server):
    both = pixels(server, style_graph())
    assert both.shape == (128, 128, 3)
    for strength in (0.85, 0.35):
        graph = style_graph()
        (applied,) = (node["inputs"] for node in graph.values() if node["inputs"].get("strength") == strength)
        applied["strength"] = 0.0
        assert abs(both - pixels(server, graph)).max() > 5, strength


def test_a_missing_vae_is_one_sentence(server):
    graph = small_graph(CTRLORA)
    del node_of(graph, "ControlNetApplyAdvanced")["vae"]
    node, text = failure(server, graph)
    assert node == "KSampler"
    assert f"'{BASE}' reads the hint through a VAE and none is connected" in text


def test_a_lora_in_the_place_of_the_base_is_one_sentence(server):
    node, text = failure(server, small_graph(CTRLORA, base_file=LORA))
    assert node == "NextControlLoadCtrLoRABase"
    assert f"'{LORA}' is a CtrLoRA LoRA" in text
    assert "'Load CtrLoRA'" in text


def test_a_base_in_the_place_of_a_lora_is_one_sentence(server):
    node, text = failure(server, small_graph(CTRLORA, lora_file=BASE))
    assert node == "NextControlLoadCtrLoRA"
    assert f"'{BASE}'" in text
    assert "CtrLoRA Base ControlNet" in text
    assert "'Load CtrLoRA Base'" in text
