"""SD1.5 and its controls in full size with random weights, and one guided step of it, for benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench_kit import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LATENT = (4, 64, 64)
# SD1.5 in full size, as ComfyUI detects it.
UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768, "num_heads": 8,
    "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip


def build_model() -> Any:
    """SD1.5 in full size with random weights."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    device = comfy.model_management.get_torch_device()
    config = comfy.supported_models.SD15({**UNET, "dtype": comfy.model_management.unet_dtype(model_params=860_000_000)})
    model = fill(config.get_model({}, device=comfy.model_management.unet_offload_device()))
    return ModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def build_controlnet() -> Any:
    """The host's own ControlNet for it."""
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    arguments = {key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    dtype = comfy.model_management.unet_dtype(model_params=360_000_000)
    network = ControlNet(**arguments, hint_channels=3, dtype=dtype, operations=comfy.ops.disable_weight_init)
    return comfy.controlnet.ControlNet(fill(network), load_device=comfy.model_management.get_torch_device())


def build_module(seed: int = 0) -> Any:
    """A ControlNeXt in full size with random weights."""
    import torch
    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile

    torch.manual_seed(seed)
    module = ControlNeXt(GENERATIONS[2], device="cpu")
    return ControlNeXtFile(f"bench {seed}", module.state_dict(), GENERATIONS[2], ("sd15",), None, None)


def build_base() -> Any:
    """A CtrLoRA base in full size with random weights."""
    import comfy.ops
    from nextcontrol.models.ctrlora import CtrLoRA, read_config
    from nextcontrol.models.state_dict import shapes_of
    from nextcontrol.nodes.host.ctrlora_load import CtrLoRABase
    from nextcontrol.nodes.host.managed import manage
    from nextcontrol.nodes.host.result_cache import ResultCache

    native = build_controlnet().control_model.state_dict()
    own = {key: tensor for key, tensor in native.items() if not key.startswith("input_hint_block")}
    network = CtrLoRA(read_config(shapes_of(own)), comfy.ops.manual_cast, device="meta")
    network.load_state_dict(own, assign=True)
    return CtrLoRABase("bench", "bench", network.config, shapes_of(own), manage(network, "bench"), None, ResultCache(0))


def build_condition(base: Any, rank: int) -> Any:
    """A condition with random weights on a base."""
    import torch
    from nextcontrol.models.adapted import Condition
    from nextcontrol.models.ctrlora_file import is_replaced, linear_names
    from nextcontrol.nodes.host.ctrlora_control import CtrLoRAControl
    from nextcontrol.nodes.host.ctrlora_hint import Posterior
    from nextcontrol.nodes.host.managed import manage

    dtype = next(base.network.model.parameters()).dtype
    lora = {}
    for name in linear_names(base.config):
        out, width = base.shapes[f"{name}.weight"]
        lora[name] = (torch.randn(rank, width, dtype=dtype) / rank, torch.randn(out, rank, dtype=dtype) / rank)
    replaced = {key: torch.randn(shape, dtype=dtype) / 100 for key, shape in base.shapes.items() if is_replaced(key)}
    return CtrLoRAControl(base, manage(Condition(lora, replaced), "bench"), 1.0, Posterior(), object())


def give_hint(control: Any, hint: Any) -> Any:
    """What the Apply node does with a control."""
    return control.copy().set_cond_hint(hint.movedim(-1, 1), 1.0, (0.0, 1.0), vae=RandomLatents())


def unique_networks(controls: list[Any]) -> list[Any]:
    """The networks of several controls, each once."""
    networks: list[Any] = []
    for network in (network for control in controls for network in control.get_models()):
        if not any(network.is_clone(other) for other in networks):
            networks.append(network)
    return networks


def guided_step(model: Any, controls: Sequence[Any] = (), batch: int = 1) -> Callable[[float], Any]:
    """One evaluation for a positive and a negative prompt in one call, through the host's sampler code."""
    import uuid

    import comfy.conds
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sampler_helpers
    import comfy.samplers
    import torch

    device = model.load_device
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models(), *unique_networks(list(controls))])
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {}, options)
    model.pre_run()
    last = None
    for control in controls:
        last = control.set_previous_controlnet(last)
    extra = {"control": last} if last else {}
    if last:
        last.pre_run(model.model, model.get_model_object("model_sampling").percent_to_sigma)
    latent = torch.randn((batch, *LATENT), generator=torch.Generator().manual_seed(0)).to(device)
    prompts = []
    for seed in (1, 2):
        text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
        prompts.append([{"model_conds": {"c_crossattn": comfy.conds.CONDCrossAttn(text)}, "uuid": uuid.uuid4(), **extra}])

    def step(sigma: float) -> Any:
        model.model.current_patcher = model
        level = torch.full((batch,), sigma, device=device)
        return comfy.samplers.calc_cond_batch(model.model, prompts, latent * sigma, level, options)

    return step


class RandomLatents:
    """In the place of a VAE: the hint's latent is worked out once a run and is not part of a step."""

    latent_channels, latent_dim = LATENT[0], 2

    def encode(self, pixels: Any) -> Any:
        """The same latent for every picture."""
        import torch

        return torch.randn((len(pixels), *LATENT), generator=torch.Generator().manual_seed(3))
