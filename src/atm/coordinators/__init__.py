"""Implementations of the coordinator contract."""
