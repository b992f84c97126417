"""Which phases, which precoder: policies that move the surface during a run, and searches on the bench."""
