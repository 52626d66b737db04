"""An interrogator that sees the colour of the first pixel."""


class DeepDanbooru:
    model = None

    def start(self):
        self.model = object()

    def stop(self):
        """It may stay in memory."""

    def tag_multi(self, picture, force_disable_ranks=False):
        red, green, blue = picture.getpixel((0, 0))
        if red == green == blue:
            raise RuntimeError("it sees no colour")
        return f"red {red},\n blue {blue}"


model = DeepDanbooru()
