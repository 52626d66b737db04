"""What the host has put on the model: pictures that tile at their edges."""


class ModelHijack:
    circular_enabled = False

    def apply_circular(self, enable):
        self.circular_enabled = enable


model_hijack = ModelHijack()
