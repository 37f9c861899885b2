"""Self-contained HTML pages: no script, no font, no picture from anywhere else."""
