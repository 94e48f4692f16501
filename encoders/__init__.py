"""Vision and sound towers, one file per tower."""
