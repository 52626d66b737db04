"""The command line's verbs, its errors and its exit codes."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from ..errors import ConfigError, LycoError
from . import convert, demo, extract, generate, inspect, library, merge, resize, studio, train
from .interrupt import InterruptedWork

DONE, FAILED, BAD_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\
examples:
  python -m lib_lycoris studio                                   the page in the browser
  python -m lib_lycoris demo                                     train something small and see what it learned
  python -m lib_lycoris train my.toml --check                    what would happen
  python -m lib_lycoris generate --prompt "a red circle" --out a.png
  python -m lib_lycoris inspect my-cat.safetensors               what a network file is

exit codes: 0 done, 1 the work failed (one line on stderr), 2 bad arguments or settings, 130 interrupted
"""
_VERBS = (studio, demo, train, generate, inspect, convert, merge, extract, resize, library)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="python -m lib_lycoris", description="Lyco Studio: train small fine-tunings of Stable Diffusion and use them.",
                                     epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in _VERBS:
        one = verbs.add_parser(verb.NAME, help=verb.SUMMARY, description=verb.DESCRIPTION, epilog=verb.EXAMPLES,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        verb.add_arguments(one)
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=verb.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; gives the exit code.

    Args:
        arguments: without the program's name; None: this process's own.
    """
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a letter shows its number, instead of ending the work
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.debug else logging.WARNING, format="%(levelname)s: %(message)s")
    # Nothing here is fetched from a hub or told to one: models and networks are files that the user has.
    os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
    try:
        parsed.run(parsed)
        sys.stdout.flush()
        return DONE
    except (KeyboardInterrupt, InterruptedWork) as stop:
        _tell(parsed.debug, str(stop) or "interrupted: nothing more was saved")
        return INTERRUPTED
    except ConfigError as error:
        _tell(parsed.debug, f"error: {error}")
        return BAD_ARGUMENTS
    except LycoError as error:
        _tell(parsed.debug, f"error: {error}")
        return FAILED
    except BrokenPipeError:
        # Whoever read our output left; Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the program's outermost edge: one line for users, the traceback for who asks
        _tell(parsed.debug, f"error: {_unforeseen(error)}")
        return FAILED


def _tell(debug: bool, line: str) -> None:
    if debug:
        traceback.print_exc()
    print(line, file=sys.stderr)


def _unforeseen(error: Exception) -> str:
    """A line for an error that nobody of us raised."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: use a smaller size, batch or rank, or end other programs"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is missing: run 'python3 install.py studio' first, and use the Python in .venv"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {reason} (--debug shows where)"
