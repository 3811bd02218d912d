"""The paper's numbers: consistent with each other, with its text, and chosen by configuration."""

import re

import pytest
from conftest import data_root

from bicrossnet_ros.errors import ConfigError
from training.config import HEIGHTS_M, TrainConfig
from training.config_files import load_config, with_changes
from training.paper import DIRECTIONS, ROWS, SIZES, TABLE_7, find_row, rows_of
from training.paper_configs import CONFIGS, row_for


def test_rows_of_every_table():
    tables = [row.table for row in ROWS.values()]
    assert {table: tables.count(table) for table in sorted(set(tables))} == {
        2: 6,
        3: 7,
        4: 6,
        5: 3,
        6: 5,
        8: 4,
    }
    for key, row in ROWS.items():
        heights = HEIGHTS_M if row.source == 'sues200' else (0,)
        assert row.key == key
        assert key.startswith(f'table{row.table}_')
        assert set(row.figures) == {(d, h) for d in DIRECTIONS for h in heights}


def test_percentages_are_possible():
    for row in ROWS.values():
        for figures in row.figures.values():
            values = [figures.recall_at_1, figures.recall_at_5, figures.recall_at_10]
            printed = [value for value in values if value is not None]
            assert printed == sorted(printed)
            assert all(0 < value < 100 for value in [*printed, figures.ap])


def test_rows_that_are_printed_twice_are_equal():
    for one, other in (
        ('table4_recu', 'table8_recu'),
        ('table4_bnext_tiny', 'table8_bnext_tiny'),
        ('table4_bnext_middle', 'table8_bnext_middle'),
        ('table4_bnext_tiny_kd', 'table5_none'),
        ('table4_bnext_tiny_kd', 'table6_adam'),
    ):
        assert ROWS[one].figures == ROWS[other].figures


def test_costs_follow_their_own_formula():
    for key in ('table2_tiny', 'table3_tiny', 'table3_middle'):
        row = ROWS[key]
        assert row.flops_g + row.binops_g / 64 == pytest.approx(row.ops_g, abs=0.011)
        assert row.is_ours
    assert not ROWS['table3_mccg'].is_ours


def test_table_7_sums_and_its_configurations():
    for letter, (head, partial, rest, total) in TABLE_7.items():
        assert head + partial + rest == total
        config = load_config(CONFIGS / f'ablation_epochs_{letter.lower()}.yaml')
        phases = config.unfreezing.head_epochs, config.unfreezing.partial_epochs
        assert (*phases, config.run.epochs) == (head, partial, total)


def test_sizes_pool_the_heights():
    for direction in DIRECTIONS:
        for protocol in ('full', 'reduced'):
            single = SIZES['sues200', direction, protocol, True]
            pooled = SIZES['sues200', direction, protocol, False]
            drone = direction.startswith('satellite')  # position of the drone images
            assert pooled[drone] == 4 * single[drone]
            assert pooled[not drone] == single[not drone]


def test_every_number_is_in_the_paper():
    text = data_root().parent / 'paper' / 'bicrossnet.txt'
    if not text.is_file():
        pytest.skip(f'the text of the paper is not at {text}')
    parts = re.split(r'^Table (\d)\. ', text.read_text(encoding='utf-8'), flags=re.MULTILINE)
    tables = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    for row in ROWS.values():
        lines = [
            line
            for line in re.sub(r' ?\[\d+\]', '', tables[row.table]).splitlines()
            if any(_is_label(cell, row.label) for cell in line.split('\t'))
        ]
        for (direction, height), figures in row.figures.items():
            which = DIRECTIONS.index(direction)
            if row.table <= 3:  # a half of the table for each direction
                values = [figures.recall_at_1, figures.recall_at_5, figures.recall_at_10]
                cells = [f'{v:.2f}' if v else '—' for v in [*values, figures.ap]]
                first = 7 + 4 * (HEIGHTS_M.index(height) if height else 0)
                assert lines[which].split('\t')[first : first + 4] == cells, row.key
            else:
                cells = [f'{figures.recall_at_1:.2f}', f'{figures.ap:.2f}']
                numbers = lines[0].split('\t')[-4:]
                assert numbers[2 * which : 2 * which + 2] == cells, row.key
        if row.table <= 3:
            costs = (row.parameters_m, row.disk_mb, row.binops_g, row.flops_g, row.ops_g)
            printed = [
                float(cell.rstrip('GM ')) if cell != '—' else None
                for k, cell in enumerate(lines[0].split('\t')[1:7])
                if k != 2  # bits of weights and activations
            ]
            assert printed == list(costs), row.key


