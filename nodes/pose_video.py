"""Nodes that let a clip of poses animate a picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.windows import BLENDS
from ..preprocessors.pose_align import MODES
from ..preprocessors.pose_draw import STYLES
from ..preprocessors.pose_track import CHOICES
from .host.controlnext_file import check_choice
from .host.hint_output import preview
from .host.pose_align import Alignment, align_clip
from .host.video_conditioning import CLIP_PREPROCESS, condition_video
from .host.windows import attach_windows
from .sockets import FROM_SVD, POSE_KEYPOINT, VIDEO, preview_schema, schema, seed_input


class AlignPose(io.ComfyNode):
    """Two `POSE_KEYPOINT` to hints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return preview_schema(
            node_id="NextControlAlignPose",
            display_name="Align Pose (Pose Video)",
            category=VIDEO,
            description="Bring the poses of a clip to the size and place of the person in a reference picture and draw them, "
            "the reference's own pose first: the hints for a ControlNeXt on SVD.",
            search_aliases=["pose alignment", "retarget pose", "dwpose video", "mimicmotion", "svd", "pose video", "dance"],
            advanced=["fill_gaps"],
            inputs=[
                POSE_KEYPOINT.Input(
                    "reference",
                    tooltip="Key points of the reference picture, from Pose Hint or any node with this socket. The largest "
                    "person counts.",
                ),
                POSE_KEYPOINT.Input("poses", tooltip="Key points of the clip's frames, from the same kind of node."),
                io.Int.Input("width", default=576, min=64, max=8192, step=8, tooltip="Of the hints and the clip, in pixels."),
                io.Int.Input("height", default=1024, min=64, max=8192, step=8, tooltip="Of the hints and the clip, in pixels."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="official",
                    tooltip="official is the published least-squares fit, for clips framed as the reference is. torso goes by "
                    "the torso and keeps the person on the canvas, for framing that differs and legs that are cut off. none "
                    "leaves the poses where they are.",
                ),
                io.Combo.Input(
                    "person",
                    options=list(CHOICES),
                    default="largest",
                    tooltip="Whom to follow through the clip: the largest person of the first frame with anyone, or the one of "
                    "person_index.",
                ),
                io.Int.Input(
                    "person_index",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="Number of the person in the first frame with so many, from 0, where person is index.",
                ),
                io.Float.Input(
                    "smooth",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Takes jitter out of the points; fast movements stay. 0 is off, 0.5 suits most detectors.",
                ),
                io.Int.Input(
                    "fill_gaps",
                    default=5,
                    min=0,
                    max=1000,
                    tooltip="Points that are missing for up to this many frames are interpolated; longer gaps stay. 0 is off.",
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="svd_v2",
                    tooltip="How poses are drawn. svd_v2 is what ControlNeXt for SVD was trained with.",
                ),
                io.Image.Input("image", optional=True, tooltip="The reference picture, for the preview only."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="hints",
                    tooltip="The reference's pose, then one hint for each frame of the clip. For Apply ControlNeXt and Pose "
                    "Video Conditioning.",
                ),
                POSE_KEYPOINT.Output(display_name="keypoints", tooltip="The same poses as key points."),
                io.Image.Output(display_name="preview", tooltip="Up to 8 of the hints over the reference picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        reference: Any,
        poses: Any,
        width: int,
        height: int,
        mode: str,
        person: str,
        person_index: int,
        smooth: float,
        fill_gaps: int,
        style: str,
        image: Any = None,
    ) -> io.NodeOutput:
        for name, value, options in (("mode", mode, MODES), ("person", person, CHOICES), ("style", style, tuple(STYLES))):
            check_choice(name, value, options)
        alignment = Alignment(mode, person, person_index, smooth, fill_gaps, style)  # type: ignore[arg-type]
        aligned = align_clip(reference, poses, (height, width), alignment, image)
        return io.NodeOutput(*aligned, ui=preview(aligned.preview))


class PoseVideoConditioning(io.ComfyNode):
    """A reference picture and hints to `CONDITIONING` and `LATENT`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlPoseVideoConditioning",
            display_name="Pose Video Conditioning (SVD)",
            category=VIDEO,
            description="Prompts and an empty latent for an SVD clip that begins with a reference picture, with the numbers "
            "that ControlNeXt for SVD was published with. The clip is as long and as large as its hints.",
            search_aliases=[
                "svd",
                "img2vid",
                "image to video",
                "SVD_img2vid_Conditioning",
                "pose video",
                "stable video diffusion",
            ],
            advanced=["clip_preprocess"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=FROM_SVD),
                io.Image.Input(
                    "init_image",
                    tooltip="The reference picture that is animated; the first of a batch. Cut in the centre to the shape of "
                    "the hints, then resized.",
                ),
                io.Vae.Input("vae", tooltip=FROM_SVD),
                io.Image.Input(
                    "hints", tooltip="From Align Pose, the reference's pose first: one for each frame, in the clip's size."
                ),
                io.Int.Input(
                    "motion_bucket_id",
                    default=128,
                    min=1,
                    max=1023,
                    tooltip="How much motion there is. The published code uses 128 throughout.",
                ),
                io.Int.Input(
                    "fps",
                    default=7,
                    min=1,
                    max=1024,
                    tooltip="Frames per second of the clip as SVD knows it. 7 is the published 6, as ComfyUI subtracts 1.",
                ),
                io.Float.Input(
                    "augmentation_level",
                    default=0.02,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Noise on the reference picture, as SVD was trained; half as strong as that of ComfyUI's own node, "
                    "as in the published code.",
                ),
                io.Combo.Input(
                    "clip_preprocess",
                    options=list(CLIP_PREPROCESS),
                    default="official",
                    tooltip="How CLIP sees the picture. official squashes the whole picture into a square, as the published "
                    "code does; host cuts a square from its centre.",
                ),
                seed_input("Of the noise on the reference picture."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For a sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For a sampler."),
                io.Latent.Output(display_name="latent", tooltip="Empty, one for each hint; for a sampler with denoise 1."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        init_image: Any,
        vae: Any,
        hints: Any,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
        clip_preprocess: str,
        seed: int,
    ) -> io.NodeOutput:
        check_choice("clip_preprocess", clip_preprocess, CLIP_PREPROCESS)
        numbers = (motion_bucket_id, fps, augmentation_level)
        return io.NodeOutput(*condition_video(clip_vision, init_image, vae, hints, numbers, clip_preprocess, seed))  # type: ignore[arg-type]


class VideoWindows(io.ComfyNode):
    """`MODEL` to a `MODEL` for long clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlVideoWindows",
            display_name="Video Windows (Long Video)",
            category=VIDEO,
            description="Let an SVD model make clips longer than it was trained for, in overlapping windows, as the published "
            "ControlNeXt does: in every window the first hint is the reference's. Memory is that of one window. Works with any "
            "sampler and with guidance that changes over the frames.",
            search_aliases=["context windows", "long video", "sliding window", "svd", "pose video", "stable video diffusion"],
            advanced=["blend"],
            inputs=[
                io.Model.Input("model", tooltip="An SVD model, before or after Apply ControlNeXt. It is not changed."),
                io.Int.Input(
                    "window",
                    default=14,
                    min=2,
                    max=1024,
                    tooltip="Frames in a window: 14 for SVD, 24 for the published ControlNeXt v2. A clip of up to this many "
                    "frames is one window.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=1023,
                    tooltip="Frames that a window shares with the one before it, less than window: 4 with 14, 6 with 24. More "
                    "is smoother and slower.",
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="average",
                    optional=True,
                    tooltip="How windows meet. average counts them alike, as the published code does; linear fades from one to "
                    "the next.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for Apply ControlNeXt.")],
        )

    @classmethod
    def execute(cls, model: Any, window: int, overlap: int, blend: str = "average") -> io.NodeOutput:
        check_choice("blend", blend, BLENDS)
        return io.NodeOutput(attach_windows(model, window, overlap, blend))  # type: ignore[arg-type]
