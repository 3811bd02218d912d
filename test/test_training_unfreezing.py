"""Unfreezing: when phases begin, and what moves in each of them on the real network."""

import pytest
import torch

from bicrossnet_ros.errors import ConfigError
from training.averaging import reestimate_norms
from training.config import ModelConfig, UnfreezingConfig
from training.models.names import BACKBONES
from training.models.network import make_network
from training.models.partition import binary_layers, partition
from training.unfreezing import Phase, apply_phase, first_binary_epoch, phase_of

# Too large to be made for a test, and of the same classes as smaller ones.
LARGE = ('bnext_tiny', 'bnext_small', 'bnext_middle', 'bnext_large', 'convnext_tiny')
PAPER = UnfreezingConfig()
HEAD = Phase('head', 0, binary=False)
NORM_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


@pytest.fixture(scope='module')
def weights():
    """State of a network whose norms have seen images, so that frozen ones do not saturate it."""
    torch.manual_seed(0)
    network = make_network(ModelConfig(name='bnext_nano', bottleneck=16), classes=3)
    reestimate_norms(network, [torch.randn(8, 3, 32, 32)])
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture
def network(weights):
    made = make_network(ModelConfig(name='bnext_nano', bottleneck=16), classes=3)
    made.load_state_dict(weights)
    return made


def changes(config, *, epochs=250, stages=5):
    """The epochs at which a phase begins, with its name."""
    phases = [phase_of(config, epoch, stages) for epoch in range(epochs)]
    return [
        (epoch, phase.name)
        for epoch, phase in enumerate(phases)
        if epoch == 0 or phase != phases[epoch - 1]
    ]


