"""The base class of scripts."""

AlwaysVisible = object()


class Script:
    def before_process(self, p, *args):
        """Before a picture."""

    def postprocess(self, p, processed, *args):
        """After a picture."""
