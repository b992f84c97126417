"""A run while it goes: what its journal holds so far, as a page on loopback and as lines on a terminal."""
