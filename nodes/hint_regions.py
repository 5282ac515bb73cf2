"""Hints that are coloured regions."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..preprocessors.boxes import CONFIDENCE, OVERLAP, Box, boxes
from ..preprocessors.segment import segment
from .host.annotators import annotator_stamp, check_annotator, list_annotators, make_annotated
from .host.hint_output import note_black, show
from .sockets import REGIONS_HINTS, image_input, preview_schema, resolution_input


class Segment(io.ComfyNode):
    """`IMAGE` to kinds of things."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlSegment",
            display_name="Segmentation Hint",
            category=REGIONS_HINTS,
            description="Paint everything in the colour that ADE20K has for its kind: sky, wall, tree, person and 146 more. "
            "Needs a segmentation network in models/annotators.",
            search_aliases=[
                "segmentation",
                "segment",
                "ade20k",
                "upernet",
                "segformer",
                "semantic segmentation",
                "mask",
                "preprocessor",
                "annotator",
            ],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "model",
                    options=list_annotators("segmentation"),
                    tooltip="The folder of a segmentation network in models/annotators, trained with the 150 classes of "
                    "ADE20K. A known one that is not there yet is listed too, and the error then has the command that "
                    "fetches it.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Flat colours, one of 150 for each kind of thing.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        """Name a missing or wrong network before anything runs."""
        return check_annotator(model, "segmentation")

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> object:
        """Run again when the network's files have changed."""
        return annotator_stamp(model)

    @classmethod
    def execute(cls, image: Any, resolution: int, model: str) -> io.NodeOutput:
        return show(make_annotated(image, resolution, model, "segmentation", segment))


class Boxes(io.ComfyNode):
    """`IMAGE` to boxes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlBoxes",
            display_name="Boxes Hint (Bounding Boxes)",
            category=REGIONS_HINTS,
            description="Find things and paint each as a filled box in the colour that CtrLoRA has for its kind: person, car, "
            "dog and 77 more. Needs a detection network in models/annotators.",
            search_aliases=["bbox", "bounding box", "object detection", "coco", "yolo", "preprocessor", "annotator"],
            advanced=["overlap"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "model",
                    options=list_annotators("detection"),
                    tooltip="The folder of a detection network in models/annotators, trained with COCO. A known one that is "
                    "not there yet is listed too, and the error then has the command that fetches it.",
                ),
                io.Float.Input(
                    "confidence",
                    default=CONFIDENCE,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Things that the network is less certain of are left out. CtrLoRA was trained with 0.4.",
                ),
                io.Float.Input(
                    "overlap",
                    default=OVERLAP,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of two boxes that share more than this part of their area, the more certain one stays. 1 keeps "
                    "all. CtrLoRA was trained with 0.5.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="Filled boxes on black, small ones over large ones."),
                io.String.Output(
                    display_name="boxes",
                    tooltip="JSON: a list for each picture, with label, score and the corners left, top, right, bottom of each "
                    "box in pixels of the hint.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        """Name a missing or wrong network before anything runs."""
        return check_annotator(model, "detection")

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> object:
        """Run again when the network's files have changed."""
        return annotator_stamp(model)

    @classmethod
    def execute(cls, image: Any, resolution: int, model: str, confidence: float, overlap: float) -> io.NodeOutput:
        found: list[list[Box]] = []
        hints = make_annotated(
            image,
            resolution,
            model,
            "detection",
            lambda frames, side, annotator: boxes(frames, side, annotator, confidence, overlap, found.append),
        )
        return show(note_black(hints, "Nothing found"), json.dumps([[_as_json(box) for box in picture] for picture in found]))


def _as_json(box: Box) -> dict[str, object]:
    return {"label": box.label, "score": round(box.score, 4), "box": [box.left, box.top, box.right, box.bottom]}
