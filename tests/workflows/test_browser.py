"""The workflows in ComfyUI's real web page."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from node_search import search
from real_server import JOB_SECONDS, NAMES, SD15, SMALL, WORKFLOWS, api_workflow, cancel, wait

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-default-apps", "--metrics-recording-only", "--disable-dev-shm-usage",
]  # fmt: skip
IS_READY = """() => Boolean(document.querySelector('[data-testid=queue-button]')
    && window.LiteGraph?.registered_node_types['SaveImage'] && window.app?.graph)"""
# What a browser sends to the canvas when a file is dragged onto it.
DROP = """([text, name]) => {
    app.graph.clear();
    const files = new DataTransfer();
    files.items.add(new File([text], name, {type: 'application/json'}));
    const canvas = document.querySelector('#graph-canvas');
    for (const type of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(type, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""
MILLISECONDS = 60_000
# The number of nodes alone may be that of the workflow before.
OPENED = """wanted => JSON.stringify(app.graph.nodes.map(node => [Number(node.id), node.type]).sort((a, b) => a[0] - b[0]))
    === JSON.stringify(wanted)"""
# The element itself in newer pages; beside it is a menu.
RUN = "button[data-testid=queue-button], [data-testid=queue-button] button"
DEMO = "demo_controlnext"
STACK, TRAINER = "NextControlApplyStack", "NextControlTrainCtrLoRA"
HAS_NODES_2 = "app.extensionManager.setting.settings['Comfy.VueNodes.Enabled'].type === 'boolean'"
CANVAS, NODES_2 = "canvas", "Nodes 2.0"
PROMPT = "async () => JSON.stringify((await app.graphToPrompt()).output)"
# The library of the page, the second one since frontend 1.49.
SEARCH_BOX = ".node-lib-search-box input, .sidebar-content-container input[type=text]"
LEAVES = ".node-lib-node-container, .sidebar-content-container [role=treeitem]"
# Whether the nodes of the pack that the library lists are these; newer pages also search aliases, which finds more.
FOUND = """([selector, wanted, isMore]) => {
    const leaves = [...document.querySelectorAll(selector)].map(leaf => leaf.innerText.trim());
    const ours = Object.values(LiteGraph.registered_node_types).filter(type => type.comfyClass?.startsWith('NextControl'));
    const found = ours.map(type => type.title).filter(title => leaves.includes(title)).sort();
    return JSON.stringify(isMore ? wanted.filter(title => found.includes(title)) : found) === JSON.stringify(wanted);
}"""
HOSTILE = "it's <img src=x onerror='window.isBroken = true'> & more"
NAME = "it's &lt;b&gt; & more"  # as far as every system allows it for a file
# As a user does it: nodes onto an empty canvas, values changed, a link drawn.
CHECKED = """([file, folder]) => {
    app.graph.clear();
    const add = (type, position, values) => {
        const node = LiteGraph.createNode(type);
        node.pos = position;
        app.graph.add(node);
        for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value;
        return node;
    };
    add('NextControlInspectFile', [100, 100], {file});
    const check = add('NextControlCheckPairs', [500, 100], {});
    add('NextControlPairDataset', [100, 500], {folder, resolution: 64}).connect(0, check, 0);
}"""
SET = """values => {
    for (const widget of app.graph.nodes.flatMap(node => node.widgets ?? []))
        if (widget.name in values) widget.value = values[widget.name];
}"""
LOOK_AT = """type => {
    const [x, y] = app.graph.nodes.find(node => node.type === type).pos;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [700 - x, 300 - y];
    app.canvas.setDirty(true, true);
}"""
SELECTED = """type => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.selectNode(node);
}"""
# What a job has of all nodes, and a saved workflow of ours; ComfyUI's own keep what they say.
SAVED = """async () => JSON.stringify([(await app.graphToPrompt()).output, app.graph.serialize().nodes
    .filter(node => node.type.startsWith('NextControl')).map(node => [node.id, node.widgets_values])])"""
# Texts that cannot be edited and are seen, in the order of their nodes; over the canvas, or in the nodes of Nodes 2.0.
SHOWN = """() => [...document.querySelectorAll('textarea')]
    .filter(area => area.readOnly && area.getBoundingClientRect().height > 40)
    .map(area => area.value).sort()"""
SHOWS = f"wanted => JSON.stringify(({SHOWN})()) === JSON.stringify(wanted)"


@pytest.fixture(scope="module")
def page(server):
    chromium = os.environ.get("NEXTCONTROL_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium found: install it (Debian: apt-get install chromium) or set NEXTCONTROL_CHROMIUM")
    from playwright.sync_api import sync_playwright

    # For this module only: while it is open, no other test can run an event loop.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        for notice in ("vueNodesBannerDismissed", "comfy.vueNodesMigration.dismissed"):
            page.add_init_script(f"localStorage.setItem('{notice}', 'true')")
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.address)
        page.wait_for_function(IS_READY, polling=100, timeout=MILLISECONDS)
        page.locator(".p-blockui-mask").wait_for(state="detached", timeout=MILLISECONDS)
        yield page
        browser.close()


def drop(page, name: str) -> None:
    """Drag a workflow onto the canvas and wait until it is open."""
    text = (WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")
    # What an earlier test left open is not this one's fault.
    page.keyboard.press("Escape")
    page.errors.clear()
    page.wait_for_function("() => !document.querySelector('[role=dialog]')", polling=100, timeout=MILLISECONDS)
    page.evaluate(DROP, [text, f"{name}.json"])
    wanted = sorted([node["id"], node["type"]] for node in json.loads(text)["nodes"])
    page.wait_for_function(OPENED, arg=wanted, polling=100, timeout=MILLISECONDS)
    page.wait_for_timeout(500)


def set_widgets(page, values) -> None:
    """Change every widget of these names."""
    page.evaluate(SET, values)


def check_quiet(page) -> None:
    """No dialog (missing nodes, an error), no message in the corner, no error of the page itself."""
    assert [dialog.get_attribute("aria-labelledby") for dialog in page.query_selector_all("[role=dialog]")] == []
    assert [message.inner_text() for message in page.query_selector_all(".p-toast-message")] == []
    assert page.errors == []


def press_run(page, server):
    """Queue what is open with the page's own button; the history entry of its end."""
    with page.expect_response(lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST") as sent:
        page.locator(RUN).first.click()
    entry = wait(server, sent.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def kept(node):
    """Ours as a whole; of a core node the links, for newer ones have other values and titles."""
    if node["class_type"].startswith("NextControl"):
        return {**node, "_meta": {"title": node["_meta"]["title"]}}  # newer pages add the packs
    links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
    return {"class_type": node["class_type"], "inputs": links}


def show_nodes_as(page, mode: str) -> None:
    """Nodes as parts of the page ("Nodes 2.0") or on its canvas."""
    setting = "app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {})"
    page.evaluate(f"async () => {{ await {setting.format(json.dumps(mode == NODES_2))}; }}")


@pytest.fixture(params=[CANVAS, NODES_2])
def mode(request, page):
    if request.param == NODES_2 and page.evaluate(f"() => {HAS_NODES_2}") is False:
        pytest.skip("this page has no Nodes 2.0")
    show_nodes_as(page, request.param)
    yield request.param
    show_nodes_as(page, CANVAS)


@pytest.fixture
def hostile(server):
    """A model file and a folder below input/ that say something unfriendly of themselves; new ones, so that they are read."""
    from safetensors.torch import save_file
    from tiny_training import write_pairs

    path = server.base / "models" / "controlnext" / "hostile.safetensors"
    save_file({"x": torch.ones(1)}, path, {"title": HOSTILE, "version": "1"})
    folder = write_pairs(server.base / "input" / "hostile_pairs", 2)
    (folder / "target" / "000.png").replace(folder / "target" / f"{NAME}.png")
    return path.name, folder.name


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_and_is_what_the_api_twin_says(page, name):
    drop(page, name)
    check_quiet(page)
    assert page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    found, twin = json.loads(page.evaluate(PROMPT)), api_workflow(name)
    assert found.keys() == twin.keys()
    assert {key: kept(node) for key, node in found.items()} == {key: kept(node) for key, node in twin.items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_makes_of_a_workflow_is_accepted(page, server, name):
    drop(page, name)
    prompt = json.loads(page.evaluate(PROMPT))
    answer = server.post_json("/prompt", {"prompt": prompt})
    assert answer["node_errors"] == {}
    cancel(server, answer["prompt_id"])


def test_run_draws_the_result_on_the_canvas(page, server):
    drop(page, SD15)
    set_widgets(page, {"resolution": 128, "steps": 2})
    press_run(page, server)
    shown = """() => ['SaveImage', 'PreviewImage'].every(type =>
        app.graph.nodes.find(node => node.type === type).imgs?.[0]?.naturalWidth === 128)"""
    page.wait_for_function(shown, polling=100, timeout=int(JOB_SECONDS * 1000))
    check_quiet(page)


def test_a_demo_workflow_runs_from_the_template_browser(page, server):
    page.keyboard.press("Escape")
    page.evaluate("() => app.graph.clear()")
    page.errors.clear()
    page.click(".templates-tab-button")
    page.click("[role=dialog] >> text=/^nextcontrol$/i")
    card, cards = page.get_by_test_id(f"template-workflow-{DEMO}"), page.locator("[data-testid^=template-workflow-]")
    cards.first.wait_for(timeout=MILLISECONDS)
    for _ in range(len(NAMES)):
        if card.count():
            break
        cards.last.scroll_into_view_if_needed()  # frontend 1.27 shows more when the end is seen
        page.wait_for_timeout(200)
    card.click()
    count = len(json.loads((WORKFLOWS / f"{DEMO}.json").read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function(f"() => app.graph.nodes.length === {count}", polling=100, timeout=MILLISECONDS)
    page.wait_for_timeout(500)
    check_quiet(page)
    entry = press_run(page, server)
    saver = next(node for node, values in api_workflow(DEMO).items() if values["class_type"] == "SaveImage")
    assert len(entry["outputs"][saver]["images"]) == 1
    page.evaluate(LOOK_AT, "SaveImage")  # a picture is loaded when its node is drawn
    drawn = "app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]?.naturalWidth === 128"
    page.wait_for_function(f"() => {drawn}", polling=100, timeout=int(JOB_SECONDS * 1000))
    check_quiet(page)


def test_the_texts_of_nodes_stay_on_them_as_plain_text(page, server, hostile, mode):
    page.keyboard.press("Escape")
    page.errors.clear()
    page.evaluate(CHECKED, hostile)
    page.evaluate(LOOK_AT, "NextControlInspectFile")
    saved = page.evaluate(SAVED)
    texts = sorted(text for output in press_run(page, server)["outputs"].values() for text in output["text"])
    assert len(texts) == 2
    assert all("\n" in text for text in texts)
    assert [NAME in texts[0], HOSTILE in texts[1]] == [True, True]
    page.wait_for_function(SHOWS, arg=texts, polling=100, timeout=MILLISECONDS)
    press_run(page, server)  # the same again: not computed, but told
    page.wait_for_timeout(500)
    assert page.evaluate(SHOWN) == texts
    assert page.evaluate(SAVED) == saved
    assert page.evaluate("() => window.isBroken") is None
    check_quiet(page)


def test_the_texts_of_nodes_are_there_when_another_workflow_was_looked_at(page, server, hostile):
    page.evaluate(CHECKED, hostile)
    page.evaluate(LOOK_AT, "NextControlInspectFile")
    texts = sorted(text for output in press_run(page, server)["outputs"].values() for text in output["text"])
    # The new tab is the last one, and this one is before it.
    for command, shown in (("Comfy.NewBlankWorkflow", []), ("Workspace.PreviousOpenedWorkflow", texts)):
        page.evaluate(f"() => app.extensionManager.command.execute('{command}')")
        page.wait_for_function(SHOWS, arg=shown, polling=100, timeout=MILLISECONDS)


def test_the_readout_of_a_stack_appears_on_its_node(page, server, mode):
    drop(page, "stack_three_controls")
    # Another stack in each mode, so that its node is executed.
    set_widgets(page, {"resolution": 128, "steps": 2, "balance": "sum" if mode == CANVAS else "mean"})
    page.evaluate(LOOK_AT, STACK)
    saved = page.evaluate(SAVED)
    outputs = press_run(page, server)["outputs"].values()
    (records,) = (output["readout"] for output in outputs if "readout" in output)
    page.wait_for_function(SHOWS, arg=["\n".join(record["text"] for record in records)], polling=100, timeout=MILLISECONDS)
    if mode == CANVAS:
        pictures = f"app.graph.nodes.find(node => node.type === '{STACK}').imgs?.length"
        page.wait_for_function(f"() => {pictures} === {len(records)}", polling=100, timeout=MILLISECONDS)
    assert page.evaluate(SAVED) == saved
    check_quiet(page)


def test_the_line_of_a_training_is_on_its_node(page, server):
    drop(page, "train_ctrlora")
    set_widgets(page, {**SMALL, "steps": 2, "name": "page/line", "folder": "page_pairs"})
    page.evaluate(LOOK_AT, TRAINER)
    press_run(page, server)
    shown = f"app.graph.nodes.find(node => node.type === '{TRAINER}').widgets.at(-1).value.startsWith('step 2 of 2, loss')"
    page.wait_for_function(f"() => {shown}", polling=100, timeout=MILLISECONDS)
    check_quiet(page)


def test_the_node_library_finds_what_people_type_and_shows_the_help_with_its_picture(page, server):
    about = server.get_json("/object_info").items()
    names = {node_id: node["display_name"] or node_id for node_id, node in about}
    has_aliases = any(node.get("search_aliases") for _, node in about)
    page.keyboard.press("Escape")
    page.errors.clear()
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    box = page.locator(SEARCH_BOX)
    for words in ("train controlnet", "reference colors", "openpose", "edges"):
        box.fill(words)
        ours = {names[node_id] for node_id in search(words, names) if node_id.startswith("NextControl")}
        assert ours
        page.wait_for_function(FOUND, arg=[LEAVES, sorted(ours), has_aliases], polling=100, timeout=MILLISECONDS)
    open_help(page, "NextControlCanny", "Canny Hint (Edges)")
    page.locator(".node-help-content img").wait_for(timeout=MILLISECONDS)
    page.wait_for_function("() => document.querySelector('.node-help-content img').naturalWidth === 520", polling=100)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    check_quiet(page)


def open_help(page, node_id: str, name: str) -> None:
    """By the button in the library; newer pages have it at the node that is selected on the canvas."""
    leaf = page.locator(".node-lib-node-container", has_text=name)
    if leaf.count():
        leaf.hover()
        leaf.locator(".help-button").click()
    else:
        page.evaluate(SELECTED, node_id)
        page.evaluate(LOOK_AT, node_id)
        page.locator("[data-testid=info-button]").click()
