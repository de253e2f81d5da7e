"""The loop every training stage shares: schedule, optimisers, checkpoints that resume, metrics, previews."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from world_model.checkpoint import load_training, save_training
from world_model.data.dataset import Prefetcher
from world_model.training.optim import Optimizer, build_optimizer

Batch = TypeVar("Batch")

LONGEST_STEP = 20.0
"""No step is counted as longer than so many average ones."""


@dataclass(frozen=True)
class StageConfig:
    """How one stage runs. `minutes` or `steps` bounds it; the learning rate is annealed to that end."""

    minutes: float | None = None
    steps: int | None = None
    lr: float = 1e-3
    muon_lr: float = 0.0
    """Learning rate of Muon for hidden matrices; 0 leaves everything to AdamW."""
    weight_decay: float = 0.01
    warmup: float = 0.02
    anneal: float = 0.35
    """Share of the run over which the rate falls to zero."""
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0
    save_seconds: float = 60.0
    preview_seconds: float = 600.0
    previews: bool = True
    """Whether pictures and scores are made now and then, and at the end."""


class Stage(Protocol[Batch]):
    """One thing to train. `model` holds the parameters that move."""

    name: str
    model: nn.Module
    device: torch.device

    def batch(self, rng: np.random.Generator, done: float) -> Batch: ...

    def loss(self, batch: Batch, done: float) -> tuple[Tensor, dict[str, float]]: ...

    def preview(self, path: Path) -> dict[str, float]: ...


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0


class Trainer(Generic[Batch]):
    """Runs a stage to its end; stopping and starting again continues where it was.

    Files in `run_dir`: `<stage>.safetensors` (weights, averaged weights, optimiser, progress),
    `metrics.jsonl` (a line each `log_every` steps), `<stage>-preview-*.png`.
    """

    def __init__(self, stage: Stage[Batch], config: StageConfig, run_dir: Path) -> None:
        if (config.minutes is None) == (config.steps is None):
            raise ValueError("a stage is bounded by --minutes or by --steps: give one of them")
        self.stage, self.config, self.run_dir = stage, config, run_dir
        self.path = run_dir / f"{stage.name}.safetensors"
        self.optimizer: Optimizer = build_optimizer(
            stage.model, config.lr, config.muon_lr, config.weight_decay
        )
        self.average = {k: v.detach().clone().float() for k, v in stage.model.state_dict().items()}
        self.progress = Progress()
        run_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume()

    def run(self, say: Callable[[str], None] = print) -> bool:
        """Trains to the end of the budget: True. A first Ctrl-C or SIGTERM saves and returns False."""
        stop = _StopSignal()
        batches = Prefetcher(
            lambda rng: self.stage.batch(rng, self.done), self.config.seed, self.progress.step
        )
        saved = shown = time.monotonic()
        told = 0.0
        try:
            for batch in batches:
                if self.done >= 1.0 or stop.wanted:
                    break
                metrics = self._step(batch)
                now = time.monotonic()
                if now - told > 10.0:
                    told = now
                    say(self._line(metrics))
                    self._log(metrics)
                if now - saved > self.config.save_seconds:
                    self.save()
                    saved = time.monotonic()
                if self.config.previews and now - shown > self.config.preview_seconds:
                    self._preview(say)
                    shown = time.monotonic()
        finally:
            batches.close()
            stop.restore()
        self.save()
        if self.config.previews:
            self._preview(say)
        return self.done >= 1.0

    @property
    def done(self) -> float:
        """Share of the budget that is used up, 0 to 1."""
        if self.config.steps is not None:
            return self.progress.step / max(1, self.config.steps)
        assert self.config.minutes is not None
        return self.progress.seconds / max(1e-9, 60 * self.config.minutes)

    def save(self) -> None:
        tensors = {f"model/{k}": v for k, v in self.stage.model.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        tensors |= {f"optim/{k}": v for k, v in self.optimizer.tensors().items()}
        tensors["rng/torch"] = torch.get_rng_state()
        state = {"step": self.progress.step, "seconds": self.progress.seconds}
        save_training(self.path, {k: v.contiguous().cpu() for k, v in tensors.items()}, state)

    def _resume(self) -> None:
        tensors, state = load_training(self.path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.stage.model.load_state_dict(part("model/"))
        for key, value in part("average/").items():
            self.average[key].copy_(value)
        self.optimizer.load(part("optim/"))
        torch.set_rng_state(tensors["rng/torch"])
        self.progress = Progress(int(state["step"]), float(state["seconds"]))

    def _step(self, batch: Batch) -> dict[str, float]:
        start = time.monotonic()
        factor = schedule(self.done, self.config.warmup, self.config.anneal)
        loss, metrics = self.stage.loss(batch, self.done)
        self.optimizer.zero_grad()
        loss.backward()
        reduce_gradients(self.stage.model)
        norm = nn.utils.clip_grad_norm_(self.stage.model.parameters(), self.config.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step(factor)
            self._update_average()
        self._count(time.monotonic() - start)
        return {"loss": loss.item(), "grad": norm.item(), "lr": factor * self.config.lr} | metrics

    def _count(self, seconds: float) -> None:
        """A machine suspended in mid-step must not take that time for training and skip the annealing."""
        if self.progress.step >= 10:
            seconds = min(seconds, LONGEST_STEP * self.progress.seconds / self.progress.step)
        self.progress.step += 1
        self.progress.seconds += seconds

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short run must not average in its own random start.
        decay = min(self.config.ema, (1 + self.progress.step) / (10 + self.progress.step))
        for key, value in self.stage.model.state_dict().items():
            self.average[key].lerp_(value.float(), 1 - decay)

    def _preview(self, say: Callable[[str], None]) -> None:
        with averaged(self.stage.model, self.average):
            path = self.run_dir / f"{self.stage.name}-preview-{self.progress.step:06d}.png"
            scores = self.stage.preview(path)
        self._log({f"preview/{k}": v for k, v in scores.items()})
        say(f"preview {path.name}: " + "  ".join(f"{k} {v:.2f}" for k, v in scores.items()))

    def _line(self, metrics: dict[str, float]) -> str:
        values = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        left = self.progress.seconds * (1 / max(1e-6, self.done) - 1)
        rate = self.progress.seconds / max(1, self.progress.step)
        return (
            f"{self.stage.name} {self.progress.step}  {values}  {rate:.2f} s/step  {left / 60:.1f} min left"
        )

    def _log(self, metrics: dict[str, float]) -> None:
        record: dict[str, Any] = {"stage": self.stage.name, "step": self.progress.step}
        record |= {"seconds": round(self.progress.seconds, 1)} | {
            k: float(f"{v:.5g}") for k, v in metrics.items()
        }
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def schedule(done: float, warmup: float, anneal: float) -> float:
    """Warm up, hold, then fall linearly to zero: a stage may end at any planned time fully annealed."""
    if done < warmup:
        return max(0.02, done / warmup)
    return min(1.0, max(0.0, (1 - done) / anneal))


class averaged:
    """While inside, the model holds its averaged weights."""

    def __init__(self, model: nn.Module, average: dict[str, Tensor]) -> None:
        self._model, self._average = model, average

    def __enter__(self) -> None:
        self._kept = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)

    def __exit__(self, *_: object) -> None:
        self._model.load_state_dict(self._kept)


def reduce_gradients(model: nn.Module) -> None:
    """Averages gradients over processes when started by torchrun; nothing otherwise."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    world = torch.distributed.get_world_size()
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= world


class _StopSignal:
    """Notes Ctrl-C and SIGTERM so that the loop ends after a whole step."""

    def __init__(self) -> None:
        self.wanted = False
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller handles signals
                return

    def _note(self, *_: object) -> None:
        self.wanted = True

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
