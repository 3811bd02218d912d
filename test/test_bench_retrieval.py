"""The benches of retrieval choose and format what they were given."""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # bench is a folder of scripts
tile_fixes, tile_size = map(importlib.import_module, ('bench.tile_fixes', 'bench.tile_size'))


def test_the_pair_with_the_most_fixes_and_none_wrong_is_chosen(capsys):
    """Right places lead by 0.05 to 0.25; a wrong one by 0.10, a picture of elsewhere by 0.12."""
    leads = np.linspace(0.05, 0.25, 21)
    right = np.stack([np.full(21, 0.8), leads, np.full(21, 3.0), np.full(21, 1.0)], axis=1)
    wrong = np.array([[0.6, 0.1, 300.0, 900.0]])
    other = np.array([[0.55, 0.12]])
    tile_fixes.report(np.concatenate([right, wrong]), other)
    said = capsys.readouterr().out
    assert 'with min_margin 0.00, min_tile_similarity 0.65' in said
    assert '95 % ellipse around right places: 100% of 21' in said
    tile_fixes.report(np.concatenate([right, wrong + np.array([0.3, 0, 0, 0])]), other)
    assert 'with min_margin 0.11, min_tile_similarity 0.60' in capsys.readouterr().out


def test_rows_become_a_table():
    names = {'flight': 'f', 'model': 'm', 'tile': '32 m, 75%', 'heading': 'unknown'}
    figures = dict.fromkeys((key for _, key, _ in tile_size.COLUMNS), 0.5)
    lines = tile_size.table([{**names, **figures}]).splitlines()
    assert lines[0].count('|') == lines[1].count('|') == lines[2].count('|')
    assert lines[2].startswith('| f | m | 32 m, 75% | unknown | 50% |')
    assert tile_size.pairs(['a=b=c', '128:0.75'], '=')[0] == ('a', 'b=c')
