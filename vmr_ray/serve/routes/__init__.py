"""The HTTP routes by theme: search, videos, media, operation. `serve/api.py` puts them together."""
