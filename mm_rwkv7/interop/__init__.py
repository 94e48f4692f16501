"""Published checkpoints opened as ours, one file per format; `opening.open_checkpoint` is the way in."""
