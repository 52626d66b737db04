"""The base class of scripts."""

from types import SimpleNamespace


class AxisOption:
    def __init__(self, label, type, apply, confirm=None, cost=0.0, choices=None):
        self.label, self.type, self.apply, self.confirm, self.cost, self.choices = label, type, apply, confirm, cost, choices


AlwaysVisible = object()
plot = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
scripts_data = [SimpleNamespace(module=plot), SimpleNamespace(module=plot), SimpleNamespace(module=SimpleNamespace())]


class Script:
    def title(self):
        """Its name."""
        return ""

    def on_after_component(self, callback, *, elem_id):
        """Called when a component is drawn; this host draws none."""

    def process_before_every_sampling(self, p, *args, **kwargs):
        """Before each pass, when its latents are known."""

    def before_process(self, p, *args):
        """Before a picture."""

    def process(self, p, *args):
        """After its prompts are known."""

    def before_process_batch(self, p, *args, **kwargs):
        """Before the tags are cut out of a batch's prompts."""

    def after_extra_networks_activate(self, p, *args, **kwargs):
        """After the networks are on."""

    def process_batch(self, p, *args, **kwargs):
        """Before a batch's prompts are encoded."""

    def postprocess(self, p, processed, *args):
        """After a picture."""
