"""Names in published checkpoints and what they are called here.

Facts about the files of hpi-xnor/BNext, facebookresearch/ConvNeXt, timm, and fedeloper/BiCrossNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from training.models.backbone import Backbone
from training.models.bnext import BNext
from training.models.convnext import ConvNeXt
from training.models.efficientnet import EfficientNetLite
from training.models.resnet import BinaryResNet

# Prefixes of wrappers, taken off wherever they stand first: data-parallel training, compilation,
# and the parts around the backbone in the network of this project and of the paper's release.
WRAPPERS = ('module.', '_orig_mod.', 'backbone.', 'model_1.', 'convnext.', 'model.')
# Where a dictionary hides the weights, in the order of trust.
NESTED = ('network', 'state_dict', 'model', 'model_state_dict')

Rules = tuple[tuple[str, str], ...]

_BNEXT_UNIT: Rules = (
    (r'binary_conv\.', 'conv.'),
    (r'activation1\.', 'act_residual.'),
    (r'activation2\.', 'act.'),
    (r'se\.se\.1\.', 'se.reduce.'),
    (r'se\.se\.3\.', 'se.expand.'),
)
_BNEXT: Rules = (
    (r'^feature\.0\.conv1\.', 'stem.'),
    (r'^feature\.0\.bn1\.', 'stem_norm.'),
    (r'^prelu\.', 'act.'),
    (r'\.(?:Attention|FFN_3x3)\.', '.unit3x3.'),
    (r'\.(?:FFN|FFN_1)\.', '.units1x1.0.'),
    (r'\.FFN_2\.', '.units1x1.1.'),
    *_BNEXT_UNIT,
)
_CONVNEXT: Rules = (
    (r'^downsample_layers\.0\.', 'stem.'),
    (r'^downsample_layers\.(\d+)\.', r'trunk.\1.downsample.'),
    (r'^stages\.(\d+)\.(\d+)\.', r'trunk.\1.blocks.\2.'),
    (r'^stages\.', 'trunk.'),
    (r'\.dwconv\.', '.conv_dw.'),
    (r'\.pwconv([12])\.', r'.mlp.fc\1.'),
    (r'^norm\.', 'head.norm.'),
)

# What a backbone of this project has no use for, by the name in the file.
_CLASSIFIERS: dict[type[Backbone], str] = {
    BNext: r'^(fc|classifier)\.',
    ConvNeXt: r'^head\.(?!norm\.)',
    EfficientNetLite: r'^_fc\.',
    BinaryResNet: r'^(fc\.|bn2\.)',
}
_HEADS = r'^(branches|classifier1|classifier_mcb\d+|tri_layer)\.'


def strip_wrappers(name: str) -> str:
    """Take the prefixes of wrappers off a name, one after the other."""
    while True:
        prefix = next((p for p in WRAPPERS if name.startswith(p)), None)
        if prefix is None:
            return name
        name = name.removeprefix(prefix)


def our_name(backbone: Backbone, name: str) -> str:
    """Translate a name without wrappers to this project's."""
    rules: Rules = ()
    if isinstance(backbone, BNext):
        # Blocks are counted from the stem there, from the first block here.
        name = re.sub(r'^feature\.([1-9]\d*)\.', lambda m: f'blocks.{int(m[1]) - 1}.', name)
        rules = _BNEXT
    elif isinstance(backbone, ConvNeXt):
        rules = _CONVNEXT
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def not_needed(backbone: Backbone, name: str, ours: Mapping[str, Tensor]) -> bool:
    """Tell whether a tensor of a file belongs to no backbone or is dead there.

    Parameters
    ----------
    backbone : Backbone
        Which is to be loaded.
    name : str
        The name in the file, without wrappers.
    ours : mapping
        The backbone's own state.
    """
    if re.search(_HEADS, name):
        return True
    if any(isinstance(backbone, k) and re.search(p, name) for k, p in _CLASSIFIERS.items()):
        return True
    if isinstance(backbone, BNext):
        dead = name == 'feature.0.prelu.weight' or name.endswith('activation1.weight')
        return name.endswith('.temperature') or (dead and our_name(backbone, name) not in ours)
    return isinstance(backbone, BinaryResNet) and name.endswith('.tau')
