"""Options, flags and state."""

from types import SimpleNamespace


class Options:
    def __init__(self):
        self.data = {"lora_add_hashes_to_infotext": True, "sd_checkpoints_limit": 1, "lora_functional": False}

    def __getattr__(self, name):
        return self.data[name]


class State:
    interrupted = False

    def interrupt(self):
        self.interrupted = True

    def request_restart(self):
        raise NotImplementedError("ask the stand-in's reload_ui")


opts = Options()
cmd_opts = SimpleNamespace(api_auth=None)
state = State()
models_path = None
