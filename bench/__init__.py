"""Crossfade measured beside public tools on the same data and the same servers: `python -m bench`."""
