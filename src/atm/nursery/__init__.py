"""The runtime: what lives and dies with the process. Read supervisor.py first."""
