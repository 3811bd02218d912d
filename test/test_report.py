"""The three files of a report: table, figures, and one page that needs nothing else."""

import csv
import json
import math
import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, textured, write_map

from bicrossnet_ros.evaluation import score
from bicrossnet_ros.flight import Flight, FlightRecord, open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.geodesy import grid_convergence_deg, to_wgs84
from bicrossnet_ros.report import FixRecord, write_report
from bicrossnet_ros.report_map import MapPicture, bound_95_m, grade, map_svg, thinned
from bicrossnet_ros.report_page import verdict
from bicrossnet_ros.report_pictures import map_beside, map_picture
from bicrossnet_ros.report_plots import error_svg

CRS = 'EPSG:32617'
WEST_M, NORTH_M, GSD_M, SIDE_PX = 305900.0, 4545700.0, 0.5, 600
HOSTILE = '<script>alert("x")</script>&.png'
VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


@pytest.fixture(scope='module')
def gallery(tmp_path_factory):
    from gallery_builder.build import build
    from gallery_builder.options import BuildOptions

    folder = tmp_path_factory.mktemp('report')
    mask = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
    mask[:80, :80] = 0
    source = write_map(folder / 'map.tif', textured(SIDE_PX, SIDE_PX), gsd_m=GSD_M, mask=mask)
    options = BuildOptions(maps=(source,), out=folder / 'x.gallery', tile_px=128, gsd_m=GSD_M)
    build(options, ProjectionEncoder(), say=lambda _: None)
    with open_gallery(folder / 'x.gallery') as opened:
        yield opened


def place(east_m, north_m):
    """WGS84 position so many metres east and south of the map's corner."""
    return to_wgs84(CRS, WEST_M + east_m, NORTH_M - north_m)


def truth(number, *, known=True):
    lat_deg, lon_deg = place(60.0 + 5.0 * number, 150.0) if known else (math.nan, math.nan)
    return FlightRecord(
        file=f'{number}.png',
        stamp_s=100.0 + number,
        agl_m=50.0,
        heading_deg=30.0,
        truth_lat_deg=lat_deg,
        truth_lon_deg=lon_deg,
        truth_center_lat_deg=lat_deg,
        truth_center_lon_deg=lon_deg,
        row=number + 2,
    )


def fix(number, error_m=0.5, **more):
    lat_deg, lon_deg = place(60.0 + 5.0 * number + error_m, 150.0)
    values = {
        'file': f'{number}.png',
        'stamp_s': 100.0 + number,
        'status': 'fix',
        'lat_deg': lat_deg,
        'lon_deg': lon_deg,
        'center_lat_deg': lat_deg,
        'center_lon_deg': lon_deg,
        'sigma_m': 1.0,
        'similarity': 0.7,
        'inliers': 40 + number,
        'tile_id': 3,
        'heading_deg': 30.0,
        'cov_ee_m2': 1.0,
        'cov_en_m2': 0.0,
        'cov_nn_m2': 0.25,
        'center_cov_ee_m2': 1.0,
        'center_cov_en_m2': 0.0,
        'center_cov_nn_m2': 0.25,
        'timings_ms': {'read': 3.0, 'encode': 20.0 + number, 'total': 60.0},
        'candidates': (place(60.0 + 5.0 * number, 150.0),),
    }
    return FixRecord(**{**values, **more})


def refusal(number, reason='few_inliers', **more):
    return FixRecord(
        file=f'{number}.png',
        stamp_s=100.0 + number,
        status='no_fix',
        reason=reason,
        detail='9 inliers; a fix needs 25',
        candidates=(place(200.0, 200.0),),
        **more,
    )


def make_flight(records, *, relative=True):
    def read_image(record):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :, 1] = record.row * 10 % 255
        return image

    return Flight('field', tuple(records), read_image, truth_is_map_relative=relative)


