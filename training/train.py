"""Train a retrieval network: one loop for all sources, losses and phases.

    python -m training.train training/configs/university1652_tiny.yaml --data ROOT --out RUN
    torchrun --nproc-per-node 4 -m training.train CONFIG --data ROOT --out RUN
    python -m training.train CONFIG --data ROOT --out RUN --resume --set run.epochs=300

The batch of a step, its augmentation and its dropout depend on (seed, step) alone, so a run that
is interrupted and resumed ends, on the CPU bit for bit, where an uninterrupted one would.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch

from bicrossnet_ros.errors import BiCrossNetError
from training.checkpoint import git_revision, how_to_go_on, save_checkpoint
from training.config import TrainConfig
from training.config_files import config_to_dict, load_config, with_changes
from training.data.loader import batches
from training.data.samplers import steps_per_epoch
from training.data.sources import make_sources
from training.distributed import join_team
from training.final_weights import choose_weights
from training.learner import Learner
from training.precision import true_float32
from training.progress import ProgressLine, RunLog, Tally
from training.run_folder import check_same_data, claim_folder, open_folder, record_start
from training.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from training.data.places import PairSource

# Streams of random numbers that never meet: (seed, stream, epoch). Validation has number 1, the
# re-estimation of BatchNorm 2, the order of the places 2**31 - 1.
TRAINING_STREAM = 0
# What keeps a run from writing its logs, and what helps.
WRITE_ERRORS = {
    errno.ENOSPC: 'make room',
    errno.EDQUOT: 'make room',
    errno.EROFS: 'make it writable',
    errno.EACCES: 'make it writable',
}


def train(config: TrainConfig, *, data: Path, out: Path, resume: bool = False) -> dict[str, float]:
    """Run or resume a training; returns the last figures.

    Writes into `out`: ``config.yaml`` (as resolved), ``starts.jsonl`` (when, and from which
    source revision), ``history.jsonl`` (a line per epoch and per validation), ``tensorboard/``,
    ``checkpoint.pt`` (the latest state, for resuming) and at the end ``final.pt``.

    Raises
    ------
    BiCrossNetError
        On unusable data, configuration, teacher or checkpoint, or when a checkpoint cannot be
        written.
    """
    with ExitStack() as stack:
        team = stack.enter_context(join_team(config.run.device))
        _prepare_torch(config)
        stack.enter_context(true_float32())
        if team.leads:
            stack.enter_context(claim_folder(out, resume=resume))
        state = open_folder(out, config, resume=resume) if team.leads else None
        source, held_out = make_sources(config, data)
        validation = Validation(held_out, config, team) if held_out else None
        learner = Learner(config, classes=source.names, team=team)
        trainer = Trainer(config, out, learner, source, validation)
        trainer.begin(team.share(state))
        trainer.run()
        return trainer.finish()


class Trainer:
    """The loop, and what stands around it: logs, validation, checkpoints.

    Parameters
    ----------
    config : TrainConfig
        Of the run.
    out : Path
        Its folder, as `open_folder` leaves it.
    learner : Learner
        Freshly made.
    source : PairSource
        The places to train on.
    validation : Validation or None
        The held-out places.

    Attributes
    ----------
    step : int
        Steps done.
    figures : dict of str to float
        Of the last validation; empty without one.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        learner: Learner,
        source: PairSource,
        validation: Validation | None,
    ) -> None:
        self.config, self.out, self.learner = config, out, learner
        self.source, self.validation, self.team = source, validation, learner.team
        self.per_epoch = steps_per_epoch(source, config.data)
        self.last_step = config.run.epochs * self.per_epoch
        self.step = 0
        self.figures: dict[str, float] = {}
        self.tally = Tally()
        self._revision = git_revision() if self.team.leads else ''

    def begin(self, state: dict[str, Any] | None) -> None:
        """Restore the state of a checkpoint, or start from new (or pretrained) weights.

        Raises
        ------
        ConfigError
            If the checkpoint is of other places, or beyond the end of the run.
        ModelError
            If the weights do not fit.
        """
        report = ''
        if state:
            check_same_data(
                self.out,
                state,
                classes=self.source.names,
                per_epoch=self.per_epoch,
                last_step=self.last_step,
            )
            self.learner.load_state_dict(state)
            self.tally.load_state_dict(state['tally'], self.team)
            self.step, self.figures = int(state['step']), dict(state['figures'])
        else:
            report = self.learner.load_pretrained()
        self.team.share_weights(self.learner.network)
        self.team.share_weights(self.learner.loss)
        if self.team.leads:
            self._announce(report)

    def _announce(self, report: str) -> None:
        losses = self.config.losses
        held_out = self.validation.places if self.validation else 0
        print(
            f'{len(self.source.names)} places to train on, {held_out} to validate on; '
            f'{self.per_epoch} steps an epoch on {self.team.world} x {self.team.device.type}',
            flush=True,
        )
        if report:
            print(report, flush=True)
        if losses.logit_distillation and not losses.teacher:
            print('losses.teacher is empty: training without knowledge distillation', flush=True)
        record_start(
            self.out,
            git_revision=self._revision,
            seed=self.config.run.seed,
            step=self.step,
            processes=self.team.world,
            device=self.team.device.type,
            torch=torch.__version__,
        )

    def run(self) -> None:
        """Train from the present step to the last."""
        run, team, per_epoch = self.config.run, self.team, self.per_epoch
        stream = batches(
            self.source,
            self.config.data,
            seed=run.seed,
            stream=TRAINING_STREAM,
            first_step=self.step,
            last_step=self.last_step,
            rank=team.rank,
            world=team.world,
        )
        with self._open_logs() as (log, line):
            phase, began_s = '', time.monotonic()
            for batch in stream:
                if not phase or self.step % per_epoch == 0:
                    phase = self.learner.begin_epoch(self.step // per_epoch)
                rates = self.learner.set_rates(self.step / per_epoch)
                terms = self.learner.step(batch, step=self.step)
                self.step += 1
                self.tally.add(terms, images=2 * len(batch.labels), skipped=batch.skipped)
                self.tally.seconds += time.monotonic() - began_s
                if line and line.due():
                    self._show(line, phase)
                if self.step % per_epoch == 0:
                    self._end_epoch(log, line, phase=phase, rates=rates)
                if self.step % run.checkpoint_every == 0 or self.step == self.last_step:
                    self._save()
                began_s = time.monotonic()

    @contextmanager
    def _open_logs(self) -> Iterator[tuple[RunLog | None, ProgressLine | None]]:
        """Logs of the process that writes; nothing for the others."""
        if not self.team.leads:
            yield None, None
            return
        log = RunLog(self.out, step=self.step, tensorboard=self.config.run.tensorboard)
        try:
            yield log, ProgressLine(first=self.step, last=self.last_step)
        finally:
            log.close()

    def _show(self, line: ProgressLine, phase: str) -> None:
        line.show(
            self.step,
            epoch=f'{self.step / self.per_epoch:.1f}/{self.config.run.epochs}',
            text=_summary(self.tally.means(), self.figures, phase),
            images_per_s=self.tally.images * self.team.world / self.tally.seconds,
        )

    def _end_epoch(
        self,
        log: RunLog | None,
        line: ProgressLine | None,
        *,
        phase: str,
        rates: dict[str, float],
    ) -> None:
        """Log the epoch that is over, and validate if it is time."""
        means = self.tally.means()
        images, skipped = self.team.sum_numbers([self.tally.images, self.tally.skipped])
        when = {'epoch': self.step // self.per_epoch, 'step': self.step}
        record = {
            **when,
            'phase': phase,
            'loss': means,
            'learning_rate': rates,
            'flips': self.learner.flips.rates(),
            'skipped': int(skipped),
            'images_per_s': images / max(self.tally.seconds, 1e-9),
        }
        self.tally.reset()
        if log:
            log.add(record)
        due = when['epoch'] % self.config.run.evaluate_every == 0 or self.step == self.last_step
        if not self.validation or not due:
            return
        self.learner.check_finite()
        self.figures = self.validation.figures(self.learner.network)
        if log and line:
            log.add({**when, 'validation': self.figures})
            line.say(f'epoch {when["epoch"]} {_summary(means, self.figures, phase)}')

    def _save(self) -> None:
        """Write the checkpoint; a loss or weights that are not finite end the run before that."""
        self.tally.means()
        self.learner.check_finite()
        skipped = int(self.team.sum_numbers([self.tally.skipped])[0])
        if not self.team.leads:
            return
        state = {
            **self._record(),
            **self.learner.state_dict(),
            'tally': {**self.tally.state_dict(), 'skipped': skipped},
        }
        save_checkpoint(self.out / 'checkpoint.pt', state)

    def _record(self) -> dict[str, Any]:
        return {
            'config': config_to_dict(self.config),
            'classes': list(self.source.names),
            'step': self.step,
            'epoch': self.step // self.per_epoch,
            'steps_per_epoch': self.per_epoch,
            'figures': self.figures,
            'git_revision': self._revision,
        }

    def finish(self) -> dict[str, float]:
        """Choose the final weights, write ``final.pt`` and return the last figures."""
        variant, figures = choose_weights(self.learner, self.source, self.validation)
        self.figures = figures
        if self.team.leads:
            record = {**self._record(), 'variant': variant}
            network = self.learner.network.state_dict()
            save_checkpoint(self.out / 'final.pt', {**record, 'network': network})
            if variant != 'last weights':
                print(f'final.pt holds the {variant}')
        return {'step': self.step, 'epoch': self.step // self.per_epoch, **self.figures}


def _prepare_torch(config: TrainConfig) -> None:
    """Set torch's global switches."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    cv2.setNumThreads(1)
    if config.run.deterministic:
        # cuBLAS reads it when it starts; without it torch refuses to be deterministic.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(config.run.deterministic)
    torch.backends.cudnn.benchmark = not config.run.deterministic


def _summary(means: dict[str, float], figures: dict[str, float], phase: str) -> str:
    loss = f'{means["total"]:.3f}' if means else '-'
    recall = f' recall@1 {figures["recall_at_1"]:.3f}' if figures else ''
    return f'({phase}) loss {loss}{recall}'


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.train',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', type=Path, help='YAML file; see training/configs')
    parser.add_argument('--data', type=Path, required=True, help='folder of the data set')
    parser.add_argument('--out', type=Path, required=True, help='folder for checkpoints and logs')
    parser.add_argument('--resume', action='store_true', help='go on from OUT/checkpoint.pt')
    parser.add_argument(
        '--set',
        action='extend',
        nargs='+',
        default=[],
        metavar='SECTION.KEY=VALUE',
        help='change the configuration',
    )
    options = parser.parse_args(arguments)
    try:
        config = with_changes(load_config(options.config), options.set)
        figures = train(config, data=options.data, out=options.out, resume=options.resume)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        print(
            f'error: {options.out}: {error.strerror}; {WRITE_ERRORS[error.errno]}, then '
            f'{how_to_go_on(options.out)}',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f'interrupted: {options.out}: {how_to_go_on(options.out)}', file=sys.stderr)
        return 130
    if int(os.environ.get('RANK', 0)) == 0:
        print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
