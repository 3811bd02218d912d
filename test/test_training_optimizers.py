"""Optimisers and learning rates: traces, groups, first steps by hand, exact resumption."""

import io
import math

import pytest
import torch
from torch import nn

from training.config import LossConfig, OptimizerConfig, UnfreezingConfig
from training.losses import TotalLoss
from training.models.binary import BinaryConv2d
from training.models.bnext import BNext
from training.models.branches import MultipleClassifierBranch
from training.models.network import GeoNetwork, Outputs
from training.models.partition import partition
from training.optimizers import learning_rates, make_optimizers, set_learning_rates
from training.unfreezing import apply_phase, phase_of

PAPER = OptimizerConfig()
BI_GRADUAL = UnfreezingConfig()
NOT_GRADUAL = UnfreezingConfig(strategy='none')
STRATEGIES = ('bi_partitioned', 'adam', 'adamw', 'sgd', 'lion')


def make(seed=0):
    """A small network with every kind of unit, and a loss with parameters of its own."""
    torch.manual_seed(seed)
    branches = MultipleClassifierBranch(64, 3, bottleneck=16)
    network = GeoNetwork(BNext((16, 32, 32, 64)), branches)
    loss = TotalLoss(
        LossConfig(info_nce=1.0, feature_distillation=1.0, teacher='t.pt'),
        embedding_dim=network.embedding_dim,
        teacher_dim=8,
    )
    return network, loss


@pytest.fixture(scope='module')
def made():
    """A network and a loss whose values no test of this fixture relies on."""
    return make()


def trace(config, unfreezing, *, epochs=250):
    """Learning rates of each optimiser at the beginning of every epoch."""
    rows = [
        learning_rates(config, unfreezing, epoch=epoch, epochs=epochs) for epoch in range(epochs)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def steps(rates):
    """(epoch, rate) wherever the rate changes."""
    return [(i, rate) for i, rate in enumerate(rates) if i == 0 or rate != rates[i - 1]]


def near(pairs):
    return [(epoch, pytest.approx(rate)) for epoch, rate in pairs]


def test_both_traces_of_the_paper_over_250_epochs():
    rates = trace(PAPER, BI_GRADUAL)
    assert set(rates) == {'float', 'binary'}
    adam = [(0, 6e-3), (80, 6e-4), (120, 6e-5), (200, 6e-6)]
    lion = [(0, 1e-3), (120, 1e-4), (160, 1e-5), (240, 1e-6)]
    assert steps(rates['float']) == near(adam)
    assert steps(rates['binary']) == near(lion)


def test_the_traces_equal_torchs_scheduler_started_in_the_third_phase():
    parameter = nn.Parameter(torch.zeros(1))
    optimizers = [torch.optim.SGD([parameter], lr=lr) for lr in (6e-3, 1e-3)]
    schedulers = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120, 200], 0.1)
        for optimizer in optimizers
    ]
    rates = trace(PAPER, BI_GRADUAL)
    for epoch in range(250):
        for name, optimizer in zip(('float', 'binary'), optimizers, strict=True):
            assert rates[name][epoch] == pytest.approx(optimizer.param_groups[0]['lr'])
        for optimizer in optimizers:
            optimizer.step()
        schedulers[0].step()
        if epoch >= 40:
            schedulers[1].step()


@pytest.mark.parametrize(
    ('config', 'unfreezing', 'drops'),
    [
        (PAPER, NOT_GRADUAL, [0, 80, 120, 200]),
        (OptimizerConfig(delay_binary=False), BI_GRADUAL, [0, 80, 120, 200]),
        (PAPER, UnfreezingConfig(strategy='gradual'), [0, 100, 140, 220]),
        (PAPER, UnfreezingConfig(head_epochs=10, partial_epochs=5), [0, 95, 135, 215]),
        (PAPER, UnfreezingConfig(head_epochs=0, partial_epochs=0), [0, 80, 120, 200]),
    ],
)
def test_the_binary_milestones_count_from_the_epoch_that_frees_them(config, unfreezing, drops):
    rates = trace(config, unfreezing)
    assert [epoch for epoch, _ in steps(rates['binary'])] == drops
    assert [epoch for epoch, _ in steps(rates['float'])] == [0, 80, 120, 200]


