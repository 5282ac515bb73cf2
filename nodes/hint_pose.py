"""Hints that are people: detecting them, and drawing what any node detected."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..preprocessors.pose_draw import LINE_WIDTHS, STYLES, Drawing
from .host.annotators import annotator_stamp, check_annotator, list_annotators
from .host.controlnext_file import check_choice
from .host.hint_output import show
from .host.pose import WHOLE_PICTURE, Detection, draw_keypoints, make_pose
from .sockets import POSE_HINTS, POSE_KEYPOINT, image_input, preview_schema, resolution_input

SCORES = ("real", "ones")


def drawing_inputs() -> list[Any]:
    """What both nodes ask about the drawing."""
    return [
        io.Combo.Input(
            "style",
            options=list(STYLES),
            default="openpose",
            tooltip="What the model was trained with. openpose: CtrLoRA, body only. dwpose: body, hands and face, as usual "
            "elsewhere. body25: OpenPose's 25 points, body and feet. svd_v2: ControlNeXt for SVD, red and blue exchanged.",
        ),
        io.Boolean.Input("body", default=True, tooltip="Draw bodies."),
        io.Boolean.Input("hands", default=True, tooltip="Draw hands, where they are known. Styles dwpose and svd_v2 only."),
        io.Boolean.Input("face", default=True, tooltip="Draw faces, where they are known. Styles dwpose and svd_v2 only."),
    ]


def line_inputs() -> list[Any]:
    """What both nodes ask about the drawing and few need."""
    return [
        io.Combo.Input(
            "line_width",
            options=list(LINE_WIDTHS),
            default="reference",
            optional=True,
            tooltip="reference draws lines of as many pixels as the published code, whatever the resolution. resolution draws "
            "these at 512 and wider ones on larger pictures. body25 and svd_v2 follow the resolution by themselves.",
        ),
        io.Float.Input(
            "point_threshold",
            default=0.3,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Points with a score up to this are not drawn. The published code uses 0.3.",
        ),
    ]


class Pose(io.ComfyNode):
    """`IMAGE` to people, drawn and as `POSE_KEYPOINT`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlPose",
            display_name="Pose Hint (OpenPose, DWPose)",
            category=POSE_HINTS,
            description="Find any number of people, then the key points of each, and draw them as the chosen model was trained "
            "with.",
            search_aliases=[
                "openpose",
                "dwpose",
                "vitpose",
                "skeleton",
                "keypoints",
                "pose estimation",
                "pose video",
                "preprocessor",
                "annotator",
            ],
            advanced=["line_width", "point_threshold", "person_threshold", "scores"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "detector",
                    options=[*list_annotators("detection"), WHOLE_PICTURE],
                    tooltip="Folder in models/annotators of a network that finds people. none takes the whole picture as one "
                    "person.",
                ),
                io.Combo.Input(
                    "model",
                    options=list_annotators("pose"),
                    tooltip="Folder in models/annotators of a ViTPose. One with 133 points finds hands and faces too.",
                ),
                *drawing_inputs(),
                *line_inputs(),
                io.Float.Input(
                    "person_threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Persons that the detector is less sure of are left out.",
                ),
                io.Int.Input(
                    "max_people",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="How many people of a picture to keep, the surest ones. 0 keeps all.",
                ),
                io.Combo.Input(
                    "scores",
                    options=list(SCORES),
                    default="real",
                    optional=True,
                    tooltip="real writes each point's score into keypoints. ones writes 1 for points over 0.3 and leaves the "
                    "others out, as the nodes of comfyui_controlnet_aux expect.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="The people of each picture on black; black where nobody is."),
                POSE_KEYPOINT.Output(
                    display_name="keypoints",
                    tooltip="Body, feet, face and hands of everyone, in pixels of image. For Draw Pose Hint, or any node with "
                    "this socket.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, detector: str, model: str) -> bool | str:
        problem = True if detector == WHOLE_PICTURE else check_annotator(detector, "detection")
        return problem if isinstance(problem, str) else check_annotator(model, "pose")

    @classmethod
    def fingerprint_inputs(cls, detector: str, model: str, **_: Any) -> object:
        return detector, annotator_stamp(detector), model, annotator_stamp(model)

    @classmethod
    def execute(
        cls,
        image: Any,
        resolution: int,
        detector: str,
        model: str,
        style: str,
        body: bool,
        hands: bool,
        face: bool,
        line_width: str = "reference",
        point_threshold: float = 0.3,
        person_threshold: float = 0.3,
        max_people: int = 0,
        scores: str = "real",
    ) -> io.NodeOutput:
        check_choice("style", style, tuple(STYLES))
        check_choice("line_width", line_width, LINE_WIDTHS)
        check_choice("scores", scores, SCORES)
        detection = Detection(detector, model, person_threshold, max_people)
        drawing = Drawing(style, body, hands, face, line_width, point_threshold)  # type: ignore[arg-type]
        return show(*make_pose(image, resolution, detection, drawing, scores == "ones"))


class DrawPose(io.ComfyNode):
    """`POSE_KEYPOINT` to pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlDrawPose",
            display_name="Draw Pose Hint (OpenPose, DWPose)",
            category=POSE_HINTS,
            description="Draw key points from any node as the chosen model was trained with. What was detected once can be "
            "drawn in every style.",
            search_aliases=["openpose", "dwpose", "skeleton", "render pose", "keypoints", "draw pose"],
            advanced=["line_width", "point_threshold", "width", "height"],
            inputs=[
                POSE_KEYPOINT.Input(
                    "keypoints",
                    tooltip="From Pose Hint, ComfyUI's SDPose nodes, comfyui_controlnet_aux or any node with this socket.",
                ),
                resolution_input(),
                *drawing_inputs(),
                *line_inputs(),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=8192,
                    optional=True,
                    tooltip="Of the canvas, in place of the one in keypoints, before it is brought to resolution. 0 keeps it.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=8192,
                    optional=True,
                    tooltip="Of the canvas, in place of the one in keypoints, before it is brought to resolution. 0 keeps it.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="One picture for each frame of keypoints.")],
        )

    @classmethod
    def execute(
        cls,
        keypoints: Any,
        resolution: int,
        style: str,
        body: bool,
        hands: bool,
        face: bool,
        line_width: str = "reference",
        point_threshold: float = 0.3,
        width: int = 0,
        height: int = 0,
    ) -> io.NodeOutput:
        check_choice("style", style, tuple(STYLES))
        check_choice("line_width", line_width, LINE_WIDTHS)
        drawing = Drawing(style, body, hands, face, line_width, point_threshold)  # type: ignore[arg-type]
        return show(draw_keypoints(keypoints, resolution, drawing, (height, width)))
