"""A build that is killed at any moment goes on, and ends with the very same gallery."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, textured, write_map

from bicrossnet_ros.encoder import default_model_path
from bicrossnet_ros.errors import GalleryError, ModelError
from gallery_builder import build as build_module
from gallery_builder.inspect import problems
from gallery_builder.workplace import Workplace, open_workplace, partial_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def chart(tmp_path_factory):
    """A map with edges and a hole: JPEG, PNG and absent blocks."""
    mask = np.ones((420, 560), bool)
    mask[150:260, 100:180] = False
    mask[:, 530:] = False
    path = tmp_path_factory.mktemp('map') / 'map.tif'
    return write_map(path, textured(420, 560), mask=mask)


def content(folder):
    """All that a build must reproduce: index bytes, tile rows, blocks, and the manifest's rest."""
    with sqlite3.connect(f'file:{folder / "map.gpkg"}?mode=ro&immutable=1', uri=True) as opened:
        tiles = opened.execute('SELECT * FROM tile_centres ORDER BY id').fetchall()
        blocks = opened.execute(
            'SELECT zoom_level, tile_row, tile_column, tile_data FROM map ORDER BY 1, 2, 3'
        ).fetchall()
    opened.close()
    manifest = (folder / 'gallery.json').read_text().split('"files"')[0]
    return (folder / 'index.faiss').read_bytes(), tiles, blocks, manifest


# --- a real process, really killed


def command(chart, out):
    return [
        *(sys.executable, '-m', 'gallery_builder', 'build', str(chart), '--out', str(out)),
        *('--gsd-m', '0.5', '--tile-px', '64', '--overlap', '0.5', '--batch', '4'),
    ]


def run_and_kill(arguments, out, delay_s):
    """Start a build, kill it `delay_s` after it began to write; its exit status."""
    process = subprocess.Popen(
        arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None and not partial_of(out).exists() and not out.exists():
        time.sleep(0.002)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
    said, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode


def test_kill_9_at_random_moments(tmp_path, chart):
    try:
        default_model_path()
    except ModelError as error:
        pytest.skip(str(error))
    reference = tmp_path / 'reference.gallery'
    started_s = time.monotonic()
    assert run_and_kill(command(chart, reference), reference, 300.0) == 0
    span_s = time.monotonic() - started_s
    expected = content(reference)
    rng = random.Random(2026)
    killed = 0
    for trial in range(2):
        out = tmp_path / f'trial{trial}.gallery'
        for attempt in range(100):
            # Longer and longer, so that every trial ends on the slowest machine too.
            delay_s = rng.uniform(0.0, 0.6 * span_s) * (1.0 + 0.3 * attempt)
            if run_and_kill(command(chart, out), out, delay_s) == 0:
                break
            killed += 1
            if out.exists():  # killed between the last rename and its exit
                break
        assert content(out) == expected
        assert list(problems(out)) == []
        assert not partial_of(out).exists()
    assert killed >= 2


# --- every step, one by one, in this process


class CrashError(BaseException):
    """Nothing in the product catches this."""


def crash_after(monkeypatch, count):
    """Let `count` lasting actions of the build happen, then stop it before the next."""
    left = [count]

    def limited(action):
        def wrapper(*arguments, **options):
            if left[0] == 0:
                raise CrashError
            left[0] -= 1
            return action(*arguments, **options)

        return wrapper

    for owner, name in (
        (Workplace, 'mark'),
        (Workplace, 'store'),
        (Workplace, 'remember'),
        (build_module, 'write_index'),
        (build_module, 'sha256_of'),
        (Path, 'rename'),
        (Path, 'chmod'),
        (Path, 'unlink'),
        (Path, 'rmdir'),
        (build_module.shutil, 'rmtree'),
    ):
        monkeypatch.setattr(owner, name, limited(getattr(owner, name)))


@pytest.mark.parametrize('replacing', [False, True], ids=['new', 'replacing'])
def test_a_crash_between_any_two_steps(tmp_path, replacing):
    options = {'batch': 12}
    chart = write_map(tmp_path / 'small.tif', textured(150, 290), mask=np.eye(150, 290) == 0)
    expected = content(build_gallery(tmp_path / 'reference.gallery', chart, **options))
    other = write_map(tmp_path / 'other.tif', textured(100, 100, seed=9))
    for count in range(1000):
        out = tmp_path / f'{count}.gallery'
        if replacing:
            build_gallery(out, other)
            old = content(out)
        with pytest.MonkeyPatch.context() as patch:
            crash_after(patch, count)
            try:
                build_gallery(out, chart, force=replacing, **options)
                finished = True
            except CrashError:
                finished = False
        if out.exists():
            assert list(problems(out)) == []
            assert content(out) in ((expected, old) if replacing else (expected,))
        if not finished:
            build_gallery(out, chart, force=replacing, **options)
        assert content(out) == expected, f'after a crash at step {count}'
        assert list(problems(out)) == []
        assert not partial_of(out).exists(), f'after a crash at step {count}'
        if finished:
            assert count > 20
            return
    pytest.fail('the build never finished')


# --- who may resume what


def begin(out, chart, **options):
    """Leave an unfinished build behind."""
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 6)
        with pytest.raises(CrashError):
            build_gallery(out, chart, **options)
    assert partial_of(out).is_dir()


