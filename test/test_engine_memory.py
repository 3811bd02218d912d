"""Memory of the engine: nothing is allocated after the first frame, weights are shared."""

import ctypes
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_models import CHANNELS, random_images, random_model

from bicrossnet_ros.engine import native

pytestmark = pytest.mark.skipif(not native.backends(), reason='the engine is not built')

# Counts the calls of the allocator, by any thread, while one function runs.
COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static volatile int counting;
static int calls;
static void count(void) { if (counting) __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); }

void* malloc(size_t size) { count(); return __libc_malloc(size); }
void* calloc(size_t n, size_t size) { count(); return __libc_calloc(n, size); }
void* realloc(void* p, size_t size) { count(); return __libc_realloc(p, size); }
void* memalign(size_t align, size_t size) { count(); return __libc_memalign(align, size); }
void* aligned_alloc(size_t align, size_t size) { count(); return __libc_memalign(align, size); }
int posix_memalign(void** p, size_t align, size_t size) {
  count();
  *p = __libc_memalign(align, size);
  return *p ? 0 : 12;
}
void free(void* p) { if (p) count(); __libc_free(p); }

typedef void (*run)(void*, const float*, int32_t, float*);
int calls_during(run function, void* session, const float* images, int32_t n, float* embeddings) {
  calls = 0;
  counting = 1;
  function(session, images, n, embeddings);
  counting = 0;
  return calls;
}

typedef void* (*create)(size_t);
int calls_during_allocation(void) {
  calls = 0;
  counting = 1;
  void* volatile p = malloc(100);
  free(p);
  counting = 0;
  return calls;
}
"""

# Runs in a process of its own, into which the counter is preloaded.
COUNTED = """
import ctypes, sys
import numpy as np
from engine_models import CHANNELS, random_images, random_model
from bicrossnet_ros.engine import native

counter = ctypes.CDLL(sys.argv[1])
library = ctypes.CDLL(str(native.library_path()))
assert counter.calls_during_allocation() == 2
for backend in native.backends():
    network = native.NativeNetwork(random_model(CHANNELS['nano']), backend=backend)
    for threads in (1, 3):
        session = network.session(96, 96, threads=threads)
        images = random_images(4, 96, 96)
        expected = session.run(images[:1])
        found = np.empty((4, network.embedding_dim), np.float32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (images, found)]
        # The function itself, not its wrapper in Python, which allocates the result.
        calls = counter.calls_during(
            library.bcn_session_run, session._handle, pointers[0], 4, pointers[1]
        )
        assert (found[0] == expected[0]).all()
        print(backend, threads, calls)
"""


def compile_counter(folder: Path) -> Path:
    compiler = next(filter(None, map(shutil.which, ('cc', 'gcc', 'clang'))), None)
    if compiler is None or not Path('/usr/include/dlfcn.h').exists():
        pytest.skip('no C compiler to make the counter of allocations with')
    source, library = folder / 'counter.c', folder / 'counter.so'
    source.write_text(COUNTER)
    command = [compiler, '-shared', '-fPIC', '-O1', '-fno-builtin', source, '-o', library]
    subprocess.run([*map(str, command)], check=True)
    return library


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='preloads a library')
def test_nothing_is_allocated_after_the_first_frame(tmp_path):
    if 'LD_PRELOAD' in os.environ:
        pytest.skip('another library is preloaded, a sanitizer perhaps')
    counter = compile_counter(tmp_path)
    test_folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, '-c', COUNTED, str(counter)],
        env={
            **os.environ,
            'LD_PRELOAD': str(counter),
            'PYTHONPATH': os.pathsep.join([str(test_folder), str(test_folder.parent)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [name for name in native.backends() for _ in range(2)]
    assert {line[2] for line in lines} == {'0'}, done.stdout


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd')),
        *((name, ctypes.c_size_t) for name in ('usmblks', 'fsmblks', 'uordblks', 'fordblks')),
        ('keepcost', ctypes.c_size_t),
    )


def allocated_bytes() -> int:
    """Memory that the C library has handed out, in its heap and as mappings."""
    gc.collect()
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip('mallinfo2 needs glibc 2.33')
    function.restype = _Mallinfo
    info = function()
    return info.uordblks + info.hblkhd


def test_nothing_leaks():
    model, images = random_model(CHANNELS['nano']), random_images(2, 96, 96)

    def use() -> None:
        session = native.NativeNetwork(model).session(96, 96)
        session.run(images)
        session.profile(images[0])
        with pytest.raises(native.EngineUnavailable):
            native.NativeNetwork(model).session(95, 96)

    use()
    before = allocated_bytes()
    for _ in range(10):
        use()
    smallest = native.NativeNetwork(model).session(96, 96).nbytes
    assert allocated_bytes() - before < smallest / 2


def test_sessions_share_the_weights():
    model = random_model(CHANNELS['nano'])
    network = native.NativeNetwork(model)
    before = allocated_bytes()
    sessions = [network.session(32, 32) for _ in range(8)]
    grown = allocated_bytes() - before
    assert grown < 1.1 * sum(session.nbytes for session in sessions) + 65536
    assert grown < network.nbytes


def test_memory_is_as_it_says():
    """Bits stay bits: the weights take about what the file takes."""
    model = random_model(CHANNELS['tiny'])
    file_bytes = sum(tensor.nbytes for tensor in model.tensors.values())
    before = allocated_bytes()
    network = native.NativeNetwork(model)
    weights = allocated_bytes() - before
    assert 0.9 * network.nbytes < weights < 1.1 * network.nbytes + 65536
    assert network.nbytes < 1.15 * file_bytes
    session = network.session(256, 256)
    buffers = allocated_bytes() - before - weights
    assert 0.9 * session.nbytes < buffers < 1.1 * session.nbytes + 65536
    assert session.nbytes < 20e6
    assert np.isfinite(session.run(random_images(1, 256, 256))).all()
