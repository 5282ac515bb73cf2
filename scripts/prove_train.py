"""Trainings with the pack's own trainer, looked at on the way; each is done once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from demo_train_controls import BASE, CONTROLS, RANK
from provide import say

if TYPE_CHECKING:
    import torch
    from prove_world import World
    from torch import Tensor

NEXT = "demo_controlnext_canny"
NEXT_FACTOR = CONTROLS[NEXT].options["control_rate_factor"]
RATES = {
    "ctrlora": CONTROLS["demo_ctrlora_grayscale"].training["learning_rate"],
    "ctrlora_base": CONTROLS[BASE].training["learning_rate"],
    "finetune": CONTROLS[BASE].training["learning_rate"],
    "controlnet": CONTROLS[BASE].training["learning_rate"],
    "controlnet_vae": CONTROLS[BASE].training["learning_rate"],
    "controlnext": CONTROLS[NEXT].training["learning_rate"],
}
"""Learning rate of each method: those of the controls that ship; networks that are trained whole have the base's."""
DROPOUT = 0.3
"""Part of the captions that are left out, as for the controls that ship."""
BASE_CONDITIONS = CONTROLS[BASE].conditions


@dataclass(frozen=True)
class Training:
    """Everything that one training depends on beside the world."""

    method: str
    """A key of `RATES`."""
    condition: str
    """Type of hint; a base has several of its own."""
    seed: int
    steps: int
    pairs: int
    rank: int = RANK
    base: str = "base"
    """What a LoRA or a full finetuning starts from: "base", or "fresh" for the diffusion model's own encoder."""
    normalization: str = "cross"
    """Of a ControlNeXt."""


def train(world: World, training: Training) -> list[tuple[int, dict[str, str]]]:
    """A training, or what is kept of it: at each look the step, and the control as `prove_sample.load_control` takes it."""
    parts = (1,) if training.method == "ctrlora_base" else (*world.extent.looks, 1)
    looks = sorted({round(part * training.steps) for part in parts})
    settings = [asdict(training), world.extent.batch, looks]
    found = world.keeper.keep("training", settings, lambda: _train(world, training, looks, settings))
    return [(step, control) for step, control in found]


