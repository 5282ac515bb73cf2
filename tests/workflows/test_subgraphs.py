"""The subgraph blueprints, by themselves and in ComfyUI's real web page; what else newer pages make of the pack's files."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import test_browser
from host_client import HttpError
from real_server import APP, NAMES, SUBGRAPHS, WEIGHTS, WORKFLOWS, api_workflow, cancel, wait
from test_browser import DROP, IS_READY, MILLISECONDS, check_quiet
from workflow_properties import NOTES, all_nodes, models_of

CANNY, TWO, TRAIN = "Canny by ControlNeXt", "Two CtrLoRA conditions", "Train a condition"
INPUT, OUTPUT = -10, -20
"""What links call the two ends of a subgraph."""
# With everything that a blueprint's node leaves open: a model, prompts, pictures and nodes that show what comes out.
WIRE = """node => {
    const add = (type, values = {}) => {
        const made = LiteGraph.createNode(type);
        app.graph.add(made);
        for (const [name, value] of Object.entries(values)) made.widgets.find(widget => widget.name === name).value = value;
        return made;
    };
    const link = (from, output, to, name) => from.connect(output, to, to.inputs.findIndex(input => input.name === name));
    const loader = add('CheckpointLoaderSimple', {ckpt_name: 'v1-5-pruned-emaonly-fp16.safetensors'});
    const text = add('CLIPTextEncode');
    link(loader, 1, text, 'clip');
    const picture = add('EmptyImage', {width: 128, height: 128});
    const sources = {MODEL: [loader, 0], CLIP: [loader, 1], VAE: [loader, 2], CONDITIONING: [text, 0], IMAGE: [picture, 0]};
    for (const input of node.inputs.filter(input => !input.widget)) link(...sources[input.type], node, input.name);
    const sampler = add('KSampler', {steps: 2});
    link(add('EmptyLatentImage', {width: 128, height: 128}), 0, sampler, 'latent_image');
    for (const [name, type] of [['model', 'MODEL'], ['positive', 'CONDITIONING'], ['negative', 'CONDITIONING']]) {
        const own = node.outputs.findIndex(output => output.name === name);
        link(...(own < 0 ? sources[type] : [node, own]), sampler, name);
    }
    const decoder = add('VAEDecode');
    link(sampler, 0, decoder, 'samples');
    link(loader, 2, decoder, 'vae');
    link(decoder, 0, add('PreviewImage'), 'images');
    node.outputs.forEach((output, slot) => {
        if (output.type === 'IMAGE') link(node, slot, add('PreviewImage'), 'images');
        if (output.type === 'LOSS_MAP') link(node, slot, add('LossGraphNode'), 'loss');
    });
}"""
NODE = "app.graph.nodes.find(node => node.title === name)"
IS_FREE = "() => !document.querySelector('.p-blockui-mask')"
HEAR_DOWNLOADS = """() => {
    window.downloads = [];
    HTMLAnchorElement.prototype.click = function () { downloads.push(this.href); };
}"""
FIRST_WITH_APPS = [1, 41]
"""The page's version."""
IS_OPEN = """wanted => {
    const {path, initialMode} = app.extensionManager.workflow.activeWorkflow ?? {};
    return JSON.stringify([app.graph.nodes.length, path, initialMode ?? null]) === JSON.stringify(wanted);
}"""
LABELS = ("First picture", "New picture, same edges", "Edges: low threshold", "Strength of the edges", "Seed")
CHANGES: dict[str, dict[str, Any]] = {
    # The stand-ins that run; those of SDXL are empty files.
    CANNY: {
        "control_file": "controlnext-sd15/controlnet.safetensors", "unet_file": "controlnext-sd15/unet.safetensors",
        "resolution": 128,
    },
    TWO: {},
    TRAIN: {},
}  # fmt: skip

page = test_browser.page


@pytest.fixture(params=sorted(path.stem for path in SUBGRAPHS.glob("*.json")))
def name(request) -> str:
    return request.param


@pytest.fixture
def blueprint(name: str) -> dict[str, Any]:
    return json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def definition(blueprint: dict[str, Any]) -> dict[str, Any]:
    (definition,) = blueprint["definitions"]["subgraphs"]
    return definition


