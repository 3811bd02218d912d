"""Ways to run a network, each as a function that runs it once and returns the seconds it took."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bicrossnet_ros.engine.model_file import Model

ENGINE, ORT, CONVNEXT, TORCH, LARQ = (
    'engine',
    'ONNX Runtime',
    'ONNX Runtime, ConvNeXt-tiny',
    'PyTorch',
    'Larq',
)
Clock = Callable[[], float]
Call = Callable[[], float]


@dataclass(frozen=True)
class Contender:
    """What runs, on how many threads, and a call that runs it once."""

    name: str
    threads: int
    call: Call
    nbytes: int | None = None  # of the engine's weights and buffers


@dataclass(frozen=True)
class Task:
    """A network, the images it embeds in one call, and the clock that is read."""

    model: Model
    path: Path  # of the model file
    images: Any  # float32 (N, 3, H, W)
    clock: Clock


def timed(clock: Clock, action: Callable[[], object]) -> Call:
    """Return a call of `action` that returns its seconds."""

    def call() -> float:
        start = clock()
        action()
        return clock() - start

    return call


def engine(task: Task, backend: str, threads: int) -> Contender:
    """The native engine with one of its back ends."""
    from bicrossnet_ros.engine.native import NativeNetwork

    network = NativeNetwork(task.model, backend=backend)
    session = network.session(*task.images.shape[2:], threads=threads)
    call = timed(task.clock, lambda: session.run(task.images))
    return Contender(f'{ENGINE} {backend}', threads, call, network.nbytes + session.nbytes)


def onnx_session(graph: Any, threads: int) -> Any:
    """ONNX Runtime with its best settings: threads spin, but not once the call has returned."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry('session.force_spinning_stop', '1')
    data = graph.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])


def onnx_runtime(task: Task, threads: int) -> Contender:
    """The same network with weights +-1 as floats."""
    from bicrossnet_ros.engine.onnx_graph import INPUT, build_onnx

    session = onnx_session(build_onnx(task.model), threads)
    return Contender(
        ORT, threads, timed(task.clock, lambda: session.run(None, {INPUT: task.images}))
    )


def convnext(task: Task, threads: int) -> Contender:
    """The full-precision backbone of MCCG."""
    import torch

    from training.convnext_onnx import build_convnext
    from training.models.convnext import make_convnext

    torch.manual_seed(0)
    session = onnx_session(build_convnext(make_convnext('tiny').eval()), threads)
    return Contender(
        CONVNEXT, threads, timed(task.clock, lambda: session.run(None, {'input': task.images}))
    )


def pytorch(task: Task, threads: int) -> Contender:
    """PyTorch without compilation, weights +-1 baked in; the faster of its two memory layouts."""
    import torch

    calls = {}
    for name, layout in (
        ('channels first', torch.contiguous_format),
        ('channels last', torch.channels_last),
    ):
        network = baked_network(task.model).to(memory_format=layout)
        images = torch.from_numpy(task.images).contiguous(memory_format=layout)

        def run(network: Any = network, images: Any = images) -> None:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                network(images)

        calls[name] = timed(task.clock, run)
    for call in calls.values():
        call()
    best = min(calls, key=lambda name: min(calls[name]() for _ in range(3)))
    return Contender(TORCH, threads, calls[best])


def baked_network(model: Model) -> Any:
    """The network of training, whose binary convolutions need not take signs of their weights."""
    import torch

    from training.export import network_from_model
    from training.models.bnext import BinaryUnit

    network = network_from_model(model)
    for unit in [module for module in network.modules() if isinstance(module, BinaryUnit)]:
        binary = unit.conv
        weight = binary.effective_weight().detach()
        plain = torch.nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            weight.shape[2],
            stride=binary.stride,
            padding=binary.padding,
            bias=False,
        )
        plain.weight = torch.nn.Parameter(weight)
        unit.conv = plain
    return network.eval()


class Larq:
    """A child process that runs Larq; see `larq_worker.py`. Ends with `close`.

    Attributes
    ----------
    failure : str
        Why it does not run; empty where it does.
    """

    def __init__(self, task: Task, threads: int, *, python: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f'{task.path.stem}.tflite'
        clock = 'cpu' if task.clock is time.process_time else 'wall'
        worker = Path(__file__).with_name('larq_worker.py')
        arguments = [worker, task.path, target, threads, len(task.images), clock]
        self._child = subprocess.Popen(
            [python, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        state, _, rest = self._read().partition(' ')
        self.name = rest if state == 'ready' else LARQ
        self.failure = '' if state == 'ready' else rest or f'{python} did not start'
        self.contender = Contender(LARQ, threads, self._run)

    def _read(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()

    def _run(self) -> float:
        assert self._child.stdin is not None
        print('run', file=self._child.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        """End the child."""
        self._child.communicate()
