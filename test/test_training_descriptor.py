"""Fitting a descriptor: the algebra against its definition, the retrieval task, the command."""

import cv2
import numpy as np
import pytest
from gallery_fixtures import textured

from bicrossnet_ros.descriptor import SIZE
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.errors import ModelError
from training import descriptor
from training.descriptor_task import recall, similarities
from training.itq import Recipe, fit_projection, itq_rotation

DIM = 280


def pairs(count: int, *, dim: int = DIM, seed: int = 0):
    """Unit rows of places and, changed most along the first axes, of their views."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(2.0, 0.2, dim)
    tiles = rng.standard_normal((count, dim)) * spread + 0.5
    change = np.where(np.arange(dim) < 20, 20.0, 0.1)
    queries = tiles + rng.standard_normal((count, dim)) * change
    return tuple(
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for rows in (tiles, queries)
    )


def test_without_whitening_it_is_pca():
    tiles, queries = pairs(600)
    projection = fit_projection(tiles, queries, Recipe(0.0), seed=0)
    rows = np.concatenate([tiles, queries]).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    kept = centred @ axes[:SIZE].T
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    found = projection.apply(np.concatenate([tiles, queries]))
    # The rotation changes the numbers, not the cosines; float16 rounds in the fourth digit.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=3e-3)


def test_whitening_gives_every_direction_the_same_variance():
    tiles, queries = pairs(2000)
    projection = fit_projection(tiles, queries, Recipe(1.0), seed=0)
    rows = np.concatenate([tiles, queries]).astype(np.float64) - projection.mean
    moved = rows @ projection.matrix.astype(np.float64)
    covariance = moved.T @ moved / len(moved)
    covariance /= np.diag(covariance).mean()
    np.testing.assert_allclose(covariance, np.eye(SIZE), atol=0.02)


def test_pairs_tell_which_directions_to_ignore():
    projections = [
        fit_projection(*pairs(1500), Recipe(0.0, paired=paired), seed=0)
        for paired in (False, True)
    ]
    tiles, queries = pairs(300, seed=1)
    plain, paired = (
        recall(similarities(found.apply(tiles), found.apply(queries), kind='float'))
        for found in projections
    )
    assert paired['recall_at_1'] > plain['recall_at_1'] + 0.1


def test_itq_is_a_rotation_that_brings_rows_closer_to_their_signs():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((500, 16)) * np.linspace(2, 0.1, 16)
    losses = []
    for iterations in (0, 1, 20):
        rotation = itq_rotation(rows, seed=0, iterations=iterations)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(16), atol=1e-12)
        turned = rows @ rotation
        losses.append(np.square(np.where(turned >= 0, 1.0, -1.0) - turned).sum())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        (pairs(100), '200 embeddings of 280; a descriptor of 256 needs more'),
        (pairs(400, dim=200), '800 embeddings of 200; a descriptor of 256 needs more'),
        ((np.ones((300, DIM), np.float32),) * 2, 'vary in fewer than 256 directions'),
    ],
)
def test_too_little_to_fit_to(rows, message):
    with pytest.raises(ModelError, match=message):
        fit_projection(*rows, Recipe(0.5), seed=0)


def test_the_ways_to_compare_are_their_definitions():
    rng = np.random.default_rng(4)
    tiles, queries = rng.standard_normal((2, 7, 16)).astype(np.float32)
    bits = [np.where(rows >= 0, 1, -1) for rows in (tiles, queries)]
    asymmetric = similarities(tiles, queries, kind='asymmetric')
    hamming = similarities(tiles, queries, kind='hamming')
    for q in range(7):
        for t in range(7):
            assert asymmetric[q, t] == pytest.approx((queries[q] * bits[0][t]).sum() / 4, abs=1e-5)
            differing = (bits[1][q] != bits[0][t]).sum()
            assert hamming[q, t] == pytest.approx(1 - 2 * differing / 16, abs=1e-6)
    np.testing.assert_array_equal(similarities(tiles, queries, kind='float'), queries @ tiles.T)


def test_recall_is_the_share_of_own_tiles_found():
    scores = np.zeros((8, 8), np.float32)
    scores[np.arange(8), np.arange(8)] = 0.5
    assert recall(scores) == {'recall_at_1': 1.0, 'recall_at_5': 1.0}
    scores[0, 1:3] = 0.9  # own tile third
    scores[1, 2:8] = 0.9  # own tile seventh
    assert recall(scores) == {'recall_at_1': 0.75, 'recall_at_5': 0.875}
    # What cannot tell anything apart finds nothing.
    assert recall(np.ones((100, 100), np.float32)) == {'recall_at_1': 0.0, 'recall_at_5': 0.0}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Eight made-up scenes and their split."""
    folder = tmp_path_factory.mktemp('scenes')
    lines = ['scene,split']
    for number in range(8):
        cv2.imwrite(str(folder / f'{number}.png'), textured(120, 120, seed=number))
        lines.append(f'{number}.png,{"train" if number < 6 else "validation"}')
    (folder / 'split.csv').write_text('\n'.join(lines) + '\n')
    return folder


