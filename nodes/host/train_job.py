"""A training from what the graph brings: encode, make room, train, and keep the page informed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...training.backbone import Backbone
from ...training.checkpoint import StateStore
from ...training.clips import ClipSettings
from ...training.config import TrainConfig
from ...training.dataset import PairDataset
from ...training.durable import CannotWriteError, check_writable
from ...training.lock import RunLock
from ...training.loop import Hooks, Run
from ...training.method import HintForm, Method, Published
from ...training.metrics import MetricsFile, smoothed
from ...training.mixed import MixedDataset
from ...training.pictures import from_pixels
from ...training.team import Alone, Team
from ...training.trainer import Report, Trainer
from .backbone import training_mode
from .backbone_svd import build_backbone
from .encoders import identity_of
from .managed import load_whole
from .noise_schedule import earlier_objective_of
from .quantized import check_unquantized
from .train_data import TrainData
from .train_files import TrainFiles, describe_run, files_for
from .train_mixed import check_datasets, prepare_datasets
from .train_preview import PreviewPainter

logger = logging.getLogger("nextcontrol")

SECONDS_BETWEEN_TEXTS = 1.0
OBJECTIVE = "objective (prediction type and noise schedule)"
"""Name of the entry in a run's identity."""


class Recipe(Protocol):
    """What a method is built from on the host: the other half of a `training.method.Method`."""

    @property
    def method(self) -> str:
        """Name of the method, as a configuration file has it."""
        ...

    @property
    def folder(self) -> str:
        """Kind of model files that the results lie among."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files it publishes; see `training.method.Published`."""
        ...

    @property
    def hint_form(self) -> HintForm:
        """As its `Method` has it."""
        ...

    def check(self, model: ModelPatcher, config: TrainConfig) -> None:
        """Refuse a model or settings that the method cannot be trained with, before anything is computed.

        Raises:
            ValueError: The sentence says why.
        """
        ...

    def context_width(self, model: ModelPatcher) -> int:
        """Width of the text that model and method read."""
        ...

    def networks(self) -> list[ModelPatcher]:
        """What is loaded during the training besides the model."""
        ...

    def build(self, model: ModelPatcher, config: TrainConfig) -> Method:
        """The method at its start, on the model's device; called with everything loaded and gradients enabled."""
        ...

    def identity(self) -> dict[str, str]:
        """What the method is made from, by name: a resumed run needs the same. The model itself is not among it."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the header of each file says of the method: kind, family, sizes."""
        ...


@runtime_checkable
class FileDescriber(Protocol):
    """A recipe that publishes files of different kinds."""

    def describe_files(self, published: Published) -> dict[str, dict[str, Any]]:
        """What the header of a file says besides, by its suffix; in the place of what `describe` says."""
        ...


@dataclass(frozen=True, eq=False)
class TrainJob:
    """What a training is made from."""

    model: ModelPatcher
    clip: Any
    vae: Any
    recipe: Recipe
    dataset: PairDataset | MixedDataset
    name: str
    config: TrainConfig
    is_resumed: bool
    clip_vision: Any = None
    """Image encoder, which SVD reads in the place of text."""
    clips: ClipSettings = field(default_factory=ClipSettings)
    """How the clips of a dataset are used, for SVD."""
    team: Team = field(default_factory=Alone)
    """The processes of the training."""


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves."""

    files: tuple[str, ...]
    """As the loaders take them, the main one first."""
    losses: list[float]
    previews: Tensor
    """(N, H, W, 3)."""


def train(job: TrainJob, show: Callable[[str], None] = lambda _text: None) -> TrainResult:
    """Train a method to its last step.

    Args:
        job: Checked here, before anything is computed.
        show: Puts a line of text on the node.

    Returns:
        The finished files' names, and what the run was like.

    Raises:
        ValueError: An input cannot be used; the sentence says why.
        OutOfMemoryError: With advice, the state saved.
    """
    recipe = job.recipe
    files = files_for(job.name, recipe.folder, recipe.suffixes)
    files.check_free(job.is_resumed)
    check_unquantized(job.model)
    recipe.check(job.model, job.config)
    check_datasets(job.dataset)
    with _only_one(files, job) as lock:
        return _train(job, files, lock, show)


@contextmanager
def _only_one(files: TrainFiles, job: TrainJob) -> Iterator[RunLock | None]:
    """Hold the lock of a training's name; of several processes one does."""
    with ExitStack() as stack:
        lock = None
        with job.team.together():
            if job.team.is_main:
                check_writable(files.main, files.name)
                lock = stack.enter_context(files.lock)
                files.check_free(job.is_resumed)
                files.clean()
        yield lock


