"""What the user and shared workflows see of the nodes: ids, inputs, texts, help pages and translations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from texts import texts_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PICTURES = DOCS / "pictures"
LANGUAGES = ("en", "zh")

# The public contract: id, inputs in order, optional ones marked with a star, defaults behind a sign; then the outputs.
# Once released a row only ever grows, at the end of its inputs, by optional ones.
CONTRACT = {
    "NextControlLoadControlNeXt": (
        "control_file:COMBO unet_file:COMBO variant:COMBO=auto unet_weights:COMBO=auto *stem_padding:COMBO=auto",
        "controlnext:CONTROLNEXT",
    ),
    "NextControlApplyControlNeXt": (
        (
            "model:MODEL controlnext:CONTROLNEXT image:IMAGE "
            "strength:FLOAT=1.0 start_percent:FLOAT=0.0 end_percent:FLOAT=1.0 *mask:MASK *uncond:COMBO=auto"
        ),
        "model:MODEL",
    ),
    "NextControlLoadCtrLoRABase": (
        "base_file:COMBO *embedded_lora:BOOLEAN=False *cache_megabytes:INT=1024",
        "base:CTRLORA_BASE",
    ),
    "NextControlLoadCtrLoRA": (
        ("base:CTRLORA_BASE lora_file:COMBO lora_strength:FLOAT=1.0 *condition:STRING= *posterior:COMBO=mode *seed:INT=0"),
        "control_net:CONTROL_NET",
    ),
    "NextControlLoadDemoModel": ("", "model:MODEL clip:CLIP vae:VAE"),
    "NextControlCanny": (
        "image:IMAGE resolution:INT=512 low_threshold:INT=100 high_threshold:INT=200 *thresholds:COMBO=fixed",
        "hint:IMAGE",
    ),
    "NextControlPalette": ("image:IMAGE resolution:INT=512 *cell:INT=64", "hint:IMAGE"),
    "NextControlPixel": ("image:IMAGE resolution:INT=512 scale:INT=6 colors:INT=12 seed:INT=0", "hint:IMAGE"),
    "NextControlGrayscale": ("image:IMAGE resolution:INT=512", "hint:IMAGE"),
    "NextControlColorPrompt": (
        "image:IMAGE resolution:INT=512 lines:IMAGE seed:INT=0 *per_frame:BOOLEAN=False",
        "hint:IMAGE",
    ),
    "NextControlBlur": ("image:IMAGE resolution:INT=512 kernel:INT=55 *sigma:COMBO=fixed", "hint:IMAGE"),
    "NextControlJpeg": ("image:IMAGE resolution:INT=512 quality:INT=20", "hint:IMAGE"),
    "NextControlIllusion": ("image:IMAGE resolution:INT=512 channel:COMBO=blue", "hint:IMAGE"),
    "NextControlShuffle": ("image:IMAGE resolution:INT=512 seed:INT=0 *per_frame:BOOLEAN=False", "hint:IMAGE"),
    "NextControlInpaint": (
        "image:IMAGE resolution:INT=512 shape:COMBO=brush seed:INT=0 *mask:MASK *per_frame:BOOLEAN=False",
        "hint:IMAGE mask:MASK",
    ),
    "NextControlOutpaint": (
        "image:IMAGE resolution:INT=512 mode:COMBO=pad keep_height:INT=50 keep_width:INT=50",
        "hint:IMAGE mask:MASK",
    ),
    "NextControlDepth": (
        "image:IMAGE resolution:INT=512 model:COMBO hint_for:COMBO=ctrlora *invert:BOOLEAN=False",
        "hint:IMAGE",
    ),
    "NextControlNormal": (
        "image:IMAGE resolution:INT=512 model:COMBO background:FLOAT=0.02 strength:FLOAT=1.0 *depth:IMAGE",
        "hint:IMAGE",
    ),
    "NextControlSegment": ("image:IMAGE resolution:INT=512 model:COMBO", "hint:IMAGE"),
    "NextControlBoxes": (
        "image:IMAGE resolution:INT=512 model:COMBO confidence:FLOAT=0.4 overlap:FLOAT=0.5",
        "hint:IMAGE boxes:STRING",
    ),
    "NextControlHED": ("image:IMAGE resolution:INT=512 *safe:BOOLEAN=False", "hint:IMAGE"),
    "NextControlSketch": (
        (
            "image:IMAGE resolution:INT=512 threshold:INT=135 threshold_from:COMBO=fixed seed:INT=0 hint_for:COMBO=ctrlora "
            "*per_frame:BOOLEAN=False"
        ),
        "hint:IMAGE",
    ),
    "NextControlSoftEdge": ("image:IMAGE resolution:INT=512 detector:COMBO=pidinet *safe:BOOLEAN=False", "hint:IMAGE"),
    "NextControlLineart": ("image:IMAGE resolution:INT=512 detail:COMBO=fine hint_for:COMBO=ctrlora", "hint:IMAGE"),
    "NextControlLineartAnime": ("image:IMAGE resolution:INT=512 hint_for:COMBO=ctrlora", "hint:IMAGE"),
    "NextControlLines": (
        "image:IMAGE resolution:INT=512 score_threshold:FLOAT=0.1 distance_threshold:FLOAT=0.1",
        "hint:IMAGE",
    ),
    "NextControlNormalBae": ("image:IMAGE resolution:INT=512", "hint:IMAGE"),
    "NextControlOpenPose": (
        "image:IMAGE resolution:INT=512 *body:BOOLEAN=True *hands:BOOLEAN=False *face:BOOLEAN=False",
        "hint:IMAGE",
    ),
    "NextControlPose": (
        (
            "image:IMAGE resolution:INT=512 detector:COMBO model:COMBO style:COMBO=openpose "
            "body:BOOLEAN=True hands:BOOLEAN=True face:BOOLEAN=True *line_width:COMBO=reference *point_threshold:FLOAT=0.3 "
            "*person_threshold:FLOAT=0.3 *max_people:INT=0 *scores:COMBO=real"
        ),
        "hint:IMAGE keypoints:POSE_KEYPOINT",
    ),
    "NextControlDrawPose": (
        (
            "keypoints:POSE_KEYPOINT resolution:INT=512 style:COMBO=openpose body:BOOLEAN=True hands:BOOLEAN=True "
            "face:BOOLEAN=True *line_width:COMBO=reference *point_threshold:FLOAT=0.3 *width:INT=0 *height:INT=0"
        ),
        "hint:IMAGE",
    ),
    "NextControlStackControl": (
        (
            "control:CONTROL_NET,CONTROLNEXT image:IMAGE strength:FLOAT=1.0 start_percent:FLOAT=0.0 end_percent:FLOAT=1.0 "
            "*mask:MASK *stack:CONTROL_STACK *curve:COMBO=constant"
        ),
        "stack:CONTROL_STACK",
    ),
    "NextControlApplyStack": (
        (
            "model:MODEL positive:CONDITIONING negative:CONDITIONING stack:CONTROL_STACK strength:FLOAT=1.0 balance:COMBO=sum "
            "resolution_weighting:BOOLEAN=False *vae:VAE *guess_mode:BOOLEAN=False *readout:BOOLEAN=False"
        ),
        "model:MODEL positive:CONDITIONING negative:CONDITIONING",
    ),
    "NextControlPairDataset": (
        (
            "folder:STRING= resolution:INT=512 aspect_buckets:BOOLEAN=False flip:BOOLEAN=False prompt_dropout:FLOAT=0.3 "
            "subset:INT=0 repeats:INT=1 bad_pairs:COMBO=refuse *hint_type:STRING="
        ),
        "dataset:PAIR_DATASET",
    ),
    "NextControlMakePairs": (
        (
            "pictures:STRING= folder:STRING=my_pairs hint_type:COMBO=canny resolution:INT=512 captions:COMBO=beside "
            "*options:STRING= *annotator:STRING="
        ),
        "folder:STRING report:STRING",
    ),
    "NextControlCheckPairs": ("dataset:PAIR_DATASET hint_type:COMBO=unknown", "report:STRING sheet:IMAGE"),
    "NextControlTrainCtrLoRA": (
        (
            "model:MODEL clip:CLIP vae:VAE base:CTRLORA_BASE dataset:PAIR_DATASET name:STRING=my_condition rank:INT=128 "
            "steps:INT=1000 learning_rate:FLOAT=1e-05 batch_size:INT=1 accumulation_steps:INT=1 precision:COMBO=fp32 "
            "seed:INT=0 save_every:INT=250 preview_every:INT=250 validation_pairs:INT=4 resume:BOOLEAN=True "
            "*gradient_checkpointing:BOOLEAN=False *optimizer:COMBO=adamw *schedule:COMBO=constant *warmup_steps:INT=0 "
            "*max_grad_norm:FLOAT=0.0 *ema_decay:FLOAT=0.0 *min_snr_gamma:FLOAT=0.0 *sensitivity_every:INT=50"
        ),
        "lora_file:STRING,COMBO loss:LOSS_MAP previews:IMAGE",
    ),
    "NextControlTrainControlNeXt": (
        (
            "model:MODEL vae:VAE dataset:PAIR_DATASET name:STRING=my_control scale:FLOAT=1.0 unet_part:COMBO=auto "
            "steps:INT=2000 learning_rate:FLOAT=1e-05 batch_size:INT=1 accumulation_steps:INT=6 precision:COMBO=fp32 "
            "seed:INT=0 save_every:INT=250 preview_every:INT=250 validation_pairs:INT=4 resume:BOOLEAN=True "
            "*clip:CLIP *clip_vision:CLIP_VISION *control_rate_factor:FLOAT=10.0 *normalization:COMBO=cross "
            "*gradient_checkpointing:BOOLEAN=False *optimizer:COMBO=adamw *schedule:COMBO=constant *warmup_steps:INT=0 "
            "*max_grad_norm:FLOAT=0.0 *ema_decay:FLOAT=0.0 *min_snr_gamma:FLOAT=0.0 *sensitivity_every:INT=50 "
            "*frames:INT=14 *interval:INT=3"
        ),
        "control_file:STRING,COMBO unet_file:STRING,COMBO loss:LOSS_MAP previews:IMAGE",
    ),
    "NextControlAlignPose": (
        (
            "reference:POSE_KEYPOINT poses:POSE_KEYPOINT width:INT=576 height:INT=1024 mode:COMBO=official "
            "person:COMBO=largest person_index:INT=0 smooth:FLOAT=0.0 fill_gaps:INT=5 style:COMBO=svd_v2 *image:IMAGE"
        ),
        "hints:IMAGE keypoints:POSE_KEYPOINT preview:IMAGE",
    ),
    "NextControlPoseVideoConditioning": (
        (
            "clip_vision:CLIP_VISION init_image:IMAGE vae:VAE hints:IMAGE motion_bucket_id:INT=128 fps:INT=7 "
            "augmentation_level:FLOAT=0.02 clip_preprocess:COMBO=official seed:INT=0"
        ),
        "positive:CONDITIONING negative:CONDITIONING latent:LATENT",
    ),
    "NextControlVideoWindows": ("model:MODEL window:INT=14 overlap:INT=4 *blend:COMBO=average", "model:MODEL"),
    "NextControlDecodeVideo": ("samples:LATENT vae:VAE frames:INT=14 overlap:INT=4", "images:IMAGE"),
    "NextControlInspectFile": ("file:COMBO", "text:STRING"),
    "NextControlConvertFile": (
        "file:COMBO part:COMBO=auto dtype:COMBO=keep name:STRING= *condition:STRING= *format:COMBO=safetensors",
        "file_name:STRING",
    ),
}
OPTIONS = {
    ("NextControlLoadControlNeXt", "variant"): ["auto", "sd15", "sd15_v0", "sdxl", "sdxl_skip", "svd_v1", "svd_v2"],
    ("NextControlLoadControlNeXt", "unet_weights"): ["auto", "replace", "delta"],
    ("NextControlLoadControlNeXt", "stem_padding"): ["auto", "0", "1"],
    ("NextControlApplyControlNeXt", "uncond"): ["auto", "on", "off"],
    ("NextControlLoadCtrLoRA", "posterior"): ["mode", "sample"],
    ("NextControlCanny", "thresholds"): ["fixed", "median"],
    ("NextControlBlur", "sigma"): ["fixed", "kernel"],
    ("NextControlIllusion", "channel"): ["blue", "value"],
    ("NextControlInpaint", "shape"): ["brush", "rectangle"],
    ("NextControlOutpaint", "mode"): ["window", "pad"],
    ("NextControlDepth", "hint_for"): ["ctrlora", "controlnext", "plain"],
    ("NextControlSketch", "threshold_from"): ["fixed", "random"],
    ("NextControlSketch", "hint_for"): ["ctrlora", "controlnext", "plain"],
    ("NextControlSoftEdge", "detector"): ["pidinet", "teed", "anyline"],
    ("NextControlLineart", "detail"): ["fine", "coarse"],
    ("NextControlLineart", "hint_for"): ["ctrlora", "controlnext", "plain"],
    ("NextControlLineartAnime", "hint_for"): ["ctrlora", "controlnext", "plain"],
    ("NextControlPose", "style"): ["openpose", "dwpose", "body25", "svd_v2"],
    ("NextControlPose", "line_width"): ["reference", "resolution"],
    ("NextControlPose", "scores"): ["real", "ones"],
    ("NextControlDrawPose", "style"): ["openpose", "dwpose", "body25", "svd_v2"],
    ("NextControlDrawPose", "line_width"): ["reference", "resolution"],
    ("NextControlStackControl", "curve"): ["constant", "ease in", "ease out", "ease in-out"],
    ("NextControlApplyStack", "balance"): ["sum", "mean", "cap"],
    ("NextControlPairDataset", "bad_pairs"): ["refuse", "skip"],
    ("NextControlMakePairs", "captions"): ["beside", "file_name", "none"],
    ("NextControlTrainCtrLoRA", "precision"): ["fp32", "bf16"],
    ("NextControlTrainCtrLoRA", "optimizer"): ["adamw", "adamw8bit"],
    ("NextControlTrainCtrLoRA", "schedule"): ["constant", "cosine"],
    ("NextControlTrainControlNeXt", "unet_part"): ["auto", "none", "to_out", "attn2_to_out", "all"],
    ("NextControlTrainControlNeXt", "precision"): ["fp32", "bf16"],
    ("NextControlTrainControlNeXt", "normalization"): ["cross", "zero_convolution"],
    ("NextControlTrainControlNeXt", "optimizer"): ["adamw", "adamw8bit"],
    ("NextControlTrainControlNeXt", "schedule"): ["constant", "cosine"],
    ("NextControlAlignPose", "mode"): ["official", "torso", "none"],
    ("NextControlAlignPose", "person"): ["largest", "index"],
    ("NextControlAlignPose", "style"): ["openpose", "dwpose", "body25", "svd_v2"],
    ("NextControlPoseVideoConditioning", "clip_preprocess"): ["official", "host"],
    ("NextControlVideoWindows", "blend"): ["average", "linear"],
    ("NextControlConvertFile", "part"): ["auto", "all", "base", "lora", "control", "unet"],
    ("NextControlConvertFile", "dtype"): ["keep", "fp32", "fp16", "bf16"],
    ("NextControlConvertFile", "format"): ["safetensors", "ckpt"],
}
# A file list in place of options.
FILE_COMBOS = {
    ("NextControlLoadControlNeXt", "control_file"),
    ("NextControlLoadControlNeXt", "unet_file"),
    ("NextControlLoadCtrLoRABase", "base_file"),
    ("NextControlLoadCtrLoRA", "lora_file"),
    ("NextControlDepth", "model"),
    ("NextControlNormal", "model"),
    ("NextControlSegment", "model"),
    ("NextControlBoxes", "model"),
    ("NextControlPose", "detector"),
    ("NextControlPose", "model"),
    ("NextControlMakePairs", "hint_type"),
    ("NextControlCheckPairs", "hint_type"),
    ("NextControlInspectFile", "file"),
    ("NextControlConvertFile", "file"),
}

node_ids = pytest.mark.parametrize("node_id", CONTRACT)
languages = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture
def schema(pack_nodes: dict[str, Any], node_id: str) -> Any:
    return pack_nodes[node_id].GET_SCHEMA()


def describe_input(spec: Any) -> str:
    default = getattr(spec, "default", None)
    return f"{'*' * bool(spec.optional)}{spec.id}:{spec.get_io_type()}{'' if default is None else f'={default}'}"


def inputs_of(pack_nodes: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(node_id, spec) for node_id, node in pack_nodes.items() for spec in node.GET_SCHEMA().inputs]


def help_page(node_id: str, language: str) -> str:
    """The page asks for <id>/<language>.md first and for <id>.md next: English is there for every other language too."""
    path = DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"
    return path.read_text(encoding="utf-8")


def help_row(page: str, name: str, part: int) -> str:
    """The line of an input (part 0) or an output (part 1): the first and the second list of the page, or the first only."""
    lists = re.findall(r"(?m)^## .+\n\n((?:\* .+\n)+)", page)
    return next(line for line in lists[part].splitlines() if re.match(rf"\* `{name}`[^`]*[:：]", line))


def read_locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flatten(texts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in texts.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# The contract


def test_every_node_is_in_the_contract(pack_nodes):
    assert set(pack_nodes) == set(CONTRACT)


@node_ids
def test_inputs_and_outputs_are_those_of_the_contract(schema, node_id):
    inputs, outputs = CONTRACT[node_id]
    assert [describe_input(spec) for spec in schema.inputs] == inputs.split()
    assert [f"{spec.display_name}:{spec.get_io_type()}" for spec in schema.outputs] == outputs.split()


@node_ids
def test_optional_inputs_come_last(schema):
    order = [bool(spec.optional) for spec in schema.inputs]
    assert order == sorted(order)


def test_options_are_those_of_the_contract(pack_nodes):
    combos = {(node_id, spec.id): spec for node_id, spec in inputs_of(pack_nodes) if spec.get_io_type() == "COMBO"}
    assert {key: spec.options for key, spec in combos.items() if key not in FILE_COMBOS} == OPTIONS
    assert all(spec.default in spec.options for key, spec in combos.items() if key not in FILE_COMBOS)


def test_numeric_ranges_hold_their_defaults(pack_nodes):
    numbers = [(node_id, spec) for node_id, spec in inputs_of(pack_nodes) if spec.get_io_type() in {"INT", "FLOAT"}]
    assert numbers
    for node_id, spec in numbers:
        assert spec.min < spec.max, (node_id, spec.id)
        assert spec.min <= spec.default <= spec.max, (node_id, spec.id)
        if spec.step is not None:
            assert 0 < spec.step <= spec.max - spec.min, (node_id, spec.id)
            steps = (spec.default - spec.min) / spec.step
            assert steps == pytest.approx(round(steps)), (node_id, spec.id)


def test_the_schema_passes_over_what_an_older_host_does_not_know(monkeypatch):
    from nextcontrol.nodes import sockets

    class OldSchema:
        def __init__(self, node_id: str, display_name: str | None = None) -> None:
            self.given = (node_id, display_name)

    monkeypatch.setattr(sockets.io, "Schema", OldSchema)
    old = sockets.schema(node_id="NextControlX", display_name="X", search_aliases=["y"], something_of_next_year=1)
    assert old.given == ("NextControlX", "X")


def test_what_is_folded_away_is_set_on_the_node_and_has_a_default(pack_nodes):
    """A socket that is folded away could not be connected; on hosts without the mark nothing has it."""
    from nextcontrol.nodes import sockets

    for node_id, spec in inputs_of(pack_nodes):
        if getattr(spec, "advanced", None):
            assert spec.get_io_type() in {"INT", "FLOAT", "BOOLEAN", "COMBO", "STRING"}, (node_id, spec.id)
            assert spec.default is not None, (node_id, spec.id)
    with pytest.raises(KeyError, match="strenght"):
        sockets.schema(node_id="X", inputs=[sockets.image_input()], advanced=["strenght"])


# The texts


@node_ids
def test_names_are_plain(schema, node_id):
    assert schema.node_id == node_id
    assert re.fullmatch(r"NextControl[A-Z]\w+", node_id)
    assert re.fullmatch(r"[A-Z][\x20-\x7e]+", schema.display_name)
    assert schema.category == "NextControl" or schema.category.startswith("NextControl/")


def test_the_tree_of_categories_is_flat_and_nothing_in_it_is_alone(pack_nodes):
    counts = Counter(node.GET_SCHEMA().category for node in pack_nodes.values())
    for category, count in counts.items():
        assert category.count("/") <= 2, category
        assert 2 <= count <= 8, (category, count)


def test_every_word_of_a_category_is_chinese_in_the_chinese_page(pack_nodes):
    words = {word for node in pack_nodes.values() for word in node.GET_SCHEMA().category.split("/")} - {"NextControl"}
    chinese = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    assert set(chinese) == words
    assert all(re.search("[\u4e00-\u9fff]", text) for text in chinese.values())


@node_ids
def test_everything_has_a_text(schema):
    texts = [schema.description, *(spec.tooltip for spec in [*schema.inputs, *schema.outputs])]
    for text in texts:
        assert text
        assert text == text.strip()
        assert text.endswith(".")


@node_ids
@languages
def test_the_help_page_names_every_input_and_output(schema, node_id, language):
    page = help_page(node_id, language)
    assert page.startswith("# ")
    for spec in schema.inputs:
        assert help_row(page, spec.id, 0)
        for option in OPTIONS.get((node_id, spec.id), ()):
            assert f"`{option}`" in page, (spec.id, option)
    for spec in schema.outputs:
        assert help_row(page, spec.display_name, bool(schema.inputs))


@node_ids
@languages
def test_the_help_page_gives_ranges_and_defaults(schema, node_id, language):
    page = help_page(node_id, language)
    number = {"en": "Range {} to {}, default {}. ", "zh": "范围 {} 到 {}，默认 {}。"}[language]
    choice = {"en": "default {}. ", "zh": "默认{}。"}[language]
    words = {"en": ("off", "on"), "zh": ("关", "开")}[language]
    for spec in schema.inputs:
        row = help_row(page, spec.id, 0)
        if spec.get_io_type() in {"INT", "FLOAT"}:
            assert number.format(*(f"{value:g}" for value in (spec.min, spec.max, spec.default))) in row
        elif spec.get_io_type() == "BOOLEAN":
            assert choice.format(words[spec.default]) in row
        elif (node_id, spec.id) in OPTIONS:
            assert re.search(rf"`{spec.default}`[。.]|`{spec.default}`( \(default\)|（默认）)", row), row


@node_ids
@languages
def test_the_help_page_fits_into_the_narrow_panel(node_id, language):
    """It opens in a tab that is 300 pixels wide: what would be a table is a list."""
    for line in help_page(node_id, language).splitlines():
        assert not re.search(r"(?<!\\)\|\s*:?-{3}|<table", line), line


@languages
def test_the_help_page_has_no_node_that_is_not_there(language, pack_nodes):
    """Names in bold that look like a node's are one of ours."""
    titles = {entry["display_name"] for entry in read_locale(language).values()}
    titles |= {re.split(r" \(|（", title)[0] for title in titles}  # without the other words that people search for
    for node_id in pack_nodes:
        page = help_page(node_id, language)
        bold = re.findall(r"\*\*([^*]+)\*\*", page)
        assert set(bold) <= {*titles, "stay", "保留"}
        assert page.splitlines()[0].removeprefix("# ") == read_locale(language)[node_id]["display_name"]


