"""Speech: frames of neural codec codes."""
