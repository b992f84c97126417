"""Beam policies of nodes with several antennas, one file each: `[beams] policy = NAME`. No torch before one needs it."""