def test_the_readme_lists_every_node(pack_nodes):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for node_id, node in pack_nodes.items():
        assert f"| [{node.GET_SCHEMA().display_name}](web/docs/{node_id}.md) |" in readme


@node_ids
def test_both_pages_of_a_node_show_the_same_picture_if_it_has_one(node_id):
    """The panel puts the folder docs/ before the path of a picture, in whichever language the page is."""
    has_picture = (PICTURES / f"{node_id}.jpg").is_file()
    for language in LANGUAGES:
        shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)|<img", help_page(node_id, language))
        assert shown == [f"pictures/{node_id}.jpg"] * has_picture


def test_the_pictures_are_small(pack_nodes):
    sizes = {path.stem: path.stat().st_size for path in PICTURES.glob("*.jpg")}
    assert len(sizes) >= 14
    assert max(sizes.values()) < 45_000
    assert sum(sizes.values()) < 1_200_000


def test_the_web_folder_holds_help_pages_their_pictures_and_one_script_only(pack_nodes):
    """The page runs every script that it finds there."""
    pages = {DOCS / f"{node_id}.md" for node_id in pack_nodes} | {DOCS / node_id / "zh.md" for node_id in pack_nodes}
    pictures = {PICTURES / f"{node_id}.jpg" for node_id in pack_nodes}
    files = {path for path in (ROOT / "web").rglob("*") if path.is_file()}
    assert pages <= files
    assert files <= pages | pictures | {ROOT / "web" / "text.js"}


