"""The figures of an evaluation show what the numbers say."""

import io

import cv2
import numpy as np
import pytest

pytest.importorskip('matplotlib')

from matplotlib.colors import to_rgba

from training.benchmark import Ranking
from training.data.places import RetrievalTask
from training.figure_files import write_accuracy_figures, write_match_figures
from training.figures import RIGHT, WRONG, Point, accuracy_figure, save_figure
from training.match_pictures import choose_examples, match_figure
from training.metrics import hit_ranks
from training.results import METRICS, ModelResults, Result


@pytest.fixture(scope='module')
def ranked(tmp_path_factory):
    """A task of 30 queries of 10 places with images on disk, and its embeddings and ranks."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(3)
    paths = []
    for k in range(70):
        paths.append(folder / f'{k:02d}.png')
        picture = np.full((20, 30, 3), rng.integers(0, 256, 3), np.uint8)
        cv2.imwrite(str(paths[-1]), picture)
    centres = rng.normal(size=(14, 6))
    query_labels, gallery_labels = np.arange(30) % 10, np.arange(40) % 14

    def embed(labels, noise):
        rows = centres[labels] + rng.normal(0, noise, (len(labels), 6))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    task = RetrievalTask(
        'drone_to_satellite',
        'full',
        tuple(paths[:30]),
        query_labels,
        tuple(paths[30:]),
        gallery_labels,
    )
    query, gallery = embed(query_labels, 0.8), embed(gallery_labels, 0.8)
    best = hit_ranks(query, query_labels, gallery, gallery_labels).best
    assert 5 < (best == 0).sum() < 25
    assert (best >= 3).any()
    return task, query, gallery, best


def test_examples_are_hits_then_misses(ranked):
    task, query, gallery, best = ranked
    examples = choose_examples(*ranked, hits=4, misses=5, top=3, seed=1)
    assert [example.is_hit for example in examples] == [True] * 4 + [False] * 5
    for part in (examples[:4], examples[4:]):
        assert len({example.place for example in part}) == len(part)  # different places
    for example in examples:
        q = task.query_paths.index(example.query)
        assert example.place == task.query_labels[q]
        order = np.argsort(-(gallery @ query[q]), kind='stable')
        assert [task.gallery_paths.index(match.path) for match in example.matches] == list(
            order[:3]
        )
        for match in example.matches:
            row = task.gallery_paths.index(match.path)
            assert match.place == task.gallery_labels[row]
            assert match.correct == (match.place == example.place)
            assert match.similarity == pytest.approx(float(gallery[row] @ query[q]))
        if best[q] < 3:
            assert example.true_match is None
        else:
            assert example.true_match.rank == best[q]
            assert example.true_match.path == task.gallery_paths[order[best[q]]]
    assert any(example.true_match for example in examples)


def test_examples_follow_from_the_seed(ranked):
    assert choose_examples(*ranked, seed=5) == choose_examples(*ranked, seed=5)
    assert choose_examples(*ranked, seed=5) != choose_examples(*ranked, seed=6)


def test_few_places_give_several_examples_of_one(ranked):
    task, query, gallery, best = ranked
    hits = int((best == 0).sum())
    examples = choose_examples(task, query, gallery, best, hits=99, misses=0)
    assert len(examples) == hits > len({example.place for example in examples})
    assert choose_examples(task, query, gallery, best, hits=0, misses=0) == []


def test_frames_and_ids_say_right_or_wrong(ranked):
    examples = choose_examples(*ranked, hits=2, misses=3, top=4, seed=1)
    figure = match_figure(examples, title='a title')
    shown = [
        (match, example)
        for example in examples
        for match in (None, *example.matches, *filter(None, [example.true_match]))
    ]
    assert len(figure.axes) == len(shown)
    for axes, (match, example) in zip(figure.axes, shown, strict=True):
        frame = to_rgba(axes.spines['left'].get_edgecolor())
        caption = axes.get_xlabel() or axes.xaxis.get_label().get_text()
        if match is None:
            assert f'{example.place:04d}' in caption
            assert frame not in (to_rgba(RIGHT), to_rgba(WRONG))
            continue
        assert frame == to_rgba(RIGHT if match.correct else WRONG)
        assert f'{match.place:04d}' in caption
        assert caption.startswith('✓' if match.correct else '✗')
        assert f'{match.similarity:.2f}' in axes.texts[0].get_text()
        is_far = match is example.true_match
        assert (f'rank {match.rank + 1}' in axes.texts[0].get_text()) == is_far
    words = [text.get_text() for text in figure.texts]
    assert {'a title', 'query', '1', '4', 'hits', 'misses', 'first true match'} <= set(words)


def test_picture_file(ranked, tmp_path):
    path = tmp_path / 'matches.png'
    save_figure(match_figure(choose_examples(*ranked, seed=1), title='t'), path)
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert min(picture.shape[:2]) > 1000
    for color in (RIGHT, WRONG):
        rgb = np.round(255 * np.array(to_rgba(color)[:3])).astype(int)
        assert (abs(picture.astype(int) - rgb).max(axis=2) <= 2).sum() > 1000


POINTS = [
    Point('float', 30.0, 89.6, 'paper_float'),
    Point('another', 14.3, 76.13, 'paper_float'),
    Point('another one', 7.0, 75.93, 'paper_float'),
    Point('tiny of the paper', 0.36, 80.55, 'paper_binary'),
    Point('mine', 0.36, 79.0, 'measured'),
    Point('mine too', 0.37, 79.4, 'measured'),
]


def test_points_stand_where_they_belong():
    figure = accuracy_figure([('one', POINTS), ('two', POINTS[:3])], y_label='R@1 in %', note='n')
    assert len(figure.axes) == 2
    first, second = figure.axes
    assert first.get_xscale() == 'log'
    assert first.get_ylabel() == 'R@1 in %'
    assert first.get_xlim() == second.get_xlim()

    def drawn(axes):
        return sorted(
            tuple(row) for scatter in axes.collections for row in scatter.get_offsets().tolist()
        )

    assert drawn(first) == sorted((p.ops_g, p.percent) for p in POINTS)
    assert drawn(second) == sorted((p.ops_g, p.percent) for p in POINTS[:3])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ['this evaluation', 'paper, binary', 'paper, full precision']


def test_names_cover_neither_names_nor_points():
    figure = accuracy_figure([('one', POINTS)], y_label='AP in %')
    (axes,) = figure.axes
    names = [text for text in axes.texts if text.get_text()]  # the others are lines
    boxes = [text.get_window_extent() for text in names]
    assert sorted(text.get_text() for text in names) == sorted(p.label for p in POINTS)
    panel = axes.get_window_extent()
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert panel.x0 < box.x0
        assert panel.y0 < box.y0
        assert box.y1 < panel.y1
        for point in axes.transData.transform([(p.ops_g, p.percent) for p in POINTS]):
            assert not box.contains(*point)


def test_equal_figures_are_equal_files(tmp_path):
    contents = []
    for k in range(2):
        path = tmp_path / f'{k}.svg'
        save_figure(accuracy_figure([('one', POINTS)], y_label='AP'), path)
        contents.append(path.read_text())
    assert contents[0] == contents[1]
    assert '>mine too<' in contents[0]  # text stays text
    png = io.BytesIO()
    accuracy_figure([('one', POINTS)], y_label='AP').savefig(png)
    assert png.getvalue().startswith(b'\x89PNG')


def test_files_of_matches(ranked, tmp_path):
    rankings = [Ranking(height, *ranked) for height in (0, 150)]
    written = write_match_figures(tmp_path, 'mine', rankings, count=1, top=2, seed=0)
    assert [path.name for path in written] == [
        'matches_mine_drone_to_satellite.png',
        'matches_mine_drone_to_satellite_150m.png',
    ]
    assert all(path.stat().st_size > 10_000 for path in written)


def model_results(name, ops_g):
    figures = dict.fromkeys(METRICS, 0.5) | {'ap': 0.25}
    return ModelResults(
        name=name,
        path=f'{name}.onnx',
        model_id='0' * 64,
        source='sues200',
        input_px=(256, 256),
        resize='deployed',
        backbone=None if ops_g is None else 'bnext_tiny',
        ops_g=ops_g,
        images=1,
        different_images=1,
        unreadable=(),
        results=tuple(
            Result(direction, protocol, height, 'backbone', 5, 6, 0, figures)
            for protocol in ('full', 'reduced')
            for height in (150, 300)
            for direction in ('drone_to_satellite', 'satellite_to_drone')
        ),
        trained_height_m=None,
        paper_row=None,
    )


def test_files_of_accuracy(tmp_path, capsys):
    models = [model_results('foreign', None), model_results('mine', 0.36)]
    written = write_accuracy_figures(tmp_path, models)
    assert 'foreign: of unknown cost' in capsys.readouterr().err
    assert [path.name for path in written] == [
        'accuracy_recall_at_1.png',
        'accuracy_recall_at_1.svg',
        'accuracy_ap.png',
        'accuracy_ap.svg',
    ]
    text = written[3].read_text()
    assert text.count('>mine<') == 4  # two heights, two directions
    assert text.count('>BiCrossNet (tiny)<') == text.count('>FSRA<') == 4
    assert 'foreign' not in text
    assert 'satellite → drone, 300 m' in text
    assert 'not comparable with the paper' in text
    assert write_accuracy_figures(tmp_path, models[:1]) == []
