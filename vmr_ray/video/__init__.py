"""Video files: finding them, decoding their frames, and cutting clips out of them."""