def test_english_texts_are_the_schemas(pack_nodes):
    expected = {node_id: texts_of(node.GET_SCHEMA()) for node_id, node in pack_nodes.items()}
    assert read_locale("en") == expected, "run python3 scripts/texts.py"


def test_chinese_texts_are_complete_and_chinese():
    english, chinese = flatten(read_locale("en")), flatten(read_locale("zh"))
    assert list(chinese) == list(english)
    for key, text in chinese.items():
        assert re.search("[\u4e00-\u9fff]", text) or text == "ControlNeXt", key


@languages
def test_no_text_holds_a_sign_that_the_page_would_interpret(language):
    """In a message of vue-i18n braces are parameters, @ links to another message and | separates plurals."""
    for key, text in flatten(read_locale(language)).items():
        assert not re.search(r"[{}@|]", text), key


# What happens when the host loads the pack

HEAVY = (
    "torch", "comfy", "cv2", "PIL", "scipy", "skimage", "transformers", "diffusers", "controlnet_aux", "onnxruntime",
)  # fmt: skip
LOAD = """
import asyncio, importlib.util, json, sys
root, host, base, heavy = json.loads(sys.argv[1])

spec = importlib.util.spec_from_file_location("nextcontrol", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["nextcontrol"] = pack
spec.loader.exec_module(pack)
at_import = [name for name in heavy if name in sys.modules]

sys.path.insert(0, host)
from comfy.cli_args import args
args.cpu, args.base_directory, args.database_url = True, base, "sqlite:///:memory:"
import utils.extra_config
import nodes
from app.custom_node_manager import CustomNodeManager
import comfy_api.latest

before = set(sys.modules)
is_loaded = asyncio.run(nodes.load_custom_node(base + "/custom_nodes/nextcontrol"))
ours = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("NextControl")]
for name in ours:
    nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
print(json.dumps({
    "at_import": at_import,
    "at_load": [name for name in heavy if name in set(sys.modules) - before],
    "is_loaded": is_loaded,
    "nodes": ours,
    "web": nodes.EXTENSION_WEB_DIRS,
    "locales": {k: list(v["nodeDefs"]) for k, v in CustomNodeManager().build_translations().items()},
}))
"""


@pytest.fixture(scope="module")
def load_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh host says after it has loaded the pack under its published name."""
    import nodes as host_nodes

    base = tmp_path_factory.mktemp("host")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "nextcontrol").symlink_to(ROOT, target_is_directory=True)
    arguments = json.dumps([str(ROOT), str(Path(host_nodes.__file__).parent), str(base), HEAVY])
    command = [sys.executable, "-c", LOAD, arguments]
    answer = subprocess.run(command, cwd=base, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_importing_the_pack_imports_nothing_heavy(load_report):
    assert load_report["at_import"] == []


def test_loading_the_pack_imports_nothing_heavy_that_the_host_has_not(load_report):
    assert load_report["at_load"] == []


def test_the_host_finds_nodes_help_pages_and_translations(load_report):
    assert load_report["is_loaded"] is True
    assert set(load_report["nodes"]) == set(CONTRACT)
    # The page asks for /extensions/<folder of the pack>/docs/<id>.md, so the name must be the folder's.
    assert (Path(load_report["web"]["nextcontrol"]) / "docs").resolve() == DOCS
    for language in LANGUAGES:
        assert set(load_report["locales"][language]) == set(CONTRACT)
