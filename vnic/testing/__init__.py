"""Tests of networks in virtual time: `VirtualNetwork`, and a pytest plugin around it (fixture `vnic_network`)."""

from vnic.testing.network import Received, VirtualNetwork

__all__ = ["Received", "VirtualNetwork"]
