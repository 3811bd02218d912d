"""Names of the backbones, as configurations and command lines spell them."""

BNEXT_SIZES = ('nano', 'tiny', 'small', 'middle', 'large')
BACKBONES = (
    *(f'bnext_{size}' for size in BNEXT_SIZES),
    'resnet34_xnor',
    'resnet34_recu',
    'efficientnet_lite0',
    'convnext_femto',
    'convnext_tiny',
)
