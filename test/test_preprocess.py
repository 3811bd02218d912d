"""The one definition of network input."""

import json

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import ImageError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, prepare

RNG = np.random.default_rng(0)


def random_patches(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), np.uint8)


def test_values_follow_the_definition():
    patches = random_patches(2, 5, 7)
    preprocessing = Preprocessing(5, 7, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    inputs = prepare(patches, preprocessing)
    expected = (patches / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert inputs.shape == (2, 3, 5, 7)
    assert inputs.dtype == np.float32
    assert inputs.flags.c_contiguous
    np.testing.assert_allclose(inputs, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_shrinking_averages_area():
    patches = random_patches(1, 64, 64)
    inputs = prepare(patches, Preprocessing(32, 32, mean=(0, 0, 0), std=(1, 1, 1)))
    boxes = patches[0].reshape(32, 2, 32, 2, 3).mean((1, 3)) / 255
    # cv2 rounds the averages to whole grey values.
    np.testing.assert_allclose(inputs[0].transpose(1, 2, 0), boxes, atol=0.51 / 255)


def test_enlarging_is_bilinear():
    patches = random_patches(1, 20, 30)
    inputs = prepare(patches, Preprocessing(32, 64, mean=(0, 0, 0), std=(1, 1, 1)))
    expected = cv2.resize(patches[0], (64, 32), interpolation=cv2.INTER_LINEAR) / 255
    np.testing.assert_allclose(inputs[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_a_patch_does_not_depend_on_its_batch():
    patches = random_patches(3, 40, 40)
    preprocessing = Preprocessing(32, 32)
    alone = np.concatenate([prepare(patch[None], preprocessing) for patch in patches])
    np.testing.assert_array_equal(prepare(patches, preprocessing), alone)


def test_no_patches_and_non_contiguous_patches():
    preprocessing = Preprocessing(32, 64)
    assert prepare(random_patches(0, 10, 10), preprocessing).shape == (0, 3, 32, 64)
    patches = random_patches(2, 40, 40)
    flipped = patches[:, ::-1, ::2, ::-1]
    np.testing.assert_array_equal(
        prepare(flipped, preprocessing), prepare(flipped.copy(), preprocessing)
    )


@pytest.mark.parametrize(
    ('patches', 'message'),
    [
        (np.zeros((1, 8, 8, 3), np.float32), 'dtype float32; expected uint8'),
        (np.zeros((8, 8, 3), np.uint8), 'add a leading axis'),
        (np.zeros((1, 8, 8, 4), np.uint8), r'\(1, 8, 8, 4\); expected \(N, H, W, 3\)'),
        (np.zeros((1, 0, 8, 3), np.uint8), r'shape \(1, 0, 8, 3\)'),
        ([[1]], 'are list; expected a uint8 array'),
    ],
)
def test_wrong_patches(patches, message):
    with pytest.raises(ImageError, match=message):
        prepare(patches, Preprocessing(32, 32))


def test_dictionary_round_trip_through_json():
    preprocessing = Preprocessing(96, 128, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (
        Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'input_height_px': 0}, 'input_height_px is 0'),
        ({'input_width_px': 96.0}, 'input_width_px is 96.0'),
        ({'input_width_px': True}, 'input_width_px is True'),
        ({'mean': [0.1, 0.2]}, 'expected three numbers'),
        ({'mean': [0.1, 0.2, float('nan')]}, 'expected three numbers'),
        ({'mean': 'abc'}, 'expected three numbers'),
        ({'std': [0.1, 0.2, 0.0]}, 'three positive numbers'),
        ({'resize': 'lanczos'}, "this version knows 'area_down_linear_up'"),
        ({'crop': 1}, 'expected the keys'),
    ],
)
def test_wrong_fields(change, message):
    fields = Preprocessing(96, 96).to_dict() | change
    with pytest.raises(ModelError, match=message):
        Preprocessing.from_dict(fields)


def test_fields_that_are_no_mapping():
    with pytest.raises(ModelError, match='expected the keys'):
        Preprocessing.from_dict(None)
