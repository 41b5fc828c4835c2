"""What the programs of `benchmarks` share: measuring, recording, comparing."""
