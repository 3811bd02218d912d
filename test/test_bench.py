"""The benchmarks run and say what they promise, on tiny sizes; never how fast anything is."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bicrossnet_ros.engine.native import backends

BENCH = Path(__file__).resolve().parents[1] / 'bench'
sys.path.append(str(BENCH))  # scripts, no package: they import each other by their bare names
contenders, document, layers, synthetic_embeddings = map(
    importlib.import_module,
    ('contenders', 'document', 'layers', 'synthetic_embeddings'),
)

needs_engine = pytest.mark.skipif(not backends(), reason='the native engine is not built')


def bench(name, *arguments):
    """Run a benchmark; return what it printed."""
    command = [sys.executable, BENCH / name, *map(str, arguments)]
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    """Rows of `bench/search.py` by kind of index, and its file."""
    path = tmp_path_factory.mktemp('search') / 'search.json'
    kinds = ['flat', 'ivf', 'hnsw', 'flat, 8 bit', 'D bits', 'D bits, best 100 as floats']
    bench('search.py', '--tiles', 3000, '--dims', 128, '--queries', 24, '--json', path, '--kinds',
          *kinds)  # fmt: skip
    rows = json.loads(path.read_text())['rows']
    assert [row['kind'] for row in rows] == kinds
    return {row['kind']: row for row in rows}, path


def test_search_compares_with_the_exact_index(searched):
    rows, _ = searched
    for where in ('everywhere', 'nearby'):
        exact = rows['flat'][where]
        assert exact['recall_at_1'] == exact['recall_at_5'] == 1
        for row in rows.values():
            assert 0 <= row[where]['recall_at_1'] <= 1
            assert min(row[where]['1'], row[where]['12']) > 0
    # What the product promises: within a radius a clustered index is exact, too.
    assert rows['ivf']['nearby']['recall_at_5'] == 1
    assert rows['flat, 8 bit']['everywhere']['recall_at_1'] > 0.8
    packed, again = rows['D bits'], rows['D bits, best 100 as floats']
    assert packed['everywhere']['recall_at_1'] < again['everywhere']['recall_at_1']


def test_search_weighs_the_index(searched):
    rows, _ = searched
    assert 3000 * 128 * 4 < rows['flat']['index_bytes'] < 3000 * 128 * 4 + 200
    assert 3000 * 128 / 8 < rows['D bits']['index_bytes'] < 3000 * 128 / 8 + 200
    ranges = 128 * 2 * 4  # least and span of every element, float32
    assert 3000 * 128 < rows['flat, 8 bit']['index_bytes'] < 3000 * 128 + ranges + 200
    assert all(row['peak_bytes'] >= 0 for row in rows.values())


def test_search_prints_again_what_it_found(searched, tmp_path):
    rows, path = searched
    page = tmp_path / 'page.md'
    page.write_text('# A\n\n<!-- bench/search.py -->\nold\n<!-- end of bench/search.py -->\n\nB\n')
    bench('search.py', '--render', path, '--update', page)
    lines = page.read_text().splitlines()
    assert len([line for line in lines if line.startswith('| 3e3 | 128 |')]) == len(rows)
    assert 'old' not in lines
    assert (lines[0], lines[-1]) == ('# A', 'B')


def test_a_page_without_the_section_is_an_error(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('<!-- one -->\n')
    with pytest.raises(ValueError, match='no section between <!-- one --> and <!-- end of one'):
        document.replace_section(page, 'one', 'text')


def test_synthetic_embeddings_have_the_statistics_that_were_measured():
    drawn = synthetic_embeddings.make_map(4900, 512, queries=10)
    tiles = drawn.embeddings(0, 4900)
    np.testing.assert_allclose(np.linalg.norm(tiles, axis=1), 1, atol=1e-5)
    mean = tiles.mean(axis=0)
    assert mean @ mean == pytest.approx(synthetic_embeddings.MEAN_SQUARED, abs=0.1)
    shares = np.linalg.eigvalsh(np.cov(tiles.T))[::-1]
    assert shares[0] / shares.sum() == pytest.approx(synthetic_embeddings.SPECTRUM[1], abs=0.05)
    assert shares[:64].sum() / shares.sum() == pytest.approx(0.92, abs=0.04)
    # Cosines of tiles 1, 2 and 3 strides apart; on real imagery 0.90, 0.78 and 0.68.
    rows = tiles.reshape(70, 70, 512)
    cosines = [(rows[:, :-k] * rows[:, k:]).sum(axis=-1).mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(cosines, [0.90, 0.78, 0.68], atol=0.06)


def test_convnext_in_onnx_is_the_network_of_training():
    torch = pytest.importorskip('torch')
    onnxruntime = pytest.importorskip('onnxruntime')
    from training.convnext_onnx import build_convnext
    from training.models.convnext import ConvNeXtBlock, make_convnext

    torch.manual_seed(0)
    network = make_convnext('femto').eval()
    for module in network.modules():
        if isinstance(module, ConvNeXtBlock):  # of 1e-6 at first, it would hide the block
            torch.nn.init.normal_(module.gamma)
            torch.nn.init.normal_(module.norm.bias)
            torch.nn.init.normal_(module.mlp.fc2.bias)
    graph = build_convnext(network).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = network(images).numpy()
    (found,) = session.run(None, {'input': images.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pytorch_of_the_benchmark_is_the_network_of_the_model_file():
    torch = pytest.importorskip('torch')
    from training.export import network_from_model, untrained

    model = untrained('nano', name='nano', input_px=64, seed=0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network_from_model(model)(images)
        found = contenders.baked_network(model)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_layers_are_those_of_the_published_count():
    from training.export import untrained

    model = untrained('tiny', name='tiny', input_px=256, seed=0)
    counts = layers.shapes(model, 256)
    assert sum(counts.values()) == 31
    # docs/complexity.md: 6.291 G for one image of 256 x 256.
    assert sum(layers.macs(shape) * count for shape, count in counts.items()) == 6_291_456_000


@pytest.fixture(scope='module')
def encoded(tmp_path_factory):
    """What `bench/encoder.py` wrote, and its file."""
    path = tmp_path_factory.mktemp('encoder') / 'encoder.json'
    options = ('--sizes', 'nano', '--input-px', 64, '--batches', 1, '--rounds', 5, '--layers')
    bench('encoder.py', *options, '--seconds', 1, '--threads', 1, '--starts', 1, '--json', path)
    return json.loads(path.read_text()), path


@needs_engine
def test_encoder_measures_all_that_runs_here(encoded):
    result, _ = encoded
    (group,) = result['networks']
    rows = {row['name']: row for row in group['rows']}
    wanted = {f'engine {name}' for name in backends() if name != 'scalar'}
    wanted |= {'ONNX Runtime', 'ONNX Runtime, ConvNeXt-tiny', 'PyTorch'}
    assert wanted <= rows.keys() <= wanted | {'Larq'}
    assert 'Larq' in rows or group['larq']  # else why not
    for row in rows.values():
        assert 0 < row['min_ms'] <= row['median_ms']
        assert all(ratio > 0 for ratio in row['ratios'].values())
    assert rows[f'engine {backends()[0]}']['nbytes'] > 1e6


@needs_engine
def test_encoder_measures_layers_stages_and_the_start(encoded):
    result, path = encoded
    ways = [name for name in backends() if name != 'scalar']
    rows = result['layers']['nano']
    assert {row['backend'] for row in rows} == set(ways)
    assert all(row['macs_per_cycle'] > 0 and row['clock_hz'] > 1e8 for row in rows)
    parts = result['stages']['nano']
    assert [row['stage'] for row in parts if row['backend'] == ways[0]] == [
        '32 px, stem',
        *(f'{side} px' for side in (32, 16, 8, 4, 2)),
    ]
    native, onnx = result['start']
    assert native['runtime'] == f'native {ways[0]}'
    assert onnx['runtime'].startswith('ONNX Runtime')
    for row in (native, onnx):
        assert 0 < row['first_s'] < row['all_s']
        assert 0 < row['growth_bytes'] < row['peak_bytes']
    text = bench('encoder.py', '--render', path, '--markdown')
    names = ('', ' layers', ' stages', ' start')
    assert all(f'<!-- bench/encoder.py{name} -->' in text for name in names)


def test_cpu_time_of_several_threads_is_refused():
    command = [sys.executable, BENCH / 'encoder.py', '--clock', 'cpu', '--threads', '1', '2']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '--clock cpu adds up all threads' in done.stderr
