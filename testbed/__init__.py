"""Testbed controller for physical-layer secret key generation with reconfigurable intelligent surfaces."""

try:
    from testbed._version import commit_id as __commit__
    from testbed._version import version as __version__
except ImportError:  # the sources were copied, neither built nor installed
    __version__, __commit__ = "0+unknown", None