@pytest.mark.parametrize('strategy', STRATEGIES[1:])
def test_a_single_optimiser_has_one_undelayed_trace(strategy):
    config = OptimizerConfig(strategy=strategy, learning_rate=0.01)
    rates = trace(config, BI_GRADUAL)
    expected = [(0, 1e-2), (80, 1e-3), (120, 1e-4), (200, 1e-5)]
    assert list(rates) == ['all']
    assert steps(rates['all']) == near(expected)


def test_the_teachers_trace():
    config = OptimizerConfig(strategy='sgd', learning_rate=0.01, milestones=(80.0, 120.0))
    rates = trace(config, NOT_GRADUAL, epochs=200)['all']
    assert steps(rates) == near([(0, 1e-2), (80, 1e-3), (120, 1e-4)])


def test_a_milestone_falls_between_epochs_not_before():
    rates = [
        learning_rates(PAPER, NOT_GRADUAL, epoch=epoch, epochs=250)['float']
        for epoch in (79.999, 80.0, 80.001)
    ]
    assert rates == [pytest.approx(6e-3), pytest.approx(6e-4), pytest.approx(6e-4)]


def test_warm_up_is_linear_and_counts_from_each_ones_beginning():
    config = OptimizerConfig(warmup_epochs=5.0, schedule='constant')
    rates = trace(config, BI_GRADUAL)
    line = [0.01 + 0.99 * epoch / 5 for epoch in range(5)] + [1.0]
    assert [rate / 6e-3 for rate in rates['float'][:6]] == pytest.approx(line)
    assert rates['float'][5:] == [6e-3] * 245
    assert [rate / 1e-3 for rate in rates['binary'][40:46]] == pytest.approx(line)
    # Before they are freed: the rate that they begin with, and no nonsense.
    assert rates['binary'][:40] == pytest.approx([1e-5] * 40)


def test_warm_up_may_be_a_fraction_of_an_epoch():
    config = OptimizerConfig(warmup_epochs=0.5, schedule='constant')
    rates = [
        learning_rates(config, NOT_GRADUAL, epoch=epoch, epochs=9)['float'] / 6e-3
        for epoch in (0, 0.25, 0.499999, 0.5)
    ]
    assert rates == pytest.approx([0.01, 0.505, 1.0, 1.0], abs=1e-5)


def test_cosine_falls_from_the_warm_up_to_the_final_factor():
    config = OptimizerConfig(
        strategy='adamw', learning_rate=1.0, schedule='cosine', warmup_epochs=2.0, final_factor=0.1
    )
    at = {
        epoch: learning_rates(config, NOT_GRADUAL, epoch=epoch, epochs=10)['all']
        for epoch in (0, 2, 4, 6, 10, 11)
    }
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    expected = {0: 0.01, 2: 1.0, 4: quarter, 6: 0.55, 10: 0.1, 11: 0.1}
    assert at == pytest.approx(expected)


def test_cosine_of_delayed_binary_weights_ends_with_the_training():
    config = OptimizerConfig(schedule='cosine', final_factor=0.0)
    rates = trace(config, BI_GRADUAL)['binary']
    assert rates[:41] == [1e-3] * 41
    assert rates[145] == pytest.approx(5e-4)  # half of the 210 epochs
    end = learning_rates(config, BI_GRADUAL, epoch=250, epochs=250)['binary']
    assert end == pytest.approx(0, abs=1e-12)


def test_constant_stays():
    config = OptimizerConfig(strategy='lion', learning_rate=0.3, schedule='constant')
    assert trace(config, BI_GRADUAL)['all'] == [0.3] * 250


def test_a_schedule_for_a_training_as_long_as_its_warm_up():
    config = OptimizerConfig(schedule='cosine', warmup_epochs=3.0)
    at = learning_rates(config, NOT_GRADUAL, epoch=3.0, epochs=3)
    assert at['float'] == pytest.approx(6e-3)


