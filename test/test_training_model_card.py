"""The model card: tables from results, hand-written text left alone, errors in one line."""

import copy
import json

import cv2
import pytest

from training.card_tables import TABLES, markdown
from training.model_card import CARD, README, main, make_tables, with_tables
from training.readme_tables import README_TABLES

INTERVALS = {'interval_at_1': [0.1, 0.2], 'interval_at_5': [0.3, 0.4]}


def view(model, condition, group, share, **more):
    figures = {'queries': 10, 'recall_at_1': share, 'recall_at_5': share + 0.1, **INTERVALS}
    groups = {'by_scale': {'1': figures, '2': figures}, 'by_land_use': {'Grass': figures}}
    key = {'model': model, 'condition': condition, 'guesses': 1, 'descriptor': 'float'}
    return {**key, 'group': group, **figures, **groups, **more}


def flight(model, retrieval, heading, condition, share):
    figures = {
        f'recall_at_{k}_{radius}m{end}': value
        for k in (1, 5)
        for radius in (25, 10)
        for end, value in (('', share), ('_low', share - 0.1), ('_high', share + 0.05))
    }
    key = {'model': model, 'retrieval': retrieval, 'heading': heading, 'condition': condition}
    return {**key, **figures, 'total_ms': 104.6}


FIXES = {'coverage': 0.97, 'coverage_low': 0.91, 'coverage_high': 0.99, 'median_m': 0.314}
FIXES |= {'p90_m': 0.8, 'max_m': None, 'false_fixes': 0}
COST = {'file_bytes': 2_730_000, 'embedding_dim': 512, 'input_px': 96, 'median_ms': 1.64}
RESULTS = {
    'costs': [
        {**COST, 'model': 'nano', 'least_ms': 1.2},
        {**COST, 'model': 'convnext', 'least_ms': 30.0, 'median_ms': 33.0},
    ],
    'views': [
        view('convnext', 'plain', 'none', 0.9),
        view('nano', 'plain', 'none', 0.7),
        view('nano', 'season', 'world', 0.6),
        view('nano', 'typical', 'together', 0.5),
        view('nano', 'typical', 'together', 0.48, descriptor='packed'),
        view('nano', 'plain_any_heading', 'any heading', 0.2),
        view('nano', 'plain_any_heading', 'any heading', 0.4, guesses=12),
    ],
    'flight': [
        flight('nano', 'vote', 'autopilot', 'plain', 0.82),
        flight('nano', 'vote', 'unknown', 'plain', 0.72),
        flight('nano', 'single', 'unknown', 'plain', 0.5),
        flight('nano', 'vote', 'autopilot', 'medium:season', 0.61),
        flight('brute-force SIFT', 'brute force', 'any', 'medium:season', 0.01) | FIXES,
        flight('nano', 'pipeline', 'autopilot', 'plain', 0.82) | FIXES,
    ],
    'flight_growth': [
        flight('nano', 'x', 'x', 'x', 0.8)
        | {'method': 'retrieval', 'area_times': 4, 'area_km2': 0.5}
    ],
    'ablations': [
        {
            'row': row,
            'seed': seed,
            'says': f'without {row}',
            'against': against,
            'images_seen': 8192,
            'results': {'plain': {'recall_at_1': share}},
        }
        for row, seed, against, share in (
            ('everything', 0, '', 0.50),
            ('everything', 1, '', 0.54),
            ('hints', 0, 'everything', 0.47),
            ('hints', 1, 'everything', 0.49),
            ('luck', 1, 'everything', 0.60),
        )
    ],
}


def rows_of(table):
    return [line.strip('| ').split(' | ') for line in table.splitlines()[2:]]


def test_markdown():
    assert markdown(['a', 'b'], [['x', '1']]) == '| a | b |\n| --- | ---: |\n| x | 1 |'


def test_every_table_is_made_of_what_it_needs():
    tables = make_tables(RESULTS)
    assert set(tables) == set(TABLES)
    for table in tables.values():
        lines = table.splitlines()
        assert len(lines) > 2
        assert len({line.count('|') for line in lines}) == 1
    assert 'front' not in make_tables({'costs': RESULTS['costs']})


def test_front():
    rows = rows_of(make_tables(RESULTS)['front'])
    assert rows[0] == [
        *('nano', '96', '2.7', '1.6 (1.2)', '512'),
        *('82 (72-87)', '72 (62-77)', '50 (10-20)', '-', '-'),
    ]
    assert rows[1][0] == 'ConvNeXt-tiny, fine-tuned'
    assert rows[1][5:] == ['-'] * 5


def test_models_stand_in_the_cards_order():
    rows = rows_of(make_tables(RESULTS)['test together'])
    assert [row[0] for row in rows] == ['nano', 'ConvNeXt-tiny, fine-tuned']
    assert rows[0][1:] == ['70 (10-20)', '50 (10-20)']
    assert rows[1][1:] == ['90 (10-20)', '-']


def test_headings_and_descriptors():
    tables = make_tables(RESULTS)
    assert rows_of(tables['test heading']) == [['nothing', 'nano', '20 (10-20)', '40 (10-20)']]
    assert rows_of(tables['descriptor']) == [
        ['nano', 'as in training', '256 bits', '48 (-2.0)', '58 (-2.0)']
    ]


