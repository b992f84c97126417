"""Policies of the surface, which choose its pattern round by round: one file each, `[surface] policy = NAME`."""
