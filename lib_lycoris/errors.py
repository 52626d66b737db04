"""One family of errors: every message is one line that says what was wrong, where, and what to do."""


class LycoError(Exception):
    """Anything this library refuses to do; the message is fit for the user's eyes."""


class NetworkFileError(LycoError, ValueError):
    """A network file that can't be used."""


class CheckpointError(LycoError, ValueError):
    """A model checkpoint that can't be used."""


class DatasetError(LycoError, ValueError):
    """A dataset folder, picture or caption that can't be used."""


class ConfigError(LycoError, ValueError):
    """A setting or an argument that can't be used."""


class RequestError(LycoError, ValueError):
    """A tag in a prompt that can't be understood."""


class UnknownNetworkError(LycoError, LookupError):
    """A name that no network file has."""


class UnknownPresetError(LycoError, LookupError):
    """A name that no preset has."""


class TrainingError(LycoError, RuntimeError):
    """A training run that can't go on; what was saved before stays."""


class AdapterError(LycoError, RuntimeError):
    """A picture that would be made without an adapter it was told to stop for."""


class BusyError(LycoError, RuntimeError):
    """Work that can't begin because other work holds the model; the message says which."""


def shown(value: object, limit: int = 160) -> str:
    """`value` as text that is safe inside a one-line message: nothing unprintable, and not longer than `limit` characters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"
