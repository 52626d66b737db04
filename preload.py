"""The command-line flag of this extension; the WebUI runs this before it reads its arguments."""


def preload(parser):
    """Adds the flag."""
    parser.add_argument("--lycoris-datasets", metavar="FOLDER", action="append", help="a folder whose pictures may be trained on although others can reach the "
                        "WebUI (--listen, --share, …); may be given again")
