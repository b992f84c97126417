"""Policies that control the surface during a run, searches for patterns on the bench, and models for both."""