def named_groups(network, loss, optimizers):
    """(optimiser, decay, factor) of every parameter, by name."""
    names = {id(value): name for name, value in network.named_parameters()}
    names |= {id(value): f'loss.{name}' for name, value in loss.named_parameters()}
    return {
        names[id(value)]: (kind, group['weight_decay'], group['factor'])
        for kind, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for value in group['params']
    }


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_every_parameter_is_in_one_group_with_its_decay_and_factor(made, strategy):
    network, loss = made
    config = OptimizerConfig(strategy=strategy, weight_decay=0.05, backbone_factor=0.3)
    optimizers = make_optimizers(network, loss, config)
    count = sum(len(g['params']) for o in optimizers.values() for g in o.param_groups)
    found = named_groups(network, loss, optimizers)
    assert count == len(found)

    bi_partitioned = strategy == 'bi_partitioned'
    expected = {}
    for prefix, root in (('', network), ('loss.', loss)):
        for name, value in root.named_parameters():
            layer = root.get_submodule(name.rpartition('.')[0])
            latent = isinstance(layer, BinaryConv2d)
            decays = isinstance(layer, nn.Conv2d | nn.Linear) and value.ndim > 1 and not latent
            kind = ('binary' if latent else 'float') if bi_partitioned else 'all'
            slower = name.startswith('backbone.') and not latent
            expected[prefix + name] = (kind, 0.05 * decays, 0.3 if slower else 1.0)
    assert found == expected
    assert found['backbone.stem.weight'][1] == 0.05
    assert found['loss.feature_distillation.projection.weight'][1] == 0.05
    assert found['loss.info_nce.log_scale'][1] == 0


def test_the_papers_optimisers(made):
    optimizers = make_optimizers(*made, PAPER)
    assert [type(x).__name__ for x in optimizers.values()] == ['Adam', 'Lion']
    (adam, *_), (lion,) = (x.param_groups for x in optimizers.values())
    assert (adam['betas'], adam['eps'], adam['lr']) == ((0.9, 0.999), 1e-8, 6e-3)
    assert (lion['betas'], lion['lr']) == ((0.9, 0.99), 1e-3)
    groups = [*optimizers['float'].param_groups, lion]
    assert {group['weight_decay'] for group in groups} == {0.0}


@pytest.mark.parametrize(
    ('config', 'names'),
    [
        (OptimizerConfig(float_optimizer='adamw'), ['AdamW', 'Lion']),
        (OptimizerConfig(strategy='adam'), ['Adam']),
        (OptimizerConfig(strategy='adamw'), ['AdamW']),
        (OptimizerConfig(strategy='lion'), ['Lion']),
        (OptimizerConfig(strategy='sgd'), ['SGD']),
        (OptimizerConfig(strategy='sgd', momentum=0.0), ['SGD']),
    ],
)
def test_the_other_optimisers(made, config, names):
    optimizers = make_optimizers(*made, config)
    assert [type(x).__name__ for x in optimizers.values()] == names
    for group in optimizers.get('all', next(iter(optimizers.values()))).param_groups:
        if names == ['SGD']:
            assert (group['momentum'], group['nesterov']) == (
                config.momentum,
                config.momentum > 0,
            )


def test_a_network_without_binary_weights_has_no_binary_optimiser(made):
    _, loss = made
    network = nn.Module()
    network.backbone, network.branches = nn.Linear(2, 2), None
    optimizers = make_optimizers(network, loss, PAPER)
    assert list(optimizers) == ['float']
    set_learning_rates(optimizers, learning_rates(PAPER, BI_GRADUAL, epoch=0, epochs=250))


def test_learning_rates_are_set_times_the_factor_of_the_group(made):
    network, loss = made
    config = OptimizerConfig(backbone_factor=0.3)
    optimizers = make_optimizers(network, loss, config)
    for _ in range(2):  # not cumulative
        set_learning_rates(optimizers, {'float': 0.5, 'binary': 0.25})
    groups = named_groups(network, loss, optimizers)
    for kind, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            assert group['lr'] == (0.25 if kind == 'binary' else 0.5 * group['factor'])
    assert {factor for _, _, factor in groups.values()} == {0.3, 1.0}


def test_a_rate_of_zero_moves_nothing(made):
    network, loss = made
    for strategy in STRATEGIES:
        config = OptimizerConfig(
            strategy=strategy, learning_rate=0.0, binary_learning_rate=0.0, weight_decay=0.1
        )
        optimizers = make_optimizers(network, loss, config)
        before = [value.clone() for value in network.parameters()]
        for value in network.parameters():
            value.grad = torch.ones_like(value)
        for optimizer in optimizers.values():
            optimizer.step()
        after = list(network.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), strategy


