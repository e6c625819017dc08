"""Exports a trained student for small devices: `python -m atkd_jax.export --help`."""
