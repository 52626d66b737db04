"""The program that runs in the UNet's place, if any."""

current_unet = None
