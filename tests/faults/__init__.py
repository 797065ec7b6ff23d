"""Faults: real nodes, killed again and again, and a checker that reads what is left."""
