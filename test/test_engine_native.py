"""The engine's binding: what it refuses and how it says so, life cycle, processes and threads."""

import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_models import ODD_CHANNELS, random_images, random_model

from bicrossnet_ros.engine import native, native_library
from bicrossnet_ros.engine.architecture import float_shapes, packed_shapes, units
from bicrossnet_ros.engine.native import EngineUnavailable, NativeNetwork
from bicrossnet_ros.errors import ModelError

BACKENDS = native.backends()
built = pytest.mark.skipif(not BACKENDS, reason='the engine is not built')
REPOSITORY = Path(__file__).resolve().parents[1]


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where nothing of the engine is loaded."""
    paths = os.pathsep.join([str(REPOSITORY / 'test'), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': paths, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_engine_is_built_where_a_compiler_is():
    """Without this, a build that fails would only skip tests."""
    if not any(map(shutil.which, ('c++', 'g++', 'clang++'))):
        pytest.skip('no C++ compiler, so no engine')
    assert BACKENDS


@built
def test_back_ends():
    assert BACKENDS[-1] == 'scalar'
    assert len(set(BACKENDS)) == len(BACKENDS)
    if 'BICROSSNET_BACKEND' not in os.environ:
        assert native.default_backend() == BACKENDS[0]


@built
@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='no /proc/cpuinfo')
def test_back_ends_are_those_of_the_cpu():
    """What the engine found out about the CPU is what the kernel says, in either direction."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    flags = next(
        (set(x.split(':')[1].split()) for x in lines if x.lower().startswith(('flags', 'feat'))),
        set(),
    )
    if not {'sse2', 'asimd'} & flags:
        pytest.skip('the kernel does not say')
    avx512 = {f'avx512{part}' for part in ('f', 'bw', 'dq', 'vl', '_vpopcntdq')}
    needs = {
        'avx512': avx512 | {'avx2'},
        'avx2': {'avx2'},
        'x86_64_v2': {'popcnt', 'sse4_2'},
        'neon': {'asimd'},
        'neon_dot': {'asimddp'},
    }
    for name in set(BACKENDS) - {'scalar'}:
        assert needs[name] <= flags, name
    for name in set(_built_in()) - {'scalar'}:
        assert (name in BACKENDS) == (needs[name] <= flags), name


def _built_in() -> tuple[str, ...]:
    return native_library.built_in(native_library.load())


@built
@pytest.mark.parametrize('backend', BACKENDS)
def test_back_end_can_be_forced(monkeypatch, backend):
    monkeypatch.setenv('BICROSSNET_BACKEND', backend)
    assert native.default_backend() == backend
    assert NativeNetwork(random_model(ODD_CHANNELS)).backend == backend


@built
def test_unknown_back_ends(monkeypatch):
    model = random_model(ODD_CHANNELS)
    with pytest.raises(EngineUnavailable, match="no back end 'mmx' in this build"):
        NativeNetwork(model, backend='mmx')
    monkeypatch.setenv('BICROSSNET_BACKEND', 'mmx')
    with pytest.raises(EngineUnavailable, match=r"'mmx': no such back end; .*scalar"):
        NativeNetwork(model)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'no such file; BICROSSNET_ENGINE_LIBRARY names it: correct or unset that'),
        (b'', 'cannot be loaded'),
        (b'\x7fELF garbage', 'cannot be loaded'),
    ],
)
def test_missing_or_damaged_library(monkeypatch, tmp_path, content, message):
    path = tmp_path / 'engine.so'
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv('BICROSSNET_ENGINE_LIBRARY', str(path))
    assert native.backends() == ()
    for use in (native.default_backend, lambda: NativeNetwork(random_model(ODD_CHANNELS))):
        with pytest.raises(EngineUnavailable, match=message):
            use()
    assert issubclass(EngineUnavailable, ModelError)


def test_library_that_was_not_built(monkeypatch):
    monkeypatch.delenv('BICROSSNET_ENGINE_LIBRARY', raising=False)
    monkeypatch.setattr(native_library, 'LIBRARY_NAME', 'libnowhere.so')
    with pytest.raises(EngineUnavailable, match=r'the engine was not built; install a C\+\+ comp'):
        native.default_backend()


