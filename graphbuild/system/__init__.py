"""What the machine offers, for both packages: memory, worker processes, progress, and answers on a terminal."""
