"""Compares the lengths that the rule grants with the true number of secret bits, over simulated cases."""
