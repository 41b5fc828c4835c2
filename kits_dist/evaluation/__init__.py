"""Scores of label maps: Dice, surface distances, lesions, their means over cases, and comparisons of systems."""
