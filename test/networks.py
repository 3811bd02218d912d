"""Networks of PyTorch with random weights, and the models made from them, for several tests."""

import functools

import torch

from bicrossnet_ros.engine.model_file import Model
from training.export import make_model
from training.models.bnext import BNext, make_bnext


def randomise(network: BNext) -> None:
    """Give every parameter that starts as a constant a value that would show a mistake."""
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(('scale', 'act.weight', 'act_residual.weight')):
                value.uniform_(0, 1)
            elif 'norm' in name and name.endswith('weight'):
                value.uniform_(0.5, 1.5)
            elif name.endswith('running_var'):
                # About the variance of a sum of 9 * C products of +-1: outputs stay near 1.
                fan_in = 9 * len(value) if 'norm1' in name and '3x3' in name else len(value)
                value.uniform_(0.5, 1.5).mul_(fan_in if 'norm1' in name else 1.0)
            elif name.endswith(('bias', 'running_mean')):
                value.normal_(0, 0.3)


@functools.cache
def network_and_model(size: str) -> tuple[BNext, Model]:
    """Make a network of a size by name, in evaluation mode, and its model for 64 px."""
    torch.manual_seed(1)
    network = make_bnext(size).eval()
    randomise(network)
    return network, make_model(network, name=size, input_px=64, training={})
