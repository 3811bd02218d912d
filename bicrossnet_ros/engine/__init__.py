"""The network that flies: its structure, its model file, and the graphs and engines made from it."""
