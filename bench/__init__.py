"""Benchmarks: vnic against the bare floor and its peers, and its elements one by one. `python -m bench --help`."""
