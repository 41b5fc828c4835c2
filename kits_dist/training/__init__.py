"""What `kits_dist.train` is made of: a step, its losses, what happens between steps, and the folder of a run."""
