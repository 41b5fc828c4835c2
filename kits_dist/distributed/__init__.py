"""Processes: what launched them, how they meet, what they run on, how they stop together."""
