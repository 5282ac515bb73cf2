/** What our nodes say, as plain text on them: in the classic canvas and in Nodes 2.0, on every page that the pack supports. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const OURS = "NextControl";
const NAME = "text";
const KIND = "NEXTCONTROL_TEXT";
const LINE = 13; // pixels, as the next two
const LETTER = 6;
const MARGIN = 20;
const PADDING = 10;
const LINES = { least: 3, most: 10 }; // the rest scrolls

const widgets = new WeakMap(); // of nodes that have said something

/** How many lines are seen without scrolling, so that a text of usual length is seen whole. */
function linesFor(node, text) {
    const letters = Math.floor((node.size[0] - MARGIN - PADDING) / LETTER);
    const count = text.split("\n").reduce((sum, line) => sum + Math.max(Math.ceil(line.length / letters), 1), 0);
    return Math.min(Math.max(count, LINES.least), LINES.most);
}

/** A read-only text below everything else. Neither a saved workflow nor a job knows of it. */
function addWidget(node, text) {
    const { widget } = app.widgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
    const height = linesFor(node, text) * LINE + PADDING;
    // Of a kind that Nodes 2.0 does not know, the element itself is shown there: its own text box misses changes in frontend 1.32.
    widget.type = KIND;
    widget.serialize = false;
    Object.assign(widget.options, { serialize: false, hideInPanel: true, getMinHeight: () => height + MARGIN });
    widget.element.readOnly = true;
    widget.element.dataset.captureWheel = "true"; // Nodes 2.0: scroll the text, do not zoom
    Object.assign(widget.element.style, { display: "block", width: "100%", minHeight: `${height}px` });
    const needed = node.computeSize();
    node.setSize([0, 1].map((side) => Math.max(node.size[side], needed[side])));
    widgets.set(node, widget);
    return widget;
}

function show(node, text) {
    const widget = widgets.get(node) ?? addWidget(node, text);
    widget.value = text;
    node.setDirtyCanvas(true, true);
}

/** What a node returned: a stack has a line for each control, which is empty until it has been sampled with. */
function showOutput(node, output) {
    const lines = output?.text ?? output?.readout?.map((record) => record.text);
    if (lines) show(node, lines.join("\n"));
}

/** By the id that a job gives, such as 5:3 for node 3 in the subgraph of node 5, or by the page's own, with the subgraph's id. */
function find(id) {
    const path = String(id).split(":");
    const last = path.pop();
    const root = app.rootGraph ?? app.graph;
    const inside = (graph, part) => root.subgraphs?.get(part) ?? graph?.getNodeById(part)?.subgraph;
    const node = path.reduce(inside, root)?.getNodeById(last);
    return node?.comfyClass?.startsWith(OURS) ? node : undefined;
}

app.registerExtension({
    name: "NextControl.Text",

    setup() {
        api.addEventListener("nextcontrol.text", ({ detail }) => {
            const node = find(detail.node);
            if (node) show(node, detail.text);
        });
    },

    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name.startsWith(OURS)) return;
        const onExecuted = nodeType.prototype.onExecuted;
        nodeType.prototype.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            showOutput(this, output);
        };
    },

    /** Another workflow was looked at meanwhile, or a finished job is opened. */
    onNodeOutputsUpdated(outputs) {
        for (const [id, output] of Object.entries(outputs ?? {})) {
            const node = find(id);
            if (node) showOutput(node, output);
        }
    },
});
