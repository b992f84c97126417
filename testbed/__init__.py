"""Testbed controller for physical-layer secret key generation with reconfigurable intelligent surfaces."""

__version__ = "0.1.0"
