"""Splits: files that say what they hold, scenes that share ground found and kept together."""

from collections import Counter

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import ConfigError
from training.data import gather
from training.splits import load_split, write_split
from training.splits.divide import divide, keep, stratum
from training.splits.overlaps import SIDE_PX, overlapping, within


def ground(seed, size_px):
    """Gray ground with detail of every size."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size_px, size_px), np.float32)
    for cells in (4, 16, 64):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        image += cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 30 * image, 0, 255).astype(np.uint8)


def test_scenes_that_overlap_are_found():
    picture = ground(0, 160)
    others = [ground(seed, SIDE_PX) for seed in range(1, 6)]
    scenes = [picture[:100, :100], *others, picture[30:130, 12:112], picture[60:, 55:155]]
    # Another camera, another day.
    scenes[-1] = np.clip(0.7 * scenes[-1].astype(np.float32) + 40, 0, 255).astype(np.uint8)
    pairs = overlapping(np.stack(scenes))
    assert {(first, second) for first, second, _ in pairs} == {(0, 6), (6, 7)}
    assert min(correlation for *_, correlation in pairs) > 0.9


def test_a_scene_in_the_next_scale_is_found():
    picture = ground(0, 200)
    coarse = cv2.resize(picture, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    fine = [ground(7, SIDE_PX), picture[43:143, 60:160], picture[:100, 100:]]
    pairs = within(np.stack(fine), np.stack([ground(9, SIDE_PX), coarse]))
    assert {(first, second) for first, second, _ in pairs} == {(1, 1), (2, 1)}


NAMES = [f'rsscn7/aGrass/a{number:03d}.jpg' for number in range(1, 401)]


def test_each_stratum_is_divided_alike_and_overlaps_train():
    shared = {NAMES[k] for k in range(0, 400, 5)}
    split = divide([*NAMES, 'neon/one.png'], overlaps=shared)
    assert split['neon/one.png'] == 'train'
    assert {split[name] for name in shared} == {'train'}
    counts = Counter((stratum(name)[1], split[name]) for name in NAMES)
    for scale in range(4):
        assert counts[scale, 'train'] == 80
        assert counts[scale, 'validation'] == counts[scale, 'test'] == 10
    assert divide(NAMES[::-1], overlaps=shared) == {name: split[name] for name in NAMES}
    assert divide(NAMES, overlaps=shared, seed=1) != {name: split[name] for name in NAMES}


def test_a_split_in_use_only_moves_scenes_to_train():
    previous = {'a': 'train', 'b': 'test', 'c': 'validation', 'd': 'test'}
    split = keep(previous, ['a', 'b', 'c', 'd', 'e'], overlaps={'b', 'c'})
    assert split == {**dict.fromkeys('abce', 'train'), 'd': 'test'}


def test_the_number_tells_the_scale():
    assert stratum('rsscn7/bField/b100.jpg') == ('bField', 0)
    assert stratum('rsscn7/bField/b101.jpg') == ('bField', 1)
    assert stratum('rsscn7/bField/b400.jpg') == ('bField', 3)
    for name in ('rsscn7/bField/b401.jpg', 'rsscn7/b001.jpg', 'neon/a/a001.jpg'):
        with pytest.raises(ConfigError, match='expected'):
            stratum(name)


def test_no_pair_of_the_packaged_split_is_parted():
    """Some of the pairs that were found, of every kind."""
    split = load_split()
    for first, second in (
        ('cIndustry/c293', 'cIndustry/c295'),
        ('gParking/g248', 'gParking/g314'),
        ('gParking/g039', 'gParking/g111'),
        ('dRiverLake/d246', 'dRiverLake/d353'),
    ):
        assert split[f'rsscn7/{first}.jpg'] == split[f'rsscn7/{second}.jpg'] == 'train'


def test_a_split_comes_back_from_its_file(tmp_path):
    split = {'b/2.jpg': 'test', 'a/1, 2.jpg': 'train'}
    write_split(split, tmp_path / 'split.csv')
    assert load_split(tmp_path / 'split.csv') == split


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "begins with 'nothing'; expected the header"),
        ('scene;split\n', "begins with 'scene;split'"),
        ('scene,split\na,train\nb,holdout\n', "line 3 is 'b,holdout'; expected a scene and one"),
        ('scene,split\na\n', "line 2 is 'a'"),
        ('scene,split\na,train\na,test\n', 'line 3 names a a second time'),
    ],
)
def test_files_that_are_no_split(tmp_path, text, message):
    (tmp_path / 'split.csv').write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_split(tmp_path / 'split.csv')
    with pytest.raises(ConfigError, match='not readable as a split'):
        load_split(tmp_path / 'absent.csv')


def make_sources(folder):
    for name in ('rsscn7/aGrass/a001.jpg', 'rsscn7/bField/b001.jpg', *gather.NEON_FILES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8, 3), len(name), np.uint8))
    (folder / '2019_YELL_2_image.png').write_bytes(b'a test flight')
    return folder


def test_gathering_links_the_scenes_and_leaves_the_test_flight(tmp_path, capsys):
    source, out = make_sources(tmp_path / 'source'), tmp_path / 'out'
    options = [str(out), '--rsscn7', str(source / 'rsscn7'), '--neon', str(source)]
    for _ in range(2):
        assert gather.main(options) == 0
        assert capsys.readouterr().out == '2 scenes of rsscn7, 3 scenes of neon\n'
    found = {path.relative_to(out).as_posix() for path in out.rglob('*.*')}
    assert found == {
        'rsscn7/aGrass/a001.jpg',
        'rsscn7/bField/b001.jpg',
        *(f'neon/{name}' for name in gather.NEON_FILES),
    }
    for name in ('rsscn7/aGrass/a001.jpg', 'neon/SOAP_061.png'):
        assert (out / name).read_bytes() == (source / name.removeprefix('neon/')).read_bytes()


def test_what_cannot_be_gathered(tmp_path, capsys):
    source, out = make_sources(tmp_path / 'source'), tmp_path / 'out'
    assert gather.main([str(out), '--rsscn7', str(tmp_path / 'absent')]) == 2
    assert 'no such folder; give that of RSSCN7' in capsys.readouterr().err
    (source / 'SOAP_031.png').unlink()
    neon = ['--neon', str(source)]
    assert gather.main([str(out), '--rsscn7', str(source / 'rsscn7'), *neon]) == 2
    assert 'lacks SOAP_031.png' in capsys.readouterr().err
    other = out / 'rsscn7/aGrass/a001.jpg'
    other.unlink()
    other.write_bytes(b'something else')
    with pytest.raises(ConfigError, match='remove it or choose an empty folder'):
        gather.gather(out, rsscn7=source / 'rsscn7')


def test_the_packaged_split_is_of_the_real_scenes(rsscn7):
    found = {f'rsscn7/{path.relative_to(rsscn7).as_posix()}' for path in rsscn7.rglob('*.jpg')}
    assert {scene for scene in load_split() if scene.startswith('rsscn7/')} == found
