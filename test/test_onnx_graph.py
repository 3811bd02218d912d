"""The ONNX made from a model file computes what PyTorch computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import network_and_model

from bicrossnet_ros.engine.architecture import Unit, units
from bicrossnet_ros.engine.bits import unpack_weights
from bicrossnet_ros.engine.model_file import METADATA_KEY, ModelMetadata, write_model
from bicrossnet_ros.engine.onnx_graph import build_onnx, build_unit_onnx, main
from training.export import network_from_model
from training.models.bnext import CHANNELS

ALL_UNITS = [(size, k) for size in ('nano', 'tiny') for k in range(len(units(CHANNELS[size])))]


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    return session.run(None, {'input': x})[0]


@pytest.mark.parametrize(('size', 'index'), ALL_UNITS)
def test_unit_equals_torch(size, index):
    network, model = network_and_model(size)
    unit = units(model.metadata.channels)[index]
    rng = np.random.default_rng(index)
    x = rng.standard_normal((2, unit.channels, 6, 8), np.float32)
    x[:, :, 0, 0] = -model.tensors[f'{unit.prefix}.move.bias']  # sign(0) = +1 in both
    with torch.no_grad():
        expected = network.get_submodule(unit.prefix)(torch.from_numpy(x)).numpy()
    actual = run(build_unit_onnx(model, unit), x)
    assert actual.shape == (2, unit.channels, 6 // unit.stride, 8 // unit.stride)
    assert expected.std() > 0.1
    assert np.abs(actual - expected).max() < 1e-4


def naive_binary_conv(signs: np.ndarray, weights: np.ndarray, stride: int) -> np.ndarray:
    """Slow reference: sum over taps, a tap outside the image counts as zero."""
    outputs, _, kernel, _ = weights.shape
    _, height, width = signs.shape
    result = np.zeros((outputs, height // stride, width // stride))
    reach = kernel // 2
    for row in range(height // stride):
        for col in range(width // stride):
            for dr in range(-reach, reach + 1):
                for dc in range(-reach, reach + 1):
                    r, c = row * stride + dr, col * stride + dc
                    if 0 <= r < height and 0 <= c < width:
                        tap = weights[:, :, dr + reach, dc + reach]
                        result[:, row, col] += tap @ signs[:, r, c]
    return result


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (1, 1)])
def test_binary_convolution_is_exact(kernel, stride):
    """The graph's unpacked convolution gives the very integers of the definition."""
    from bicrossnet_ros.engine.onnx_graph import _Graph

    rng = np.random.default_rng(kernel + stride)
    packed = rng.integers(0, 256, (16, kernel, kernel, 2), np.uint8)
    bias = rng.standard_normal(16).astype(np.float32)
    x = rng.standard_normal((1, 16, 6, 6), np.float32)
    x[0, :, 0, 0] = -bias  # exactly zero after the bias: counts as +1
    graph = _Graph({'u.conv.bits': packed, 'u.move.bias': bias})
    output = graph._binary_conv('input', Unit('u', 16, kernel, stride, False))
    shape = ['n', 16, 'h', 'w']
    proto = graph.finish(output, input_shape=shape, output_shape=shape)
    signs = np.where(x[0] + bias[:, None, None] >= 0, 1, -1)
    assert (signs[:, 0, 0] == 1).all()
    expected = naive_binary_conv(signs, unpack_weights(packed), stride)
    np.testing.assert_array_equal(run(proto, x)[0], expected)


def test_whole_network_of_random_weights_agrees_with_torch():
    # Rounding flips single signs that cascade, so whole networks are compared by cosine; two
    # different images are less alike than the two runtimes on one image.
    network, model = network_and_model('nano')
    x = np.random.default_rng(0).standard_normal((6, 3, 64, 64), np.float32)
    actual = run(build_onnx(model), x)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert actual.shape == (6, 512)
    unit_rows = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (actual, expected)]
    cosines = unit_rows[0] @ unit_rows[1].T
    assert np.diagonal(cosines).min() > 0.98
    assert (cosines.argmax(axis=1) == np.arange(6)).all()


def test_network_survives_the_model_file_exactly():
    network, model = network_and_model('nano')
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network_from_model(model)(x), network(x), rtol=0, atol=0)


def test_tiny_stays_bits_and_below_12_mb(tmp_path):
    _, model = network_and_model('tiny')
    data = build_onnx(model).SerializeToString()
    assert len(data) <= 12e6
    write_model(tmp_path / 'tiny.safetensors', model)
    assert (tmp_path / 'tiny.safetensors').stat().st_size <= 12e6


def test_graph_is_standard_onnx_with_metadata():
    _, model = network_and_model('nano')
    proto = build_onnx(model)
    assert [(o.domain, o.version) for o in proto.opset_import] == [('', 18)]
    assert {node.domain for node in proto.graph.node} == {''}
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = ModelMetadata.from_json(entries[METADATA_KEY], source='test')
    assert metadata == model.metadata


def test_runtime_folds_the_unpacking_at_load(tmp_path):
    _, model = network_and_model('nano')
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(
        build_onnx(model).SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    kinds = {node.op_type for node in onnx.load(tmp_path / 'optimized.onnx').graph.node}
    assert not kinds & {'BitShift', 'BitwiseAnd', 'Cast', 'Transpose', 'Unsqueeze'}
    assert 'Conv' in kinds or 'FusedConv' in kinds


def test_command_line(tmp_path, capsys):
    _, model = network_and_model('nano')
    write_model(tmp_path / 'nano.safetensors', model)
    out = tmp_path / 'nano.onnx'
    assert main([str(tmp_path / 'nano.safetensors'), '--out', str(out)]) == 0
    onnx.checker.check_model(onnx.load(out))
    assert 'MB' in capsys.readouterr().out
    assert main([str(tmp_path / 'none.safetensors'), '--out', str(out)]) == 2
    assert 'error: ' in capsys.readouterr().err
