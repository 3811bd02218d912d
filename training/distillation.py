"""What the student learns from a teacher's outputs for the same images.

No gradient flows into the teacher. Computed in float32, whatever the precision of the outputs.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bicrossnet_ros.errors import ModelError


def logit_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, reduction: str = 'element'
) -> Tensor:
    """Squared difference of the logits, averaged over the branches.

    Parameters
    ----------
    student, teacher : sequence of Tensor
        Of each branch (N, classes).
    reduction : str
        'element': mean over samples and classes; 'sample': sum over classes, mean over samples
        (equation 8 as printed).

    Raises
    ------
    ModelError
        If there are no branches, or their number or that of the classes differs.

    References
    ----------
    Fontana et al. 2025, equation 8.
    """
    if not student or len(student) != len(teacher):
        raise ModelError(
            f'the student has {len(student)} classifier branches and the teacher {len(teacher)}; '
            'logit distillation compares them one by one: train both with model.branches: true, '
            'or set losses.logit_distillation: 0'
        )
    distances = []
    for own, guide in zip(student, teacher, strict=True):
        if own.shape != guide.shape:
            raise ModelError(
                f'the student tells {own.shape[1]} classes apart and the teacher '
                f'{guide.shape[1]}; train the teacher on the same places, or set '
                'losses.logit_distillation: 0'
            )
        squared = (own.float() - guide.detach().float()).square()
        distances.append(squared.mean() if reduction == 'element' else squared.sum(dim=1).mean())
    return torch.stack(distances).mean()


class FeatureDistillation(nn.Module):
    """Cosine distance of the student's embedding, linearly projected, to the teacher's.

    Parameters
    ----------
    student_dim, teacher_dim : int
        Lengths of the embeddings; the projection between them is learnt and has no bias.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean of ``1 - cosine`` over embeddings (N, student_dim), (N, teacher_dim).

        Raises
        ------
        ModelError
            If the teacher's embedding has another length.
        """
        expected = self.projection.out_features
        if teacher.shape[1] != expected:
            raise ModelError(
                f"the teacher's embedding has {teacher.shape[1]} values, expected {expected}; "
                'resume with the teacher that the run was started with'
            )
        projected = self.projection(student.float())
        return 1 - F.cosine_similarity(projected, teacher.detach().float()).mean()


def similarity_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, temperature: float
) -> Tensor:
    """How far the student's similarities within a batch are from the teacher's.

    A row is the similarity of a query to all tiles, or of a tile to all other tiles; divided by
    the temperature and normalised by softmax it is a distribution. Lengths of embeddings may
    differ: similarities have none, and nothing needs to be projected or labelled.

    Parameters
    ----------
    student, teacher : pair of Tensor
        Tiles (N, D) and queries (N, D) of either, normalised here; N is at least 2.
    temperature : float
        Of both.

    Returns
    -------
    Tensor
        Scalar: mean over the rows of the divergence KL(teacher || student), averaged over the two
        kinds of rows.

    References
    ----------
    Park et al. 2019, "Relational Knowledge Distillation": relations in place of outputs.
    Fang et al. 2021, "SEED: Self-supervised Distillation For Visual Representation", equation 4:
    similarities over a temperature, as distributions.
    """
    pairs = zip(
        _similarities(*student, temperature),
        _similarities(*(tensor.detach() for tensor in teacher), temperature),
        strict=True,
    )
    # log_target: the teacher's shares are given as logarithms too.
    divergences = [
        F.kl_div(own, guide, reduction='batchmean', log_target=True) for own, guide in pairs
    ]
    return torch.stack(divergences).mean()


def _similarities(tiles: Tensor, queries: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logarithms of the shares: queries among tiles (N, N), tiles among others (N, N - 1)."""
    tiles, queries = F.normalize(tiles.float()), F.normalize(queries.float())
    count = len(tiles)
    others = ~torch.eye(count, dtype=torch.bool, device=tiles.device)
    among = (tiles @ tiles.T)[others].view(count, count - 1)
    return (
        F.log_softmax(queries @ tiles.T / temperature, dim=1),
        F.log_softmax(among / temperature, dim=1),
    )
