"""What is trained: image encoders, the text tower, optimisers and schedules."""