@built
def test_library_in_the_current_folder(monkeypatch, tmp_path):
    """Its bare name must not be looked up among the libraries of the system."""
    shutil.copy(native.library_path(), tmp_path / 'engine.so')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('BICROSSNET_ENGINE_LIBRARY', 'engine.so')
    assert native.backends() == BACKENDS


def compile_library(folder: Path, source: str) -> Path:
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        pytest.skip('no C compiler')
    (folder / 'other.c').write_text(source)
    command = [compiler, '-shared', '-fPIC', str(folder / 'other.c'), '-o', str(folder / 'o.so')]
    subprocess.run(command, check=True)
    return folder / 'o.so'


@pytest.mark.parametrize(
    'source', ['int other(void) { return 1; }', 'int bcn_abi_version(void) { return 1; }']
)
def test_library_of_something_else(monkeypatch, tmp_path, source):
    path = compile_library(tmp_path, source)
    monkeypatch.setenv('BICROSSNET_ENGINE_LIBRARY', str(path))
    assert native.backends() == ()
    with pytest.raises(EngineUnavailable, match=r'cannot be loaded .*undefined symbol: bcn_'):
        native.default_backend()


def test_library_of_another_version(monkeypatch, tmp_path):
    path = compile_library(tmp_path, 'int bcn_abi_version(void) { return 999; }')
    monkeypatch.setenv('BICROSSNET_ENGINE_LIBRARY', str(path))
    with pytest.raises(EngineUnavailable, match='version 999 of the engine, this package needs 1'):
        native.default_backend()


@built
@pytest.mark.parametrize(
    ('height', 'width', 'threads', 'message'),
    [
        (0, 64, 1, "the input's height is 0 px"),
        (64, -32, 1, "the input's width is -32 px"),
        (64, 33, 1, "the input's width is 33 px"),
        (2**40, 64, 1, "the input's height is"),
        (64, 64, 0, 'threads is 0; expected 1 to 256'),
        (64, 64, 257, 'threads is 257'),
        (64, 64, -1, 'threads is -1'),
    ],
)
def test_impossible_sessions(height, width, threads, message):
    network = NativeNetwork(random_model(ODD_CHANNELS))
    with pytest.raises(EngineUnavailable, match=message):
        network.session(height, width, threads=threads)


SHORT_OF_MEMORY = """
import os, resource
from pathlib import Path
from engine_models import ODD_CHANNELS, random_images, random_model
from bicrossnet_ros.engine.native import EngineUnavailable, NativeNetwork

network = NativeNetwork(random_model(ODD_CHANNELS))
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
for size, threads in ((4096, 1), (64, 256)):
    try:
        network.session(size, size, threads=threads)
    except EngineUnavailable as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
assert len(os.listdir('/proc/self/task')) == 1, 'threads were left behind'
network.session(64, 64, threads=2).run(random_images(1, 64, 64))
"""


@built
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc/self/statm')
@pytest.mark.skipif('LD_PRELOAD' in os.environ, reason='sanitizers take memory as they like')
def test_a_machine_that_is_short_of_memory():
    """What was begun is undone, and the message says what to do."""
    done = run_python(SHORT_OF_MEMORY)
    assert done.returncode == 0, done.stderr
    memory, threads = done.stdout.splitlines()
    assert memory == 'the engine refused: not enough memory'
    assert re.fullmatch(
        r'the engine refused: only \d+ of 256 threads can be started \(.*\); ask for fewer',
        threads,
    )


@built
def test_inputs_that_cannot_be_halved():
    network = NativeNetwork(random_model((8, 16, 32, 64, 128, 256)))
    with pytest.raises(EngineUnavailable, match=r'halved as often .* multiples of 32'):
        network.session(64, 48)


@built
def test_wrong_images():
    session = NativeNetwork(random_model(ODD_CHANNELS)).session(32, 64)
    good = random_images(2, 32, 64)
    wrong = (
        good.astype(np.float64),
        good[0],
        good[:, :2],
        good[..., :-1],
        good.transpose(0, 1, 3, 2),
        good.astype(np.uint8),
    )
    for images in wrong:
        with pytest.raises(ValueError, match='expected float32'):
            session.run(images)
    for image in (good, good[0, :2], good[0].astype(np.float16)):
        with pytest.raises(ValueError, match='expected float32'):
            session.profile(image)


