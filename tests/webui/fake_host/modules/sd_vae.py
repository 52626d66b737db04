"""Other autoencoders: none."""

vae_dict = {}
