"""Shows a run while it goes on: what its journal holds so far, as a page on loopback and as lines on a terminal."""
