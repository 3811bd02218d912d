"""Flight folders: columns, aliases, flight.yaml, camera file, and what happens to bad rows."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import decode_image, open_flight
from bicrossnet_ros.flight_columns import NUMBERS, find_columns, parse_number, parse_stamp_s
from bicrossnet_ros.flight_folder import read_camera

REPOSITORY = Path(__file__).resolve().parents[1]
CAMERA = """
image_width: 64
image_height: 48
camera_matrix: {rows: 3, cols: 3, data: [50.0, 0.0, 32.0, 0.0, 51.0, 24.0, 0.0, 0.0, 1.0]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0.0, 0.0, 0.0, 0.0]}
"""


def make_flight(
    folder: Path, table: str, *, images=('a.png', 'b.png'), subfolder='frames'
) -> Path:
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    (folder / 'flight.csv').write_text(table, encoding='utf-8')
    for number, name in enumerate(images):
        image = np.full((48, 64, 3), 40 * number, np.uint8)
        image[:, :, 2] = 200  # red, in OpenCV's order
        assert cv2.imwrite(str(folder / subfolder / name), image)
    return folder


def problem_of(tmp_path: Path, table: str) -> str:
    """The problem of the last row; the flight itself must open."""
    return open_flight(make_flight(tmp_path, table)).records[-1].problem


def test_canonical_columns(tmp_path):
    folder = make_flight(
        tmp_path,
        'file,stamp_s,lat_deg,lon_deg,ellipsoid_m,agl_m,roll_deg,pitch_deg,heading_deg,note\n'
        'a.png,10.5,41.0,-83.0,250,80,1,-2,359,hello\n'
        'b.png,11.5,,,,,,,,\n',
    )
    (folder / 'camera.yaml').write_text(CAMERA)
    flight = open_flight(folder)
    first, second = flight.records
    assert (first.file, first.stamp_s, first.row) == ('a.png', 10.5, 2)
    assert (first.lat_deg, first.lon_deg, first.ellipsoid_m) == (41.0, -83.0, 250.0)
    assert (first.agl_m, first.roll_deg, first.pitch_deg, first.heading_deg) == (80, 1, -2, 359)
    assert math.isnan(second.lat_deg)
    assert second.agl_m is None
    assert not second.problem
    assert flight.name == tmp_path.name
    assert flight.camera is not None
    assert flight.camera.fy_px == 51.0
    assert flight.camera.distortion[0] == 0.1
    assert not flight.truth_is_map_relative
    assert not first.has_truth


def test_image_is_rgb_and_frame_carries_what_is_known(tmp_path):
    folder = make_flight(
        tmp_path,
        'file,stamp_s,lat_deg,lon_deg,agl_m,heading_deg,truth_heading_deg\n'
        'a.png,1,41.0,-83.0,80,350,5\nb.png,2,,,,,\n',
    )
    flight = open_flight(folder)
    frame = flight.frame(flight.records[0], radius_m=150.0)
    assert frame.image.shape == (48, 64, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image[0, 0].tolist() == [200, 0, 0]
    assert frame.attitude is not None
    assert frame.attitude.heading_deg == 350
    assert frame.prior is not None
    assert (frame.prior.lat_deg, frame.prior.radius_m) == (41.0, 150.0)
    assert frame.agl_m == 80
    assert flight.frame(flight.records[0]).prior is None
    assert flight.frame(flight.records[0], heading='truth').attitude.heading_deg == 5
    assert flight.frame(flight.records[0], heading='unknown').attitude is None
    bare = flight.frame(flight.records[1], radius_m=150.0)
    assert bare.prior is None
    assert bare.attitude is None
    assert bare.agl_m is None


def test_impossible_requests(tmp_path):
    flight = open_flight(make_flight(tmp_path, 'file,stamp_s\na.png,1\n'))
    with pytest.raises(FlightError, match="heading 'north' is unknown"):
        flight.frame(flight.records[0], heading='north')
    for radius_m in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(FlightError, match='search radius'):
            flight.frame(flight.records[0], radius_m=radius_m)


@pytest.mark.parametrize('subfolder', ['', 'frames', 'images', 'queries'])
def test_images_are_found_in_the_usual_folders(tmp_path, subfolder):
    folder = make_flight(tmp_path, 'file,stamp_s\na.png,1\n', subfolder=subfolder)
    flight = open_flight(folder)
    assert not flight.records[0].problem
    assert flight.image(flight.records[0]).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ('gone.png,2,80,41,-83', "row 3, column file: image 'gone.png' not found"),
        (',2,80,41,-83', 'row 3, column file: is empty'),
        ('b.png,noon,80,41,-83', "row 3, column stamp: is 'noon'; expected seconds, or ISO"),
        ('b.png,,80,41,-83', 'row 3, column stamp: is empty'),
        ('b.png,nan,80,41,-83', "row 3, column stamp: is 'nan'"),
        ('b.png,0.5,80,41,-83', 'row 3, column stamp: the clock goes backwards by 0.5 s'),
        ('b.png,2,nan,41,-83', "row 3, column agl: is 'nan'; expected a finite number"),
        ('b.png,2,inf,41,-83', "row 3, column agl: is 'inf'"),
        ('b.png,2,high,41,-83', "row 3, column agl: is 'high'; expected a number"),
        ('b.png,2,80,141,-83', 'row 3, column lat: is 141; expected -90 to 90'),
        ('b.png,2,80,41,', 'row 3, column lon: is empty, but the other half is given'),
        ('b.png,2,80', 'row 3: has fewer cells than the header'),
        ('b.png,2,80,41,-83,9', 'row 3: has more cells than the header'),
    ],
)
def test_bad_row_becomes_a_problem_that_names_row_and_column(tmp_path, row, message):
    table = f'file,stamp,agl,lat,lon\na.png,1,80,41,-83\n{row}\n'
    assert message in problem_of(tmp_path, table)


def test_bad_row_spares_its_neighbours_and_refuses_a_frame(tmp_path):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\nb.png,x\nb.png,3\n')
    flight = open_flight(folder)
    assert [bool(one.problem) for one in flight.records] == [False, True, False]
    assert math.isnan(flight.records[1].stamp_s)
    with pytest.raises(FlightError, match='row 3, column stamp'):
        flight.frame(flight.records[1])


def test_one_stamp_from_the_future_spoils_one_row_after_it(tmp_path):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\na.png,900\na.png,2\na.png,3\n')
    problems = [bool(one.problem) for one in open_flight(folder).records]
    assert problems == [False, False, True, False]


def test_equal_stamps_are_no_problem(tmp_path):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\nb.png,1\n')
    assert not any(one.problem for one in open_flight(folder).records)


def test_damaged_image(tmp_path):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\nb.png,2\n')
    (folder / 'frames' / 'a.png').write_bytes(b'')
    (folder / 'frames' / 'b.png').write_bytes(b'no image at all')
    flight = open_flight(folder)
    with pytest.raises(ImageError, match='empty'):
        flight.image(flight.records[0])
    with pytest.raises(ImageError, match='not decodable'):
        flight.frame(flight.records[1])
    (folder / 'frames' / 'a.png').unlink()
    with pytest.raises(ImageError, match='not found'):
        flight.image(flight.records[0])


def test_truncated_jpeg_is_either_whole_or_refused():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = cv2.imencode('.jpg', image)[1].tobytes()
    assert decode_image(data, 'whole').shape == (64, 64, 3)
    with pytest.raises(ImageError, match='not decodable'):
        decode_image(data[:20], 'cut')


def test_grey_and_16_bit_images_become_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    decoded = decode_image(cv2.imencode('.png', grey)[1].tobytes(), 'grey')
    assert (decoded == grey[:, :, None]).all()
    deep = np.full((4, 4, 3), 40000, np.uint16)
    decoded = decode_image(cv2.imencode('.png', deep)[1].tobytes(), 'deep')
    assert decoded.dtype == np.uint8
    assert decoded.shape == (4, 4, 3)


@pytest.mark.parametrize(
    ('table', 'message'),
    [
        ('', 'is empty'),
        ('file,stamp\n', 'has a header but no row'),
        ('picture,stamp\na.png,1\n', 'column file is missing'),
        ('file,when\na.png,1\n', 'column stamp_s is missing'),
        ('file,stamp,lat\na.png,1,41\n', 'has column lat but no column for lon_deg'),
        ('file,stamp,stamp\na.png,1,1\n', 'appear more than once'),
    ],
)
def test_bad_table(tmp_path, table, message):
    with pytest.raises(FlightError, match=message):
        open_flight(make_flight(tmp_path, table))


def test_binary_table(tmp_path):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\n')
    (folder / 'flight.csv').write_bytes(b'\xff\xfe\x00\x01file')
    with pytest.raises(FlightError, match='not readable as CSV in UTF-8'):
        open_flight(folder)


def test_no_flight(tmp_path):
    with pytest.raises(FlightError, match='does not exist'):
        open_flight(tmp_path / 'nowhere')
    with pytest.raises(FlightError, match=r'flight\.csv: not found'):
        open_flight(tmp_path)
    (tmp_path / 'file.txt').touch()
    with pytest.raises(FlightError, match='is a file; expected a flight folder'):
        open_flight(tmp_path / 'file.txt')


def test_spreadsheet_habits_are_forgiven(tmp_path):
    folder = make_flight(tmp_path, '\ufefffile, stamp , lat,lon\r\na.png, 1, 41.5, -83\r\n')
    record = open_flight(folder).records[0]
    assert (record.stamp_s, record.lat_deg, record.problem) == (1.0, 41.5, '')


def test_flight_yaml_maps_columns_and_wins_over_aliases(tmp_path):
    folder = make_flight(
        tmp_path, 'pic,t,heading,yaw_north,stamp\na.png,7,10,20,99\n', subfolder='raw'
    )
    (folder / 'log.csv').write_text((folder / 'flight.csv').read_text())
    (folder / 'flight.csv').unlink()
    (folder / 'flight.yaml').write_text(
        'name: mine\ntable: log.csv\nimages: raw\ntruth_is_map_relative: true\n'
        'columns: {file: pic, stamp_s: t, heading_deg: yaw_north}\n'
    )
    flight = open_flight(folder)
    record = flight.records[0]
    assert (record.file, record.stamp_s, record.heading_deg) == ('a.png', 7.0, 20.0)
    assert (flight.name, flight.truth_is_map_relative) == ('mine', True)
    other = tmp_path / 'other.yaml'
    other.write_text('table: log.csv\ncolumns: {file: pic}\nimages: raw\n')
    record = open_flight(folder, config=other).records[0]
    assert (record.stamp_s, record.heading_deg) == (99.0, 10.0)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('colour: red', r"unknown key\(s\) \['colour'\]"),
        ('columns: {speed: v}', r"columns: unknown \['speed'\]"),
        ('columns: {agl_m: 3}', 'columns: agl_m is 3; expected a text'),
        ('columns: {agl_m: height}', "column 'height' \\(mapped to agl_m\\) is missing"),
        ('columns: [a]', "columns is \\['a'\\]; expected dict"),
        ('images: nowhere', "the image folder 'nowhere' does not exist"),
        ('camera: other.yaml', 'the camera file named in the configuration does not exist'),
        ('truth_is_map_relative: maybe', "truth_is_map_relative is 'maybe'; expected bool"),
        ('- a', 'found list; expected a mapping'),
        ('a: [', 'not readable as YAML'),
    ],
)
def test_bad_flight_yaml(tmp_path, text, message):
    folder = make_flight(tmp_path, 'file,stamp\na.png,1\n')
    (folder / 'flight.yaml').write_text(text)
    with pytest.raises(FlightError, match=message):
        open_flight(folder)


@pytest.mark.parametrize(
    ('found', 'replacement', 'message'),
    [
        ('50.0', '.nan', 'expected two positive numbers'),
        ('50.0', '-50.0', 'expected two positive numbers'),
        ('32.0', '.inf', 'principal point .* lies outside the image'),
        ('image_width: 64', 'image_width: 0', 'intrinsics are for 0 x 48 px'),
        ('image_width: 64', '', 'not a ROS camera_info file'),
        ('plumb_bob', 'fancy', "distortion model 'fancy' is unknown"),
        ('[0.1, 0.0, 0.0, 0.0, 0.0]', '[0.1, 0.0]', 'has 2 distortion coefficients'),
        ('[0.1,', '[.nan,', 'is not finite'),
        (', 1.0]', ']', 'has 8 numbers; expected 9'),
        ('50.0', 'wide', 'not a ROS camera_info file'),
    ],
)
def test_bad_camera_file(tmp_path, found, replacement, message):
    path = tmp_path / 'camera.yaml'
    path.write_text(CAMERA.replace(found, replacement, 1))
    with pytest.raises(FlightError, match=message):
        read_camera(path)


@pytest.mark.parametrize(
    ('text', 'seconds'),
    [
        ('1370367953', 1370367953.0),
        ('1.5e3', 1500.0),
        ('2013-06-04T17:45:53Z', 1370367953.0),
        ('2013-06-04T17:45:53', 1370367953.0),
        ('2013-06-04 19:45:53+02:00', 1370367953.0),
        ('2013-06-04T17:45:53.5Z', 1370367953.5),
        ('2013-06-04T17:45:53.123456789+00:00', 1370367953.123456),
        ('1969-12-31T23:59:59Z', -1.0),
    ],
)
def test_stamps(text, seconds):
    assert parse_stamp_s(text) == pytest.approx(seconds, abs=1e-6)


@given(st.floats(-90, 90))
def test_number_survives_its_text(value):
    assert parse_number(repr(value), 'lat_deg') == value


@given(st.text(max_size=12))
def test_any_cell_is_a_number_in_range_or_an_explained_error(text):
    try:
        value = parse_number(text, 'truth_lon_deg')
    except ValueError as error:
        message = str(error)
    else:
        message = 'expected'
        assert value is None or -180.0 <= value <= 180.0
    assert 'expected' in message


def test_nan_means_unknown_in_truth_columns_only():
    assert parse_number('nan', 'truth_lat_deg') is None
    with pytest.raises(ValueError, match='finite'):
        parse_number('nan', 'lat_deg')


def test_no_name_serves_two_quantities():
    names = [name for key, column in NUMBERS.items() for name in (key, *column.aliases)]
    assert len(names) == len(set(names))


def test_canonical_name_wins_over_alias():
    found = find_columns(['file', 'stamp', 'heading', 'heading_deg'], {}, 'table')
    assert found['heading_deg'] == 'heading_deg'


def test_seneca_as_it_is(seneca):
    flight = open_flight(seneca)
    assert len(flight) == 95
    assert not any(one.problem for one in flight.records)
    assert all(one.has_truth and one.has_center_truth for one in flight.records)
    assert flight.truth_is_map_relative
    assert flight.camera is not None
    assert flight.camera.fx_px == 776.0
    first = flight.records[0]
    assert (first.file, first.stamp_s) == ('IMG_0518.jpg', 1370367953.0)
    assert (first.agl_m, first.heading_deg, first.pitch_deg, first.roll_deg) == (
        72.8,
        41.6,
        9.8,
        -0.3,
    )
    assert first.truth_center_lat_deg == 41.03505706
    assert first.truth_lat_deg == 41.03496424
    assert first.truth_heading_deg == 36.56
    assert flight.image(first).shape == (768, 1024, 3)


def test_seneca_configuration_says_what_the_reader_finds_alone(seneca):
    mapped = open_flight(seneca, config=REPOSITORY / 'config' / 'flights' / 'seneca.yaml')
    alone = open_flight(seneca)
    assert mapped.records == alone.records
    assert mapped.truth_is_map_relative == alone.truth_is_map_relative
