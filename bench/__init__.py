"""Benchmarks: vnic compared with the bare TAP loop and its peers, and its elements one by one. See
`python -m bench --help`."""
