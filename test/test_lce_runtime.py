"""The .tflite around a graph: metadata, damage, and what is said where Larq is missing.

Whether Larq computes the network is in test_lce.py.
"""

import importlib.machinery
import importlib.util
import io
import json
import subprocess
import sys
import zipfile

import pytest

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.lce_runtime import _INTERPRETER, ENTRY, pack, unpack
from bicrossnet_ros.engine.model_file import ModelMetadata
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing

METADATA = ModelMetadata('m', 'other', (), 4, Preprocessing(96, 64), {'seed': 1, 'note': 'ä'})
GRAPH = bytes(range(256)) * 20


def test_metadata_come_back():
    data = pack(GRAPH, METADATA)
    assert data.startswith(GRAPH)
    assert unpack(data, source='x') == (METADATA, GRAPH)
    assert pack(GRAPH, METADATA) == data


def test_any_unzip_shows_the_metadata():
    with zipfile.ZipFile(io.BytesIO(pack(GRAPH, METADATA))) as archive:
        assert archive.namelist() == [ENTRY]
        assert archive.testzip() is None
        values = json.loads(archive.read(ENTRY))
    assert values['model'] == json.loads(METADATA.to_json())


@pytest.mark.parametrize('step', [1, 7])
def test_no_damage_goes_unseen(step):
    """Neither to the graph, which the interpreter would trust, nor to the metadata."""
    data = pack(GRAPH, METADATA)
    refused = 0
    for k in [*range(0, len(GRAPH), 997 * step), *range(len(GRAPH), len(data), step)]:
        changed = bytearray(data)
        changed[k] ^= 0x10
        try:
            found = unpack(bytes(changed), source='damaged.tflite')
        except ModelError as error:
            assert str(error).startswith('damaged.tflite: ')  # noqa: PT017
            refused += 1
        else:  # a date or a flag of the archive, which says nothing of the model
            assert found == (METADATA, GRAPH)
    assert refused > 5


@pytest.mark.parametrize('keep', [0, 1, 100, 5000, -1, -30])
def test_cut_files_are_refused(keep):
    data = pack(GRAPH, METADATA)
    with pytest.raises(ModelError, match=r'x\.tflite: '):
        unpack(data[:keep], source='x.tflite')


def test_no_metadata(tmp_path):
    path = tmp_path / 'plain.tflite'
    path.write_bytes(GRAPH)
    with pytest.raises(ModelError, match=r"no readable entry 'bicrossnet\.json' behind its graph"):
        open_encoder(path)


def test_an_interpreter_that_cannot_be_loaded(tmp_path, monkeypatch):
    """As one that is damaged, or was built for another machine."""
    folder = tmp_path / 'larq_compute_engine' / 'tflite' / 'python'
    folder.mkdir(parents=True)
    (tmp_path / 'larq_compute_engine' / '__init__.py').touch()
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (folder / f'interpreter_wrapper_lite{suffix}').write_bytes(b'no library')
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('larq_compute_engine', _INTERPRETER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = tmp_path / 'model.tflite'
    path.write_bytes(pack(GRAPH, METADATA))
    with pytest.raises(ModelError, match=r'cannot be loaded \(.*\); install it again'):
        open_encoder(path)


@pytest.mark.skipif(
    importlib.util.find_spec('larq_compute_engine') is not None, reason='Larq is installed here'
)
def test_without_larq_the_remedy_is_named(tmp_path):
    path = tmp_path / 'model.tflite'
    path.write_bytes(pack(GRAPH, METADATA))
    with pytest.raises(ModelError, match=r'not installed; on x86-64 `pip install .*\[lce\]'):
        open_encoder(path)
    arguments = ['--untrained', 'nano', '--out', str(tmp_path / 'n.tflite'), '--formats', 'lce']
    run = subprocess.run(
        [sys.executable, '-m', 'training.export', *arguments], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert 'error: the format lce needs TensorFlow and Larq Compute Engine' in run.stderr
    assert run.stderr.count('\n') == 1
    assert not (tmp_path / 'n.tflite').exists()
