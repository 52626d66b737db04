"""Callbacks by category, as the host calls them: an exception in one is reported and the others go on."""

callbacks = {}


def clear_callbacks():
    callbacks.clear()


def _register(category):
    def register(function, *, name=None):
        callbacks.setdefault(category, []).append(function)

    return register


def run(category, *args):
    for function in callbacks.get(category, []):
        function(*args)


on_before_ui = _register("before_ui")
on_model_loaded = _register("model_loaded")
on_cfg_denoiser = _register("cfg_denoiser")
on_script_unloaded = _register("script_unloaded")
on_app_started = _register("app_started")
on_infotext_pasted = _register("infotext_pasted")
on_ui_tabs = _register("ui_tabs")
