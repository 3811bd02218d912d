"""Where a drone is, from what its camera sees: binary retrieval over a georeferenced map."""

__version__ = '0.1.0'
