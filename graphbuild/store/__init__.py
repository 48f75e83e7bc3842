"""The graph directory: its columns, its files and how they are written, its manifest, and its readers."""
