"""Drivers of surface controllers, one file a board."""
