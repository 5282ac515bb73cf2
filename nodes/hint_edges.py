"""Hints that are soft edges or straight lines, found by networks of controlnet-aux."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..preprocessors.aux_detector import NEEDS
from ..preprocessors.canvas import HINT_FOR
from ..preprocessors.hed import ThresholdFrom, hed, sketch
from ..preprocessors.lines import lines
from ..preprocessors.soft_edge import anyline, pidinet, teed
from .host.aux_detectors import detect_hints
from .host.controlnext_file import check_choice
from .host.hint_output import note_black, seeds_for, show
from .sockets import LINES_HINTS, hint_for_input, image_input, per_frame_input, preview_schema, resolution_input, seed_input

DETECTORS = ("pidinet", "teed", "anyline")
THRESHOLDS = get_args(ThresholdFrom)


class HED(io.ComfyNode):
    """`IMAGE` to soft edges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlHED",
            display_name="HED Hint (Soft Edges)",
            category=LINES_HINTS,
            description=f"Soft white edges on black, as CtrLoRA's hed condition was trained with. {NEEDS} ControlNetHED.pth in "
            "models/annotators.",
            search_aliases=["hed", "soft edge", "softedge", "edges", "preprocessor", "annotator"],
            advanced=["safe"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Boolean.Input(
                    "safe",
                    default=False,
                    optional=True,
                    tooltip="On: three levels of grey only, for ControlNets that were trained so. CtrLoRA was trained without.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Soft white edges on black, one for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, safe: bool = False) -> io.NodeOutput:
        return show(detect_hints(image, resolution, ("hed",), lambda frames, detector: hed(frames, resolution, detector, safe)))


class Sketch(io.ComfyNode):
    """`IMAGE` to a hand-drawn look."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlSketch",
            display_name="Sketch Hint (Scribble)",
            category=LINES_HINTS,
            description="Hand-drawn lines out of HED's soft edges, black on white as CtrLoRA's hedsketch condition was trained "
            f"with. {NEEDS} ControlNetHED.pth in models/annotators.",
            search_aliases=["hedsketch", "scribble", "sketch", "hed", "doodle", "preprocessor", "annotator"],
            advanced=["threshold_from", "seed", "per_frame"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Int.Input(
                    "threshold",
                    default=135,
                    min=0,
                    max=254,
                    tooltip="Edges above become lines; lower gives more lines. CtrLoRA was trained with 110 to 159.",
                ),
                io.Combo.Input(
                    "threshold_from",
                    options=list(THRESHOLDS),
                    default="fixed",
                    tooltip="fixed takes the value above. random draws one from 110 to 159 as CtrLoRA's training data did, and "
                    "again while the sketch is nearly empty.",
                ),
                seed_input("Of the random threshold; the same seed draws the same one."),
                hint_for_input(
                    "ctrlora is black on white. controlnext and plain are white on black, as scribble controls of other "
                    "families want it."
                ),
                per_frame_input(),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Lines, one drawing for each picture.")],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        resolution: int,
        threshold: int,
        threshold_from: str,
        seed: int,
        hint_for: str,
        per_frame: bool = False,
    ) -> io.NodeOutput:
        check_choice("threshold_from", threshold_from, THRESHOLDS)
        check_choice("hint_for", hint_for, HINT_FOR)

        def make(frames: Any, detector: Any, seeds: list[int]) -> Any:
            return sketch(frames, resolution, detector, threshold, threshold_from, seeds, hint_for)  # type: ignore[arg-type]

        return show(detect_hints(image, resolution, ("hed",), make, seeds_for(image, seed, per_frame)))


class SoftEdge(io.ComfyNode):
    """`IMAGE` to soft edges of other networks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlSoftEdge",
            display_name="Soft Edge Hint (PiDiNet, TEED)",
            category=LINES_HINTS,
            description=f"Soft white edges on black by PiDiNet, TEED or Anyline, for soft-edge controls. {NEEDS} "
            "table5_pidinet.pth or MTEED.pth in models/annotators.",
            search_aliases=[
                "softedge",
                "pidinet",
                "teed",
                "anyline",
                "mistoline",
                "soft edge",
                "edges",
                "line detector",
                "preprocessor",
                "annotator",
            ],
            advanced=["safe"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Combo.Input(
                    "detector",
                    options=list(DETECTORS),
                    default="pidinet",
                    tooltip="pidinet and teed find edges. anyline lays the fine dark lines of the picture over teed's edges, "
                    "for MistoLine.",
                ),
                io.Boolean.Input(
                    "safe",
                    default=False,
                    optional=True,
                    tooltip="On: three levels of grey only. anyline always has three levels of edges.",
                ),
            ],
            outputs=[io.Image.Output(display_name="hint", tooltip="Soft white edges on black, one for each picture.")],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, detector: str, safe: bool = False) -> io.NodeOutput:
        check_choice("detector", detector, DETECTORS)

        def make(frames: Any, network: Any) -> Any:
            if detector == "anyline":
                return anyline(frames, resolution, network)
            return (teed if detector == "teed" else pidinet)(frames, resolution, network, safe)

        return show(detect_hints(image, resolution, ("pidinet" if detector == "pidinet" else "teed",), make))


class Lines(io.ComfyNode):
    """`IMAGE` to straight lines."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlLines",
            display_name="Straight Lines Hint (MLSD)",
            category=LINES_HINTS,
            description="Straight lines of buildings and rooms, white on black and one pixel wide, as M-LSD finds them. "
            f"{NEEDS} mlsd_large_512_fp32.pth in models/annotators.",
            search_aliases=["mlsd", "m-lsd", "lines", "architecture", "straight lines", "preprocessor", "annotator"],
            inputs=[
                image_input(),
                resolution_input(),
                io.Float.Input(
                    "score_threshold",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How sure the network has to be of a line; lower gives more lines.",
                ),
                io.Float.Input(
                    "distance_threshold",
                    default=0.1,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Shorter lines are left out, in pixels of half the hint's size.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hint", tooltip="White lines on black, one hint for each picture; black where there are none."
                )
            ],
        )

    @classmethod
    def execute(cls, image: Any, resolution: int, score_threshold: float, distance_threshold: float) -> io.NodeOutput:
        def make(frames: Any, detector: Any) -> Any:
            return lines(frames, resolution, detector, score_threshold, distance_threshold)

        return show(note_black(detect_hints(image, resolution, ("mlsd",), make), "No straight line"))
