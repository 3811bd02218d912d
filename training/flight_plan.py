"""Which rows of a flight are made, in which order, and how long that will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.flight_conditions import DISTRACTORS, PLAIN, each_kind, parse_condition
from training.flight_workshop import BRUTE_FORCE, VLAD

PIPELINE, ALONE = 'pipeline', 'brute force'
ANY_HEADING = 'any'
FLOAT = 'float32'


@dataclass(frozen=True)
class Job:
    """One row to be made.

    `retrieval` is 'vote', 'single', 'pipeline', 'brute force', or 'vote packed' and 'vote
    float256': by compressed descriptors.
    """

    model: str
    retrieval: str
    heading: str
    condition: str

    @property
    def key(self) -> dict[str, str]:
        """What tells its row apart."""
        return dict(vars(self))

    @property
    def searched(self) -> str:
        """With which tiles."""
        return 'single' if self.retrieval == 'single' else 'vote'

    @property
    def descriptor(self) -> str:
        """What the gallery stores of a tile."""
        return self.retrieval.partition(' ')[2] if self.retrieval.startswith('vote ') else FLOAT


@dataclass(frozen=True)
class Wishes:
    """What is asked for.

    Parameters
    ----------
    models : tuple of str
        The product's model first.
    lean : tuple of str
        Models that are asked only what the others are compared by: no voting with an unknown
        heading (18 times the work), no distractors, and of the changed worlds only voting with
        the autopilot's heading.
    conditions, headings, retrievals : tuple of str
    pipeline : tuple of str
        Conditions of the whole pipeline, with the product's model and the autopilot's heading.
    each_kind : str
        Strength of the world changes one by one, for the product's model; '': none.
    baselines : tuple of str
        Of 'vlad', 'brute_force'.
    descriptors : tuple of str
        Of 'float256', 'packed': compressed descriptors of the product's model, plain condition.
    """

    models: tuple[str, ...]
    lean: tuple[str, ...] = ()
    conditions: tuple[str, ...] = (PLAIN,)
    headings: tuple[str, ...] = ('truth15', 'autopilot', 'unknown')
    retrievals: tuple[str, ...] = ('vote', 'single')
    pipeline: tuple[str, ...] = ()
    each_kind: str = ''
    baselines: tuple[str, ...] = ()
    descriptors: tuple[str, ...] = ()


def list_jobs(wishes: Wishes) -> list[Job]:
    """All rows, one condition after the other, so that changed frames are made once."""
    alone = each_kind(wishes.each_kind) if wishes.each_kind else []
    conditions = dict.fromkeys([*wishes.conditions, *wishes.pipeline, *alone])
    jobs = [job for name in conditions for job in _of_condition(wishes, name, name in alone)]
    return list(dict.fromkeys(jobs))


def _of_condition(wishes: Wishes, condition: str, alone: bool) -> Iterator[Job]:
    product = wishes.models[0]
    # What a comparison needs: the product's heading, or what stands in for it.
    compared = 'autopilot' if 'autopilot' in wishes.headings else wishes.headings[0]
    if condition in wishes.conditions:
        names = [*wishes.models, *([VLAD] if 'vlad' in wishes.baselines else [])]
        for name in names:
            yield from _of_model(wishes, name, condition, compared)
        if condition == PLAIN:
            for descriptor in wishes.descriptors:
                for heading in wishes.headings:
                    yield Job(product, f'vote {descriptor}', heading, condition)
        if 'brute_force' in wishes.baselines and condition != DISTRACTORS:
            yield Job(BRUTE_FORCE, ALONE, ANY_HEADING, condition)
    if condition in wishes.pipeline:
        yield Job(product, PIPELINE, compared, condition)
    if alone:
        yield Job(product, 'vote', compared, condition)
        if 'brute_force' in wishes.baselines:
            yield Job(BRUTE_FORCE, ALONE, ANY_HEADING, condition)


def _of_model(wishes: Wishes, name: str, condition: str, compared: str) -> Iterator[Job]:
    lean = name == VLAD or name in wishes.lean
    if lean and condition == DISTRACTORS:
        return
    for retrieval in wishes.retrievals:
        for heading in wishes.headings:
            if lean and (retrieval, heading) == ('vote', 'unknown'):
                continue
            if lean and condition != PLAIN and (retrieval, heading) != ('vote', compared):
                continue
            yield Job(name, retrieval, heading, condition)


def check_conditions(names: Sequence[str]) -> None:
    """Raise ConfigError if one is unknown."""
    for name in names:
        parse_condition(name)
