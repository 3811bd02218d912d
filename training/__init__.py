"""Training of the retrieval network: PyTorch models, data, loops and export; never installed on the vehicle."""
