"""What watches a run: its records, its checkpoints, numbers that are not finite, Ctrl-C, progress."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from inlay.errors import NumericsError
from inlay.io import plain
from inlay.readable import duration, size
from inlay.runs.history import History
from inlay.runs.run import CHECKPOINTS, METRICS, Run, seal
from inlay.train.order import ByLength
from inlay.train.parallel import several
from inlay.train.sharded import ShardedTrainer


class Rows(ShardedTrainer):
    """Trainer, with the rows and the loss of every forward pass of the step kept for `Finite`."""

    seen: list[tuple[Any, Any]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes the rows' numbers out of the batch."""
        rows = inputs.pop("rows")
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.seen.append((loss.detach(), rows))
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Trainer's own, but for rows grouped by length."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        args, items = self.args, train_dataset or self.train_dataset
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return ByLength(items.lengths, group, args.data_seed)


class Finite(TrainerCallback):  # type: ignore[misc]
    """Stops before the optimizer's step if a loss or a gradient is NaN or infinite, with step and rows named."""

    def __init__(self, run: Run, source: str):
        self.run, self.source = run, source
        self.trainer: Any = None  # set once there is one

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new step."""
        self.trainer.seen = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Raises NumericsError, in all processes. One number is read off the device."""
        seen: list[tuple[Any, Any]] = self.trainer.seen
        total = sum(loss.float() for loss, _ in seen)
        if not args.fp16:  # else gradients are scaled until some overflow, and the scaler leaves out such a step
            total = total + _norm(p.grad for p in model.parameters()).to(total.device)
        if self.trainer.is_deepspeed_enabled:  # which keeps gradients, and has made the step
            engine = self.trainer.accelerator.deepspeed_engine_wrapped.engine
            total = total + float(engine.get_global_grad_norm() or 0.0)
        if several():
            torch.distributed.all_reduce(total)
        if math.isfinite(float(total)):
            return
        losses = _of_all([(float(loss), [int(r) for r in rows.tolist()]) for loss, rows in seen])
        bad = [(loss, rows) for loss, rows in losses if not math.isfinite(loss)]
        value, what = (bad[0][0], "loss") if bad else (float(total), "gradient")
        rows = sorted({row for _, rows in (bad or losses) for row in rows})
        whole, _ = self.run.checkpoints()
        deepspeed = self.trainer.is_deepspeed_enabled
        made = "DeepSpeed has made the step, but nothing was saved" if deepspeed else "The step was not made"
        raise NumericsError(
            f"The {what} of step {state.global_step + 1} is {value}, on rows {', '.join(map(str, rows))} of "
            f"{self.source}. {made}; the last checkpoint is {whole[-1].name if whole else 'none'}. "
            "Look at these rows, or lower train.lr, and start over with --fresh."
        )


def _norm(grads: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Of all the parts that this process has: of FSDP2's DTensors, the local ones."""
    return torch.nn.utils.get_total_norm(g.to_local() if hasattr(g, "to_local") else g for g in grads if g is not None)


class Journal(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, and seals every checkpoint once it is whole.

    Attributes:
        speed: tokens a second, padding included, since the log before; None if it is not known.
    """

    def __init__(self, run: Run):
        self.speed: float | None = None
        self.run, self._before = run, (time.monotonic(), 0)
        self._began, self._session = time.monotonic(), 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forgets what was logged after the checkpoint that the run goes on from, but not the time it took."""
        self._before = time.monotonic(), state.num_input_tokens_seen
        if state.is_world_process_zero:
            path = self.run.folder / METRICS
            history = History.of(plain.read_lines(path))
            self._began = time.monotonic() - (history.seconds or 0.0)
            self._session = history.sessions + bool(history.lines)
            kept = (m for m in history.lines if m["step"] <= state.global_step) if state.global_step else ()
            plain.write_lines(path, kept)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What an evaluation took is not the time of tokens that were trained on."""
        self._before = time.monotonic(), state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line."""
        if not state.is_world_process_zero:
            return
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        line = {"step": state.global_step, "epoch": state.epoch, "time": time.time(), **(logs or {})}
        line |= {"seconds": now - self._began, "session": self._session}
        if tokens > self._before[1] and "loss" in line:
            self.speed = line["tokens_per_second"] = (tokens - self._before[1]) / max(now - self._before[0], 1e-9)
            self._before = now, tokens
        line["memory_bytes"] = memory()
        plain.append_line(self.run.folder / METRICS, {k: _number(v) for k, v in line.items()})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer writes a checkpoint in place, file after file, in every process: until this, it is not one."""
        if several():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            seal(self.run.folder / CHECKPOINTS / f"checkpoint-{state.global_step}")


class AtFirst(TrainerCallback):  # type: ignore[misc]
    """Does something with the model when it is ready to train, before the first step."""

    def __init__(self, do: Callable[[Any], None]):
        self._do = do

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Not when a run goes on."""
        if state.global_step == 0:
            self._do(model)


class Interrupt(TrainerCallback, AbstractContextManager["Interrupt"]):  # type: ignore[misc]
    """Within this block the first Ctrl-C (or SIGTERM) ends the run after the step, with a checkpoint."""

    def __init__(self, say: Callable[[str], None]):
        self.asked, self._say, self._before = False, say, dict[int, Any]()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])  # the second one stops at once
        self._say("Stopping after this step, with a checkpoint. Once more stops at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks Trainer to save and stop, in all processes at the same step."""
        if several():
            asked = torch.tensor(int(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_save = control.should_training_stop = True


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar with loss, tokens a second, time left and memory on a terminal; else a line for every log."""

    def __init__(self, say: Callable[[str], None], journal: Journal):
        self._say, self._journal, self._bar, self._task = say, journal, None, None
        self._began, self._from = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The bar, at the step the run goes on from."""
        self._began, self._from = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich import progress
        from rich.console import Console

        columns = ("{task.completed}/{task.total}", "{task.fields[numbers]}")
        bar: Any = progress.Progress(
            progress.TextColumn("training"),
            progress.BarColumn(),
            *map(progress.TextColumn, columns),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        bar.start()
        self._bar, self._task = bar, bar.add_task("", total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The newest numbers."""
        if not state.is_world_process_zero:
            return
        seconds, steps = time.monotonic() - self._began, state.global_step - self._from
        shown = [f"{k} {logs[k]:.4g}" for k in ("loss", "eval_loss", "learning_rate") if k in (logs or {})]
        if not shown:
            return
        if self._journal.speed is not None:
            shown.append(f"{self._journal.speed:,.0f} tokens/s")
        shown.append(size(memory()))
        if self._bar is not None:
            self._bar.update(self._task, numbers="  ".join(shown))
        else:
            if steps:
                shown.append(f"{duration(seconds / steps * (state.max_steps - state.global_step))} left")
            self._say(f"step {state.global_step}/{state.max_steps}  {'  '.join(shown)}")

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def memory() -> int:
    """The most memory used so far in bytes: of the GPU, or else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def _of_all(items: list[Any]) -> list[Any]:
    """What all processes have."""
    if not several():
        return items
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, items)
    return [item for part in found for item in part]


def _number(value: Any) -> Any:
    """For JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
