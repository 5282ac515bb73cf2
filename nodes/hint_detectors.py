"""Hints that are line drawings, normals or skeletons, found by networks of controlnet-aux."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..preprocessors.aux_detector import NEEDS
from ..preprocessors.canvas import HINT_FOR
from ..preprocessors.lineart import lineart, lineart_anime
from ..preprocessors.normal_bae import normal_bae
from ..preprocessors.openpose import openpose
from .host.aux_detectors import detect_hints
from .host.controlnext_file import check_choice
from .host.hint_output import note_black, show
from .sockets import DEPTH_HINTS, LINES_HINTS, POSE_HINTS, hint_for_input, image_input, preview_schema, resolution_input

DETAIL = ("fine", "coarse")
POLARITY = (
    "ctrlora is black on white. controlnext and plain are white on black, as line-art controls of other families want it."
)


class Lineart(io.ComfyNode):
    """`IMAGE` to a line drawing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlLineart",
            display_name="Lineart Hint",
            category=LINES_HINTS,
            description="A line drawing of a photograph, black on white as CtrLoRA's lineart condition was trained with. "
            f"{NEEDS} sk_model.pth or sk_model2.pth in models/annotators.",
            search_aliases=["lineart", "line art", "drawing", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "detail",
                    options=list(DETAIL),
                    default="fine",
                    tooltip="fine draws many thin lines, coarse fewer and thicker ones. CtrLoRA was trained with both.",
                ),
                hint_for_input(POLARITY),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Lines, one drawing for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, detail: str, hint_for: str) -> io.NodeOutput:
        check_choice("detail", detail, DETAIL)
        check_choice("hint_for", hint_for, HINT_FOR)

        def make(frames: Any, detector: Any) -> Any:
            return lineart(frames, resolution, detector, hint_for)  # type: ignore[arg-type]

        return show(detect_hints(image, resolution, ("lineart" if detail == "fine" else "lineart_coarse",), make))


class LineartAnime(io.ComfyNode):
    """`IMAGE` to a line drawing in the manner of anime."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlLineartAnime",
            display_name="Anime Lineart Hint",
            category=LINES_HINTS,
            description="A line drawing in the manner of anime, black on white as CtrLoRA's lineart_anime conditions were "
            f"trained with. {NEEDS} netG.pth in models/annotators.",
            search_aliases=["lineart anime", "anime line art", "drawing", "preprocessor", "annotator"],
            inputs=[image_input(), resolution_input(), hint_for_input(POLARITY)],
            outputs=[io.Image.Output(display_name="hint", tooltip="Lines, one drawing for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, hint_for: str) -> io.NodeOutput:
        check_choice("hint_for", hint_for, HINT_FOR)

        def make(frames: Any, detector: Any) -> Any:
            return lineart_anime(frames, resolution, detector, hint_for)  # type: ignore[arg-type]

        return show(detect_hints(image, resolution, ("lineart_anime",), make))


class NormalBae(io.ComfyNode):
    """`IMAGE` to surface normals."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlNormalBae",
            display_name="NormalBae Hint (Normal Map)",
            category=DEPTH_HINTS,
            description="Surface normals as ControlNet's normalbae controls read them; for CtrLoRA's normal condition use the "
            f"normals made from depth. {NEEDS} scannet.pt in models/annotators.",
            search_aliases=["normalbae", "normal", "bae", "preprocessor", "annotator"],
            inputs=[image_input(), resolution_input()],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="Normals as colours, x red, y green, z blue, for each picture.")
            ],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int) -> io.NodeOutput:
        return show(
            detect_hints(image, resolution, ("normal_bae",), lambda frames, detector: normal_bae(frames, resolution, detector))
        )


class OpenPose(io.ComfyNode):
    """`IMAGE` to skeletons."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlOpenPose",
            display_name="OpenPose Hint",
            category=POSE_HINTS,
            description="Skeletons of the people in a picture, found by OpenPose's own networks and drawn as CtrLoRA's "
            f"openpose condition was trained with. {NEEDS} body_pose_model.pth in models/annotators, non-commercial.",
            search_aliases=["openpose", "pose", "skeleton", "keypoints", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Boolean.Input(
                    "body", default=True, optional=True, tooltip="Draw the body. CtrLoRA was trained with the body alone."
                ),
                io.Boolean.Input(
                    "hands",
                    default=False,
                    optional=True,
                    tooltip="Find and draw hands too, with hand_pose_model.pth. Slow: four passes for each hand.",
                ),
                io.Boolean.Input(
                    "face", default=False, optional=True, tooltip="Find and draw the points of faces too, with facenet.pth."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hint",
                    tooltip="Coloured skeletons on black, one hint for each picture; black where nobody is found.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, body: bool = True, hands: bool = False, face: bool = False) -> io.NodeOutput:
        if not (body or hands or face):
            raise ValueError("body, hands and face are all off, so nothing would be drawn: switch one on.")
        names = ("openpose", *(("openpose_hand",) if hands else ()), *(("openpose_face",) if face else ()))

        def make(frames: Any, *networks: Any) -> Any:
            found = dict(zip(names, networks, strict=True))
            return openpose(frames, resolution, found["openpose"], found.get("openpose_hand"), found.get("openpose_face"), body)

        return show(note_black(detect_hints(image, resolution, names, make), "No person"))