@pytest.mark.parametrize(
    ('strategy', 'first', 'second'),
    [
        # Gradients 1, then -0.5, at rate 0.1.
        ('adam', 0.1, 0.1 * (0.9 * 0.1 - 0.05) / 0.19 / math.sqrt(0.001249 / 0.001999)),
        ('adamw', 0.1, 0.1 * (0.9 * 0.1 - 0.05) / 0.19 / math.sqrt(0.001249 / 0.001999)),
        # Momentum 1, then 0.9 - 0.5 = 0.4; Nesterov looks 0.9 of it ahead of the gradient.
        ('sgd', 0.1 * 1.9, 0.1 * (-0.5 + 0.9 * 0.4)),
        # Sign of 0.1, then of 0.9 * 0.01 - 0.1 * 0.5.
        ('lion', 0.1, -0.1),
    ],
)
def test_two_steps_by_hand(made, strategy, first, second):
    network, loss = made
    config = OptimizerConfig(strategy=strategy, learning_rate=0.1)
    (optimizer,) = make_optimizers(network, loss, config).values()
    value = network.branches.classifiers[0].classifier.bias
    for gradient, step in ((1.0, first), (-0.5, second)):
        for other in network.parameters():
            other.grad = None
        before = value.detach().clone()
        value.grad = torch.full_like(value, gradient)
        optimizer.step()
        assert (before - value).tolist() == pytest.approx([step] * len(value), abs=1e-6)


def run(network, loss, optimizers, epochs, *, config, start=0):
    """A step an epoch of a short bi-gradual training."""
    unfreezing = UnfreezingConfig(head_epochs=1, partial_epochs=1)
    stages = len(network.backbone.stages())
    for epoch in range(start, epochs):
        apply_phase(network, phase_of(unfreezing, epoch, stages))
        rates = learning_rates(config, unfreezing, epoch=epoch, epochs=epochs)
        set_learning_rates(optimizers, rates)
        torch.manual_seed(epoch)
        images = torch.randn(2, 4, 3, 32, 32)
        satellite, drone = network(images[0]), network(images[1])
        teacher = Outputs(torch.randn(4, 8), satellite.features, tuple(torch.randn(3, 4, 3)))
        terms = loss(satellite, drone, torch.tensor([0, 1, 2, 1]), (teacher, teacher))
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        terms['total'].backward()
        for optimizer in optimizers.values():
            optimizer.step()
        network.clamp_parameters()


def test_frozen_weights_get_no_state_and_no_decay():
    network, loss = make()
    config = OptimizerConfig(weight_decay=0.1)
    optimizers = make_optimizers(network, loss, config)
    groups = partition(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def unmoved(parameters):
        return all(torch.equal(value, before[name]) for name, value in parameters.items())

    run(network, loss, optimizers, 1, config=config)
    assert unmoved(groups.binary)
    assert unmoved(groups.float_backbone)
    run(network, loss, optimizers, 2, config=config, start=1)
    assert unmoved(groups.binary)
    assert not unmoved(groups.float_backbone)
    assert not optimizers['binary'].state_dict()['state']
    run(network, loss, optimizers, 3, config=config, start=2)
    assert len(optimizers['binary'].state_dict()['state']) == len(groups.binary)
    # Lion's first step has the size of its learning rate, wherever there is a gradient.
    for name, value in groups.binary.items():
        step = (value - before[name]).abs()
        assert step.max().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_saved_training_goes_on_bit_exactly(strategy):
    config = OptimizerConfig(strategy=strategy, learning_rate=1e-3, weight_decay=0.01)
    network, loss = make()
    optimizers = make_optimizers(network, loss, config)
    run(network, loss, optimizers, 3, config=config)
    file = io.BytesIO()
    torch.save(
        {
            'network': network.state_dict(),
            'loss': loss.state_dict(),
            **{name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        },
        file,
    )
    run(network, loss, optimizers, 5, config=config, start=3)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, resumed_loss = make(seed=1)
    others = make_optimizers(resumed, resumed_loss, config)
    resumed.load_state_dict(state['network'])
    resumed_loss.load_state_dict(state['loss'])
    for name, optimizer in others.items():
        optimizer.load_state_dict(state[name])
    run(resumed, resumed_loss, others, 5, config=config, start=3)
    for name, value in network.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, value in loss.state_dict().items():
        assert torch.equal(value, resumed_loss.state_dict()[name]), name
