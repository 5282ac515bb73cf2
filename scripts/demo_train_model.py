"""Train the demo model's UNet and text encoder together, on the latents of the pictures and their names."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from demo_train_autoencoder import RESULT as VAE_FILE
from demo_train_autoencoder import SCALE, encoded, on_ground
from demo_train_kit import Run, indices
from demo_train_pictures import SUBJECTS, load_pictures, warped
from provide import SetupError, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    Part = tuple[Tensor, ...]

STATE = "model_state.pt"
BATCH, PART = 32, 16
"""Rows of a step, and of the parts that threads take in turn."""
LEARNING_RATE = 2e-3
NO_TEXT = 0.1
"""Part of the rows that learn without a caption, for classifier-free guidance."""
WITH_TAGS = 0.2
"""Part of the captions that get one or two of the picture's other words."""
SNR_LIMIT = 5.0
"""Above this ratio of signal to noise a step counts less: it is easy, and shape and colour are decided before."""
WARPS = 4
"""Warped versions of a picture, and of its mirrored one, that are learned beside them."""
SIDES = ("left", "right", "clock", "thirty")
"""Pictures with these words in the name are not mirrored."""


def train_model(folder: Path, threads: int, minutes: float, total: int) -> None:
    """Train, and write both networks in half precision, as far as they are.

    Args:
        folder: With pictures and autoencoder; takes state and results.
        threads: That work at once.
        minutes: After which it stops and can go on later.
        total: Steps of the whole training.

    Raises:
        SetupError: There is no autoencoder yet.
    """
    import torch
    from nextcontrol.nodes.host.demo_model import TEXT_FILE, UNET_FILE, VOCABULARY
    from safetensors.torch import save_file

    if not (folder / VAE_FILE).is_file():
        raise SetupError(f"'{folder}' has no '{VAE_FILE}': train the autoencoder first.")
    torch.manual_seed(0)
    data = Data(folder)
    unet, text = new_unet(), new_text_model(data.vocabulary)
    run = Run(folder / STATE, total, LEARNING_RATE, {"unet": unet, "text": text})
    run.train(lambda step: [partial(loss_of, unet, text, data, part) for part in data.parts(step)], threads, minutes)
    run.use_average()
    save_file(_half(unet), folder / UNET_FILE)
    save_file(_half(text) | {VOCABULARY: data.vocabulary.int()}, folder / TEXT_FILE)
    say(f"Written: {folder / UNET_FILE}, {folder / TEXT_FILE}")


def _half(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.half().contiguous() for key, tensor in network.state_dict().items()}


