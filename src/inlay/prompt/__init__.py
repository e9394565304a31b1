"""Methods that put virtual tokens before the input, and those that put them into attention."""
