"""What learns: network, loss, teacher, optimisers, and one step of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bicrossnet_ros.errors import ConfigError, ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.averaging import WeightAverage
from training.checkpoint import in_one_line
from training.data.loader import normalise
from training.flips import FlipCounter
from training.losses import TotalLoss
from training.models.efficientnet import weights_path
from training.models.network import Outputs, make_network
from training.models.partition import binary_layers
from training.models.pretrained import load_backbone
from training.models.widen import widen_backbone
from training.optimizers import learning_rates, make_optimizers, set_learning_rates
from training.teacher import existing_file, open_teacher
from training.unfreezing import apply_phase, phase_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from training.config import ModelConfig, TrainConfig
    from training.data.loader import Batch
    from training.distributed import Team

# As model.pretrained: the weights that the Python package of the backbone carries.
IMAGENET = 'imagenet'
EFFICIENTNET_PREFIX = 'efficientnet_'
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class Learner:
    """A network and all that changes it.

    Parameters
    ----------
    config : TrainConfig
        Of the run.
    classes : tuple of str
        Names of the places, in the order of their labels.
    team : Team
        The processes of the run.

    Raises
    ------
    BiCrossNetError
        If the teacher or the pretrained weights cannot be used.
    """

    def __init__(self, config: TrainConfig, *, classes: tuple[str, ...], team: Team) -> None:
        self.config, self.classes, self.team = config, classes, team
        device = team.device
        if config.run.precision == 'float16' and device.type != 'cuda':
            raise ConfigError('run.precision is float16, which needs a GPU; use bfloat16')
        torch.manual_seed(config.run.seed)
        self.network = make_network(config.model, classes=len(classes)).to(device)
        # Training alone goes through it: evaluation would compile once more for its other shapes.
        self._forward = torch.compile(self.network) if config.run.compile else self.network
        self.teacher = open_teacher(config, classes, says=team.leads)
        self.loss = TotalLoss(
            config.losses,
            embedding_dim=self.network.embedding_dim,
            teacher_dim=self.teacher.embedding_dim if self.teacher else None,
        ).to(device)
        if self.teacher:
            self.teacher.to(device)
        if config.run.sync_norms:
            team.synchronise_norms(self.network)
        self.optimizers = make_optimizers(self.network, self.loss, config.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == 'float16')
        self.flips = FlipCounter(binary_layers(self.network))
        self.average = self._new_average()
        self.preprocessing = Preprocessing(config.model.input_px, config.model.input_px)
        self._stages = len(self.network.backbone.stages())

    def _new_average(self) -> WeightAverage | None:
        decay = self.config.run.average_decay
        return WeightAverage(self.network, decay) if decay else None

    def load_pretrained(self) -> str:
        """Take the backbone of ``model.pretrained``, or widen that of ``model.widen_from``.

        Returns what fitted and what did not; an empty text if neither is given.
        """
        model = self.config.model
        if model.widen_from:
            path = existing_file(model.widen_from, 'model.widen_from')
            report = widen_backbone(self.network.backbone, path, seed=self.config.run.seed)
        elif model.pretrained:
            report = load_backbone(self.network.backbone, _pretrained_file(model))
        else:
            return ''
        # Both remember weights, and should remember these.
        self.flips = FlipCounter(binary_layers(self.network))
        self.average = self._new_average()
        return str(report)

    def begin_epoch(self, epoch: int) -> str:
        """Freeze, thaw and cool what this epoch wants; returns the name of the phase."""
        phase = phase_of(self.config.unfreezing, epoch, self._stages)
        apply_phase(self.network, phase)
        self.loss.train()
        self.network.set_progress(min(1.0, epoch / self.config.run.epochs))
        model = self.config.model
        # At temperature 0 a binary weight is a sign; at 1 it is its clamped latent.
        if epoch < model.float_weight_epochs:
            self.network.set_temperature(1.0, in_evaluation=True)
            return f'{phase.name}, float weights'
        # What BatchNorm has seen until now was of weights below 1: signs make all of it larger,
        # so its running statistics are nearly those of signs after some 30 steps.
        decay, signed_epochs = model.temperature_decay, epoch - model.float_weight_epochs
        self.network.set_temperature(decay**signed_epochs if decay < 1 else 0.0)
        return phase.name

    def set_rates(self, epoch: float) -> dict[str, float]:
        """Set the learning rates of a moment, in epochs, and return them."""
        config = self.config
        rates = learning_rates(
            config.optimizer, config.unfreezing, epoch=epoch, epochs=config.run.epochs
        )
        set_learning_rates(self.optimizers, rates)
        return {name: rates[name] for name in self.optimizers}

    def step(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """Learn from this process's share of the global batch of a step.

        Returns
        -------
        dict of str to Tensor
            The terms of the loss of the global batch; empty if so many places were left out that
            nothing can be compared.
        """
        # Dropout follows from (seed, step, rank) alone, so a resumed run drops the same.
        key = np.random.SeedSequence((self.config.run.seed, step, self.team.rank))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]) >> 1)
        labels = self.team.gather_labels(batch.labels.to(self.team.device, non_blocking=True))
        if len(labels) < 2:
            return {}
        outputs = self._global_outputs(batch, labels)
        terms: dict[str, Tensor] = self.loss(*outputs, self._ground(batch))
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms['total']).backward()
        self._apply_gradients()
        self.network.clamp_parameters()
        if self.average:
            self.average.update()
        return {name: value.detach() for name, value in terms.items()}

    def images(self, batch: Batch) -> Tensor:
        """Return the network's input for a batch: float32 (2 N, 3, S, S), satellites first."""
        views = [
            view.to(self.team.device, non_blocking=True) for view in (batch.satellite, batch.drone)
        ]
        return normalise(torch.cat(views), self.preprocessing)

    def _ground(self, batch: Batch) -> Tensor | None:
        """Return where the places of the global batch lie, if the batch knows."""
        if batch.ground is None:
            return None
        return self.team.gather_rows([batch.ground.to(self.team.device, non_blocking=True)])[0]

    def _global_outputs(
        self, batch: Batch, labels: Tensor
    ) -> tuple[Outputs, Outputs, Tensor, tuple[Outputs, Outputs] | None]:
        """Run network and teacher on our share; return what the loss takes, of all shares.

        Both views pass together: BatchNorm then sees the mixture that it sees in use.
        """
        images = self.images(batch)
        device = images.device
        precision = PRECISIONS[self.config.run.precision]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            networks = [self._forward(images)]
            if self.teacher:
                with torch.no_grad():
                    networks.append(self.teacher(self._for_teacher(images)))
        halves = [half for outputs in networks for half in _halves(outputs)]
        rows = iter(self.team.gather_rows([t for half in halves for t in _tensors(half)]))
        joined = [_like(half, rows) for half in halves]
        teacher = (joined[2], joined[3]) if self.teacher else None
        return joined[0], joined[1], labels, teacher

    def _for_teacher(self, images: Tensor) -> Tensor:
        side = self.config.losses.teacher_px
        if side in (0, images.shape[-1]):
            return images
        return F.interpolate(
            images, (side, side), mode='bilinear', align_corners=False, antialias=True
        )

    def _apply_gradients(self) -> None:
        # What has no gradient (frozen, or touched by no loss) is passed over by an optimiser;
        # one that has none at all is passed over here, because the scaler insists on some.
        active = [o for o in self.optimizers.values() if _has_gradient(o)]
        self.team.sum_gradients(self.network.parameters())
        # All processes computed the whole gradient of the loss's own parameters: their mean.
        own = list(self.loss.parameters())
        self.team.sum_gradients(own)
        for parameter in own:
            if parameter.grad is not None:
                parameter.grad /= self.team.world
        for optimizer in active:
            self.scaler.unscale_(optimizer)
        if self.config.optimizer.clip_norm:
            trained = [*self.network.parameters(), *own]
            nn.utils.clip_grad_norm_(trained, self.config.optimizer.clip_norm)
        for optimizer in active:
            self.scaler.step(optimizer)
        self.scaler.update()

    def check_finite(self) -> None:
        """Refuse weights that are not finite: the loss shows it a step later, at best.

        Raises
        ------
        ConfigError
            Naming the first such weight.
        """
        values = {k: v for k, v in self.network.state_dict().items() if v.is_floating_point()}
        # One transfer from the device for all.
        finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
        for name, fine in zip(values, finite, strict=True):
            if not fine:
                raise ConfigError(
                    f'the weights are not finite any more (first: {name}); resume from the last '
                    'checkpoint or start again, with a lower optimizer.learning_rate, with '
                    'optimizer.clip_norm, or in float32'
                )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            'network': self.network.state_dict(),
            'loss': self.loss.state_dict(),
            'optimizers': {name: o.state_dict() for name, o in self.optimizers.items()},
            'scaler': self.scaler.state_dict(),
            'average': self.average.state_dict() if self.average else None,
            'flips': self.flips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        ModelError
            If the weights are of another network.
        """
        try:
            self.network.load_state_dict(state['network'])
            self.loss.load_state_dict(state['loss'])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state['optimizers'][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(
                f'the checkpoint does not fit this network ({in_one_line(error)}); resume with '
                'the version and the config.yaml that wrote it'
            ) from error
        self.scaler.load_state_dict(state['scaler'])
        self.flips.load_state_dict(state['flips'])
        if self.average:
            self.average.load_state_dict(state['average'])


def _pretrained_file(model: ModelConfig) -> Path:
    if model.pretrained == IMAGENET and model.name.startswith(EFFICIENTNET_PREFIX):
        return weights_path(model.name.removeprefix(EFFICIENTNET_PREFIX))
    return existing_file(model.pretrained, 'model.pretrained')


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group['params'])


def _tensors(outputs: Outputs) -> list[Tensor]:
    return [outputs.embedding, *outputs.features, *outputs.logits]


def _halves(outputs: Outputs) -> list[Outputs]:
    """Split the outputs of [satellite, drone] images, at least float32, into those of either."""
    pairs = [
        tensor.to(torch.promote_types(tensor.dtype, torch.float32)).chunk(2)
        for tensor in _tensors(outputs)
    ]
    return [_like(outputs, iter([pair[view] for pair in pairs])) for view in (0, 1)]


def _like(outputs: Outputs, rows: Iterator[Tensor]) -> Outputs:
    """Make outputs of the same number of features and logits from the next tensors of `rows`."""
    return Outputs(
        next(rows),
        tuple(next(rows) for _ in outputs.features),
        tuple(next(rows) for _ in outputs.logits),
    )