def _train(world: World, training: Training, looks: list[int], settings: Any) -> list[tuple[int, dict[str, str]]]:
    from nextcontrol.nodes.host.backbone import HostBackbone, training_mode
    from nextcontrol.training.config import TrainConfig
    from nextcontrol.training.trainer import Trainer

    config = TrainConfig(
        steps=training.steps, rank=training.rank, learning_rate=RATES[training.method], batch_size=world.extent.batch,
        seed=training.seed, warmup_steps=min(20, training.steps // 2), max_grad_norm=1.0, validation_pairs=0, preview_every=0,
        sensitivity_every=0,
    )  # fmt: skip
    say(f"training {training.method} ({training.condition}, seed {training.seed}), {training.steps} steps")
    name = world.keeper.name(training.method, settings)
    starter = Starter(world, training)
    found = []
    with training_mode([world.models[0], *starter.networks], is_cast=True):
        backbone = HostBackbone(world.models[0])
        trainer = Trainer(starter.build(config), backbone, config)
        source = Pairs(world, training, config, backbone.objective, trainer.method.hint_form)
        while True:
            if trainer.step in looks:
                found.append((trainer.step, starter.publish(trainer, f"proof/{name}_{trainer.step}")))
            if trainer.step == training.steps:
                return found
            trainer.update(source.batches(trainer.step))


class Pairs:
    """Batches as the trainer's own source draws them, from what the world has encoded: see `training.backbone.Source`."""

    def __init__(self, world: World, training: Training, config: Any, objective: Any, form: str) -> None:
        from nextcontrol.training.draws import Order, generator_for

        self.world, self.form, self.config, self.objective = world, form, config, objective
        self.conditions = BASE_CONDITIONS if training.method == "ctrlora_base" else (training.condition,)
        self.rows = chosen_rows(len(world.pairs.captions), training.pairs, generator_for("chosen", training.seed))
        self.order = Order([0] * len(self.rows), config.group_size, config.seed)

    def batches(self, step: int) -> list[Any]:
        """The batches of an update, of one condition after the other."""
        from nextcontrol.training.source import draw_row, in_batches

        condition = self.conditions[step % len(self.conditions)]
        pairs = [Pair(self.world, self.rows[place], condition, self.form) for place in self.order.group(step)]
        rows = [
            draw_row(pair, step, slot, self.config.seed, self.objective, DROPOUT, condition) for slot, pair in enumerate(pairs)
        ]
        return in_batches(rows, self.config)


def chosen_rows(pictures: int, count: int, generator: torch.Generator) -> list[int]:
    """Which pairs a training sees: pictures in an order of its own, and mirrored ones when there are no more."""
    import torch

    plain, mirrored = (torch.randperm(pictures, generator=generator) for _ in range(2))
    return torch.cat([plain, mirrored + pictures])[:count].tolist()


@dataclass(frozen=True, eq=False)
class Pair:
    """See `training.source.KeptPair`. A mirrored pair is a row of its own here."""

    world: World
    row: int
    condition: str
    form: str
    sides = 1

    @property
    def name(self) -> str:
        """Of the picture."""
        return self.world.pairs.captions[self.row % len(self.world.pairs.captions)]

    def latent(self, side: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002 - the mode
        """(4, h, w)."""
        return self.world.latents()[self.row]

    def hint(self, side: int, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """(4, h, w) or (3, H, W)."""
        if self.form == "latent":
            return self.world.latents(self.condition)[self.row]
        return self.world.pixels(self.condition)[self.row].movedim(-1, 0).float() / 255

    def text(self, is_dropped: bool) -> dict[str, Tensor]:
        """Of the caption, or of the empty one."""
        texts = self.world.texts[0]
        return {"context": texts[-1 if is_dropped else self.row % (len(texts) - 1)]}


class Starter:
    """What a training starts from, and how its results become files for the loaders."""

    def __init__(self, world: World, training: Training) -> None:
        from nextcontrol.nodes.host.recipe_controlnet import ControlNetRecipe
        from nextcontrol.nodes.host.recipe_controlnext import ControlNeXtRecipe
        from nextcontrol.nodes.host.recipe_ctrlora import CtrLoRARecipe
        from nextcontrol.nodes.host.recipe_ctrlora_base import CtrLoRABaseRecipe
        from nextcontrol.training.method_controlnext import ControlNeXtOptions

        self.world, self.training = world, training
        self.base: Any = (
            load_base(world, base_name(world, training.base)) if training.method in {"ctrlora", "finetune"} else None
        )
        options = {**CONTROLS[NEXT].options, "normalization": training.normalization}
        make: dict[str, Any] = {
            "ctrlora": lambda base=self.base: CtrLoRARecipe(base, training.rank),
            "ctrlora_base": lambda: CtrLoRABaseRecipe(BASE_CONDITIONS, training.rank, "proof/base"),
            "controlnet": ControlNetRecipe,
            "controlnet_vae": lambda: ControlNetRecipe("vae"),
            "finetune": lambda: ControlNetRecipe("vae"),
            "controlnext": lambda: ControlNeXtRecipe(ControlNeXtOptions(**options)),
        }
        self.recipe = make[training.method]()

    @property
    def networks(self) -> list[Any]:
        """Of the host, to load beside the model."""
        return [self.base.network] if self.base is not None else []

    def build(self, config: Any) -> Any:
        """The method at its start."""
        model = self.world.models[0]
        self.recipe.check(model, config)
        if self.training.method != "finetune":
            return self.recipe.build(model, config)
        from nextcontrol.models.ctrlora import CtrLoRA
        from nextcontrol.nodes.host.recipe_ctrlora import heads_of
        from nextcontrol.training.method_controlnet import ControlNetMethod

        assert self.base is not None
        tensors = {key: t.detach().float().clone() for key, t in self.base.network.model.state_dict().items()}
        network = CtrLoRA(self.base.config, device="meta")
        network.load_state_dict(tensors, assign=True)
        return ControlNetMethod(network.to(model.load_device), heads_of(model))

    def publish(self, trainer: Any, name: str) -> dict[str, str]:
        """Write the files, in half precision as those that ship, and say how they are used."""
        from nextcontrol.nodes.host.train_files import files_for

        published = trainer.method.published(trainer.result())
        halves = {suffix: {key: t.half() for key, t in tensors.items()} for suffix, tensors in published.items()}
        files = files_for(name, self.recipe.folder, tuple(published))
        about = {f"nextcontrol.{key}": str(value) for key, value in self.recipe.describe().items()}
        files.write(halves, about | {"nextcontrol.pairs": str(self.training.pairs)}, trainer.step)
        main, *others = files.names
        if self.training.method == "controlnext":
            return {"kind": "controlnext", "file": main, "unet": others[0]}
        if self.training.method == "controlnet":
            return {"kind": "controlnet", "file": main}
        if self.training.method == "ctrlora":
            return {"kind": "ctrlora", "base": self.base.name, "file": main}
        loras = dict(zip(BASE_CONDITIONS, others, strict=True)) if others else {}
        return {"kind": "ctrlora", "base": main, "file": "none", **loras}


def base_name(world: World, base: str) -> str:
    """The base as the loader takes it, made if it is not there."""
    from nextcontrol.nodes.host.encoder_copy import copy_encoder
    from nextcontrol.nodes.host.train_files import files_for
    from nextcontrol.training.trainable import published

    if base == "fresh":
        files = files_for(f"proof/{world.keeper.name('fresh', '')}")
        if not files.main.is_file():
            files.write({"": published(copy_encoder(world.models[0])[0])}, {}, 0)
        return files.name
    if is_shipped(world, "ctrlora", BASE):
        return f"{BASE}.safetensors"
    return trained_base(world)["base"]


def trained_base(world: World) -> dict[str, str]:
    """A base of our own, and the name of each of its LoRAs by the condition."""
    return train(world, Training("ctrlora_base", "", 0, world.extent.base_steps, world.extent.pairs))[-1][1]


def load_base(world: World, name: str) -> Any:
    """A base, read once; it keeps no results, so that times are true."""
    from nextcontrol.nodes.host.ctrlora_load import load_base as load

    if name not in world.loaded:
        world.loaded[name] = load(name, False, 0)
    return world.loaded[name]


def is_shipped(world: World, kind: str, name: str) -> bool:
    """Whether the pack brings a file."""
    return world.shipped is not None and (world.shipped / kind / f"{name}.safetensors").is_file()