@built
def test_any_memory_layout():
    session = NativeNetwork(random_model(ODD_CHANNELS)).session(32, 64)
    images = random_images(2, 32, 64)
    expected = session.run(images)
    strided = np.zeros((4, 3, 32, 128), np.float32)[::2, :, :, ::2]
    strided[:] = images
    read_only = images.copy()
    read_only.flags.writeable = False
    unaligned = np.zeros(images.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(images.shape)
    unaligned[:] = images
    for same in (strided, read_only, unaligned, images[::-1][::-1], np.asfortranarray(images)):
        np.testing.assert_array_equal(session.run(same), expected)
    np.testing.assert_array_equal(session.run(images[::-1]), expected[::-1])
    np.testing.assert_array_equal(images, random_images(2, 32, 64))  # nothing was written


@built
def test_results_are_of_their_own():
    session = NativeNetwork(random_model(ODD_CHANNELS)).session(32, 64)
    first = session.run(random_images(1, 32, 64))
    kept = first.copy()
    session.run(random_images(1, 32, 64, seed=1))
    np.testing.assert_array_equal(first, kept)


@built
def test_weights_are_copied():
    """A network does not follow its model: the arrays may go or change."""
    model = random_model(ODD_CHANNELS)
    own = replace(model, tensors={name: value.copy() for name, value in model.tensors.items()})
    images = random_images(1, 32, 64)
    network = NativeNetwork(own)
    for tensor in own.tensors.values():
        tensor[...] = 0
    expected = NativeNetwork(model).session(32, 64).run(images)
    np.testing.assert_array_equal(network.session(32, 64).run(images), expected)


@built
def test_tensors_that_do_not_fit_their_network():
    """The engine reads as many values as the channels say; fewer must not come to it."""
    model = random_model(ODD_CHANNELS)
    names = [*packed_shapes(ODD_CHANNELS), *float_shapes(ODD_CHANNELS)]
    for name in names:
        tensors = dict(model.tensors)
        tensors[name] = tensors[name][:-1]
        with pytest.raises(ModelError, match=name):
            NativeNetwork(replace(model, tensors=tensors))


@built
def test_profile_adds_up():
    model = random_model(ODD_CHANNELS)
    session = NativeNetwork(model).session(64, 96, threads=2)
    times_ns = session.profile(random_images(1, 64, 96)[0])
    assert times_ns.shape == (1 + 3 * len(units(ODD_CHANNELS)),)
    assert times_ns.dtype == np.int64
    assert (times_ns >= 0).all()
    assert times_ns[::3].sum() > 0


@built
def test_one_session_in_several_threads():
    """Calls of one session wait for each other."""
    session = NativeNetwork(random_model(ODD_CHANNELS)).session(64, 96, threads=2)
    batches = [random_images(2, 64, 96, seed=seed) for seed in range(4)]
    expected = [session.run(batch) for batch in batches]
    found = [[] for _ in batches]

    def work(k: int) -> None:
        found[k].extend(session.run(batches[k]) for _ in range(10))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 10
        for result in results:
            np.testing.assert_array_equal(result, wanted)


@built
def test_others_run_meanwhile():
    """The engine does not hold the interpreter while it computes."""
    session = NativeNetwork(random_model(ODD_CHANNELS)).session(256, 256)
    done = threading.Event()
    turns = 0

    def embed() -> None:
        session.run(random_images(40, 256, 256))
        done.set()

    thread = threading.Thread(target=embed)
    thread.start()
    while not done.wait(1e-3):
        turns += 1
    thread.join()
    assert turns > 5


FORK = """
import os, signal
import numpy as np
from engine_models import ODD_CHANNELS, random_images, random_model
from bicrossnet_ros.engine.native import NativeNetwork

network = NativeNetwork(random_model(ODD_CHANNELS))
session = network.session(32, 64, threads=2)
images = random_images(1, 32, 64)
expected = session.run(images)
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that waits for threads it does not have must not stay
    try:
        session.run(images)
    except RuntimeError as error:
        assert 'make a session in this process' in str(error)
    else:
        os._exit(1)
    del session  # its threads are not here to be waited for
    found = network.session(32, 64, threads=2).run(images)
    os._exit(0 if (found == expected).all() else 2)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert (session.run(images) == expected).all()
"""


@built
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_forked_processes_make_sessions_of_their_own():
    done = run_python(FORK)
    assert done.returncode == 0, done.stderr


DAEMON = """
import threading, time
from engine_models import CHANNELS, random_images, random_model
from bicrossnet_ros.engine.native import NativeNetwork

network = NativeNetwork(random_model(CHANNELS['nano']))
started = threading.Barrier(3)

def embed(threads):
    session = network.session(96, 96, threads=threads)
    images = random_images(64, 96, 96)
    session.run(images[:1])
    started.wait()
    while True:
        session.run(images)

for threads in (1, 2):
    threading.Thread(target=embed, args=(threads,), daemon=True).start()
started.wait()
time.sleep(0.05)
"""


@built
def test_a_process_may_end_while_another_thread_embeds():
    """As a node does that is stopped in the middle of a frame."""
    for _ in range(3):
        done = run_python(DAEMON)
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert done.stderr == ''


@built
def test_units_and_convolutions_refuse_what_does_not_fit():
    model = random_model(ODD_CHANNELS)
    first, stride_2 = units(ODD_CHANNELS)[0], units(ODD_CHANNELS)[3]
    assert stride_2.stride == 2
    with pytest.raises(ValueError, match=r'expected float32 \(H, W, 24\)'):
        native.run_unit(model, first, np.zeros((4, 4, 32), np.float32))
    with pytest.raises(ValueError, match='expected float32'):
        native.run_unit(model, first, np.zeros((4, 4, 24), np.float64))
    with pytest.raises(EngineUnavailable, match='sides must be even'):
        native.run_unit(model, stride_2, np.zeros((4, 5, stride_2.channels), np.float32))
    with pytest.raises(EngineUnavailable, match='a map is 0 x 4'):
        native.run_unit(model, first, np.zeros((0, 4, 24), np.float32))
    for bits in (np.zeros((8, 3, 1, 1), np.uint8), np.zeros((8, 3, 3, 1), np.int8)):
        with pytest.raises(ValueError, match='expected uint8'):
            native.BinaryConvolution(bits, stride=1, height=4, width=4)
    good = np.zeros((8, 3, 3, 1), np.uint8)
    for bits, stride, message in (
        (np.zeros((8, 5, 5, 1), np.uint8), 1, 'a kernel is 5 pixels wide'),
        (np.zeros((9, 3, 3, 1), np.uint8), 1, '9 channels; expected a multiple of 8'),
        (np.zeros((8, 3, 3, 0), np.uint8), 1, '0 channels'),
        (np.zeros((8, 3, 3, 512), np.uint8), 1, 'sums 36864 products; the engine takes at most'),
        (good, 3, 'a stride is 3'),
        (good, 0, 'a stride is 0'),
        (good, 2**32 + 1, 'a stride is 2147483647'),
    ):
        with pytest.raises(EngineUnavailable, match=message):
            native.BinaryConvolution(bits, stride=stride, height=4, width=4)
    convolution = native.BinaryConvolution(good, stride=1, height=4, width=5)
    for x in (np.zeros((5, 4, 1), np.uint8), np.zeros((4, 5, 1), np.int8)):
        with pytest.raises(ValueError, match='expected uint8'):
            convolution.run(x)
    for out in (np.zeros((4, 5, 8), np.int32), np.zeros((4, 5, 16), np.int16)[..., ::2]):
        with pytest.raises(ValueError, match='expected int16'):
            convolution.run(np.zeros((4, 5, 1), np.uint8), out)


@built
def test_networks_too_wide_for_16_bits_are_refused():
    """A 3x3 convolution of 3648 channels sums more products than an int16 holds."""
    model = random_model((8, 8))
    wide = replace(
        model, metadata=replace(model.metadata, channels=(3648, 3648), embedding_dim=3648)
    )
    shapes = packed_shapes(wide.metadata.channels) | float_shapes(wide.metadata.channels)
    tensors = {
        name: np.zeros(shape, np.uint8 if name.endswith('bits') else np.float32)
        for name, shape in shapes.items()
    }
    with pytest.raises(EngineUnavailable, match='unit 0: a convolution sums 32832 products'):
        NativeNetwork(replace(wide, tensors=tensors))


@built
def test_clock():
    assert 1e8 < native.clock_hz() < 1e10
