"""Training of the network: models, data, loops and export; not installed on the vehicle."""
