"""From a finished run to checked files for small devices: `python -m atkd_jax.export --help`."""
