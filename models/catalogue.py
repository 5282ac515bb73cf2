"""What can be downloaded for the pack, from where, and into which folder. Data only: nothing here touches the network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A model that a node can use."""

    name: str
    """As the user writes it: the folder or file below `models/<folder>`."""
    repository: str
    """On the Hugging Face hub."""
    folder: str
    """Below ComfyUI's models/."""
    task: str
    """What needs it: a key of `preprocessors.annotator.TASKS`, or the capability's name."""
    licence: str
    megabytes: int
    """Rounded size of the weights, 0 where it is not known. For whole folders by their parameters, not checked, and some hold
    the weights twice."""
    files: tuple[str, ...] = ()
    """Paths inside the repository; one that ends with a slash is a folder. Empty for all of it."""
    place: str = ""
    """Below `folder`, where the repository's paths begin; for a whole repository it is the name."""
    size: int = 0
    """Bytes of a single file, where known."""
    sha256: str = ""
    """Of a single file, where known."""


AUX = "lllyasviel/Annotators"
"""Weights for controlnet-aux, in one repository without a licence of its own: each network's project has one."""
CMU = "CMU, non-commercial"
SEE_PAGE = "see its page"
PBIHAO, CTRLORA = "Pbihao/ControlNeXt", "xyfJASON/ctrlora"
KIJAI = "Kijai/ControlNeXt-SVD-V2-Comfy"
SDXL_FILES = ("controlnet.safetensors", "unet.safetensors")
SVD_V2 = ("ControlNeXt-SVD/v2/controlnet.bin", "ControlNeXt-SVD/v2/unet.bin")
SVD_FILES = ("controlnext-svd_v2-controlnet-fp16.safetensors", "controlnext-svd_v2-unet-fp16.safetensors")
SD15_TASKS = ("deepfashion_multiview", "deepfashion_caption", "deepfashoin_mask", "vidit_depth")
SDXL_NAMES = ("controlnext-sdxl-anime-canny", "controlnext-sdxl-vidit-depth")
BASE_CONDITIONS = ("canny_rank128", "seg_rank128")
"""Those whose names were seen; the others that the base was trained with are hed, depth, normal, openpose, hedsketch, bbox and
outpainting."""
NOVEL_CONDITIONS = tuple(
    f"{condition}_rank128_{run}"
    for condition, runs in {
        "dehazing": ("1kimgs_1ksteps", "100kimgs_100ksteps"),
        "densepose": ("1kimgs_1ksteps", "64kimgs_100ksteps"),
        "deraindrop": ("861imgs_5ksteps", "861imgs_100ksteps"),
        "desnow": ("1kimgs_1ksteps", "50kimgs_100ksteps"),
        "illusion": ("100kimgs_100ksteps",),
        "inpainting_brush": ("1kimgs_1ksteps", "100kimgs_100ksteps"),
        "lineart": ("1kimgs_1ksteps", "100kimgs_100ksteps"),
        "lineart_anime_color": ("100kimgs_100ksteps",),
        "palette": ("100kimgs_100ksteps", "520kimgs_800ksteps"),
    }.items()
    for run in runs
)


def _ctrlora(name: str, subfolder: str, task: str, megabytes: int) -> Download:
    file = f"ctrlora_sd15_basecn700k{name}.ckpt"
    return Download(file, CTRLORA, "ctrlora", task, "Apache-2.0", megabytes, (f"{subfolder}/{file}",))


