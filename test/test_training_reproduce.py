"""From the tables' rows to trainings, in the right order, each once, and back to the tables."""

import json
import signal
import subprocess
import sys
import time

import pytest
from command_line import REPOSITORY
from university_fixture import university_dataset

from training.config_files import load_config
from training.paper import ROWS
from training.paper_configs import CONFIGS, ROWS_OF_CONFIGS, row_for
from training.reproduce import main, plan, table_text
from training.run_folder import claim_folder

SMALL = [
    'model.name=bnext_nano',
    "model.pretrained=''",
    'model.input_px=32',
    'model.bottleneck=16',
    'data.places_per_step=6',
    'optimizer.learning_rate=1e-3',
    'run.epochs=3',
    'run.threads=1',
    'run.tensorboard=false',
]


def test_every_row_exists_on_both_sides():
    for rows in ROWS_OF_CONFIGS.values():
        for name, key in rows.items():
            assert (CONFIGS / f'{name}.yaml').is_file(), name
            assert key is None or key in ROWS, key


def test_rows_answer_to_what_their_configuration_says():
    """No configuration is taken for another with other figures."""
    for rows in ROWS_OF_CONFIGS.values():
        for name, key in rows.items():
            found = row_for(load_config(CONFIGS / f'{name}.yaml'))
            if key:  # table 7 prints no figures
                assert found is not None, name
                assert found.figures == ROWS[key].figures, name


def test_teachers_come_first_and_equal_trainings_are_done_once():
    jobs = plan(sorted(ROWS_OF_CONFIGS))
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    for job in jobs:
        teacher = job.config.losses.teacher
        if teacher:
            assert names.index(teacher.split('/')[1]) < names.index(job.name)
    configs = [job.config for job in jobs]
    assert all(configs.count(config) == 1 for config in configs)
    answered = sorted(name for job in jobs for _, name, _ in job.lines)
    assert answered == sorted(name for rows in ROWS_OF_CONFIGS.values() for name in rows)
    # Table 7's A is table 3's tiny.
    tiny = next(job for job in jobs if job.name == 'university1652_tiny')
    assert {table for table, *_ in tiny.lines} >= {3, 7}


def test_tables_are_made_by_one_command(tmp_path, monkeypatch, capfd):
    """Teacher, two students, their evaluation and the table, in real processes; then nothing."""
    data = university_dataset(
        tmp_path / 'data', places=6, test_places=4, distractors=2, drones=3, size_px=48
    )
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    changes = [*SMALL, 'unfreezing.head_epochs=1', 'unfreezing.partial_epochs=1']
    command = ['--university', str(data), '--tables', '3', '--set', *changes]
    assert main(command) == 0
    table = (tmp_path / 'results' / 'tables.md').read_text()
    assert 'not yet' not in table
    results = json.loads((tmp_path / 'results/university1652_tiny/results.json').read_text())
    shown = next(
        r['figures']['ap']
        for r in results['models'][0]['results']
        if (r['direction'], r['protocol'], r['feature'])
        == ('drone_to_satellite', 'full', 'backbone')
    )
    assert '| university1652_tiny | D->S |' in table
    assert f'{100 * shown:.2f} | 83.48 |' in table
    capfd.readouterr()
    assert main(command) == 0
    assert 'training.train' not in capfd.readouterr().out


def test_a_row_that_fails_does_not_keep_the_others_back(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    rows = {f'sues200_{height}_tiny': 'table2_tiny' for height in (150, 200)}
    monkeypatch.setitem(ROWS_OF_CONFIGS, 2, rows)
    assert main(['--sues', str(tmp_path), '--tables', '2']) == 1
    printed = capfd.readouterr()
    # Both teachers were tried; the students wait for theirs.
    assert printed.err.count('error: ') == 2
    names = [f'sues200_{height}_{kind}' for height in (150, 200) for kind in ('teacher', 'tiny')]
    assert f'failed, see above: {", ".join(names)}' in printed.err
    assert 'not yet' in printed.out


def test_no_data_is_said_in_one_line(capsys):
    assert main(['--tables', '2', '--university', '/nowhere']) == 2
    assert 'no data set was given' in capsys.readouterr().err


def test_an_unfinished_table_says_so():
    text = table_text(plan([8]), [8])
    assert text.count('not yet') == 16
    assert '| ablation_backbone_xnor | D->S | not yet | 31.71 | not yet | 36.33 |' in text


@pytest.mark.parametrize('processes', [1, 4])
def test_several_processes_go_through_torchrun(processes, capsys):
    command = ['--university', 'data', '--tables', '3', '--dry-run', '--processes', str(processes)]
    assert main(command) == 0
    launched = 'torch.distributed.run --nproc-per-node=4 -m training.train'
    assert (launched in capsys.readouterr().out) == (processes > 1)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=['term', 'int']
)
def test_what_ends_the_command_ends_its_training(number, code, tmp_path, monkeypatch):
    data = university_dataset(
        tmp_path / 'data', places=6, test_places=4, distractors=2, drones=3, size_px=48
    )
    monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
    command = [sys.executable, '-m', 'training.reproduce', '--university', str(data)]
    command += ['--tables', '3', '--set', *SMALL, 'run.epochs=100000']
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    out = tmp_path / 'runs' / 'university1652_teacher'
    while not (out / 'history.jsonl').exists():
        assert process.poll() is None, (tmp_path / 'log').read_text()
        time.sleep(0.05)
    process.send_signal(number)
    try:
        assert process.wait(timeout=120) == code
    finally:
        process.kill()
    with claim_folder(out, resume=False):  # nobody works in it any more
        pass
    assert 'Traceback' not in (tmp_path / 'log').read_text()
