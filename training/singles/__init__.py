"""Single pictures and sounds with their questions, drawn one by one."""