CATALOGUE: tuple[Download, ...] = (
    Download(
        "Depth-Anything-V2-Small-hf", "depth-anything/Depth-Anything-V2-Small-hf", "annotators", "depth", "Apache-2.0", 99
    ),
    Download("dpt-large", "Intel/dpt-large", "annotators", "depth", "Apache-2.0", 1370),
    Download("dpt-hybrid-midas", "Intel/dpt-hybrid-midas", "annotators", "depth", "Apache-2.0", 490),
    Download("upernet-convnext-small", "openmmlab/upernet-convnext-small", "annotators", "segmentation", "MIT", 328),
    Download(
        "segformer-b0-finetuned-ade-512-512",
        "nvidia/segformer-b0-finetuned-ade-512-512",
        "annotators",
        "segmentation",
        "NVIDIA, non-commercial",
        15,
    ),
    Download("rtdetr_r18vd", "PekingU/rtdetr_r18vd", "annotators", "detection", "Apache-2.0", 81),
    Download("vitpose-base-simple", "usyd-community/vitpose-base-simple", "annotators", "pose", "Apache-2.0", 344),
    Download("rtdetr_r50vd_coco_o365", "PekingU/rtdetr_r50vd_coco_o365", "annotators", "detection", "Apache-2.0", 172),
    Download("yolos-tiny", "hustvl/yolos-tiny", "annotators", "detection", "Apache-2.0", 52),
    Download("ControlNetHED.pth", AUX, "annotators", "hed", "Apache-2.0", 29, ("ControlNetHED.pth",)),
    Download("table5_pidinet.pth", AUX, "annotators", "pidinet", SEE_PAGE, 3, ("table5_pidinet.pth",)),
    Download(
        "MTEED.pth",
        "TheMistoAI/MistoLine",
        "annotators",
        "teed",
        "MIT",
        1,
        ("Anyline/MTEED.pth",),
        size=248298,
        sha256="a3c2d8a8ce9422555c787160bd46362d761325a565333c0e3f6a53e0bae2abdb",
    ),
    Download("sk_model.pth", AUX, "annotators", "lineart", SEE_PAGE, 17, ("sk_model.pth",)),
    Download("sk_model2.pth", AUX, "annotators", "lineart_coarse", SEE_PAGE, 17, ("sk_model2.pth",)),
    Download("netG.pth", AUX, "annotators", "lineart_anime", SEE_PAGE, 218, ("netG.pth",)),
    Download("mlsd_large_512_fp32.pth", AUX, "annotators", "mlsd", "Apache-2.0", 7, ("mlsd_large_512_fp32.pth",)),
    Download("scannet.pt", AUX, "annotators", "normal_bae", SEE_PAGE, 291, ("scannet.pt",)),
    Download("body_pose_model.pth", AUX, "annotators", "openpose", CMU, 209, ("body_pose_model.pth",)),
    Download("hand_pose_model.pth", AUX, "annotators", "openpose_hand", CMU, 147, ("hand_pose_model.pth",)),
    Download("facenet.pth", AUX, "annotators", "openpose_face", CMU, 154, ("facenet.pth",)),
    *(
        Download(
            f"controlnext-sd15-{task}",
            PBIHAO,
            "controlnext",
            "ControlNeXt SD1.5",
            SEE_PAGE,
            71,
            (f"ControlNeXt-SD1.5/{task}/",),
        )
        for task in SD15_TASKS
    ),
    *(
        Download(name, f"Eugeoter/{name}", "controlnext", "ControlNeXt SDXL", SEE_PAGE, 0, SDXL_FILES, place=name)
        for name in SDXL_NAMES
    ),
    Download("controlnext-svd-v1", PBIHAO, "controlnext", "ControlNeXt SVD v1", SEE_PAGE, 3072, ("ControlNeXt-SVD/finetune/",)),
    Download("controlnext-svd-v2", PBIHAO, "controlnext", "ControlNeXt SVD v2", SEE_PAGE, 0, SVD_V2),
    Download("controlnext-svd-v2-fp16", KIJAI, "controlnext", "ControlNeXt SVD v2", SEE_PAGE, 3057, SVD_FILES),
    _ctrlora("", "ctrlora-basecn", "CtrLoRA base", 1542),
    *(_ctrlora(f"_{name}", "ctrlora-loras/base-conditions", "CtrLoRA", 148) for name in BASE_CONDITIONS),
    *(_ctrlora(f"_{name}", "ctrlora-loras/novel-conditions", "CtrLoRA", 148) for name in NOVEL_CONDITIONS),
)


def command_for(name: str, folder: str, task: str) -> str:
    """The sentence that tells how to get a model that is not there.

    Args:
        name: Of the model, known here or not.
        folder: Below ComfyUI's models/.
        task: As in `Download.task`, to name an alternative when `name` is unknown.

    Returns:
        "fetch it with 'hf download ...'."; for an unknown name, the command for a known model of the same task.
    """
    known = next((item for item in CATALOGUE if item.name == name and item.folder == folder), None)
    other = next((item for item in CATALOGUE if item.task == task), None)
    item = known or other
    if item is None:
        return f"put it into models/{folder}."
    place = "/".join(filter(None, ("models", item.folder, item.place or ("" if item.files else item.name))))
    command = f"hf download {item.repository}{_arguments(item.files)} --local-dir {place}"
    if known:
        return f"fetch it with '{command}' in ComfyUI's folder."
    return f"put it there, or choose '{item.name}' and fetch it with '{command}' in ComfyUI's folder."


def _arguments(files: tuple[str, ...]) -> str:
    """Paths for `hf download`, which takes folders as patterns and then nothing else."""
    if any(file.endswith("/") for file in files):
        return "".join(f' --include "{file}*"' for file in files)
    return "".join(f" {file}" for file in files)
