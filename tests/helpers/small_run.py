"""Configuration keys of trainings that take seconds on the tiny store of `tests/conftest.py`."""

SMALL = [
    "data.batch_size=3",
    "data.size_px=64x64",
    "data.fold=1",
    "model.arch=simple_unet",
    "model.width=6",
    "model.regions=[kidney_and_mass,tumor]",
    "model.prior=0.5",  # starting at 1 % costs too many of so few steps
    "optim.lr=1e-2",
    "optim.loss=bce_dice",
    "log.every_steps=2",
    "log.images=2",
]
# bit-equal from run to run, with a line in the log for every step
EXACT = [*SMALL, "optim.patience=0", "train.deterministic=true", "log.images=0", "log.every_steps=1"]
LONG = [*EXACT, "optim.epochs=40"]  # 160 steps of two processes: more than any test waits for
SHORT = "optim.epochs=9"  # after LONG: where a run that was interrupted ends, 36 steps of two processes
