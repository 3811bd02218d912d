"""The float twin: the same layers without a sign anywhere, and refused where signs are packed."""

import pytest
import torch

from bicrossnet_ros.errors import ModelError
from training.config import ModelConfig, TrainConfig
from training.config_files import config_to_dict
from training.models.binary import BinaryConv2d
from training.models.bnext import BinaryUnit, make_bnext
from training.models.network import make_network


def test_it_has_the_parameters_of_its_network_and_no_binary_layer():
    with torch.device('meta'):
        network, twin = make_bnext('nano'), make_bnext('nano_float')
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes
    assert not any(isinstance(module, BinaryConv2d) for module in twin.modules())


def test_its_unit_is_that_of_the_network_without_signs():
    torch.manual_seed(0)
    unit = BinaryUnit(8, kernel=3)
    twin = BinaryUnit(8, kernel=3, binary=False)
    twin.load_state_dict(unit.state_dict())
    # Where activations and weights are signs already, there is nothing to binarise.
    with torch.no_grad():
        twin.conv.weight.copy_(torch.where(unit.conv.weight >= 0, 1.0, -1.0))
    signs = torch.where(torch.randn(2, 8, 6, 6) >= 0, 1.0, -1.0)
    assert torch.allclose(unit.eval()(signs), twin.eval()(signs), atol=1e-5)
    assert not torch.allclose(unit(0.5 * signs), twin(0.5 * signs), atol=1e-3)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    twin(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert twin.conv.weight.grad.abs().sum() > 0


def test_it_trains_and_clamps_and_does_not_fly(tmp_path):
    from training.checkpoint import save_checkpoint
    from training.export import from_checkpoint

    config = TrainConfig(model=ModelConfig(name='bnext_nano_float', input_px=32))
    network = make_network(config.model, classes=2)
    network.clamp_parameters()
    network.set_temperature(0.5)
    state = {'config': config_to_dict(config), 'network': network.state_dict()}
    told = {'git_revision': '', 'step': 0, 'epoch': 0, 'figures': {}}
    save_checkpoint(tmp_path / 'final.pt', {**state, **told, 'classes': ['a', 'b']})
    with pytest.raises(ModelError, match='its backbone is bnext_nano_float'):
        from_checkpoint(tmp_path / 'final.pt', name='twin', record={})


def test_no_other_kind_is_known():
    with pytest.raises(ValueError, match="unknown size 'nano_double'"):
        make_bnext('nano_double')
