"""Shows a run while it goes on: the contents of its journal, as a page on loopback and as lines on a terminal."""
