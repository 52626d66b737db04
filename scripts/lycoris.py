"""Wires Lyco Studio into AUTOMATIC1111's WebUI: callbacks only. The host runs this file at its start and again at every "Reload UI"."""

from modules import script_callbacks

from lib_lycoris.webui.support import unsupported_host


class _Drawing:
    """lib_lycoris.ui.network_editor, which imports gradio, from the first look on."""

    def __getattr__(self, name):
        from lib_lycoris.ui import network_editor

        return getattr(network_editor, name)


def _start():
    """Registers the callbacks; gives the script that draws the adapters' accordion."""
    from lib_lycoris.webui.adapter_script import make_script
    from lib_lycoris.webui.adapters import Adapters
    from lib_lycoris.webui.extension import Extension
    from lib_lycoris.webui.pages import Pages
    from lib_lycoris.webui.registration import Registration
    from lib_lycoris.webui.training import Training

    extension, drawing = Extension(), _Drawing()
    training = Training(extension.applier, _sample_set)
    adapters = Adapters()
    pages = Pages(extension.applier, adapters, lambda kind, **arguments: drawing.setting(kind, **arguments), drawing)
    registration = Registration([extension.before_ui, pages.before_ui], [
        (script_callbacks.on_ui_tabs, lambda: [_draw_tab(training, pages)]),
        (script_callbacks.on_infotext_pasted, pages.paste),
        (script_callbacks.on_model_loaded, extension.model_loaded),
        (script_callbacks.on_cfg_denoiser, extension.before_step),
        (script_callbacks.on_script_unloaded, training.end),
        (script_callbacks.on_script_unloaded, extension.unload),
        (script_callbacks.on_app_started, lambda demo, app: _add_routes(app, extension, pages, training, adapters)),
    ])
    script_callbacks.on_before_ui(registration.before_ui)
    return make_script(adapters, lambda tab, size: _adapter_page(adapters).draw(tab, size), lambda unit: _adapter_page(adapters).show(unit))


def _adapter_page(adapters):
    """The accordion's page over plain functions."""
    from lib_lycoris.ui.adapters import AdapterPage

    return AdapterPage.over(adapters)


def _draw_tab(training, pages):
    """(blocks, name, element) of our tab. It is kept up to date by javascript/lycoris_train.js, as the host may run without gradio's queue."""
    from lib_lycoris.tools.actions import ACTIONS
    from lib_lycoris.training.desk import desk_functions
    from lib_lycoris.training.kinds import unknown_settings
    from lib_lycoris.ui.library import LibraryPage
    from lib_lycoris.ui.tab import ELEMENT, NAME, make_tab
    from lib_lycoris.ui.train import TrainPage

    page = TrainPage(start=training.start, stop=training.stop, state=training.state, check=training.check, pause=training.pause, resume=training.resume,
                     preview=training.preview, defaults=training.defaults(), unknown=unknown_settings(), polls=False, **desk_functions(training.desk))
    return make_tab(page, library=LibraryPage.over(pages.library, ACTIONS, polls=False)), NAME, ELEMENT


def _sample_set(kind):
    """Sample pictures for a kind of network; this part of the studio needs no package that the WebUI lacks."""
    from lib_lycoris.studio.world.samples import sample_set

    return sample_set(kind)


def _add_routes(app, extension, pages, training, adapters):
    """Adds `/lycoris/v1/…` where the host's own API is on, behind the same credentials."""
    if not extension.serves_api:
        return
    from lib_lycoris.api.routes import Callables, LibraryCalls, add_routes, passwords
    from lib_lycoris.tools.actions import ACTIONS

    credentials, shelf, library = extension.api_credentials, pages.shelf, pages.library
    words = extension.applier.embeddings
    callables = Callables(
        networks=shelf.rows, network=shelf.look_into, remark=shelf.remark, delete=shelf.delete, train=training.start, state=training.state,
        stop=training.stop, pause=training.pause, resume=training.resume, preview=training.preview, check=training.check, desk=training.desk,
        preprocess=training.preprocess, adapters=adapters.rows, control_map=adapters.preprocess, preprocessors=adapters.preprocessors,
        embeddings=words.shelf.rows, embedding=words.shelf.look_into, remark_embedding=words.shelf.remark, delete_embedding=words.shelf.delete,
        library=LibraryCalls(ACTIONS, library.run, library.jobs.states, library.jobs.stop, library.trash),
    )
    add_routes(app, callables, authorise=passwords(credentials) if credentials is not None else None)


_reason = unsupported_host()
if _reason:
    print(_reason)
else:
    from lib_lycoris.webui.script import LycoScript  # noqa: F401 (the host takes the scripts that it finds among this module's names)

    LycoAdapters = _start()
