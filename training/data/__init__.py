"""From files of any layout to packs of conversations and texts."""
