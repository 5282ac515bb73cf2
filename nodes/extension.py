"""The pack's table of contents."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyControlNeXt
from .ctrlora import LoadCtrLoRA, LoadCtrLoRABase
from .hint_colors import ColorPrompt, Grayscale, Palette, Pixel
from .hint_damage import Blur, Illusion, Jpeg, Shuffle
from .hint_depth import Depth, Normal
from .hint_detectors import Lineart, LineartAnime, NormalBae, OpenPose
from .hint_edges import HED, Lines, Sketch, SoftEdge
from .hint_holes import Inpaint, Outpaint
from .hint_lines import Canny
from .hint_pose import DrawPose, Pose
from .hint_regions import Boxes, Segment
from .host.folders import register_folders
from .loaders import LoadControlNeXt, LoadDemoModel
from .pairs import CheckPairs, MakePairs, PairDatasetNode
from .pose_video import AlignPose, PoseVideoConditioning, VideoWindows
from .stack import ApplyControlStack, StackControl
from .tools import ConvertFile, InspectFile
from .trainer import TrainCtrLoRA
from .trainer_controlnext import TrainControlNeXt
from .video_decode import DecodeVideo

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadControlNeXt,
    ApplyControlNeXt,
    LoadCtrLoRABase,
    LoadCtrLoRA,
    LoadDemoModel,
    Canny,
    Depth,
    Normal,
    Segment,
    Boxes,
    Palette,
    Pixel,
    Grayscale,
    ColorPrompt,
    Blur,
    Jpeg,
    Illusion,
    Shuffle,
    Inpaint,
    Outpaint,
    HED,
    Sketch,
    SoftEdge,
    Lineart,
    LineartAnime,
    Lines,
    NormalBae,
    OpenPose,
    Pose,
    DrawPose,
    AlignPose,
    PoseVideoConditioning,
    VideoWindows,
    DecodeVideo,
    StackControl,
    ApplyControlStack,
    PairDatasetNode,
    MakePairs,
    CheckPairs,
    TrainCtrLoRA,
    TrainControlNeXt,
    InspectFile,
    ConvertFile,
)


class NextControlExtension(ComfyExtension):
    """What the host asks for at its start."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Register the model folders and return the nodes. The host never calls `on_load`, so it is done here."""
        register_folders()
        return list(NODES)