def test_there_are_three():
    assert sorted(path.stem for path in SUBGRAPHS.iterdir()) == [CANNY, TRAIN, TWO]


def test_its_one_node_shows_what_the_subgraph_takes_and_gives(name, blueprint, definition):
    (node,) = blueprint["nodes"]
    assert node["type"] == definition["id"]
    assert node["title"] == definition["name"] == name
    assert definition["description"] == blueprint["extra"]["BlueprintDescription"]
    assert blueprint["extra"]["BlueprintSearchAliases"]
    for side in ("inputs", "outputs"):
        inner, outer = ([(s["name"], s.get("label"), s["type"]) for s in sockets[side]] for sockets in (definition, node))
        assert inner == outer
        assert len({label or name for name, label, _ in inner}) == len(inner)
    links = {link["id"]: link for link in definition["links"]}
    nodes = {inner["id"]: inner for inner in definition["nodes"]}
    for inner, outer in zip(definition["inputs"], node["inputs"], strict=True):
        targets = [nodes[links[link]["target_id"]]["inputs"][links[link]["target_slot"]] for link in inner["linkIds"]]
        assert targets
        assert all(("widget" in target) == ("widget" in outer) for target in targets)


def test_its_links_and_its_sockets_say_the_same(definition):
    nodes = {node["id"]: node for node in definition["nodes"]}
    assert len(nodes) == len(definition["nodes"])
    links = {link["id"]: link for link in definition["links"]}
    assert len(links) == len(definition["links"])
    for link in links.values():
        if link["origin_id"] == INPUT:
            assert link["id"] in definition["inputs"][link["origin_slot"]]["linkIds"]
        else:
            source = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in source["links"]
            assert source["type"] == link["type"]
        if link["target_id"] == OUTPUT:
            assert link["id"] in definition["outputs"][link["target_slot"]]["linkIds"]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert link["id"] == target["link"]
            assert target["type"] == link["type"]
    ends = [socket.get("linkIds") for side in ("inputs", "outputs") for socket in definition[side]]
    named = [link for node in nodes.values() for socket in node["outputs"] for link in socket["links"] or ()]
    assert {link for end in ends for link in end} | set(named) == set(links)
    assert definition["state"]["lastLinkId"] == max(links)
    assert definition["state"]["lastNodeId"] >= max(nodes)


def test_its_nodes_are_ours_or_comfyuis_and_stand_as_in_the_workflows(definition):
    known = {node["class_type"] for workflow in NAMES for node in api_workflow(workflow).values()}
    assert {node["type"] for node in definition["nodes"]} <= known
    assert not NOTES & {node["type"] for node in definition["nodes"]}
    files = [value for node in definition["nodes"] for value in node["widgets_values"] if str(value).endswith(WEIGHTS)]
    assert files
    assert len(set(files)) == len(files)
    boxes = [(*node["pos"], *node["size"]) for node in definition["nodes"]]
    for number, (ax, ay, aw, ah) in enumerate(boxes):
        for bx, by, bw, bh in boxes[:number]:
            assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by - 30 or by + bh <= ay - 30


@pytest.mark.browser
def test_it_is_taken_from_the_node_library_and_becomes_a_prompt_that_the_server_accepts(page, server, name, blueprint):
    put_on_canvas(page, server, name)
    page.evaluate(f"name => ({WIRE})({NODE})", name)
    for widget, value in CHANGES[name].items():
        page.evaluate(
            f"([name, widget, value]) => {{ {NODE}.widgets.find(one => one.name === widget).value = value; }}",
            [name, widget, value],
        )
    prompt = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    inside = sorted(node["type"] for node in blueprint["definitions"]["subgraphs"][0]["nodes"])
    assert sorted(node["class_type"] for number, node in prompt.items() if ":" in number) == inside
    answer = server.post_json("/prompt", {"prompt": prompt})
    assert answer["node_errors"] == {}
    if name == TRAIN:
        cancel(server, answer["prompt_id"])
    else:
        entry = wait(server, answer["prompt_id"])
        assert entry["status"]["status_str"] == "success", entry["status"]
        assert len(entry["outputs"]) >= 1
    check_quiet(page)


