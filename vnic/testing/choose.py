"""One argument decides whether a test runs in virtual time or on real containers."""

from __future__ import annotations

from vnic.testing.kit import AnyNetwork, Configuration


def network(config: Configuration, *, live: bool = False, seed: int = 0) -> AnyNetwork:
    """The network of `config`: a `Network` if `live`, else a `VirtualNetwork`. seed: of the random
    numbers in virtual time; a live network is not reproducible."""
    if live:
        from vnic.testing.live import Network

        return Network(config)
    from vnic.testing.network import VirtualNetwork

    return VirtualNetwork(config, seed=seed)