def test_a_resumed_build_does_not_repeat_what_is_done(tmp_path, chart, monkeypatch):
    out = tmp_path / 'test.gallery'
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 14)
        with pytest.raises(CrashError):
            build_gallery(out, chart, batch=8)
    with sqlite3.connect(partial_of(out) / 'work.sqlite') as work:
        before = work.execute('SELECT COUNT(*) FROM embeddings').fetchone()[0]
    work.close()
    assert before > 0
    embedded = []
    real = build_module.embed
    monkeypatch.setattr(
        build_module,
        'embed',
        lambda encoder, images: embedded.append(len(images)) or real(encoder, images),
    )
    monkeypatch.setattr(build_module, 'write_finest', None)  # would fail if it were called
    build_gallery(out, chart, batch=8)
    assert sum(embedded) == len(content(out)[1]) - 8 * before


def test_other_options_do_not_resume(tmp_path, chart):
    out = tmp_path / 'test.gallery'
    begin(out, chart)
    with pytest.raises(GalleryError, match=r'other options \(overlap: 0.5 then, 0.25 now\)'):
        build_gallery(out, chart, overlap=0.25)
    with pytest.raises(GalleryError, match=r'other options \(model: '):
        build_gallery(out, chart, encoder=ProjectionEncoder(seed=99))
    build_gallery(out, chart, overlap=0.25, restart=True)
    assert list(problems(out)) == []


def test_another_map_of_the_same_name_does_not_resume(tmp_path, chart):
    out = tmp_path / 'test.gallery'
    begin(out, chart)
    other = write_map(tmp_path / 'map.tif', textured(420, 560, seed=3))
    with pytest.raises(GalleryError, match=r'other options \(maps: '):
        build_gallery(out, other)


def test_a_finished_gallery_is_not_overwritten_unasked(tmp_path, chart):
    out = build_gallery(tmp_path / 'test.gallery', chart)
    before = content(out)
    with pytest.raises(GalleryError, match='exists already; give --force to replace it'):
        build_gallery(out, chart, overlap=0.25)
    assert content(out) == before
    build_gallery(out, chart, overlap=0.25, force=True)
    assert len(content(out)[1]) < len(before[1])


def test_force_replaces_galleries_only(tmp_path, chart):
    out = tmp_path / 'precious.gallery'
    out.mkdir()
    (out / 'thesis.txt').write_text('ten years')
    with pytest.raises(GalleryError, match='exists and is not a gallery'):
        build_gallery(out, chart, force=True)
    assert (out / 'thesis.txt').read_text() == 'ten years'


def test_two_builds_of_one_gallery_do_not_meet(tmp_path, chart):
    out = tmp_path / 'test.gallery'
    with (
        open_workplace(out, {}, restart=False),
        pytest.raises(GalleryError, match='another process is building'),
    ):
        build_gallery(out, chart)


def test_a_full_disk_is_said_and_the_build_can_go_on(tmp_path, chart, monkeypatch):
    out = tmp_path / 'test.gallery'

    def full(*_):
        raise sqlite3.OperationalError('database or disk is full')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workplace, 'store', full)
        with pytest.raises(GalleryError, match=r'disk is full; free space .* goes on where it'):
            build_gallery(out, chart)
    build_gallery(out, chart)
    assert list(problems(out)) == []
