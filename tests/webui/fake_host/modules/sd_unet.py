"""The program that runs in the UNet's place, if any."""

current_unet = None


class SdUnetOption:
    label = None


class SdUnet:
    """What an option makes."""
