"""Data-parallel training whose result is that of one process at the same global batch.

Every process computes the loss of the *global* batch: the outputs of all processes are gathered,
so that an anchor meets the negatives of all. Gradients flow into a process's own rows alone; the
gradient of the global loss is then the sum, not the mean, over the processes. Because of that sum,
and because the phases of unfreezing change which parameters have gradients at all,
DistributedDataParallel (which averages, and must be wrapped anew at each phase) would have to be
worked around; one flat all-reduce a step is shorter, and exact.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bicrossnet_ros.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# A process that waits longer than this for another gives up, so that nothing hangs for ever.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    device : torch.device
        Where this process computes.
    rank, world : int
        Number of this process, and how many there are. Rank 0 writes the files.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def gather_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Join tensors of all processes along their rows, in the order of the ranks.

        Parameters
        ----------
        tensors : sequence of Tensor, each (n, width) of one dtype
            The number of rows may differ between processes, the widths may not.

        Returns
        -------
        list of Tensor, each (N, width)
            Differentiable with respect to this process's own rows.
        """
        if self.world == 1:
            return list(tensors)
        rows = torch.cat(list(tensors), dim=1)
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(count) for _ in range(self.world)]
        dist.all_gather(counts, count)
        sizes = [int(size) for size in counts]
        padded = rows.new_zeros((max(sizes), rows.shape[1]))
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        joined = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        joined[self.rank] = rows
        widths = [tensor.shape[1] for tensor in tensors]
        return list(torch.cat(joined).split(widths, dim=1))

    def gather_labels(self, labels: Tensor) -> Tensor:
        """Join whole numbers (n,) of all processes in the order of the ranks: (N,)."""
        return self.gather_rows([labels[:, None]])[0][:, 0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(total.reshape(gradient.shape))

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Return each number's sum over the processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def share(self, value: Any) -> Any:
        """Return rank 0's value everywhere."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.world == 1:
            return
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)

    def synchronise_norms(self, network: nn.Module) -> None:
        """Let every BatchNorm of a network take its statistics over all processes, in place."""
        if self.world == 1:
            return
        if self.device.type == 'cuda':
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _BatchNorm) and not isinstance(child, GlobalBatchNorm):
                    setattr(parent, name, GlobalBatchNorm.like(child))


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started; without torchrun, a team of one.

    Parameters
    ----------
    device : str
        'auto', 'cpu' or 'cuda'.

    Raises
    ------
    ConfigError
        If there is no GPU for this process, but one is asked for.
    """
    world, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (('WORLD_SIZE', 1), ('RANK', 0), ('LOCAL_RANK', 0))
    )
    place = _device(device, local)
    if world == 1:
        yield Team(place)
        return
    backend = 'nccl' if place.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Team(place, rank, world)
    finally:
        # Also on an error: the others then find the connection closed instead of waiting.
        dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == 'cpu' or (name == 'auto' and not found):
        return torch.device('cpu')
    if local >= found:
        raise ConfigError(
            f'run.device is {name}; process {local} of this machine needs a GPU of its own, but '
            f'torch finds {found}; start at most {found} process(es) or set run.device: cpu'
        )
    torch.cuda.set_device(local)
    return torch.device('cuda', local)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce; the gradient of a sum over processes is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _all_sum(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(tensor)
    return total


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes; what SyncBatchNorm is, on any device.

    torch's SyncBatchNorm refuses tensors on the CPU.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> GlobalBatchNorm:
        """Make one that shares the parameters and buffers of another BatchNorm."""
        made = cls(
            norm.num_features,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
        made._parameters.update(norm._parameters)
        made._buffers.update(norm._buffers)
        made.training = norm.training
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f'expected at least 2 axes, found {input.dim()}')

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input`` (N, C, ...) over all axes but C, and over all processes."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_full((1,), x.numel() / max(1, x.shape[1]))
        total = _all_sum(torch.cat([x.sum(axes), count]))
        number = total[-1]
        mean = total[:-1] / number
        # A second pass: the mean of squares minus the squared mean would cancel in float32.
        centred = x - mean.reshape(shape)
        variance = _all_sum(centred.square().sum(axes)) / number
        self._track(mean.detach(), variance.detach(), number.detach())
        result = centred * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            result = result * self.weight.reshape(shape) + self.bias.reshape(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * number / (number - 1).clamp(min=1), weight)
