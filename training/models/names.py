"""Names of the backbones, as configurations and command lines spell them."""

BNEXT_SIZES = ('nano', 'tiny', 'small', 'middle', 'large')
# The same networks with float convolutions, for experiments: what does binarisation cost?
FLOAT_TWINS = ('nano', 'tiny')
BACKBONES = (
    *(f'bnext_{size}' for size in BNEXT_SIZES),
    *(f'bnext_{size}_float' for size in FLOAT_TWINS),
    'resnet34_xnor',
    'resnet34_recu',
    'efficientnet_lite0',
    'efficientnet_lite2',
    'convnext_femto',
    'convnext_tiny',
)
