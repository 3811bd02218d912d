"""Damaged model files and impossible calls: an error with a message, never a crash."""

import ctypes
import json
import struct

import numpy as np
import pytest
from engine_models import random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine import native, native_library
from bicrossnet_ros.engine.model_file import METADATA_KEY, _seal, write_model
from bicrossnet_ros.engine.native_description import NetworkDescription, UnitDescription
from bicrossnet_ros.errors import ModelError

CHANNELS = (8, 16, 16)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


needs_engine = pytest.mark.skipif(not native.backends(), reason='the native engine is not built')


def model():
    return random_model(CHANNELS, input_px=32)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('whole') / 'whole.safetensors'
    write_model(path, model())
    return path.read_bytes()


@pytest.fixture(scope='module')
def embedding(tmp_path_factory, whole) -> np.ndarray:
    path = tmp_path_factory.mktemp('model') / 'model.safetensors'
    path.write_bytes(whole)
    return open_encoder(path).encode(IMAGE)


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        open_encoder(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'damaged.safetensors'


def header_length(data: bytes) -> int:
    return 8 + struct.unpack_from('<Q', data)[0]


def test_truncated_anywhere(path, whole):
    end = header_length(whole)
    lengths = {*range(20), end - 1, end, end + 1, len(whole) - 1}
    lengths |= set(np.random.default_rng(1).integers(0, len(whole), 40).tolist())
    for length in sorted(lengths):
        refused(path, whole[:length])
    refused(path, whole + b'\0')


def test_flipped_bits(path, whole):
    rng = np.random.default_rng(2)
    end = header_length(whole)
    places = [*range(8), *rng.integers(8, end, 150), *rng.integers(end, len(whole), 60)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        refused(path, bytes(damaged))


@fuzz(150)
@given(st.data())
def test_any_damage_is_found_or_harmless(path, whole, embedding, data):
    """What opens after all (a blank for a blank in the header) is still the same network."""
    damaged = bytearray(whole)
    places = st.integers(0, header_length(whole) + 100) | st.integers(0, len(whole) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        place, blank = data.draw(places), data.draw(st.binary(max_size=9))
        damaged[place : place + data.draw(st.integers(0, 9))] = blank
    path.write_bytes(bytes(damaged))
    try:
        encoder = open_encoder(path)
    except ModelError:
        return
    np.testing.assert_array_equal(encoder.encode(IMAGE), embedding)


def with_header(whole: bytes, change) -> bytes:
    """Let `change` edit the header's JSON; everything else stays."""
    end = header_length(whole)
    header = json.loads(whole[8:end])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + whole[end:]


def swap_offsets(header):
    one, other = header['stem_norm.weight'], header['stem_norm.bias']
    one['data_offsets'], other['data_offsets'] = other['data_offsets'], one['data_offsets']


def swap_names(header):
    names = ('blocks.0.unit3x3.norm1.weight', 'blocks.0.unit3x3.norm2.weight')
    header[names[0]], header[names[1]] = header[names[1]], header[names[0]]


def edit(name, **changes):
    return lambda header: header[name].update(changes)


@pytest.mark.parametrize(
    'change',
    [
        swap_offsets,
        swap_names,
        edit('stem.weight', shape=[2**62, 3, 3, 3]),
        edit('stem.weight', shape=[2**64 - 1]),
        edit('stem.weight', shape=[2**32, 2**32]),
        edit('stem.weight', shape=[-8, 3, 3, 3]),
        edit('stem.weight', shape=[]),
        edit('stem.weight', shape=[0]),
        edit('stem.weight', shape=[1] * 100),
        edit('stem.weight', shape=[27, 8]),
        edit('stem.weight', shape='8'),
        edit('stem.weight', dtype='I32'),
        edit('stem.weight', dtype='BF16'),
        edit('stem.weight', dtype='F4'),
        edit('stem.weight', dtype=None),
        edit('stem.weight', data_offsets=[0, 2**63]),
        edit('stem.weight', data_offsets=[2**63, 2**63 + 864]),
        edit('stem.weight', data_offsets=[864, 0]),
        edit('stem.weight', data_offsets=[-864, 0]),
        edit('stem.weight', data_offsets=[0, 864]),
        lambda header: header.pop('stem.weight'),
        lambda header: header.pop('__metadata__'),
        lambda header: header.update(__metadata__={METADATA_KEY: ''}),
        lambda header: header.update(__metadata__={METADATA_KEY: '[' * 100_000}),
        lambda header: header.update(__metadata__={METADATA_KEY: 7}),
        lambda header: header.update({'stem.weight': []}),
        lambda header: header.clear(),
    ],
)
def test_headers_that_lie(path, whole, change):
    refused(path, with_header(whole, change))


@pytest.mark.parametrize('length', [0, 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_absurd_lengths_of_the_header(path, whole, length):
    assert 'not a readable safetensors file' in refused(
        path, struct.pack('<Q', length) + whole[8:]
    )


@pytest.mark.parametrize('content', [b'', b'\0', b'\0' * 8, b'\0' * 100_000, b'{}', b'\xff' * 99])
def test_no_file_of_this_kind(path, content):
    for suffix in ('.safetensors', '.onnx'):
        refused(path.with_suffix(suffix), content)


def test_no_file_at_all(tmp_path):
    folder = tmp_path / 'folder.safetensors'
    folder.mkdir()
    for place in (folder, tmp_path / 'none.safetensors', tmp_path / f'{"x" * 300}.safetensors'):
        with pytest.raises(ModelError, match='no such model file'):
            open_encoder(place)


def sealed(tensors, **changes) -> bytes:
    """Write a file whose checksum fits although its content lies."""
    values = json.loads(model().metadata.to_json()) | changes
    entry = _seal(json.dumps(values, sort_keys=True), tensors)
    return save(dict(tensors), metadata={METADATA_KEY: entry})


@pytest.mark.parametrize(
    'changes',
    [
        {'channels': []},
        {'channels': [8]},
        {'channels': [16, 16, 16]},
        {'channels': [8, 16, 32], 'embedding_dim': 32},
        {'channels': [8, 16, 16, 16]},
        {'channels': [8, 16]},
        {'channels': [0, 0, 0]},
        {'channels': [-8, -16, -16]},
        {'channels': [7, 7, 7]},
        {'channels': [8192] * 3},
        {'channels': [2**40] * 3},
        {'channels': [8] * 100_000},
        {'channels': [8.0, 16.0, 16.0]},
        {'channels': [True, 16, 16]},
        {'channels': {'8': 16}},
        {'embedding_dim': 8},
        {'embedding_dim': 0},
        {'embedding_dim': 2**70},
        {'embedding_dim': 1e308},
        {'embedding_dim': None},
        {'name': ''},
        {'name': 7},
        {'architecture': 'resnet'},
        {'architecture': None},
        {'format_version': 2},
        {'format_version': [1]},
        {'training': []},
        *(
            {'preprocessing': model().metadata.preprocessing.to_dict() | one}
            for one in (
                {'input_height_px': 31},
                {'input_height_px': 0},
                {'input_width_px': -32},
                {'input_width_px': 2**30},
                {'input_width_px': 32.0},
                {'input_width_px': '32'},
                {'mean': [0.5, 0.5]},
                {'mean': ['a', 'b', 'c']},
                {'std': [0, 1, 1]},
                {'std': [1, -1, 1]},
                {'std': [2**2000, 1, 1]},
                {'resize': 'nearest'},
                {'resize': None},
                {'more': 1},
            )
        ),
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_metadata_that_lies(path, changes):
    refused(path, sealed(model().tensors, **changes))


@pytest.mark.parametrize(
    'change',
    [
        {'stem.weight': np.zeros((8, 3, 3), np.float32)},
        {'stem.weight': np.zeros((8, 3, 3, 3), np.float64)},
        {'stem.weight': np.zeros((8, 3, 3, 3), np.float16)},
        {'stem.weight': np.zeros((0, 3, 3, 3), np.float32)},
        {'blocks.0.unit3x3.conv.bits': np.zeros((8, 3, 3, 1), np.int8)},
        {'blocks.0.unit3x3.conv.bits': np.zeros((8, 1, 1, 1), np.uint8)},
        {'blocks.0.unit3x3.move.bias': np.full(8, np.nan, np.float32)},
        {'blocks.0.unit3x3.se.expand.bias': np.full(8, np.inf, np.float32)},
        {'blocks.1.unit3x3.scale': np.full(16, -np.inf, np.float32)},
        {'act.weight': np.full(16, np.nan, np.float32)},
        {'stem_norm.running_var': np.full(8, -1e-30, np.float32)},
        {'another': np.zeros(1, np.float32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tensors_that_lie(path, change):
    refused(path, sealed(dict(model().tensors) | change))


@pytest.mark.parametrize('value', [3e38, -3e38, 1e-45, 0.0])
@pytest.mark.parametrize('kind', ['norm1.weight', 'running_var', 'act.weight', 'bias', 'weight'])
def test_extreme_values_never_pass_as_an_embedding(path, kind, value):
    """An embedding is finite and of unit length, or it is an error; zeros embed to zeros."""
    if kind == 'running_var' and value < 0:
        pytest.skip('refused as a file: test_tensors_that_lie')
    tensors = {
        name: np.full_like(tensor, value) if name.endswith(kind) else tensor
        for name, tensor in model().tensors.items()
    }
    path.write_bytes(sealed(tensors))
    try:
        found = open_encoder(path).encode(IMAGE)
    except ModelError:
        return
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4) or not found.any()


def test_an_onnx_file_of_someone_else(path):
    other = path.with_suffix('.onnx')
    save_file({'weight': np.zeros(3, np.float32)}, other)
    with pytest.raises(ModelError):
        open_encoder(other)


# The C interface itself: whatever the numbers, as long as the pointers are good for them.

ZEROS = np.zeros(1 << 24, np.uint8)  # good for every shape that passes the checks
BACKENDS = (*native.backends(), 'none of these', '')
CHANNEL_COUNTS = (8, 16, 24, 0, 7, -8, 9, 3648, 8200, 2**31 - 1, -(2**31))
SIDES = (2, 32, 64, 0, 1, 31, -32, 33, 1 << 30, 8193, 2**31 - 1, -(2**31))
THREADS = (1, 2, 3, 0, -1, 257, 100_000, 2**31 - 1)


def mostly(values, good: int):
    """Draw one of the first `good` of the values twice as often as one of all."""
    return st.one_of(*[st.sampled_from(values[:good])] * 2, st.sampled_from(values))


class Message:
    """A buffer for an error, with bytes behind it that nobody may write."""

    def __init__(self, size: int):
        self.size = size
        self.bytes = (ctypes.c_char * (size + 16))(*([b'\xa5'] * (size + 16)))

    @property
    def arguments(self):
        return ctypes.cast(self.bytes, ctypes.c_char_p), self.size

    def check(self, code: int, *, bad: bool) -> None:
        assert (code != 0) == bad, self.bytes.raw
        raw = self.bytes.raw
        assert raw[self.size :] == b'\xa5' * 16
        if code and self.size:
            text = raw[: self.size].split(b'\0')[0]
            assert len(text) < self.size
            assert text.decode() or self.size == 1


def zeros(kind):
    return ctypes.cast(ZEROS.ctypes.data, ctypes.POINTER(kind))


def unit_of(channels: int, kernel: int, stride: int, elementwise: int = 0):
    unit = UnitDescription(channels, kernel, stride, elementwise, zeros(ctypes.c_uint8))
    for name, _ in UnitDescription._fields_[5:]:
        setattr(unit, name, zeros(ctypes.c_float))
    return unit


def network_of(stem: int, units: list):
    floats = [zeros(ctypes.c_float)] * 3
    array = (UnitDescription * max(1, len(units)))(*units)
    return NetworkDescription(stem, *floats, len(units), array, zeros(ctypes.c_float))


def create_network(description, backend, message):
    library, handle = native_library.load(), ctypes.c_void_p()
    name = None if backend is None else backend.encode()
    code = library.bcn_network_create(
        ctypes.byref(description), name, ctypes.byref(handle), *message.arguments
    )
    assert bool(handle) == (code == 0)
    return code, handle


def is_convolution(inputs, outputs, kernel, stride) -> bool:
    fits = all(8 <= channels <= 8192 and channels % 8 == 0 for channels in (inputs, outputs))
    return fits and kernel in (1, 3) and stride in (1, 2) and kernel**2 * inputs < 2**15


@needs_engine
@fuzz(400)
@given(
    mostly(CHANNEL_COUNTS, 3),
    mostly(CHANNEL_COUNTS, 3),
    mostly((1, 3, 0, 2, 5, -1, 2**31 - 1), 2),
    mostly((1, 2, 0, 3, -1, 2**31 - 1), 2),
    mostly(SIDES, 2),
    mostly(SIDES, 2),
    mostly(BACKENDS, len(BACKENDS) - 2),
    st.sampled_from([0, 1, 2, 20, 512]),
)
def test_interface_convolution(
    inputs, outputs, kernel, stride, height, width, backend, error_bytes
):
    library, handle, message = native_library.load(), ctypes.c_void_p(), Message(error_bytes)
    code = library.bcn_convolution_create(
        *(inputs, outputs, kernel, stride, height, width),
        *(ZEROS.ctypes.data, backend.encode(), ctypes.byref(handle)),
        *message.arguments,
    )
    good = (
        is_convolution(inputs, outputs, kernel, stride)
        and all(1 <= side <= 8192 for side in (height, width))
        and backend in native.backends()
    )
    message.check(code, bad=not good)
    assert bool(handle) == good
    if not good:
        return
    try:
        x = np.zeros((height, width, inputs // 8), np.uint8)
        y = np.full((-(-height // stride), -(-width // stride), outputs), 999, np.int16)
        library.bcn_convolution_run(handle, x.ctypes.data, y.ctypes.data)
        assert y.min() >= min(1, kernel) * inputs  # all signs are alike: a sum of +1 alone
        assert y.max() <= kernel**2 * inputs
    finally:
        library.bcn_convolution_release(handle)


UNITS = st.tuples(
    mostly(CHANNEL_COUNTS, 2),
    st.sampled_from((3, 1, 1, 1, 2)),
    mostly((1, 2, 3), 1),
    st.sampled_from((0, 0, 1)),
)


def is_network(stem: int, units: list[tuple[int, int, int, int]]) -> bool:
    """Read the rules of bicrossnet_engine.h once more."""
    if not 2 <= len(units) <= 1000:
        return False
    if not all(is_convolution(channels, channels, *rest[:2]) for channels, *rest in units):
        return False
    channels, at = stem, 0
    while at < len(units):
        if units[at][:2] != (channels, 3):
            return False
        rest = units[at + 1 :]
        count = next((i for i, unit in enumerate(rest) if unit[1] != 1), len(rest))
        if count not in (1, 2) or any(unit != (channels, 1, 1, 0) for unit in rest[:count]):
            return False
        channels, at = channels * count, at + 1 + count
    return True


@st.composite
def networks(draw):
    """Draw a network, about every second one with a fault somewhere."""
    stem = draw(st.sampled_from((8, 16)))
    units, channels = [], stem
    for _ in range(draw(st.integers(1, 3))):
        units.append((channels, 3, draw(st.sampled_from((1, 2))), draw(st.sampled_from((0, 1)))))
        count = draw(st.sampled_from((1, 2)))
        units += [(channels, 1, 1, 0)] * count
        channels *= count
    if draw(st.booleans()):
        at = draw(st.integers(0, len(units)))
        units[at : at + draw(st.integers(0, 1))] = draw(st.lists(UNITS, max_size=2))
    return draw(mostly((stem, *CHANNEL_COUNTS), 1)), units


@needs_engine
@fuzz(250)
@given(
    networks(),
    mostly(BACKENDS, len(BACKENDS) - 2),
    mostly(SIDES, 3),
    mostly(SIDES, 3),
    mostly(THREADS, 3),
    st.sampled_from([0, 1, 2, 20, 512]),
)
def test_interface_network(network, backend, height, width, threads, error_bytes):
    stem, units = network
    message = Message(error_bytes)
    description = network_of(stem, [unit_of(*unit) for unit in units])
    code, handle = create_network(description, backend, message)
    good = is_network(stem, units) and backend in native.backends()
    message.check(code, bad=not good)
    if good:
        try:
            run_session(handle, units, height, width, threads, error_bytes)
        finally:
            native_library.load().bcn_network_release(handle)


def run_session(network, units, height, width, threads, error_bytes):
    library, session, message = native_library.load(), ctypes.c_void_p(), Message(error_bytes)
    code = library.bcn_session_create(
        network, height, width, threads, ctypes.byref(session), *message.arguments
    )
    shrinks = 2 ** (1 + sum(stride == 2 for _, _, stride, _ in units))
    good = 1 <= threads <= 256 and all(
        2 <= side <= 8192 and side % shrinks == 0 for side in (height, width)
    )
    message.check(code, bad=not good)
    assert bool(session) == good
    if not good:
        return
    try:
        images = np.ones((2, 3, height, width), np.float32)
        embeddings = np.full((2, library.bcn_network_embedding_dim(network)), np.nan, np.float32)
        for count in (0, -1):
            library.bcn_session_run(session, images.ctypes.data, count, embeddings.ctypes.data)
            assert np.isnan(embeddings).all()
        library.bcn_session_run(session, images.ctypes.data, 2, embeddings.ctypes.data)
        assert (embeddings == 0).all()  # every weight is zero
    finally:
        library.bcn_session_release(session)


@needs_engine
@pytest.mark.parametrize('backend', native.backends())
def test_interface_pointers_that_are_missing(backend):
    good = [(8, 3, 1, 1), (8, 1, 1, 0)]
    for name, _ in UnitDescription._fields_[4:]:
        units = [unit_of(*unit) for unit in good]
        setattr(units[0], name, None)
        message = Message(200)
        code, _ = create_network(network_of(8, units), backend, message)
        message.check(code, bad=True)
        assert f'unit 0: {name} is missing'.encode() in message.bytes.raw
    for name in ('stem_weight', 'stem_gain', 'stem_offset', 'units', 'last_slope'):
        description = network_of(8, [unit_of(*unit) for unit in good])
        setattr(description, name, None)
        message = Message(200)
        code, _ = create_network(description, backend, message)
        message.check(code, bad=True)


@needs_engine
@pytest.mark.parametrize('count', [-1, 0, 1, 1001, 2**31 - 1, -(2**31)])
def test_interface_absurd_numbers_of_units(count):
    description = network_of(8, [unit_of(8, 3, 1), unit_of(8, 1, 1)])
    description.unit_count = count
    message = Message(200)
    code, _ = create_network(description, None, message)
    message.check(code, bad=True)


@needs_engine
def test_interface_without_anything():
    library, nothing = native_library.load(), ctypes.c_void_p()
    for index in (-1, 99, 2**31 - 1, -(2**31)):
        assert library.bcn_backend_name(index) is None
    for name in (None, b'', b'x' * 100_000, b'\xff\xfe'):
        assert library.bcn_backend_runs(name) == 0
    message = Message(100)
    out = ctypes.byref(ctypes.c_void_p())
    description = network_of(8, [unit_of(8, 3, 1), unit_of(8, 1, 1)])
    for code in (
        library.bcn_network_create(None, None, out, *message.arguments),
        library.bcn_network_create(ctypes.byref(description), None, None, *message.arguments),
        library.bcn_network_create(ctypes.byref(description), b'x' * 9999, out, None, 100),
        library.bcn_session_create(None, 32, 32, 1, out, *message.arguments),
        library.bcn_unit_run(None, None, None, 1, 1, None, *message.arguments),
        library.bcn_convolution_create(8, 8, 1, 1, 1, 1, None, None, out, *message.arguments),
    ):
        message.check(code, bad=True)
    library.bcn_network_release(nothing)
    library.bcn_session_release(nothing)
    library.bcn_convolution_release(nothing)


@needs_engine
@fuzz(150)
@given(UNITS, mostly(SIDES, 2), mostly(SIDES, 2), mostly(BACKENDS, len(BACKENDS) - 2))
def test_interface_unit(unit, height, width, backend):
    channels, kernel, stride, _ = unit
    good = (
        is_convolution(channels, channels, kernel, stride)
        and all(1 <= side <= 64 and side % stride == 0 for side in (height, width))
        and backend in native.backends()
    )
    x = np.zeros(channels * height * width if good else 1, np.float32)
    y = np.full(x.size // stride**2 if good else 1, np.nan, np.float32)
    message = Message(300)
    code = native_library.load().bcn_unit_run(
        ctypes.byref(unit_of(*unit)),
        *(backend.encode(), x.ctypes.data, height, width, y.ctypes.data),
        *message.arguments,
    )
    message.check(code, bad=not good)
    assert (y == 0).all() if good else np.isnan(y).all()


def test_the_oracle_knows_a_network():
    """A fault of the oracle itself would hide every other."""
    assert is_network(8, [(8, 3, 1, 0), (8, 1, 1, 0), (8, 1, 1, 0), (16, 3, 2, 1), (16, 1, 1, 0)])
    assert not is_network(8, [(8, 3, 1, 0), (8, 1, 1, 0), (16, 3, 2, 1), (16, 1, 1, 0)])
    assert not is_network(8, [(8, 3, 1, 0)])
