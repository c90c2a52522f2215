"""Networks in virtual time for tests: `VirtualNetwork`, and a pytest plugin (fixture
`vnic_network`)."""

from vnic.testing.network import Received, VirtualNetwork

__all__ = ["Received", "VirtualNetwork"]
