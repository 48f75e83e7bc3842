"""`train report`: run folders in, one self-contained HTML file out."""
