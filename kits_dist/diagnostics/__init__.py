"""Whether a machine can train: `probes` collects `Facts`, `checks` turns them into one `Check` per topic.

The checks touch nothing, so tests describe machines that are not at hand.
"""
