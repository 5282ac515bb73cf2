"""The demo's command line: what it runs, what it leaves out, and what it says of a wrong one."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
from demo_graph import BASE, CANNY, CONTROLS, DEMO_LOADER, MODULE, PALETTE, UNET, needs, nodes_of, on_demo_model, titled
from demo_job import read_workflow
from demo_plan import EXAMPLES, SHOWN, SUBJECTS, TRAINED, TRAINING, WORKFLOWS, plan
from demo_sheet import write_sheet
from host import Host
from PIL import Image
from provide import SetupError

import demo

NAMES = (*EXAMPLES, TRAINING)


def planned(*arguments):
    return plan(demo.parse(list(map(str, arguments))))


def values_of(graph, name):
    return {node["inputs"][name] for node in graph.values() if name in node["inputs"] and name != "image"}


@pytest.fixture
def files(tmp_path):
    """An empty file for each option that takes one."""
    paths = {}
    for option in ("checkpoint", *(control.option for control in CONTROLS)):
        paths[f"--{option.replace('_', '-')}"] = tmp_path / f"my_{option}.safetensors"
        paths[f"--{option.replace('_', '-')}"].touch()
    return paths


def given(files, *options):
    return [word for option in options for word in (option, files[option])]


def test_without_options_every_demo_workflow_runs_on_the_demo_model():
    jobs, left_out = planned()
    assert left_out == []
    *rows, training = jobs
    assert [len(row.graphs) for row in rows] == [len(EXAMPLES)] * len(SUBJECTS)
    for row, (thing, prompt) in zip(rows, SUBJECTS, strict=True):
        for graph in row.graphs:
            assert graph[titled(graph, "Thing to draw")]["inputs"]["text"] == thing
            assert graph[titled(graph, "Prompt")]["inputs"]["text"] == prompt
            assert nodes_of(graph, DEMO_LOADER)
    assert training.graphs == [read_workflow(WORKFLOWS / f"{TRAINING}.json")]
    assert len({job.folder for job in jobs}) == len(jobs)


def test_every_column_of_the_sheet_is_a_node_of_a_workflow():
    titles = {name: {node["_meta"]["title"] for node in read_workflow(WORKFLOWS / f"{name}.json").values()} for name in NAMES}
    assert set(SHOWN) <= set.union(*(titles[name] for name in EXAMPLES))
    assert set(TRAINED) <= titles[TRAINING]


def test_rows_do_not_share_a_graph():
    first, second = planned("--no-training")[0][:2]
    assert first.graphs[0] is not second.graphs[0]


def test_on_a_checkpoint_only_what_has_files_runs_and_the_rest_is_named(files):
    jobs, left_out = planned(*given(files, "--checkpoint", "--ctrlora-base", "--ctrlora-canny"))
    assert left_out == ["ControlNeXt (--controlnext)", "two conditions (--ctrlora-palette)"]
    *rows, training = jobs
    assert training.name == TRAINING
    for job in jobs:
        (graph,) = job.graphs
        assert nodes_of(graph, DEMO_LOADER) == []
        assert values_of(graph, "ckpt_name") == {"my_checkpoint.safetensors"}
        assert values_of(graph, "base_file") == {"ctrlora_base/my_ctrlora_base.safetensors"}
        assert values_of(graph, "width") == values_of(graph, "resolution") == {512}
        assert needs(graph) == []
    assert values_of(rows[0].graphs[0], "lora_file") == {"ctrlora_canny/my_ctrlora_canny.safetensors"}


@pytest.mark.parametrize(("more", "unet"), [((), "none"), (("--unet",), "unet/my_unet.safetensors")])
def test_a_controlnext_runs_with_its_own_unet_weights_or_alone(files, more, unet):
    jobs, left_out = planned(*given(files, "--checkpoint", "--controlnext", *more))
    assert len(left_out) == 3
    assert values_of(jobs[0].graphs[0], "unet_file") == {unet}
    assert values_of(jobs[0].graphs[0], "control_file") == {"controlnext/my_controlnext.safetensors"}


def test_a_checkpoint_without_any_control_is_refused(files):
    with pytest.raises(SetupError, match=r"^--checkpoint needs a control .* give --controlnext, or --ctrlora-base"):
        planned(*given(files, "--checkpoint"))


def test_picture_prompt_and_seed_take_the_place_of_the_workflows_own(tmp_path):
    picture = tmp_path / "mine.png"
    jobs, _ = planned("--image", picture, "--prompt", "owl", "--seed", 9)
    row, training = jobs
    for graph in (*row.graphs, *training.graphs):
        assert graph[titled(graph, "Source picture")]["inputs"] == {"image": "mine.png"}
        assert {node["inputs"]["seed"] for node in nodes_of(graph, "KSampler")} - {9} <= {1}
        assert sum(node["inputs"]["seed"] == 9 for node in nodes_of(graph, "KSampler")) == 2
    assert {graph[titled(graph, "Prompt")]["inputs"]["text"] for graph in row.graphs} == {"owl"}


def test_the_training_can_be_left_out():
    assert [job.name for job in planned("--no-training")[0]] == [job.name for job in planned()[0]][:-1]


def test_a_workflow_for_real_models_runs_on_the_demo_model():
    jobs, _ = planned("--workflow", WORKFLOWS / "stack_regional.json")
    (graph,) = jobs[0].graphs
    assert nodes_of(graph, "CheckpointLoaderSimple") == []
    assert values_of(graph, "base_file") == {BASE}
    assert values_of(graph, "lora_file") == {CANNY, PALETTE}
    assert values_of(graph, "resolution") == {128}
    assert values_of(graph, "cell") == {16}
    (graph,) = planned("--workflow", WORKFLOWS / "controlnext_sd15_canny.json")[0][0].graphs
    assert (values_of(graph, "control_file"), values_of(graph, "unet_file")) == ({MODULE}, {UNET})


@pytest.mark.parametrize("name", ["controlnext_svd_pose_video", "stack_three_controls"])
def test_a_workflow_that_needs_more_than_the_pack_brings_is_refused(name):
    with pytest.raises(SetupError, match=rf"^'{name}.json' has '.*', and nothing of that kind comes with the pack"):
        planned("--workflow", WORKFLOWS / f"{name}.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_workflow_stays_as_it_is(name):
    graph = read_workflow(WORKFLOWS / f"{name}.json")
    before = copy.deepcopy(graph)
    assert on_demo_model(graph) == before == graph


def test_a_workflow_runs_on_a_checkpoint_with_the_files_given(files):
    arguments = given(files, "--checkpoint", "--controlnext")
    jobs, _ = planned("--workflow", WORKFLOWS / "controlnext_sd15_canny.json", *arguments)
    (graph,) = jobs[0].graphs
    assert values_of(graph, "ckpt_name") == {"my_checkpoint.safetensors"}
    assert values_of(graph, "control_file") == {"controlnext/my_controlnext.safetensors"}
    assert values_of(graph, "unet_file") == {"none"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint", "gone.safetensors"], "demo.py: --checkpoint 'gone.safetensors' does not exist: give the path"),
        (["--ctrlora-base", "gone"], "demo.py: --ctrlora-base 'gone' does not exist"),
        (["--workflow", "gone.json"], "demo.py: 'gone.json' cannot be read"),
        (["--image", "gone.png"], "demo.py: --image 'gone.png' does not exist"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_anything_is_set_up(arguments, sentence, capsys, home):
    assert demo.main(arguments) == 1
    shown = capsys.readouterr()
    assert sentence in shown.out + shown.err
    assert (shown.out + shown.err).count("\n") == 1
    assert not home.exists()


def test_ctrl_c_ends_it_with_a_word(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "find_host", interrupt)
    assert demo.main([]) == 130
    shown = capsys.readouterr()
    assert "demo.py: stopped." in shown.out + shown.err


def host() -> Host:
    return Host(Path(sys.executable), Path(), "0")


def test_the_sheet_has_a_row_for_each_job_and_any_size_of_picture(tmp_path):
    for name, size in (("small", (128, 128)), ("wide", (640, 200))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    pictures = [("Small", str(tmp_path / "small.png")), ("Wide", str(tmp_path / "wide.png"))]
    rows = [{"title": "One", "pictures": pictures[:1]}, {"title": "Two", "pictures": pictures}]
    with Image.open(write_sheet(host(), tmp_path / "sheet.jpg", rows)) as one_more:
        assert one_more.width == 10 + 2 * 186
        assert one_more.height == 10 + 2 * 238
        red = sum(pixel[0] > 200 and pixel[1] < 60 for pixel in one_more.convert("RGB").get_flattened_data())
    assert pytest.approx(red, rel=0.02) == 2 * 176**2 + 176 * 55


def test_a_sheet_that_cannot_be_drawn_is_one_sentence(tmp_path):
    (tmp_path / "text.png").write_text(json.dumps("no picture"))
    with pytest.raises(SetupError, match=r"^The contact sheet cannot be drawn: .*text.png"):
        write_sheet(host(), tmp_path / "sheet.jpg", [{"title": "", "pictures": [("", str(tmp_path / "text.png"))]}])