@pytest.fixture
def written(tmp_path, gallery):
    flight = make_flight([truth(number) for number in range(8)])
    records = [fix(number) for number in range(5)]
    records += [fix(5, 30.0), refusal(6), refusal(7, 'ambiguous')]
    summary = write_report(
        tmp_path / 'out',
        records,
        title='A flight',
        flight=flight,
        gallery=gallery,
        options={'heading': 'recorded', 'radius_m': None},
        notes=['Mind the wind.'],
    )
    return tmp_path / 'out', summary


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in {'src', 'href', 'data'}]
        assert not any(name.startswith('on') for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def drawings(text):
    found = re.findall(r'<svg.*?</svg>', text, re.DOTALL)
    return [ElementTree.fromstring(one) for one in found]


def rows_of(path):
    with path.open(encoding='utf-8', newline='') as stream:
        return list(csv.DictReader(stream))


def test_csv_begins_with_the_agreed_columns(written):
    out, _ = written
    header = (out / 'fixes.csv').read_text().splitlines()[0].split(',')
    assert header[:13] == [
        *('file', 'stamp_s', 'status', 'reason', 'lat_deg', 'lon_deg', 'center_lat_deg'),
        *('center_lon_deg', 'sigma_m', 'similarity', 'inliers', 'tile_id', 'error_m'),
    ]
    assert header[13:16] == ['read_ms', 'encode_ms', 'total_ms']
    assert len(set(header)) == len(header)


def test_csv_keeps_every_field_of_a_record(written):
    out, _ = written
    header = (out / 'fixes.csv').read_text().splitlines()[0].split(',')
    elsewhere = {'timings_ms', 'candidates', 'candidate_distances_m'}
    assert {one.name for one in fields(FixRecord)} - elsewhere <= set(header)


def test_csv_values(written):
    out, _ = written
    rows = rows_of(out / 'fixes.csv')
    assert [row['status'] for row in rows] == ['fix'] * 6 + ['no_fix'] * 2
    assert float(rows[0]['error_m']) == pytest.approx(0.5, abs=1e-3)
    assert float(rows[5]['error_m']) == pytest.approx(30.0, abs=0.05)
    assert float(rows[2]['encode_ms']) == 22.0
    assert float(rows[0]['stamp_s']) == 100.0
    assert rows[6]['error_m'] == rows[6]['lat_deg'] == rows[6]['sigma_m'] == ''
    assert rows[6]['detail'] == '9 inliers; a fix needs 25'


def test_summary_is_strict_json_and_agrees_with_the_table(written):
    out, summary = written

    def refuse(word):
        raise AssertionError(f'{word} is not JSON')

    stored = json.loads((out / 'summary.json').read_text(), parse_constant=refuse)
    rows = rows_of(out / 'fixes.csv')
    errors = sorted(float(row['error_m']) for row in rows if row['error_m'])
    assert stored['frames'] == len(rows) == 8
    assert stored['fixes'] == len(errors) == 6
    assert stored['error_m']['median'] == pytest.approx(np.median(errors), abs=1e-3)
    assert stored['error_m']['max'] == pytest.approx(errors[-1], abs=1e-3)
    assert stored['false_fixes'] == 1
    assert stored['no_fix_reasons'] == {'few_inliers': 1, 'ambiguous': 1}
    assert stored['recall']['at_1'] == pytest.approx(6 / 8)
    assert stored['options'] == {'heading': 'recorded', 'radius_m': None}
    assert stored['model'] == 'projection'
    assert stored['truth_is_map_relative'] is True
    assert summary['fixes'] == stored['fixes']


def test_page_is_whole_and_asks_for_nothing(written):
    out, _ = written
    text = (out / 'report.html').read_text(encoding='utf-8')
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith('data:image/jpeg;base64,') for link in page.links)
    assert not {'script', 'link', 'iframe', 'object', 'embed'} & set(page.tags)
    style = text[text.index('<style>') : text.index('</style>')]
    assert 'url(' not in style
    assert '@import' not in style
    assert 'http' not in re.sub(r'data:image/jpeg;base64,[A-Za-z0-9+/=]+', '', text)
    assert len(text) < 5_000_000
    assert len(drawings(text)) == 2


def test_page_says_what_matters_first(written):
    out, summary = written
    said = ''.join(Page((out / 'report.html').read_text(encoding='utf-8')).text)
    opening = verdict(summary)
    assert '6 of 8 frames got a fix' in opening
    assert '1 fix is wrong by more than 25 m' in opening
    assert '2 frames were refused' in opening
    assert said.index(opening) < said.index('Mind the wind.') < said.index('Where')
    assert '9 inliers; a fix needs 25' in said
    assert 'few inliers 1' in said


def test_hostile_names_stay_text(tmp_path, gallery):
    record = FixRecord(file=HOSTILE, stamp_s=1.0, status='no_fix', reason='x<b>', detail=HOSTILE)
    flight = make_flight([FlightRecord(file=HOSTILE, stamp_s=1.0)])
    write_report(
        tmp_path, [record], title=HOSTILE, flight=flight, gallery=gallery, notes=[HOSTILE]
    )
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'script' not in Page(text).tags
    assert '&lt;script&gt;' in text
    drawings(text)


