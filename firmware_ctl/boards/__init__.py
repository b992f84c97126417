"""Drivers of surface controller boards, one file a board."""
