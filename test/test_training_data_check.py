"""`python -m training.data check`: counts beside the published ones, and its exit status."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_line import run_module
from photo_sets import picture, sues_raw, sues_split, university, write

from bicrossnet_ros.errors import ConfigError
from training.data.__main__ import main
from training.data.check import check
from training.data.report import DIFFERS, MATCHES, UNUSABLE


@pytest.fixture(scope='module')
def university_whole(tmp_path_factory):
    """As many places and images as University-1652 has; numbers of places with gaps."""
    places = list(range(0, 1652 * 2, 2))
    return university(
        tmp_path_factory.mktemp('whole') / 'University-Release',
        train=places[951:],
        query=places[:701],
        extra=places[701:951],
        drone=54,
    )


@pytest.fixture(scope='module')
def sues_whole(tmp_path_factory):
    return sues_raw(tmp_path_factory.mktemp('whole') / 'SUES-200-512x512', drone=50)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp('small') / 'data'
    return university(root, train=[3, 6, 9], query=[0, 4], extra=[5], drone=3)


def test_a_whole_university1652_matches(university_whole, capsys):
    assert main(['check', str(university_whole)]) == MATCHES
    text = capsys.readouterr().out
    for row in (
        'train_drone            701        701    37854      37854',
        'train_satellite        701        701      701        701',
        'query_drone            701        701    37855      37855',
        'gallery_drone          951        951    51355      51355',
        'gallery_satellite      951        951      951        951',
    ):
        assert f'{row}\n' in text
    assert 'problem' not in text
    assert text.endswith('complete; can be used for: training, retrieval tests\n')


def test_a_whole_sues200_matches(sues_whole):
    report = check(sues_whole)
    assert report.status == MATCHES, str(report)
    rows = {row.name: (row.places, row.images) for row in report.rows}
    assert len(rows) == 24
    assert rows['150 m train_drone'] == (120, 6000)
    assert rows['300 m query_drone'] == (80, 4000)
    assert rows['250 m gallery_drone'] == (200, 10000)
    assert rows['200 m gallery_satellite'] == (200, 200)


def test_the_split_layout_is_checked_alike(tmp_path):
    root = sues_split(tmp_path / 'SUES', drone=2)
    report = check(root)
    assert report.status == DIFFERS
    assert not report.problems
    assert [row.name for row in report.rows if row.matches] == [
        f'{height} m {part}'
        for height in (150, 200, 250, 300)
        for part in ('train_satellite', 'query_satellite', 'gallery_satellite')
    ]


def test_another_split_is_told(tmp_path):
    root = sues_split(tmp_path / 'SUES', drone=1)
    testing, training = root / 'Testing/150', root / 'Training/150'
    for view in ('drone', 'satellite'):
        shutil.move(testing / f'query_{view}/0008', training / f'{view}/0008')
    text = str(check(root))
    assert 'split: 1 place (0008) not on the side of the published split' in text
    assert 'absent' not in text


def test_places_that_are_absent_are_not_called_misplaced(tmp_path):
    text = str(check(sues_raw(tmp_path / 'SUES', drone=1, places=14)))
    assert '150 m tests: 77 places (0017, 0018, ' in text
    assert 'and 72 more) of the published test are absent\n' in text
    assert 'published split' not in text


def test_why_no_tests_are_possible_is_told(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    (root / 'test/query_drone/harbour').mkdir()
    assert 'retrieval tests' in check(root).uses
    write(root / 'test/query_drone/harbour/a.jpg', picture(0))
    report = check(root)
    assert report.uses == ['training']
    assert str(report).count('the folder harbour is not named by a number') == 1


def test_what_differs_is_named(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    shutil.rmtree(root / 'test/gallery_satellite/0004')
    (root / 'train/drone/0006/image-02.jpeg').unlink()
    (root / 'train/satellite/0009/0009.jpg').unlink()
    shutil.copytree(root / 'train/drone/0003', root / 'test/query_drone/0003')
    report = check(root, source='university1652')
    text = str(report)
    assert report.status == DIFFERS
    assert report.uses == ['training']
    for words in (
        'train_satellite: 1 place (0009) without images',
        'train_drone: 1 place (0006 (2)) with another number of images than 3',
        'training: 1 place (0009) with one view only',
        'split: 1 place (0003) both in training and among the queries',
        'tests: 2 places (0003, 0004) of query_drone missing in gallery_satellite',
    ):
        assert words in text


def test_a_half_that_is_missing_leaves_the_other_of_use(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    shutil.rmtree(root / 'train')
    report = check(root)
    assert report.status == DIFFERS
    assert report.uses == ['retrieval tests']
    assert 'train_drone              -        701        -      37854  missing' in str(report)
    shutil.rmtree(root / 'test/query_drone')
    report = check(root)
    assert report.status == UNUSABLE
    assert 'of no use as it is; can be used for: nothing' in str(report)


def test_damaged_images_are_found_by_decoding(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    victim = root / 'train/drone/0006/image-02.jpeg'
    victim.write_bytes(victim.read_bytes()[:300])
    assert not any('cut off' in problem for problem in check(root).problems)
    report = check(root, decode=True, threads=2)
    assert [problem for problem in report.problems if 'cut off after 300 bytes' in problem] == [
        f'{victim}: is cut off after 300 bytes; replace or remove it'
    ]


def test_aerial_images_are_counted_and_decoded(tmp_path):
    for k in range(3):
        write(tmp_path / 'maps' / f'{k}.png', picture(k))
    report = check(tmp_path / 'maps', source='maps')
    assert (report.status, report.rows[0].images) == (MATCHES, 3)
    (tmp_path / 'maps' / '1.png').write_bytes(b'no image')
    report = check(tmp_path / 'maps', source='maps', decode=True)
    assert (report.status, report.rows[0].places, len(report.problems)) == (DIFFERS, 2, 1)
    for k in (0, 2):
        (tmp_path / 'maps' / f'{k}.png').write_bytes(b'')
    assert check(tmp_path / 'maps', source='maps', decode=True).status == UNUSABLE


def test_the_squares_of_rasters_are_counted(tmp_path, capsys):
    rasterio = pytest.importorskip('rasterio')
    image = picture(1, size_px=120)
    # 120 px of 2 m: 2 x 2 squares of 100 m; the south-eastern quarter is missing.
    image[60:, 60:] = 0
    options = {'width': 120, 'height': 120, 'count': 3, 'dtype': 'uint8', 'crs': 'EPSG:32633'}
    transform = rasterio.transform.from_origin(500_000, 5_000_000, 2, 2)
    with rasterio.open(
        tmp_path / 'map.tif', 'w', driver='GTiff', transform=transform, nodata=0, **options
    ) as dataset:
        dataset.write(np.maximum(image, np.uint8(1)).transpose(2, 0, 1) * (image > 0).all(2))
    arguments = ['check', str(tmp_path), '--source', 'maps', '--scene-m', '100']
    assert main(arguments) == MATCHES
    assert 'map.tif        4          -        1          -\n' in capsys.readouterr().out
    report = check(tmp_path, source='maps', scene_m=100.0, decode=True)
    assert report.rows[0].places == 3
    report = check(tmp_path, source='maps', scene_m=500.0)
    assert report.status == UNUSABLE
    assert 'has no square of 500 m' in str(report)


def test_the_command_line_prints_one_line_and_exits_with_2(tmp_path):
    (tmp_path / 'photos').mkdir()
    result = run_module('training.data', 'check', tmp_path)
    assert result.returncode == UNUSABLE
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1
    assert 'this is not University-1652; found photos, expected train/drone' in result.stderr
    assert 'add --source maps for aerial images without drone views' in result.stderr


def test_missing_folder_and_no_threads(small, tmp_path):
    with pytest.raises(ConfigError, match='nowhere: no such folder'):
        check(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='threads is 0; expected at least 1'):
        check(small, threads=0)


def test_a_rendered_data_set_is_of_use(tmp_path, capsys):
    for k in range(5):
        write(tmp_path / 'maps' / f'{k}.png', picture(k, size_px=128))
    options = {'places': 2, 'test-places': 2, 'distractors': 1, 'drones': 2, 'size-px': 64}
    flags = [text for name, value in options.items() for text in (f'--{name}', str(value))]
    out = tmp_path / 'data'
    assert main(['render', str(tmp_path / 'maps'), str(out), *flags]) == 0
    assert main(['check', str(out)]) == DIFFERS
    assert 'can be used for: training, retrieval tests' in capsys.readouterr().out


def test_a_check_waits_for_no_torch():
    code = "import sys, training.data.check as c; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