def test_no_truth(tmp_path, gallery):
    flight = make_flight([truth(0, known=False), truth(1, known=False)], relative=False)
    summary = write_report(tmp_path, [fix(0), fix(1)], title='t', flight=flight, gallery=gallery)
    assert math.isnan(summary['false_fixes'])
    stored = json.loads((tmp_path / 'summary.json').read_text())
    assert stored['false_fixes'] is None
    assert stored['error_m']['median'] is None
    said = ''.join(Page((tmp_path / 'report.html').read_text(encoding='utf-8')).text)
    assert 'fix, truth unknown' in said
    assert 'No fix is wrong' not in said


def test_nothing_to_report(tmp_path, gallery):
    summary = write_report(
        tmp_path, [], title='t', flight=make_flight([truth(0)]), gallery=gallery
    )
    assert summary['frames'] == 0
    assert Page((tmp_path / 'report.html').read_text(encoding='utf-8')).open == []


def test_frame_that_cannot_be_read_leaves_a_word(tmp_path, gallery):
    (tmp_path / 'f').mkdir()
    (tmp_path / 'f' / 'flight.csv').write_text('file,stamp_s\ngone.png,1\n')
    flight = open_flight(tmp_path / 'f')
    record = FixRecord('gone.png', 1.0, 'no_fix', 'bad_input', flight.records[0].problem)
    write_report(tmp_path / 'out', [record], title='t', flight=flight, gallery=gallery)
    said = ''.join(Page((tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')).text)
    assert "image 'gone.png' not found" in said
    assert "row 2, column file: image 'gone.png' not found" in said


def test_writing_again_replaces(tmp_path, gallery):
    flight = make_flight([truth(0), truth(1)])
    for count in (2, 1):
        records = [fix(number) for number in range(count)]
        write_report(tmp_path, records, title='t', flight=flight, gallery=gallery)
    assert len(rows_of(tmp_path / 'fixes.csv')) == 1


def marks(svg, name):
    return [one for one in svg.iter() if name in one.get('class', '').split()]


def test_map_draws_a_fix_where_it_is():
    picture = MapPicture('data:,', 600, 600, WEST_M, NORTH_M, 0.5, CRS)
    record = score(fix(4, 30.0), truth(4), crs=CRS)
    svg = ElementTree.fromstring(map_svg(picture, [record]))
    (dot,) = marks(svg, 'dot')
    # 60 + 5 x 4 + 30 m east and 150 m south of the corner, at 0.5 m per pixel.
    assert dot.get('d') == 'M220.0 300.0h0'
    assert 'e3' in dot.get('class').split()
    (line,) = marks(svg, 'miss')
    assert line.get('d') == 'M220.0 300.0L160.0 300.0'
    (oval,) = marks(svg, 'oval')
    assert float(oval.get('rx')) == pytest.approx(math.sqrt(5.991) * 1.0 / 0.5, abs=0.01)
    assert float(oval.get('ry')) == pytest.approx(math.sqrt(5.991) * 0.5 / 0.5, abs=0.01)
    assert float(re.search(r'rotate\((.*)\)', oval.get('transform'))[1]) % 180 == 0


def test_ellipse_leans_with_its_covariance():
    picture = MapPicture('data:,', 600, 600, WEST_M, NORTH_M, 0.5, CRS)
    # East and north grow together: the long axis points north-east, up and right on the screen.
    tilted = {'center_cov_ee_m2': 2.0, 'center_cov_en_m2': 1.5, 'center_cov_nn_m2': 2.0}
    record = score(fix(4, **tilted), truth(4), crs=CRS)
    (oval,) = marks(ElementTree.fromstring(map_svg(picture, [record])), 'oval')
    turn_deg = float(re.search(r'rotate\((.*)\)', oval.get('transform'))[1])
    assert turn_deg % 180 == pytest.approx(135.0)  # SVG turns clockwise


def test_refused_frame_is_drawn_at_its_true_place():
    picture = MapPicture('data:,', 600, 600, WEST_M, NORTH_M, 0.5, CRS)
    record = score(refusal(4), truth(4), crs=CRS)
    svg = ElementTree.fromstring(map_svg(picture, [record]))
    assert [one.get('d') for one in marks(svg, 'dot')] == ['M160.0 300.0h0']
    assert not marks(svg, 'oval')
    assert 'no fix: few inliers' in ''.join(svg.itertext())


@pytest.mark.parametrize(
    ('error_m', 'expected'), [(0.9, 'e0'), (1.1, 'e1'), (24.9, 'e2'), (25.2, 'e3')]
)
def test_grades(error_m, expected):
    assert grade(score(fix(0, error_m), truth(0), crs=CRS)) == expected
    assert grade(refusal(0)) == 'no'
    assert grade(fix(0)) == 'eu'


def test_bound_is_the_long_axis_of_the_ellipse():
    assert bound_95_m(score(fix(0), truth(0), crs=CRS)) == pytest.approx(
        math.sqrt(5.991), abs=1e-3
    )
    assert math.isnan(bound_95_m(refusal(0)))


def test_thinning_keeps_false_fixes():
    records = [score(fix(0), truth(0), crs=CRS)] * 5000
    false = score(fix(1, 40.0), truth(1), crs=CRS)
    records[1234] = false
    shown = thinned(records, 100)
    assert len(shown) <= 102
    assert false in shown
    assert thinned([], 100) == []


def test_error_plot_puts_larger_errors_higher():
    records = [score(fix(n, e), truth(n), crs=CRS) for n, e in enumerate((0.1, 1.0, 10.0, 40.0))]
    svg = ElementTree.fromstring(error_svg([*records, refusal(4)]))
    dots = [
        [float(number) for number in re.findall(r'[\d.]+', one.get('d'))[:2]]
        for one in marks(svg, 'dot')
    ]
    xs, ys = [dot[0] for dot in dots], [dot[1] for dot in dots]
    assert xs == sorted(xs)
    assert ys[:4] == sorted(ys[:4], reverse=True)
    # A decade is a decade: 0.1 to 1 m is as far as 1 to 10 m.
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.3)
    assert ys[4] > max(ys[:4])
    assert len(marks(svg, 'bound')) == 4


def test_error_plot_survives_odd_times():
    for stamps in ((5.0, 5.0), (math.nan, 7.0), (9.0, 3.0)):
        records = [score(fix(0, stamp_s=stamp), truth(0), crs=CRS) for stamp in stamps]
        assert len(marks(ElementTree.fromstring(error_svg(records)), 'dot')) == 2


def test_map_picture_shows_the_track_and_its_surroundings(gallery):
    records = [score(fix(number), truth(number), crs=CRS) for number in range(8)]
    picture = map_picture(gallery, records)
    assert picture.crs == CRS
    assert 0 < picture.width_px <= 1200
    for record in records:
        x, y = picture.xy_px((record.lat_deg, record.lon_deg))
        assert 20.0 < x * picture.gsd_m < picture.width_px * picture.gsd_m - 20.0
        assert 20.0 < y * picture.gsd_m < picture.height_px * picture.gsd_m - 20.0
    assert picture.xy_px((math.nan, 0.0)) is None


def picture_px(uri):
    import base64

    data = base64.b64decode(uri.split(',')[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def test_map_picture_lies_where_it_says(gallery):
    """Its pixels are those of the map's finest level at the same place."""
    picture = map_picture(gallery, [score(fix(4), truth(4), crs=CRS)])
    shown = picture_px(picture.data_uri).astype(float)
    assert shown.shape[:2] == (picture.height_px, picture.width_px)
    east_m = picture.west_m + 0.5 * picture.width_px * picture.gsd_m
    north_m = picture.north_m - 0.5 * picture.height_px * picture.gsd_m
    window = gallery.window(east_m, north_m, size_m=picture.width_px * picture.gsd_m)
    expected = cv2.resize(window.image, (picture.width_px, picture.width_px)).astype(float)
    middle = slice(picture.width_px // 4, 3 * picture.width_px // 4)
    rows = slice(picture.height_px // 4, 3 * picture.height_px // 4)
    top = (picture.width_px - picture.height_px) // 2
    lower = slice(rows.start + top, rows.stop + top)
    assert np.abs(shown[rows, middle] - expected[lower, middle]).mean() < 6.0


@pytest.mark.parametrize('turns', [0, 1, 2, 3])
def test_map_beside_a_frame_is_turned_like_it(gallery, turns):
    center = place(150.0, 150.0)
    convergence_deg = grid_convergence_deg(CRS, *center)
    picture = map_beside(
        gallery,
        center,
        heading_deg=90.0 * turns - convergence_deg,
        width_m=50.0,
        shape=(100, 100),
    )
    window = gallery.window(WEST_M + 150.0, NORTH_M - 150.0, size_m=50.0)
    # Facing east (one turn), what lies east is at the top: the picture turns counter-clockwise.
    expected = np.rot90(window.image, turns)
    assert np.abs(picture.astype(float) - expected).mean() < 4.0


def test_report_needs_no_plotting_library():
    sources = Path(__file__).resolve().parents[1] / 'bicrossnet_ros'
    for path in sources.glob('report*.py'):
        assert 'matplotlib' not in path.read_text(encoding='utf-8')
