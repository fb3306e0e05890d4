"""`vmr demo`: every step on a small generated world of textured objects, and sentences about what they do."""
