"""Wires Lyco Studio into AUTOMATIC1111's WebUI: callbacks only. The host runs this file at its start and again at every "Reload UI"."""

from modules import script_callbacks

from lib_lycoris.webui.support import unsupported_host


def _start():
    """Registers the callbacks."""
    from lib_lycoris.webui.extension import Extension

    extension = Extension()
    script_callbacks.on_before_ui(extension.before_ui)
    script_callbacks.on_model_loaded(extension.model_loaded)
    script_callbacks.on_cfg_denoiser(extension.before_step)
    script_callbacks.on_script_unloaded(extension.unload)
    script_callbacks.on_app_started(lambda demo, app: _add_routes(app, extension))


def _add_routes(app, extension):
    """Adds `/lycoris/v1/…` where the host's own API is on, behind the same credentials."""
    if not extension.serves_api:
        return
    from lib_lycoris.api.routes import Callables, add_routes, passwords

    credentials = extension.api_credentials
    add_routes(app, Callables(networks=extension.networks), authorise=passwords(credentials) if credentials else None)


_reason = unsupported_host()
if _reason:
    print(_reason)
else:
    _start()
