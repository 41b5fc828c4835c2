"""What every part needs: errors, files, worker processes, the environment of a run."""