def put_on_canvas(page, server, name: str) -> None:
    """By a click in the node library; a page whose ComfyUI serves no blueprints takes the file itself."""
    page.wait_for_function(IS_FREE, polling=100, timeout=MILLISECONDS)
    page.keyboard.press("Escape")
    page.errors.clear()
    if listed := listed_by(server):
        assert name in listed
        page.evaluate("() => app.graph.clear()")
        page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
        page.locator(".sidebar-content-container input[type=text]").fill(name)
        page.locator("[role=treeitem]", has_text=name).last.click()
        # The node hangs at the pointer until it is put down.
        page.mouse.move(900, 500)
        page.mouse.click(900, 500)
        page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    else:
        page.evaluate(DROP, [(SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"), f"{name}.json"])
    page.wait_for_function(f"name => app.graph.nodes.length === 1 && {NODE}", arg=name, polling=100, timeout=MILLISECONDS)


def listed_by(server) -> set[str]:
    """The blueprints of the pack that a ComfyUI serves; nothing if it is older than they are."""
    try:
        entries = server.get_json("/global_subgraphs").values()
    except HttpError:
        return set()
    found = {entry["name"] for entry in entries if entry["info"]["node_pack"] == "custom_nodes.nextcontrol"}
    assert found == {path.stem for path in SUBGRAPHS.glob("*.json")}
    return found


def reload(page) -> None:
    """Have it forget what is open, and which files there are."""
    page.reload()
    for is_done in (IS_READY, IS_FREE):
        page.wait_for_function(is_done, polling=100, timeout=MILLISECONDS)
    page.errors.clear()


@pytest.mark.browser
def test_a_missing_file_is_offered_from_where_the_workflow_says(page, server):
    workflow = json.loads((WORKFLOWS / "controlnext_sdxl_canny.json").read_text(encoding="utf-8"))
    (wanted,) = (
        model for node in all_nodes(workflow) for model in models_of(node) if model["name"].endswith("/unet.safetensors")
    )
    file = server.base / "models" / wanted["directory"] / wanted["name"]
    file.rename(file.with_suffix(".hidden"))
    try:
        reload(page)
        page.evaluate(HEAR_DOWNLOADS)
        page.evaluate(DROP, [json.dumps(workflow), "workflow.json"])
        # Newer pages say in the corner that something is missing, and the rest in a panel.
        button = page.locator("button", has_text=re.compile(r"^\s*Download(?! all)"))
        page.locator("[data-testid=error-overlay-see-errors]").or_(button).first.wait_for(timeout=MILLISECONDS)
        if not button.count():
            page.click("[data-testid=error-overlay-see-errors]")
        button.wait_for(timeout=MILLISECONDS)
        assert page.get_by_text(wanted["name"]).count() >= 1
        button.click()
        # Older pages open the repository, where the file is.
        (opened,) = page.evaluate("() => window.downloads")
        assert wanted["url"] == opened or wanted["url"].startswith(f"{opened}/resolve/")
    finally:
        file.with_suffix(".hidden").rename(file)


@pytest.mark.browser
def test_the_app_opens_from_the_template_browser_in_the_view_that_a_page_has(page, server):
    reload(page)
    page.click(".templates-tab-button")
    page.click("[role=dialog] >> text=/^nextcontrol$/i")
    page.click(f"[data-testid='template-workflow-{APP}']")
    # An older page opens it as any other workflow.
    has_apps = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__.split('.').map(Number)") >= FIRST_WITH_APPS
    wanted = [18, f"workflows/{APP}.json", "app" if has_apps else None]
    page.wait_for_function(IS_OPEN, arg=wanted, polling=100, timeout=MILLISECONDS)
    for label in LABELS if has_apps else ():
        page.get_by_text(label, exact=True).wait_for(timeout=MILLISECONDS)
    prompt = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    for node in prompt.values():
        # Newer pages add the packs.
        node["_meta"] = {"title": node["_meta"]["title"]}
    assert prompt == api_workflow(APP.removesuffix(".app"))
    assert page.errors == []