def _train(job: TrainJob, files: TrainFiles, lock: RunLock | None, show: Callable[[str], None]) -> TrainResult:
    recipe, team = job.recipe, job.team
    job = replace(job, model=load_whole(job.model))
    backbone = build_backbone(job.model, job.config.gradient_checkpointing)
    data = prepare_datasets(job, backbone.objective, _teller(show, team))
    # The VAE and the text encoder have done their work.
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    with training_mode([job.model, *recipe.networks()], is_cast=job.config.precision == "fp32"):
        run = _build_run(job, backbone, data, files)
        if lock is not None:
            lock.check()
            files.check_space(run.trainer.state_bytes)
            run.store.guard = lock.check
            _attach_hooks(run, job, data, files, show)
        if job.is_resumed and run.resume():
            logger.info("'%s': training goes on from step %d", files.name, run.trainer.step)
        run.train()
        logger.info("'%s': trained for %d steps on %d pairs", files.name, run.trainer.step, data.count)
        return TrainResult(tuple(files.names), list(run.trainer.losses), files.previews())


def _teller(show: Callable[[str], None], team: Team) -> Callable[[str], None]:
    """Of several processes one shows, and all of them hear there that they shall stop."""

    def tell(text: str) -> None:
        team.check_wanted()
        if team.is_main:
            show(text)

    return tell


def _build_run(job: TrainJob, backbone: Backbone, data: TrainData, files: TrainFiles) -> Run:
    config, recipe = job.config, job.recipe
    trainer = Trainer(recipe.build(job.model, config), backbone, config, job.team)
    made_from = {
        "method": recipe.method,
        "model": identity_of(job.model, "diffusion_model."),
        OBJECTIVE: backbone.objective.identity,
        **recipe.identity(),
    }
    states, metrics = StateStore(files.folder, config.keep_states), MetricsFile(files.metrics)
    earlier = {OBJECTIVE: earlier_objective_of(job.model).identity}
    return Run(trainer, data.source, data.held_out, states, metrics, data.identity | made_from, earlier=earlier)


def _attach_hooks(run: Run, job: TrainJob, data: TrainData, files: TrainFiles, show: Callable[[str], None]) -> None:
    about = job.recipe.describe() | {"dataset_hash": data.digest, "pairs": data.count, **data.about}
    metadata = describe_run(job.dataset, job.config, about)
    progress = Progress(job.config.steps, show)
    painter = PreviewPainter(job.vae, data, [job.model, *job.recipe.networks()])

    def preview(trainer: Trainer) -> None:
        picture = painter.paint(trainer)
        if picture is None:
            return
        progress.show_picture(picture, trainer.step)
        try:
            files.write_preview(picture, trainer.step)
        except CannotWriteError as error:  # the training itself has lost nothing
            logger.warning("The preview of step %d is not kept: %s", trainer.step, error)

    def save(trainer: Trainer) -> None:
        published = trainer.method.published(trainer.result())
        own = job.recipe.describe_files(published) if isinstance(job.recipe, FileDescriber) else {}
        files.write(published, metadata, trainer.step, own)

    run.hooks = Hooks(
        on_step=progress.on_step,
        on_save=save,
        preview=preview if run.held_out else None,
    )


class Progress:
    """The bar and the line on the node; raises where the run was cancelled."""

    def __init__(self, steps: int, show: Callable[[str], None]) -> None:
        self.bar = comfy.utils.ProgressBar(steps)
        self.steps = steps
        self.show = show
        self.started: tuple[float, int] | None = None
        self.shown = 0.0

    def on_step(self, trainer: Trainer, report: Report) -> None:
        """After an update."""
        now = time.monotonic()
        first_time, first_step = self.started or (now, report.step)
        self.started = (first_time, first_step)
        is_due = now - self.shown >= SECONDS_BETWEEN_TEXTS or report.step == self.steps  # the last line stays on the node
        if is_due and report.step > first_step:
            self.shown = now
            pace = (now - first_time) / (report.step - first_step)
            minutes, seconds = divmod(round(pace * (self.steps - report.step)), 60)
            self.show(
                f"step {report.step} of {self.steps}, loss {smoothed(trainer.losses):.4f}, {1 / pace:.2f} steps/s, "
                f"{minutes}:{seconds:02d} left"
            )
        self.bar.update_absolute(report.step, self.steps)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def show_picture(self, picture: Tensor, step: int) -> None:
        """Show a preview, (3, H, W), on the node."""
        side = max(picture.shape[1:])
        self.bar.update_absolute(step, self.steps, ("JPEG", from_pixels(picture), side))
