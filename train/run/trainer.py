"""The trainer: model, optimizer and data of a run in memory, a step at a time. Knows nothing of folders.

Where several processes train together, each has a trainer, and they take every step, and measure it, at the same time.
On a GPU nothing in a step waits for it; figures are read back where a line is logged.

Batches, captions and augmentations follow from (seed, epoch, step), so that a restored trainer goes on with what an
undisturbed one would have done, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.errors import UserError
from graphbuild.store.arrays import Int64
from graphbuild.system.allocator import keep_freed_memory
from graphbuild.targets.batches import Batch
from graphbuild.torch.losses import LogitScale
from train.config import TrainConfig
from train.data.augment import Augmenter
from train.data.chunks import make_batches
from train.data.crops import Crops
from train.data.prepare import TrainingData
from train.data.store import ImageBatch
from train.model.encoders import Encoder
from train.model.optimizers import build_optimizer, peak_lr
from train.model.pretrained import load_backbone
from train.model.schedule import Schedule
from train.run.checkpoint import Position
from train.run.clock import Clock
from train.run.distributed import Ranks
from train.run.objectives import Outcome, make_learner, registered


class Trainer:
    """Model, optimizer and data of a run, and where it is."""

    def __init__(self, config: TrainConfig, data: TrainingData, ranks: Ranks = Ranks()) -> None:  # noqa: B008 - frozen
        """Build everything.

        Args:
            config: Settled (`settle`).
            data: The images.
            ranks: The processes that share each batch.

        Raises:
            UserError: If data and options do not fit: fewer images than a batch, no graph, no classes.
        """
        self.config, self.data, self.ranks = config, data, ranks
        self.device = torch.device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.learner = make_learner(config, data, build_model(config, self.device), self.device, ranks)
        self.views = registered()[config.objective].views
        """Of each image."""
        data.store.hold_on(self.device, config.images_on_device)
        self.batches = make_batches(config, data)
        self.total_steps = min(config.steps or math.inf, config.epochs * self.batches.steps_per_epoch)
        self.schedule = Schedule.for_run(
            peak_lr(config),
            total_steps=int(self.total_steps),
            steps_per_epoch=self.batches.steps_per_epoch,
            warmup_epochs=config.warmup_epochs,
        )
        self.augment = Augmenter(config.augment, config.image_size, config.crop_min, config.color_strength)
        self.model = self.learner.module
        if ranks.count > 1 and self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.optimizer = build_optimizer(config, self.model, self.device)
        self._scales = [module for module in self.model.modules() if isinstance(module, LogitScale)]
        self.step = 0
        """Steps done."""
        self.images_seen = 0
        self.clock = Clock()
        self._losses = torch.zeros((), device=self.device)
        """Sum of the losses since the last check: one that is not finite stays."""

    def restore(self, position: Position, weights: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        self.step, self.images_seen = position.step, position.images_seen
        self.clock.before = position.seconds

    def position(self, fingerprint: str) -> Position:
        """Return where the run is, for a checkpoint."""
        return Position(
            step=self.step,
            images_seen=self.images_seen,
            seconds=self.clock.total(),
            fingerprint=fingerprint,
            threads=torch.get_num_threads(),
            processes=self.ranks.count,
        )

    def steps(self) -> Iterator[StepReport]:
        """Train from where the run is to its end, a step at a time.

        Raises:
            UserError: If a loss is not finite; the weights are those before the step.
        """
        epoch, within = divmod(self.step, self.batches.steps_per_epoch)
        order, ahead = self.batches.batches(epoch=epoch, step=within), self.batches.batches(epoch=epoch, step=within)
        # Two walks over the same batches: one may run ahead in another thread, for the images.
        images = self.data.batches(self._own_part(batch) for batch in ahead)
        self.model.train()
        encode = self.ranks.wrap(self.model, self.device)
        if self.config.compile:
            encode = torch.compile(encode)  # type: ignore[assignment]
        self.clock.start()
        upcoming = next(order)
        try:
            while self.step < self.total_steps:
                batch, upcoming = upcoming, next(order)
                with self.clock.part("wait"):
                    pictures = next(images)
                yield self._train_step(encode, batch, pictures, upcoming)
        finally:
            close = getattr(images, "close", None)
            if close is not None:
                close()

    def check(self) -> None:
        """Make sure that the losses since the last check were finite; waits for the device.

        Raises:
            UserError: If one was not.
        """
        loss = float(self.ranks.mean(self._losses))
        self._losses.zero_()
        if math.isfinite(loss):
            return
        # On a GPU the loss is looked at now and then, and the weights went on.
        when = "stopped before the weights were changed" if self.device.type == "cpu" else "the last checkpoint is from before it"
        tau = " or --tau" if isinstance(self.config.logit_temperature, float) else ""
        exact = "" if self.config.precision == "float32" else ", or use --precision float32"
        self.ranks.stop(
            UserError(
                f"step {self.step + 1}: the loss is {loss}; {when}. Lower --lr, which is {self.config.lr:g}, or raise "
                f"--warmup-epochs{tau}{exact}. Another --lr is another run: give it a --run-dir of its own, or --overwrite."
            )
        )

    def _own_part(self, batch: Batch) -> tuple[Int64, Iterator[Int64], Crops | None]:
        """This process's samples of a batch, what to take where some cannot be read, and what is cut from them."""
        part = self.ranks.part(self.config.batch_size)
        own = slice(part.start, part.stop)
        return batch.indices[own], (others[own] for others in self.batches.instead(batch)), self._crops(batch)

    def _crops(self, batch: Batch) -> Crops | None:
        config = self.config
        if config.crop_from != "original":
            return None
        return Crops(
            size=config.image_size,
            views=self.views,
            smallest=config.crop_min,
            centred=config.augment == "none",
            place=(config.seed, batch.epoch, batch.step, self.ranks.rank),
        )

    def _train_step(self, encode: nn.Module, batch: Batch, pictures: ImageBatch, upcoming: Batch) -> StepReport:
        views = self._views(batch, pictures)
        with self.clock.part("target"):
            # Others than the batch's where some cannot be read: only the process that read them knows.
            samples = self.ranks.gather_numbers(pictures.rows)
            target = self.learner.target(samples, batch.epoch)
            self.learner.read_ahead(upcoming.indices, upcoming.epoch)
        lr = self.schedule.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        outcome = self.learner.loss(encode, views, target)
        self._losses += outcome.soft.loss.detach()
        if self.device.type == "cpu":
            self.check()
        self.optimizer.zero_grad(set_to_none=True)
        outcome.soft.loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.model, self.device)
        report = StepReport(self, batch.epoch, lr, target, outcome, len(samples))
        self.optimizer.step()
        for scale in self._scales:
            scale.limit()
        self.step += 1
        self.images_seen += len(samples)
        return report

    def _views(self, batch: Batch, pictures: ImageBatch) -> Tensor:
        with self.clock.part("augment"):
            pixels = pictures.pixels.to(self.device, non_blocking=True)
            seed = self.config.seed
            place = {"epoch": batch.epoch, "step": batch.step, "rank": self.ranks.rank, "count": self.views}
            return self.augment.two_views(pixels, pictures.sizes, seed=seed, **place)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step; figures are computed only for those that are logged."""

    trainer: Trainer
    epoch: int
    lr: float
    target: Any
    """What the learner made for the batch."""
    outcome: Outcome
    images: int
    """Of all processes."""

    def metrics(self, *, with_kl: bool) -> dict[str, Any]:
        """Return the line of metrics.jsonl, without rates: of the whole batch, whichever process asks. All have to.

        Raises:
            UserError: If a loss since the last line was not finite.
        """
        trainer = self.trainer
        trainer.check()
        soft = self.outcome.soft
        figures = {
            "loss": soft.loss.detach(),
            "kl": soft.kl,
            "target_entropy": soft.target_entropy,
            "own_view_mass": soft.own_view_mass,
            **trainer.learner.measures(self.target, self.outcome, with_kl=with_kl),
        }
        known = {name: value for name, value in figures.items() if value is not None}
        means = trainer.ranks.mean(torch.stack([value.double() for value in known.values()])).tolist()
        gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        return {
            "step": trainer.step,
            "epoch": self.epoch,
            "images_seen": trainer.images_seen,
            **dict.fromkeys(figures),
            **dict(zip(known, means, strict=True)),
            "lr": self.lr,
            "grad_norm": float(torch.nn.utils.get_total_norm(gradients)),
        }


def build_model(config: TrainConfig, device: torch.device) -> Encoder:
    """Return the encoder of a configuration with its initial weights, float32: they follow from the seed, and from --init.

    Raises:
        UserError: If the weights of --init cannot be had, or do not fit.
    """
    # The caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Encoder(
            config.model,
            image_size=config.image_size,
            projector_hidden=config.projector_hidden,
            projector_dim=config.projector_dim,
            projector_bn=config.projector_bn,
        )
        if config.init is not None:
            load_backbone(model, config.init)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
