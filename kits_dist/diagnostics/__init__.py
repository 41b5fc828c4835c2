"""What a machine must have to train: `look_*` gather `Facts`, `devices` and `host` judge them, one `Check` a topic.

Judging touches nothing, so tests can describe machines that are not at hand.
"""
