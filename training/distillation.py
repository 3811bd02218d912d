"""What the student learns from a teacher's outputs for the same images of one view.

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
