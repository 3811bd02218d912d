"""Which weights a run ends with: the last ones, their average, BatchNorm re-estimated or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.averaging import reestimate_norms
from training.data.loader import batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from training.data.places import PairSource
    from training.learner import Learner
    from training.validation import Validation

# The random numbers of these batches are no others': (seed, stream, epoch).
NORM_STREAM = 2


def choose_weights(
    learner: Learner, source: PairSource, validation: Validation | None
) -> tuple[str, dict[str, float]]:
    """Leave the best variant in the network, by recall@1; of equal ones the later.

    Variants are the last weights and, with ``run.average_decay``, their average; either, with
    ``run.norm_steps``, also with BatchNorm re-estimated. Without held-out places nothing can be
    compared: the last variant is taken, as the configuration asks for it.

    Returns
    -------
    variant : str
        What was taken.
    figures : dict of str to float
        Its validation; empty without held-out places.
    """
    network, best, chosen, chosen_figures = learner.network, -1.0, '', {}
    for variant in _variants(learner, source):
        figures = validation.figures(network) if validation else {}
        recall = figures.get('recall_at_1', 0.0)
        if recall >= best:
            best, chosen, chosen_figures = recall, variant, figures
            kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return chosen, chosen_figures


def _variants(learner: Learner, source: PairSource) -> Iterator[str]:
    """Put one variant after the other into the network and tell its name."""
    network = learner.network
    last = {name: value.clone() for name, value in network.state_dict().items()}
    starts = {'last weights': last}
    if learner.average:
        starts['average of the weights'] = learner.average.state_dict()['average']
    for name, weights in starts.items():
        network.load_state_dict(weights)
        yield name
        if learner.config.run.norm_steps:
            reestimate_norms(network, _batches(learner, source))
            yield f'{name} with BatchNorm re-estimated'


def _batches(learner: Learner, source: PairSource) -> Iterator[Tensor]:
    run = learner.config.run
    stream = batches(
        source,
        learner.config.data,
        seed=run.seed,
        stream=NORM_STREAM,
        first_step=0,
        last_step=run.norm_steps,
        rank=learner.team.rank,
        world=learner.team.world,
    )
    for batch in stream:
        yield learner.images(batch)