def _is_label(cell: str, label: str) -> bool:
    cell = cell.removeprefix('+ ').removesuffix(' (for all weights)').replace('Resnet', 'ResNet')
    return label in (cell, cell.partition('(')[2].rstrip(')'))


FULL = ['losses.teacher=teacher.pt', 'model.pretrained=weights.pth']
NO_KD = ['model.pretrained=weights.pth', 'losses.logit_distillation=0']
RANDOM = ['losses.teacher=teacher.pt', 'model.name=resnet34_recu']
PLAIN = ['unfreezing.strategy=none', 'optimizer.strategy=adam']
LION = ['optimizer.strategy=lion', 'optimizer.learning_rate=1e-3']
SUES = ['data.source=sues200', 'data.height_m=250']


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        (FULL, 'table3_tiny'),
        ([*FULL, 'model.name=bnext_middle'], 'table3_middle'),
        ([*FULL, *SUES], 'table2_tiny'),
        ([*NO_KD, *PLAIN], 'table4_bnext_tiny'),
        (['model.pretrained=weights.pth', *PLAIN], 'table4_bnext_tiny'),  # without a teacher
        (['model.name=resnet34_xnor', *PLAIN], 'table8_xnor'),
        ([*RANDOM, *PLAIN], 'table4_recu_kd'),
        ([*FULL, *PLAIN, 'model.name=bnext_middle'], 'table4_bnext_middle_kd'),
        ([*FULL, *PLAIN], 'table4_bnext_tiny_kd'),
        ([*FULL, 'unfreezing.strategy=gradual', 'optimizer.strategy=adam'], 'table5_gradual'),
        ([*FULL, 'optimizer.strategy=adam'], 'table5_bi_gradual'),
        ([*FULL, *LION, 'unfreezing.strategy=none'], 'table6_lion'),
        ([*FULL, 'unfreezing.strategy=none'], 'table6_bi_partitioned'),
        # How a run is carried out is no part of the recipe.
        ([*FULL, 'run.seed=3', 'run.precision=bfloat16', 'data.workers=8'], 'table3_tiny'),
        ([*FULL, 'data.unreadable=fail', 'run.norm_steps=100'], 'table3_tiny'),
    ],
)
def test_row_of_a_configuration(changes, key):
    row = row_for(with_changes(TrainConfig(), changes))
    assert row
    assert row.key == key


@pytest.mark.parametrize(
    'changes',
    [
        ['losses.cross_entropy=0'],
        ['losses.info_nce=1'],
        ['losses.logit_reduction=sample'],
        ['optimizer.learning_rate=0.1'],
        ['optimizer.schedule=constant'],
        ['optimizer.delay_binary=false'],
        ['optimizer.strategy=sgd'],
        [*LION],
        ['data.sampler=pairs'],
        ['data.places_per_step=16'],
        ['data.holdout=8'],
        ['data.augment.flip_share=0'],
        ['data.source=maps'],
        ['data.source=sues200'],  # the paper trains at one height
        ['model.pretrained='],
        ['model.temperature_decay=0.9', 'run.norm_steps=1'],
        ['model.input_px=384'],
        ['model.name=bnext_nano'],
        ['losses.teacher='],
        ['unfreezing.head_epochs=10'],  # table 7 prints no accuracies
        ['unfreezing.head_epochs=0', 'unfreezing.partial_epochs=0'],
        ['run.epochs=200'],
    ],
)
def test_whoever_departs_from_a_row_does_not_answer_to_it(changes):
    assert row_for(with_changes(TrainConfig(), [*FULL, *changes])) is None


def test_configurations_answer_to_the_row_that_they_name():
    named = 0
    for path in sorted(CONFIGS.glob('*.yaml')):
        comment = path.read_text(encoding='utf-8').partition('\n')[0]
        found = re.search(r'[Tt]able (\d).*D->S R@1 (\d+\.\d+), AP (\d+\.\d+)', comment)
        if not found:
            continue
        named += 1
        config = load_config(path)
        row = row_for(config)
        assert row is not None, path.name
        figures = row.figures[DIRECTIONS[0], config.data.height_m]
        assert (figures.recall_at_1, figures.ap) == (float(found[2]), float(found[3])), path.name
    assert named >= 10


def test_rows_by_key_and_source():
    assert find_row('table3_mccg').label == 'MCCG'
    with pytest.raises(ConfigError, match="no row 'x' of the paper; expected one of table2_"):
        find_row('x')
    assert [row.key for row in rows_of('sues200')] == [
        key for key in ROWS if key.startswith('table2')
    ]
    assert all(row.table == 3 for row in rows_of('university1652'))
