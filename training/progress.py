"""What work tells while it goes: a bar, a progress line, history.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from tqdm import tqdm

from bicrossnet_ros.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from training.distributed import Team

T = TypeVar('T')

# A terminal's line is redrawn often; a log file gets a line a minute, some hundred a night.
TERMINAL_INTERVAL_S = 0.5
FILE_INTERVAL_S = 60.0


def counted(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Pass items on and show on standard error how far it is: a bar, in a log file a few lines."""
    interval_s = 1.0 if sys.stderr.isatty() else 15.0
    yield from tqdm(items, label, total, mininterval=interval_s, file=sys.stderr, leave=False)


class Tally:
    """Means of the terms of the loss since the start of the epoch, kept on their device.

    Reading them waits for the device; adding does not.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.skipped = 0
        self.images = 0
        self.seconds = 0.0

    def add(self, terms: Mapping[str, Tensor], *, images: int, skipped: int) -> None:
        """Count a step: its terms (empty if it was left out), its images, its skipped places."""
        self.skipped += skipped
        self.images += images
        if not terms:
            return
        self.steps += 1
        for name, value in terms.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Return the mean of every term.

        Raises
        ------
        ConfigError
            If a term was not finite.
        """
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        broken = [name for name, mean in means.items() if not _finite(mean)]
        if broken:
            raise ConfigError(
                f'the loss is not finite (in: {", ".join(broken)}); lower '
                'optimizer.learning_rate, set optimizer.clip_norm, or train in float32'
            )
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes; the time is not part of it."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {'sums': sums, 'steps': self.steps, 'skipped': self.skipped}

    def load_state_dict(self, state: Mapping[str, Any], team: Team) -> None:
        """Go on from another tally; its skipped places, those of all processes, count once."""
        self.reset()
        self.sums = {name: value.to(team.device) for name, value in state['sums'].items()}
        self.steps = int(state['steps'])
        self.skipped = int(state['skipped']) if team.leads else 0


class ProgressLine:
    """Steps done, loss, speed and time left: one line that is redrawn, or a line a minute.

    Parameters
    ----------
    first, last : int
        The step that the run starts from, and the step count at which it ends.
    stream : TextIO
        A terminal, or anything else.
    """

    def __init__(self, *, first: int, last: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._redraws = self._stream.isatty()
        self._interval_s = TERMINAL_INTERVAL_S if self._redraws else FILE_INTERVAL_S
        self._first, self._last = first, last
        self._began_s = self._shown_s = time.monotonic()
        self._width = 0

    def due(self) -> bool:
        """Whether `show` would be worth its cost now."""
        return time.monotonic() - self._shown_s >= self._interval_s

    def show(self, step: int, *, epoch: str, text: str, images_per_s: float) -> None:
        """Write the line."""
        now_s = self._shown_s = time.monotonic()
        elapsed_s = now_s - self._began_s
        left_s = elapsed_s / max(1, step - self._first) * (self._last - step)
        line = (
            f'epoch {epoch} step {step}/{self._last} {text} {images_per_s:.1f} images/s '
            f'elapsed {clock(elapsed_s)} left {clock(left_s)}'
        )
        if not self._redraws:
            self.say(line)
            return
        self._stream.write('\r' + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def say(self, line: str) -> None:
        """Write a line that stays."""
        if self._width:
            self._stream.write('\r' + ' ' * self._width + '\r')
            self._width = 0
        self._stream.write(line + '\n')
        self._stream.flush()


class RunLog:
    """The lasting record of a run: ``history.jsonl`` and ``tensorboard/``.

    Parameters
    ----------
    out : Path
        Folder of the run.
    step : int
        The step the run goes on from: what was logged beyond it is dropped, it will come again.
    tensorboard : bool
        Whether to write TensorBoard's files as well.

    Raises
    ------
    ConfigError
        If TensorBoard is asked for but not installed.
    """

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        self._path = out / 'history.jsonl'
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if _step(line) <= step]
            partial = self._path.with_suffix('.partial')
            partial.write_text(''.join(line + '\n' for line in lines))
            partial.replace(self._path)
        self._writer = _summary_writer(out / 'tensorboard', step) if tensorboard else None

    def add(self, values: Mapping[str, Any]) -> None:
        """Append one line; its numbers, also nested ones, and texts go to TensorBoard too."""
        with self._path.open('a') as file:
            file.write(json.dumps(values) + '\n')
        if self._writer is None:
            return
        for name, value in _numbers(values):
            self._writer.add_scalar(name, value, int(values['step']))
        for name, text in values.items():
            if isinstance(text, str):
                self._writer.add_text(name, text, int(values['step']))

    def close(self) -> None:
        """Write out what is pending."""
        if self._writer is not None:
            self._writer.close()


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f'run.tensorboard is true, but TensorBoard is missing ({error}); install it '
            '(pip install tensorboard) or set run.tensorboard: false'
        ) from error
    return SummaryWriter(str(folder), purge_step=step or None)


def _numbers(values: Mapping[str, Any], prefix: str = '') -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f'{prefix}{key}/')
        elif isinstance(value, int | float) and key != 'step':
            found.append((prefix + key, float(value)))
    return found


def _step(line: str) -> float:
    """Return the step of a line of the history; a line cut short by a kill is beyond all."""
    try:
        return float(json.loads(line)['step'])
    except (ValueError, KeyError, TypeError):
        return float('inf')


def _finite(value: float) -> bool:
    return value - value == 0
