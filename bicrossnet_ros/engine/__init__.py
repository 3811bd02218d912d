"""The network that flies: its structure, its model file, and the graphs made from it."""