@pytest.mark.parametrize('suffix', ['.safetensors', '.onnx'])
def test_the_command_gives_a_model_a_descriptor(suffix, scenes, tmp_path, capsys, monkeypatch):
    from bicrossnet_ros.engine.model_file import read_model
    from bicrossnet_ros.engine.onnx_graph import build_onnx

    monkeypatch.setattr(descriptor, 'RECIPES', (Recipe(0.0), Recipe(0.5)))
    monkeypatch.setattr(descriptor, 'ITERATIONS', 1)
    model, out = default_model_path(), tmp_path / f'out{suffix}'
    if suffix == '.onnx':
        model = tmp_path / 'in.onnx'
        model.write_bytes(build_onnx(read_model(default_model_path())).SerializeToString())
    options = ['--data', str(scenes), '--split', str(scenes / 'split.csv')]
    options += ['--places', '140', '--validation-places', '20', '--out', str(out)]
    assert descriptor.main([str(model), *options]) == 0
    assert capsys.readouterr().out.count('recall@1 / recall@5 on validation') == 4
    first, second = open_encoder(model), open_encoder(out)
    assert second.projection is not None
    assert first.model_id != second.model_id
    patch = textured(96, 96, seed=9)[None]
    np.testing.assert_array_equal(first.encode(patch), second.encode(patch))
    assert second.projection.apply(second.encode(patch)).shape == (1, SIZE)
    assert sorted(path.name for path in tmp_path.iterdir() if path != model) == [out.name]


def test_what_the_command_refuses(scenes, tmp_path, capsys):
    model, split = str(default_model_path()), ['--split', str(scenes / 'split.csv')]
    out = ['--out', str(tmp_path / 'a.safetensors')]
    assert descriptor.main([model, '--data', str(tmp_path), *split, *out]) == 2
    assert 'none of the 6 train scenes of the split is there' in capsys.readouterr().err
    few = ['--places', '10', '--validation-places', '4']
    assert descriptor.main([model, '--data', str(scenes), *split, *out, *few]) == 2
    assert '20 embeddings of 512; a descriptor of 256 needs more' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_descriptor_has_no_place_in_a_tflite(tmp_path):
    projection = fit_projection(*pairs(300), Recipe(0.5), seed=0)
    with pytest.raises(ModelError, match=r'travels in \.safetensors and \.onnx'):
        descriptor.add_descriptor(
            tmp_path / 'a.tflite', tmp_path / 'b.tflite', projection, record={}
        )
    with pytest.raises(ModelError, match='takes embeddings of 280, the network makes 512'):
        descriptor.add_descriptor(
            default_model_path(), tmp_path / 'b.safetensors', projection, record={}
        )
    assert not list(tmp_path.iterdir())
