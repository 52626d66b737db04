"""`python -m lib_lycoris.studio.world`: make the embedded checkpoint, put it into a WebUI, measure it and its adapter, draw pictures of its world."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import LycoError


def _build(args: argparse.Namespace) -> None:
    import torch

    from .build import BuildSettings, build, write_world

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = BuildSettings(Path(args.work), device=args.device, **({"steps": args.steps} if args.steps else {}))
    write_world(build(settings), Path(args.out) if args.out else None)


def _install(args: argparse.Namespace) -> None:
    from .files import install_world

    for path in install_world(args.webui):
        print(path)


def _measure(args: argparse.Namespace) -> None:
    from .evaluate import followed_captions

    print(followed_captions(args.checkpoint, count=args.count, sampler=args.sampler, steps=args.steps, cfg=args.cfg).render())


def _edges(args: argparse.Namespace) -> None:
    import torch

    from ...training.progress import render_progress
    from .edges import prove, train_edges

    if args.threads:
        torch.set_num_threads(args.threads)
    adapter = Path(args.adapter) if args.adapter else None
    if args.train:
        adapter = train_edges(Path(args.work), on_step=lambda report: print(render_progress(report)) if report.step % 100 == 0 else None, resume=True)
        print(adapter)
    proof = prove(adapter, args.count, args.few)
    print(proof.render())
    if args.grid:
        proof.grid().save(args.grid)


def _draw(args: argparse.Namespace) -> None:
    from .dataset import draw_dataset

    print(f"{args.count} pictures with captions: {draw_dataset(args.folder, args.count, shape=args.shape, word=args.word, seed=args.seed)}")


def make_parser() -> argparse.ArgumentParser:
    """The verbs build, install, measure, edges and draw."""
    parser = argparse.ArgumentParser(prog="python -m lib_lycoris.studio.world", description=__doc__.split(": ", 1)[1])
    verbs = parser.add_subparsers(dest="verb", required=True)

    verb = verbs.add_parser("build", help="train the embedded checkpoint (about an hour and a half on two cores; goes on where it was stopped)")
    verb.add_argument("--work", default="build/world", help="folder of the unfinished state (default: %(default)s)")
    verb.add_argument("--out", help="folder for the finished files (default: the package's own)")
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    verb.add_argument("--steps", type=int, help="steps of UNet and text encoder (default: as the committed checkpoint)")
    verb.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    verb.set_defaults(run=_build)

    verb = verbs.add_parser("install", help="put checkpoint, yaml, tokenizer and the sample adapter into a WebUI")
    verb.add_argument("webui", metavar="WEBUI_DIR")
    verb.set_defaults(run=_install)

    verb = verbs.add_parser("measure", help="how many held-back captions a checkpoint follows")
    verb.add_argument("--checkpoint", help="a .safetensors file (default: the embedded one)")
    verb.add_argument("--count", type=int, default=200, help="captions (default: %(default)s)")
    verb.add_argument("--sampler", default="Euler", help="(default: %(default)s)")
    verb.add_argument("--steps", type=int, default=20, help="sampler steps (default: %(default)s)")
    verb.add_argument("--cfg", type=float, default=5.0, help="guidance (default: %(default)s)")
    verb.set_defaults(run=_measure)

    verb = verbs.add_parser("edges", help="how well an adapter puts shapes where edge maps have them")
    verb.add_argument("--adapter", help="a .safetensors file (default: the embedded one)")
    verb.add_argument("--count", type=int, default=100, help="pairs at the checkpoint's own size (default: %(default)s)")
    verb.add_argument("--few", type=int, default=20, help="pairs at each other size, in a batch, twice as large (default: %(default)s)")
    verb.add_argument("--grid", help="a .png file for maps and pictures")
    verb.add_argument("--train", action="store_true", help="train it first (about twenty minutes on one core; goes on where it was stopped)")
    verb.add_argument("--work", default="build/edges", help="folder of that training (default: %(default)s)")
    verb.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    verb.set_defaults(run=_edges)

    verb = verbs.add_parser("draw", help="draw a dataset of scenes: name.png with name.txt")
    verb.add_argument("folder")
    verb.add_argument("--count", type=int, default=8, help="(default: %(default)s)")
    verb.add_argument("--shape", help="only this shape; 'hourglass' is the one that the embedded checkpoint never saw")
    verb.add_argument("--word", help="the word that stands for the shape in the captions")
    verb.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    verb.set_defaults(run=_draw)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 the work failed (one line on stderr), 2 bad arguments, 130 interrupted."""
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except LycoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
