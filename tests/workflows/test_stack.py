"""The control stack through the HTTP API of a real ComfyUI: a ControlNeXt, a CtrLoRA and a native ControlNet together."""

from __future__ import annotations

import io
from urllib.parse import urlencode

import numpy as np
import pytest
from demo_checkpoint import CHECKPOINT
from PIL import Image
from real_server import failure, node_of, pixels, run, small_graph

THREE, REGIONAL = "stack_three_controls", "stack_regional"
COUNT = 3


def graph_of(name=THREE, **changes):
    return small_graph(name, ckpt_name=CHECKPOINT.partition("/")[2], **changes)


def of_kind(graph, kind):
    """The inputs of the nodes of a class, in the order of their numbers."""
    return [graph[node]["inputs"] for node in sorted(graph, key=int) if graph[node]["class_type"] == kind]


def stacked(graph):
    """The inputs of the controls, in the stack's order."""
    return of_kind(graph, "NextControlStackControl")


def heat_maps(server, graph):
    """Of each control, at the size of a picture of 128 pixels, grey."""
    (apply,) = (node for node in graph if graph[node]["class_type"] == "NextControlApplyStack")
    return maps_of(server, run(server, graph)["outputs"][apply])


def maps_of(server, output):
    contents = (server.fetch(f"/view?{urlencode(image)}") for image in output["images"])
    return [np.asarray(Image.open(io.BytesIO(content)).convert("L").resize((128, 128), Image.NEAREST)) for content in contents]


@pytest.fixture(scope="module")
def full(server):
    """The picture with everything as the workflow has it."""
    picture = pixels(server, graph_of())
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 5
    return picture


@pytest.mark.parametrize("position", range(COUNT))
def test_each_of_three_controls_changes_the_picture(server, full, position):
    graph = graph_of()
    stacked(graph)[position]["strength"] = 0.0
    assert abs(full - pixels(server, graph)).max() > 3


def test_a_control_that_is_off_needs_no_file(server, full):
    graph = graph_of(seed=5)
    stacked(graph)[2]["strength"] = 0.0
    expected = pixels(server, graph)
    # A picture that a network cannot read would end the run, if the branch were evaluated.
    node_of(graph, "NextControlDepth")["image"] = ["99", 0]
    graph["99"] = {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}
    assert (pixels(server, graph) == expected).all()
    stacked(graph)[2]["strength"] = 0.5
    assert failure(server, graph)[0] == "NextControlDepth"


def test_strength_zero_of_the_stack_is_the_bare_model(server):
    graph = graph_of(balance="cap")
    node_of(graph, "NextControlApplyStack")["strength"] = 0.0
    bare = graph_of()
    for name, source in (("model", "model"), ("positive", "positive"), ("negative", "negative")):
        node_of(bare, "KSampler")[name] = node_of(bare, "NextControlApplyStack")[source]
    assert (pixels(server, graph) == pixels(server, bare)).all()


def test_the_readout_is_in_the_history_and_its_maps_can_be_fetched(server, full):
    graph = graph_of(seed=11)
    entry = run(server, graph)
    (apply,) = (node for node in graph if graph[node]["class_type"] == "NextControlApplyStack")
    records = entry["outputs"][apply]["readout"]
    assert [record["position"] for record in records] == [1, 2, 3]
    assert [record["control"].partition(" ")[0] for record in records] == ["ControlNeXt", "CtrLoRA", "ControlNet"]
    for record in records:
        assert record["share"]
        assert all(share > 0 for share in record["share"].values())
        assert record["evaluations"] >= 1
    maps = maps_of(server, entry["outputs"][apply])
    assert len(maps) == COUNT
    assert all(heat.std() > 5 for heat in maps)


def test_regions_follow_their_masks(server):
    both = pixels(server, graph_of(REGIONAL))
    for position in (0, 1):
        graph = graph_of(REGIONAL)
        stacked(graph)[position]["strength"] = 0.0
        assert abs(both - pixels(server, graph)).max() > 3
    maps = heat_maps(server, graph_of(REGIONAL, seed=6))
    for heat, own, other in zip(maps, (slice(48), slice(80, 128)), (slice(80, 128), slice(48)), strict=True):
        assert heat[:, own].std() > 5
        assert heat[:, other].std() == 0


def test_a_stack_without_its_vae_is_one_sentence_with_the_position(server):
    graph = graph_of()
    del node_of(graph, "NextControlApplyStack")["vae"]
    node, text = failure(server, graph)
    assert node == "NextControlApplyStack"
    assert text.startswith("Control 2 of the stack (CtrLoRA ")
    assert "none is connected" in text


def test_the_chain_of_a_ctrlora_and_a_native_controlnet_runs(server):
    """The workflow without a stack, by ComfyUI's own nodes."""
    chain = "ctrlora_with_native_controlnet"
    both = pixels(server, graph_of(chain))
    for control in (0, 1):
        graph = graph_of(chain)
        of_kind(graph, "ControlNetApplyAdvanced")[control]["strength"] = 0.0
        assert abs(both - pixels(server, graph)).max() > 3
