"""Searches for a good pattern by trying patterns: one file each, chosen by `search = NAME` of the closed loop."""
