"""`vmr demo`: photos as videos, which are searched untrained; and a drawn world, which is trained on."""
