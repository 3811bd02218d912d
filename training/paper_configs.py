"""Which row of the paper's tables a configuration answers to: those in ``training/configs/``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import HEIGHTS_M
from training.config_files import config_to_dict, load_config
from training.paper import ROWS

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.paper import PaperRow

CONFIGS = Path(__file__).parent / 'configs'
# Table to configuration to row. Table 7 prints no numbers (they are in figure 5).
ROWS_OF_CONFIGS: dict[int, dict[str, str | None]] = {
    2: {f'sues200_{height}_tiny': 'table2_tiny' for height in HEIGHTS_M},
    3: {'university1652_tiny': 'table3_tiny', 'university1652_middle': 'table3_middle'},
    4: {
        'ablation_kd_recu_none': 'table4_recu',
        'ablation_kd_tiny_none': 'table4_bnext_tiny',
        'ablation_kd_middle_none': 'table4_bnext_middle',
        'ablation_kd_recu_kd': 'table4_recu_kd',
        'ablation_kd_tiny_kd': 'table4_bnext_tiny_kd',
        'ablation_kd_middle_kd': 'table4_bnext_middle_kd',
    },
    5: {
        f'ablation_unfreezing_{name}': f'table5_{name}'
        for name in ('none', 'gradual', 'bi_gradual')
    },
    6: {
        f'ablation_optimizer_{name}': f'table6_{name}'
        for name in ('adam', 'sgd', 'adamw', 'lion', 'bi_partitioned')
    },
    7: {f'ablation_epochs_{letter}': None for letter in 'abcdefg'},
    8: {
        'ablation_backbone_xnor': 'table8_xnor',
        'ablation_backbone_recu': 'table8_recu',
        'ablation_backbone_tiny': 'table8_bnext_tiny',
        'ablation_backbone_middle': 'table8_bnext_middle',
    },
}


def row_for(config: TrainConfig) -> PaperRow | None:
    """Find the row that a run of this configuration answers to; None if there is none.

    It answers to the row of the configuration file whose every choice it shares: all but where
    teacher and pretrained weights are, and how the run is carried out. Rows that the paper prints
    twice are told as those of the first table.
    """
    recipe = _recipe(config)
    return next((ROWS[key] for key, known in _known() if known == recipe), None)


@functools.cache
def _known() -> tuple[tuple[str, dict[str, Any]], ...]:
    """List row and recipe of each configuration file that has a row."""
    return tuple(
        (key, _recipe(load_config(CONFIGS / f'{name}.yaml')))
        for rows in ROWS_OF_CONFIGS.values()
        for name, key in rows.items()
        if key
    )


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """Return the choices that tell one row from another."""
    recipe = config_to_dict(config)
    recipe['run'] = {'epochs': config.run.epochs}
    for name in ('workers', 'unreadable'):
        del recipe['data'][name]
    recipe['model']['pretrained'] = bool(config.model.pretrained)
    recipe['losses']['teacher'] = bool(config.losses.teacher)
    if not config.losses.teacher:
        recipe['losses']['logit_distillation'] = 0
    return recipe
