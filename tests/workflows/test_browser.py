"""The workflows in ComfyUI's real web page."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from node_search import search
from real_server import JOB_SECONDS, NAMES, SD15, WORKFLOWS, api_workflow, cancel, wait

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
OPENED = """wanted => JSON.stringify(app.graph.nodes.map(node => [node.id, node.type]).sort((a, b) => a[0] - b[0]))
    === JSON.stringify(wanted)"""
DEMO = "demo_controlnext"
# Whether the nodes of the pack that the library lists are these.
FOUND = """wanted => {
    const leaves = [...document.querySelectorAll('.node-lib-node-container')].map(leaf => leaf.innerText.trim());
    const ours = Object.values(LiteGraph.registered_node_types).filter(type => type.comfyClass?.startsWith('NextControl'));
    const found = ours.map(type => type.title).filter(title => leaves.includes(title)).sort();
    return JSON.stringify(found) === JSON.stringify(wanted);
}"""


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
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.address)
        page.wait_for_function(IS_READY, polling=100, timeout=MILLISECONDS)
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


def check_quiet(page) -> None:
    """No dialog (missing nodes, an error), no message in the corner, no error of the page itself."""
    assert [dialog.get_attribute("aria-labelledby") for dialog in page.query_selector_all("[role=dialog]")] == []
    assert [message.inner_text() for message in page.query_selector_all(".p-toast-message")] == []
    assert page.errors == []


def press_run(page, server):
    """Queue what is open with the page's own button; the history entry of its end."""
    with page.expect_response(lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST") as sent:
        page.click("[data-testid=queue-button] button")
    entry = wait(server, sent.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_and_is_what_the_api_twin_says(page, name):
    drop(page, name)
    check_quiet(page)
    assert page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")) == api_workflow(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_makes_of_a_workflow_is_accepted(page, server, name):
    drop(page, name)
    prompt = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    answer = server.post_json("/prompt", {"prompt": prompt})
    assert answer["node_errors"] == {}
    cancel(server, answer["prompt_id"])


def test_run_draws_the_result_on_the_canvas(page, server):
    drop(page, SD15)
    for node, name, value in (("NextControlCanny", "resolution", 128), ("KSampler", "steps", 2)):
        find = f"app.graph.nodes.find(node => node.type === '{node}').widgets.find(widget => widget.name === '{name}')"
        page.evaluate(f"() => {{ {find}.value = {value}; }}")
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
    page.click(f"[data-testid=template-workflow-{DEMO}]")
    count = len(json.loads((WORKFLOWS / f"{DEMO}.json").read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function(f"() => app.graph.nodes.length === {count}", polling=100, timeout=MILLISECONDS)
    page.wait_for_timeout(500)
    check_quiet(page)
    entry = press_run(page, server)
    saver = next(node for node, values in api_workflow(DEMO).items() if values["class_type"] == "SaveImage")
    assert len(entry["outputs"][saver]["images"]) == 1
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    drawn = "app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.[0]?.naturalWidth === 128"
    page.wait_for_function(f"() => {drawn}", polling=100, timeout=int(JOB_SECONDS * 1000))
    check_quiet(page)


def test_the_readout_of_a_stack_appears_on_its_node(page, server):
    drop(page, "stack_three_controls")
    for name, value in (("resolution", 128), ("steps", 2)):
        find = f"app.graph.nodes.flatMap(node => node.widgets ?? []).filter(widget => widget.name === '{name}')"
        page.evaluate(f"() => {{ for (const widget of {find}) widget.value = {value}; }}")
    # A picture is loaded when its node is drawn.
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    press_run(page, server)
    node = "app.graph.nodes.find(node => node.type === 'NextControlApplyStack')"
    page.wait_for_function(f"() => {node}.imgs?.length === 3", polling=100, timeout=int(JOB_SECONDS * 1000))
    texts = page.evaluate(f"() => {node}.widgets.map(widget => String(widget.value))")
    (text,) = (text for text in texts if "ControlNeXt" in text)
    assert "CtrLoRA" in text
    assert "%" in text
    check_quiet(page)


def test_the_node_library_finds_what_people_type_and_shows_the_help_with_its_picture(page, server):
    about = server.get_json("/object_info").items()
    names = {node_id: node["display_name"] or node_id for node_id, node in about}
    page.keyboard.press("Escape")
    page.errors.clear()
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    box = page.locator(".node-lib-search-box input")
    for words in ("train controlnet", "reference colors", "openpose", "edges"):
        box.fill(words)
        ours = {names[node_id] for node_id in search(words, names) if node_id.startswith("NextControl")}
        assert ours
        page.wait_for_function(FOUND, arg=sorted(ours), polling=100, timeout=MILLISECONDS)
    leaf = page.locator(".node-lib-node-container", has_text="Canny Hint (Edges)")
    leaf.hover()
    leaf.locator(".help-button").click()
    picture = page.locator(".node-help-content img")
    picture.wait_for(timeout=MILLISECONDS)
    page.wait_for_function("() => document.querySelector('.node-help-content img').naturalWidth === 520", polling=100)
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    check_quiet(page)
