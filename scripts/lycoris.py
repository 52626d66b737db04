"""Wires Lyco Studio into AUTOMATIC1111's WebUI: callbacks only. The host runs this file at its start and again at every "Reload UI"."""

from modules import script_callbacks

from lib_lycoris.webui.support import unsupported_host


class _Drawing:
    """lib_lycoris.ui.network_editor, which imports gradio, from the first look on."""

    def __getattr__(self, name):
        from lib_lycoris.ui import network_editor

        return getattr(network_editor, name)


def _start():
    """Registers the callbacks."""
    from lib_lycoris.webui.extension import Extension
    from lib_lycoris.webui.pages import Pages
    from lib_lycoris.webui.training import Training

    extension, drawing = Extension(), _Drawing()
    training = Training(extension.applier)
    pages = Pages(extension.applier, lambda kind, **arguments: drawing.setting(kind, **arguments), drawing)
    script_callbacks.on_before_ui(extension.before_ui)
    script_callbacks.on_before_ui(pages.before_ui)
    script_callbacks.on_ui_tabs(lambda: [_draw_tab(training)])
    script_callbacks.on_infotext_pasted(pages.paste)
    script_callbacks.on_model_loaded(extension.model_loaded)
    script_callbacks.on_cfg_denoiser(extension.before_step)
    script_callbacks.on_script_unloaded(training.end)
    script_callbacks.on_script_unloaded(extension.unload)
    script_callbacks.on_app_started(lambda demo, app: _add_routes(app, extension, pages.shelf, training))


def _draw_tab(training):
    """(blocks, name, element) of our tab. It is kept up to date by javascript/lycoris_train.js, as the host may run without gradio's queue."""
    from lib_lycoris.ui.tab import ELEMENT, NAME, make_tab
    from lib_lycoris.ui.train import TrainPage

    page = TrainPage(start=training.start, stop=training.stop, state=training.state, check=training.check, pause=training.pause, resume=training.resume,
                     defaults=training.defaults(), polls=False)
    return make_tab(page), NAME, ELEMENT


def _add_routes(app, extension, shelf, training):
    """Adds `/lycoris/v1/…` where the host's own API is on, behind the same credentials."""
    if not extension.serves_api:
        return
    from lib_lycoris.api.routes import Callables, add_routes, passwords

    credentials, words = extension.api_credentials, extension.applier.embeddings
    callables = Callables(
        networks=shelf.rows, network=shelf.look_into, remark=shelf.remark, delete=shelf.delete, train=training.start, state=training.state,
        stop=training.stop, pause=training.pause, resume=training.resume, preprocess=training.preprocess,
        embeddings=words.shelf.rows, embedding=words.shelf.look_into, remark_embedding=words.shelf.remark, delete_embedding=words.delete,
    )
    add_routes(app, callables, authorise=passwords(credentials) if credentials else None)


_reason = unsupported_host()
if _reason:
    print(_reason)
else:
    from lib_lycoris.webui.script import LycoScript  # noqa: F401 (the host takes the scripts that it finds among this module's names)

    _start()
