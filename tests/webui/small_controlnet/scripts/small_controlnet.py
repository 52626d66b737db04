"""Has the ControlNet extension build networks of the sizes of the tests' small checkpoints; it knows the full-size ones alone. Never install it."""

from fastapi import Body
from modules import script_callbacks


def settle(demo, app):
    """Writes sizes into the extension's own tables when it is asked to."""

    @app.post("/probe/v1/controlnet-sizes")
    def set_sizes(wanted: dict = Body()):  # noqa: B008
        from scripts import controlnet_model_guess

        for table, sizes in wanted.items():
            getattr(controlnet_model_guess, table).update(sizes)


script_callbacks.on_app_started(settle)