def test_flight_tables():
    tables = make_tables(RESULTS)
    assert [row[:2] for row in rows_of(tables['seneca vote'])] == [
        ['nano', 'autopilot'],
        ['nano', 'unknown'],
    ]
    assert rows_of(tables['seneca kinds']) == [
        ['season', 'medium', '61 (51-66)', '1 (-9-6)'],
    ]
    assert rows_of(tables['seneca pipeline'])[-1] == [
        *('nano', 'plain', '97 (91-99)', '0.31', '0.80', '-', '0', '105'),
    ]


def test_ablations_compare_seed_by_seed():
    rows = rows_of(make_tables(RESULTS)['ablations'])
    assert rows == [
        ['without everything', '2', '8.2', '52.0 ± 2.0'],
        ['without hints', '2', '8.2', '48.0 ± 1.0 (-4.0)'],
        # One seed, against that seed of the reference.
        ['without luck', '1', '8.2', '60.0 (+6.0)'],
    ]


def document(names):
    tables = [f'<!-- table {name} -->\nold\n<!-- end {name} -->' for name in names]
    return '\n\nby hand, <!-- a remark -->\n\n'.join(['# Card', *tables, 'the end\n'])


def test_hand_written_text_stays():
    text = document(['front', 'growth'])
    changed = with_tables(text, {'growth': '| new |'}, source='card')
    assert changed == text.replace(
        '<!-- table growth -->\nold\n', '<!-- table growth -->\n\n| new |\n\n'
    )
    assert with_tables(changed, {'growth': '| new |'}, source='card') == changed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'results').mkdir()
    for name, rows in RESULTS.items():
        content = {'command': '', 'revision': '', 'rows': rows}
        (tmp_path / 'results' / f'{name}.json').write_text(json.dumps(content))
    (tmp_path / 'card.md').write_text(document(TABLES))
    (tmp_path / 'readme.md').write_text(document(README_TABLES))
    return tmp_path


def run(folder, *words):
    options = {name: str(folder / f'{name}.md') for name in ('card', 'readme')}
    paths = [word for name, path in options.items() for word in (f'--{name}', path)]
    return main(['--results', str(folder / 'results'), *paths, *words])


def test_the_command_writes_and_checks(folder, capsys):
    assert run(folder, '--check') == 1
    assert 'not what the results say' in capsys.readouterr().out
    assert run(folder) == 0
    text = (folder / 'card.md').read_text()
    assert 'old' not in text
    assert text.count('by hand') == len(TABLES) + 1
    readme = (folder / 'readme.md').read_text()
    assert '| nano' not in readme
    assert '**shipped: binary** | 2.7 | - | 82% | 72% |' in readme
    assert '| as flown | 97% | 0.31 m | 0.80 m | 0 | - |' in readme
    assert run(folder, '--check') == 0
    figure = cv2.imread(str(folder / 'images' / 'model_card_front.png'))
    assert figure.std() > 10
    # What has no results stays.
    (folder / 'results' / 'ablations.json').unlink()
    assert run(folder, '--check') == 0
    assert 'table ablations stays: no ablations.json' in capsys.readouterr().err
    changed = copy.deepcopy(RESULTS['views'])
    changed[1]['recall_at_1'] = 0.99
    (folder / 'results' / 'views.json').write_text(json.dumps({'rows': changed}))
    assert run(folder, '--check') == 1


def test_known_errors_take_one_line(folder, capsys):
    def said():
        assert run(folder) == 2
        error = capsys.readouterr().err
        assert (error.startswith('error: '), error.count('\n')) == (True, 1)
        return error

    card = folder / 'card.md'
    text = card.read_text()
    card.write_text(text.replace('<!-- end growth -->', ''))
    assert 'found 1 times <!-- table growth --> and 0 times <!-- end growth -->' in said()
    swapped = text.replace('<!-- end growth -->', '').replace(
        '<!-- table growth -->', '<!-- end growth --><!-- table growth -->'
    )
    card.write_text(swapped)
    assert 'stands before' in said()
    card.unlink()
    assert 'cannot be read' in said()
    (folder / 'results' / 'views.json').write_text('{"rows": [{"model": 1}]}')
    assert 'views.json lack' in said()
    (folder / 'results' / 'views.json').write_text('[]')
    assert 'views.json: not readable as results' in said()
    (folder / 'results').rename(folder / 'elsewhere')
    assert 'no such folder' in said()


def test_the_projects_documents_have_a_place_for_every_table():
    text = CARD.read_text(encoding='utf-8')
    with_tables(text, dict.fromkeys(TABLES, ''), source='docs/model_card.md')
    text = README.read_text(encoding='utf-8')
    with_tables(text, dict.fromkeys(README_TABLES, ''), source='README.md')


def test_costs_of_the_shipped_model(tmp_path, capsys):
    from bicrossnet_ros.encoder import default_model_path
    from training.model_costs import main as measure

    out = tmp_path / 'evaluation' / 'costs.json'
    model = f'nano={default_model_path()}'
    assert measure(['--models', model, '--out', str(out), '--rounds', '2']) == 0
    row = json.loads(out.read_text())['rows'][0]
    assert row['file_bytes'] == default_model_path().stat().st_size
    assert 0 < row['least_ms'] <= row['median_ms']
    assert {'model', 'embedding_dim', 'input_px', 'runtime'} < set(row)
    assert measure(['--models', model, '--out', str(out), '--rounds', '0']) == 2
    assert capsys.readouterr().err == 'error: --rounds 0: expected 1 or more\n'
