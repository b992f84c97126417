"""Beam policies of nodes with several antennas, one file each: `[beams] policy = NAME`. Torch only where needed."""