class Data:
    """Latents, captions as tokens, and the noise schedule.

    Args:
        folder: With pictures and autoencoder.
    """

    def __init__(self, folder: Path) -> None:
        import comfy.model_sampling
        import comfy.sd1_clip
        import torch
        from nextcontrol.models.demo_autoencoder import DemoAutoencoder
        from nextcontrol.nodes.host.demo_model import DemoSD15
        from safetensors.torch import load_file

        pictures, rows = load_pictures(folder)
        chosen = [row["group"] in SUBJECTS for row in rows]
        self.rows = [row for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen]
        network = DemoAutoencoder()
        network.load_state_dict({key: tensor.float() for key, tensor in load_file(folder / VAE_FILE).items()})
        subjects = on_ground(pictures[chosen])
        mirrored = subjects.flip(-1)
        for place, row in enumerate(self.rows):
            if any(side in row["caption"] for side in SIDES):
                mirrored[place] = subjects[place]
        # Seeds that the pairs of the controls do not have.
        changed = (warped(shown, seed + 2) for seed in range(WARPS) for shown in (subjects, mirrored))
        versions = chain((subjects, mirrored), changed)  # One at a time: each has 200 MB.
        self.latents = torch.stack([encoded(network, version) for version in versions]).clone() * SCALE
        self.tokenizer = comfy.sd1_clip.SDTokenizer()
        # Of all pictures, so that a training with more subjects can go on from these weights.
        texts = [self.tokens([row["caption"], ", ".join(row["tags"])]) for row in rows]
        self.vocabulary = torch.unique(torch.cat([*texts, self.tokens([", "])]))
        sampling = comfy.model_sampling.ModelSamplingDiscrete(DemoSD15({}))
        self.alphas = (1 / (sampling.sigmas.double() ** 2 + 1)).float()

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Map texts to (N, 77), as the host's CLIPTextEncode does."""
        import torch

        return torch.tensor([[token for token, _ in self.tokenizer.tokenize_with_weights(text)[0]] for text in texts])

    def caption(self, row: dict[str, Any], draw: Any) -> str:
        """The name of a picture, sometimes with other words for it, sometimes nothing."""
        chance = draw.random()
        if chance < NO_TEXT:
            return ""
        if chance < NO_TEXT + WITH_TAGS and row["tags"]:
            return ", ".join(
                [row["caption"], *draw.choice(row["tags"], min(len(row["tags"]), int(draw.integers(1, 3))), replace=False)]
            )
        return str(row["caption"])

    def parts(self, step: int) -> list[Part]:
        """The batch of a step in parts: latents (B, 4, 16, 16), tokens (B, 77), timesteps (B,) and noise."""
        import numpy as np
        import torch

        draw, torch_draw = np.random.default_rng([1, step]), torch.Generator().manual_seed(step)
        places = list(indices(len(self.rows), BATCH, step))
        latents = self.latents[torch.from_numpy(draw.integers(0, len(self.latents), BATCH)), torch.tensor(places)]
        tokens = self.tokens([self.caption(self.rows[place], draw) for place in places])
        # One timestep from each of as many equal parts: the loss wavers less than with free draws.
        parts = (torch.randperm(BATCH, generator=torch_draw) + torch.rand(BATCH, generator=torch_draw)) / BATCH
        timesteps = (parts * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        noise = torch.randn(latents.shape, generator=torch_draw)
        return list(zip(*(tensor.split(PART) for tensor in (latents, tokens, timesteps, noise)), strict=True))


def loss_of(unet: Any, text: Any, data: Data, part: Part) -> Tensor:
    """Squared error of the predicted noise, little noise counting less (arXiv:2303.09556, softened by a root)."""
    latents, tokens, timesteps, noise = part
    alphas = data.alphas[timesteps][:, None, None, None]
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    error = predict(unet, noisy, timesteps, text_features(text, tokens)) - noise
    weight = (SNR_LIMIT * (1 - alphas) / alphas).clamp(max=1).sqrt().flatten()
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()


def predict(unet: Any, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """The host's UNet with attention that autograd can follow."""
    from nextcontrol.nodes.host.backbone import plain_attention

    return unet(noisy, timesteps.float(), context, transformer_options={"optimized_attention_override": plain_attention})


def text_features(text: Any, tokens: Tensor) -> Tensor:
    """What the host's text model gives as its last state, (B, 77, C): it adds in place, which autograd cannot follow."""
    import torch
    from nextcontrol.nodes.host.backbone import plain_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
        return plain_attention(None, q, k, v, heads, mask)

    model = text.text_model
    x = model.embeddings.token_embedding(tokens) + model.embeddings.position_embedding.weight
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu_(1)
    for layer in model.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.final_layer_norm(x)


def new_unet() -> Any:
    """The host's UNet with fresh weights, its residual branches silent at first."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from nextcontrol.nodes.host.demo_model import UNET_CONFIG, DemoSD15

    arguments = DemoSD15(UNET_CONFIG).unet_config | {"dtype": torch.float32}
    unet = UNetModel(**arguments, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    for name, parameter in unet.named_parameters():
        if ".out_layers.3." in name or ".proj_out." in name or name.startswith("out.2."):
            torch.nn.init.zeros_(parameter)
    return unet.train()


def new_text_model(vocabulary: Tensor) -> Any:
    """The text encoder with fresh weights."""
    import comfy.ops
    import torch
    from nextcontrol.nodes.host.demo_model import TEXT_CONFIG, DemoTextModel

    text = DemoTextModel(TEXT_CONFIG, torch.float32, None, comfy.ops.disable_weight_init, vocabulary=vocabulary)
    initialise(text)
    for embedding in (text.text_model.embeddings.position_embedding, text.text_model.embeddings.token_embedding.table):
        torch.nn.init.normal_(embedding.weight, std=0.02 if embedding.num_embeddings < 100 else 0.1)
    text.text_projection.weight.requires_grad_(requires_grad=False)
    return text.train()


def initialise(network: nn.Module) -> None:
    """PyTorch's own first weights: the host's layers leave memory as it was."""
    from torch import nn

    kinds: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
    for module in network.modules():
        for kind in kinds:
            if isinstance(module, kind):
                kind.reset_parameters(module)