def moved_by_a_step(network):
    """Names of all parameters and buffers that a training step changes."""
    torch.manual_seed(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # So large that no step is lost in rounding.
    optimizer = torch.optim.SGD(network.parameters(), lr=100.0)
    outputs = network(torch.randn(4, 3, 32, 32))
    labels = torch.tensor([0, 1, 2, 0])
    loss = sum(torch.nn.functional.cross_entropy(x, labels) for x in outputs.logits)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    after = network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def buffers_below(network, prefix):
    return {name for name, _ in network.named_buffers() if name.startswith(prefix)}


def test_the_papers_phases_over_250_epochs():
    assert changes(PAPER) == [(0, 'head'), (20, 'float'), (40, 'all')]
    assert phase_of(PAPER, 19, 5) == HEAD
    assert phase_of(PAPER, 39, 5) == Phase('float', 5, binary=False)
    assert phase_of(PAPER, 249, 5) == Phase('all', 5, binary=True)


@pytest.mark.parametrize(
    ('head', 'partial', 'expected'),
    [
        (20, 10, [(0, 'head'), (20, 'float'), (30, 'all')]),  # B of table 7
        (10, 20, [(0, 'head'), (10, 'float'), (30, 'all')]),  # F
        (0, 0, [(0, 'all')]),  # G
        (0, 5, [(0, 'float'), (5, 'all')]),
        (5, 0, [(0, 'head'), (5, 'all')]),
    ],
)
def test_other_lengths(head, partial, expected):
    assert changes(UnfreezingConfig(head_epochs=head, partial_epochs=partial)) == expected


def test_no_unfreezing_trains_all_from_the_start():
    config = UnfreezingConfig(strategy='none')
    assert changes(config) == [(0, 'all')]
    assert first_binary_epoch(config) == 0


def test_gradual_unfreezing_frees_stages_at_even_distances():
    config = UnfreezingConfig(strategy='gradual')
    names = ['head', 'last 1 of 5', 'last 2 of 5', 'last 3 of 5', 'last 4 of 5', 'all']
    assert changes(config) == list(zip([0, 20, 25, 30, 35, 40], names, strict=True))
    assert first_binary_epoch(config) == 20
    assert phase_of(config, 40, 5) == phase_of(PAPER, 40, 5)


@pytest.mark.parametrize('partial', [0, 1, 3, 7])
def test_gradual_unfreezing_ends_in_time_whatever_its_length(partial):
    config = UnfreezingConfig(strategy='gradual', head_epochs=2, partial_epochs=partial)
    free = [phase_of(config, epoch, 5).stages for epoch in range(12)]
    assert free[:2] == [0, 0]
    assert all(free[i] <= free[i + 1] for i in range(11))
    assert free[2 + partial :] == [5] * (10 - partial)


def test_the_papers_binary_weights_begin_at_40():
    assert first_binary_epoch(PAPER) == 40
    assert phase_of(PAPER, 39, 5).binary is False


def test_in_the_first_phase_only_the_head_moves(network):
    apply_phase(network, HEAD)
    images = torch.randn(4, 3, 32, 32)
    embedding = network(images).embedding
    assert not embedding.requires_grad  # no graph is built below the head
    groups = partition(network)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == set(groups.head)
    # A step moves exactly the head and the statistics of its norms.
    assert moved_by_a_step(network) == set(groups.head) | buffers_below(network, 'branches.')
    assert torch.equal(network(images).embedding, embedding)


def test_in_the_second_phase_float_weights_and_norms_move_too(network):
    apply_phase(network, phase_of(PAPER, 20, len(network.backbone.stages())))
    groups = partition(network)
    assert all(not latent.requires_grad for latent in groups.binary.values())
    moved = moved_by_a_step(network)
    assert not moved & set(groups.binary)
    assert moved >= buffers_below(network, 'backbone.') | buffers_below(network, 'branches.')
    assert still(network, moved) == set(groups.binary)


def test_in_the_third_phase_everything_moves(network):
    apply_phase(network, phase_of(PAPER, 40, len(network.backbone.stages())))
    assert all(value.requires_grad for value in network.parameters())
    assert all(module.training for module in network.modules())
    moved = moved_by_a_step(network)
    assert moved >= set(partition(network).binary)
    assert not still(network, moved)


def still(network, moved):
    return set(network.state_dict()) - moved


@pytest.mark.parametrize('free', [1, 3, 4])
def test_gradual_unfreezing_moves_the_last_stages_alone(network, free):
    stages = network.backbone.stages()
    names = {id(value): name for name, value in network.named_parameters()}
    apply_phase(network, Phase(f'last {free} of {len(stages)}', free, binary=True))
    frozen = {names[id(value)] for stage in stages[:-free] for value in stage.parameters()}
    norms = {
        f'{name}.{buffer}'
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not module.training
        for buffer in NORM_BUFFERS
    }
    assert len(norms) > 3
    moved = moved_by_a_step(network)
    assert still(network, moved) == frozen | norms
    # Binary weights of free stages train: gradual unfreezing tells no kinds apart.
    assert moved & set(partition(network).binary)


def test_the_last_stage_is_the_first_to_be_freed(network):
    apply_phase(network, Phase('last 1', 1, binary=True))
    free = {name for name, value in network.named_parameters() if value.requires_grad}
    assert 'backbone.stem.weight' not in free
    last = max(
        int(name.split('.')[2]) for name, _ in network.named_parameters() if '.blocks.' in name
    )
    assert any(name.startswith(f'backbone.blocks.{last}.') for name in free)


def test_frozen_binary_layers_convolve_with_signs_though_hot(network):
    network.set_temperature(0.5)
    apply_phase(network, phase_of(PAPER, 20, len(network.backbone.stages())))
    layer = next(iter(binary_layers(network).values()))
    assert layer.effective_weight().unique().tolist() == [-1, 1]
    apply_phase(network, phase_of(PAPER, 40, len(network.backbone.stages())))
    assert len(layer.effective_weight().unique()) > 2


def test_every_phase_can_follow_every_other(network):
    stages = len(network.backbone.stages())

    def look():
        return (
            [module.training for module in network.modules()],
            [value.requires_grad for value in network.parameters()],
        )

    phases = [phase_of(PAPER, epoch, stages) for epoch in (0, 20, 40)]
    seen = []
    for phase in phases:
        apply_phase(network, phase)
        seen.append(look())
    assert len({str(x) for x in seen}) == 3
    for phase, expected in zip(reversed(phases), reversed(seen), strict=True):
        network.eval()
        apply_phase(network, phase)
        assert look() == expected


def test_a_stale_gradient_does_not_move_what_is_frozen(network):
    apply_phase(network, phase_of(PAPER, 40, 5))
    moved_by_a_step(network)
    apply_phase(network, HEAD)
    groups = partition(network)
    frozen = {**groups.float_backbone, **groups.binary}
    assert all(value.grad is None for value in frozen.values())
    assert all(value.grad is not None for value in groups.head.values())


def test_a_network_without_a_head_cannot_train_it_alone():
    bare = make_network(ModelConfig(name='bnext_nano', branches=False), classes=0)
    with pytest.raises(ConfigError, match='head_epochs: 0'):
        apply_phase(bare, HEAD)
    apply_phase(bare, Phase('float', len(bare.backbone.stages()), binary=False))


@pytest.mark.parametrize('name', [name for name in BACKBONES if name not in LARGE])
def test_the_phases_divide_the_parameters_of_every_backbone(name):
    network = make_network(ModelConfig(name=name, bottleneck=8), classes=3)
    stages = network.backbone.stages()
    groups = partition(network)
    counted = [id(value) for stage in stages for value in stage.parameters()]
    assert len(set(counted)) == len(counted)
    assert set(counted) == {id(value) for value in network.backbone.parameters()}

    def trained():
        return {name for name, value in network.named_parameters() if value.requires_grad}

    apply_phase(network, HEAD)
    assert trained() == set(groups.head)
    assert not any(module.training for module in network.backbone.modules())
    apply_phase(network, phase_of(PAPER, 20, len(stages)))
    assert trained() == set(groups.head) | set(groups.float_backbone)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    apply_phase(network, phase_of(PAPER, 40, len(stages)))
    assert trained() == {name for name, _ in network.named_parameters()}


def test_frozen_latent_weights_are_not_brought_into_range():
    """XNOR-Net centres its latent weights at every step: frozen, they would move all the same."""
    network = make_network(ModelConfig(name='resnet34_xnor', bottleneck=8), classes=3)
    latent = partition(network).binary
    before = {name: value.clone() for name, value in latent.items()}
    apply_phase(network, HEAD)
    network.clamp_parameters()
    apply_phase(network, phase_of(PAPER, 20, 5))
    network.clamp_parameters()
    assert all(torch.equal(value, before[name]) for name, value in latent.items())
    apply_phase(network, phase_of(PAPER, 40, 5))
    network.clamp_parameters()
    assert not any(torch.equal(value, before[name]) for name, value in latent.items())


def test_a_binary_layer_with_a_float_parameter_trains_it_in_the_second_phase():
    network = make_network(ModelConfig(name='resnet34_recu', bottleneck=8), classes=3)
    apply_phase(network, phase_of(PAPER, 20, 5))
    for layer in binary_layers(network).values():
        assert layer.alpha.requires_grad
        assert not layer.weight.requires_grad
        assert layer.training  # its input is standardised for the gradient while it trains
