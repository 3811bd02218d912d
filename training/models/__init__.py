"""Networks that can be trained: backbones, their binary building blocks, the training head."""
