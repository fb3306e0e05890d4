"""A small generated world for the first run: textured objects that act, and sentences about them."""
