"""Sets Lyco Studio up; needs nothing but Python's standard library.

Run by the WebUI's launcher (no argument): looks whether the host has what the extension needs, and changes nothing.
Run by hand (`python3 install.py studio | demo | test`): makes `.venv` beside this file, installs the exact packages of requirements/, and starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"
OLDEST, NEWEST = (3, 10), (3, 13)
HOST_PYTHONS = ((3, 11), (3, 10))  # what the WebUI's own pins have wheels for
HOST_VERSION = "1.10.1"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"  # PyTorch's own index, the CUDA that torch 2.13.0 is made with

# What the extension imports in the WebUI, all of it brought by the WebUI itself.
HOST_MODULES = ("torch", "safetensors", "numpy", "PIL", "cv2", "tqdm", "gradio", "fastapi", "pydantic", "transformers")
# The rooms that live in the WebUI: their tests run with the WebUI's own pins too.
HOST_ROOMS = ("functional", "prompt", "files", "networks", "library", "patching", "generation", "preprocess", "control", "training", "laws", "ui",
              "api", "webui")

USAGE = f"""usage: python3 install.py {{studio,demo,test}} [arguments that are passed on]

  studio   set up .venv on the first run, then open the studio's page on this machine   (arguments: --checkpoint FILE, --port N)
  demo     the same set-up, then train a small network, generate with it and show what it learned
           (arguments: --checkpoint FILE, --images DIR, --steps N, --out DIR)
  test     set up the test packages too, then run ruff and all tests: with the studio's packages in .venv, and what lives in the
           WebUI once more with the WebUI's own packages in .venv-host   (arguments: pytest's, and --slow)

Needs Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} and, the first time, a connection to the Python package index (1 GB; on Linux, where
torch brings CUDA along, some GB). The exact versions are in requirements/; to undo everything, delete the folders .venv and .venv-host.
With no argument this file is the WebUI's: its launcher runs it at every start, and it changes no package there."""


class SetupError(Exception):
    """Something that keeps the set-up from going on; one line that says what to do."""


# ---- Run by the WebUI ------------------------------------------------------------------------------------------------------


def find_host(folders: list[Path]) -> Path | None:
    """The first folder that is the root of a WebUI, or nothing."""
    for folder in folders:
        if (folder / "modules").is_dir() and ((folder / "launch.py").is_file() or (folder / "webui.py").is_file()):
            return folder
    return None


def host_name(root: Path) -> str:
    """What the WebUI in `root` is called: "Forge", "SD.Next", or "AUTOMATIC1111" with its version, as its own files tell."""
    if (root / "modules_forge").is_dir():
        return "reForge" if (root / "ldm_patched").is_dir() and not (root / "backend").is_dir() else "Forge"
    if (root / "installer.py").is_file():
        return "SD.Next"
    try:
        with (root / "CHANGELOG.md").open(encoding="utf-8", errors="replace") as changes:
            heading = changes.readline()
    except OSError:
        heading = ""
    return ("AUTOMATIC1111 " + heading.lstrip("# ").strip()).strip()


def missing_modules(names: tuple[str, ...] = HOST_MODULES) -> list[str]:
    """The names that this Python could not import; nothing is imported to find out."""
    from importlib.util import find_spec

    return [name for name in names if find_spec(name) is None]


def host_report(root: Path) -> str:
    """One line for the WebUI's console, empty where all is well."""
    name = host_name(root)
    if not name.startswith("AUTOMATIC1111"):
        return (
            f"Lyco Studio: this is {name}; supported is AUTOMATIC1111's WebUI v{HOST_VERSION}, on other hosts nothing is promised. "
            f"The studio needs no host: python3 install.py studio in {HERE}"
        )
    missing = missing_modules()
    if missing:
        return (
            f"Lyco Studio: missing in this WebUI: {', '.join(missing)}. They are the WebUI's own requirements: "
            f'"{sys.executable}" -m pip install -r "{root / "requirements_versions.txt"}"'
        )
    version = name.partition(" ")[2]
    if version and version.split(".")[:2] != HOST_VERSION.split(".")[:2]:
        return f"Lyco Studio: this is WebUI {version}; supported is v{HOST_VERSION}"
    return ""


def run_by_host() -> int:
    """Prints at most one line. 0, or 2 with the usage where no WebUI is in sight."""
    root = find_host([Path.cwd(), *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))), HERE.parent.parent])
    if root is None:
        print(USAGE, file=sys.stderr)
        return 2
    line = host_report(root)
    if line:
        print(line)
    return 0


# ---- The environment beside this file ----------------------------------------------------------------------------------------


def venv_python(folder: Path, windows: bool = WINDOWS) -> Path:
    """Where a virtual environment keeps its Python."""
    return folder / "Scripts" / "python.exe" if windows else folder / "bin" / "python"


def requirements(name: str) -> str:
    """The text of the set of packages called `name`: "studio", "test" or "host"."""
    return (HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def pins(text: str) -> list[str]:
    """The requirement lines of `text`, without comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def digest(text: str) -> str:
    """A hash of the requirement lines alone: neither a comment nor a line ending makes an environment stale."""
    import hashlib

    return hashlib.sha256("\n".join(pins(text)).encode()).hexdigest()


def unsupported_machine(system: str, machine: str, macos: str, bits64: bool) -> str:
    """Why torch can't be had for this machine, or nothing. `macos` is the system's version there ("14.2")."""
    if not bits64:
        return "this is a 32-bit Python: install a 64-bit one"
    if system == "Darwin" and machine != "arm64":
        return "torch has no build for Macs with an Intel processor any more: use another machine"
    if system == "Darwin" and macos not in ("", "10.16") and int(macos.split(".")[0]) < 14:  # 10.16: an old Python's word for "newer than I know"
        return f"this is macOS {macos}, torch needs 14 or newer: update macOS"
    if system == "Windows" and machine.upper() == "ARM64":
        return "torch has no build for this Python for ARM: install the x86-64 Python"
    return ""


def version_name(version: tuple[int, ...]) -> str:
    """(3, 11) as "3.11"."""
    return ".".join(map(str, version))


def find_python(versions: tuple[tuple[int, int], ...]) -> str:
    """A Python of one of the versions that runs and can make an environment, this one if it fits; empty where there is none."""
    import shutil

    candidates = [sys.executable] if sys.version_info[:2] in versions else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in versions:
        name = version_name(version)
        on_path = shutil.which(f"python{name}")
        folders = [on_path] if on_path else []
        folders += [str(venv_python(folder)) for folder in sorted(pyenv.glob(f"{name}.*"))]
        launcher = shutil.which("py") if WINDOWS else None
        if launcher:
            folders.append(output_of([launcher, f"-{name}", "-c", "import sys; print(sys.executable)"]))
        candidates += folders
    probe = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    wanted = {f"{major} {minor}" for major, minor in versions}
    return next((python for python in dict.fromkeys(candidates) if python and output_of([python, "-c", probe]) in wanted), "")


def output_of(command: list[str]) -> str:
    """What a command printed; empty if it could not run or failed."""
    import subprocess

    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, env=clean_environment())
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def check_machine() -> None:
    """Passes on a machine that the packages exist for.

    Raises:
        SetupError: Python too old, too new, or without venv; a processor or system that torch has no build for.
    """
    import platform
    from importlib.util import find_spec

    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        other = find_python(tuple((3, minor) for minor in range(NEWEST[1], OLDEST[1] - 1, -1)))
        advice = f"run it with {other}" if other else f"install Python {version_name(NEWEST)} beside it"
        age = "old" if sys.version_info[:2] < OLDEST else "new"
        needed = f"{version_name(OLDEST)} to {version_name(NEWEST)}"
        raise SetupError(f"Python {platform.python_version()} at {sys.executable} is too {age}, {needed} is needed: {advice}")
    problem = unsupported_machine(platform.system(), platform.machine(), platform.mac_ver()[0], sys.maxsize > 2**32)
    if problem:
        raise SetupError(problem)
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        package = f"python{version_name(sys.version_info[:2])}-venv"
        raise SetupError(f"the Python at {sys.executable} can't make environments (venv, ensurepip): on Debian and Ubuntu run `sudo apt install {package}`")


def clean_environment() -> dict[str, str]:
    """The environment variables for a child: this project on the path, nothing of the user's other Pythons."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    return {**kept, "PYTHONPATH": str(HERE), "PYTHONNOUSERSITE": "1"}


def say(text: str) -> None:
    """Prints a line of progress at once."""
    print(text, flush=True)


def stamp(folder: Path, name: str) -> Path:
    """The file that says, by a hash, that the set `name` is wholly installed in an environment."""
    return folder / f"lyco-{name}.stamp"


def unfinished(folder: Path) -> Path:
    """The file that stands in an environment while something is installed; found at the next start, that was interrupted."""
    return folder / "lyco-unfinished"


def is_stamped(folder: Path, name: str) -> bool:
    """Whether an environment's stamp for the set `name` is that of today's requirements."""
    try:
        return stamp(folder, name).read_text(encoding="utf-8").strip() == digest(requirements(name))
    except OSError:
        return False


def is_ready(folder: Path, name: str) -> bool:
    """Whether an environment holds exactly the set `name`; reads three small files and runs nothing."""
    try:
        home = next(line.partition("=")[2].strip() for line in (folder / "pyvenv.cfg").read_text(encoding="utf-8").splitlines() if line.startswith("home"))
    except (OSError, StopIteration):
        return False
    return venv_python(folder).is_file() and Path(home).is_dir() and not unfinished(folder).exists() and is_stamped(folder, name)


def make_venv(folder: Path, base: str) -> None:
    """A fresh environment at `folder`, still marked unfinished.

    Raises:
        SetupError: Python could not make it.
    """
    import shutil
    import subprocess

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    unfinished(folder).touch()
    done = subprocess.run([base, "-m", "venv", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment())
    if done.returncode:
        last = (done.stdout.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(f"{base} could not make the environment {folder}: {last}")


def is_broken(dist_info: Path) -> bool:
    """Whether an installed package is only partly there: a file that its record lists is missing or has another size."""
    import csv

    try:
        rows = list(csv.reader((dist_info / "RECORD").read_text(encoding="utf-8").splitlines()))
        # pip writes INSTALLER and rewrites the record last: a record that does not name it is the wheel's own, so pip did not get to the end
        if not any(row and row[0].endswith(".dist-info/INSTALLER") for row in rows):
            return True
        return any(len(row) == 3 and row[2] and (dist_info.parent / row[0]).stat().st_size != int(row[2]) for row in rows)
    except (OSError, ValueError):
        return True


def site_packages(folder: Path, windows: bool = WINDOWS) -> Path:
    """Where an environment keeps its packages."""
    return folder / "Lib" / "site-packages" if windows else next((folder / "lib").glob("python3.*"), folder / "lib") / "site-packages"


def broken_packages(packages: Path) -> list[Path]:
    """The records of the packages that are only partly there."""
    return [path for path in packages.glob("*.dist-info") if is_broken(path)]


def mend(packages: Path) -> list[str]:
    """Forgets every package that an interrupted run left half there, so that pip installs it anew; gives their names."""
    import shutil

    broken = broken_packages(packages)
    for path in [*broken, *packages.glob("~*")]:  # "~name" is what pip moved aside and did not get to delete
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name.partition("-")[0] for path in broken]


def prepare(folder: Path, base: str, name: str, holds: tuple[str, ...] = ()) -> Path:
    """The Python of an environment that holds the set `name` (and with it the sets `holds`), made or mended first where needed.

    Raises:
        SetupError: the environment can't be made, or the packages can't be had.
    """
    python = venv_python(folder)
    if is_ready(folder, name):
        return python
    ours = not folder.exists() or unfinished(folder).exists() or any(folder.glob("lyco-*.stamp")) or ((folder / "pyvenv.cfg").exists() and not python.exists())
    version = output_of([str(python), "-c", "import sys, pip; print(*sys.version_info[:2])"]) if python.exists() else ""
    if not version and not ours:
        raise SetupError(f"{folder} was made by something else and has no pip: delete that folder and run this again")
    if not version:
        say(f"[1/3] Making the environment {folder.name} with {base}")
        make_venv(folder, base)
    elif unfinished(folder).exists():
        say(f"[1/3] The last run did not finish: looking what {folder.name} holds")
        again = mend(site_packages(folder))
        if again:
            say(f"      half installed, so once more: {', '.join(sorted(again))}")
    else:
        say(f"[1/3] Bringing the environment {folder.name} up to date")
    unfinished(folder).touch()
    for old in folder.glob("lyco-*.stamp"):
        if not is_stamped(folder, old.stem.partition("-")[2]):
            old.unlink()
    wanted = pins(requirements(name))
    say(f"[2/3] Installing {len({line.partition('==')[0] for line in wanted})} packages: some minutes the first time, torch is the largest")
    try:
        pip_install(python, HERE / "requirements" / f"{name}.txt", folder / "install.log")
    except SetupError:  # pip put things back as they were: what was whole before may be used on
        if not broken_packages(site_packages(folder)):
            unfinished(folder).unlink(missing_ok=True)
        raise
    for each in (name, *holds):
        stamp(folder, each).write_text(digest(requirements(each)) + "\n", encoding="utf-8")
    unfinished(folder).unlink(missing_ok=True)
    say(f"[3/3] {folder.name} is ready")
    return python


def pip_install(python: Path, wanted: Path, log: Path) -> None:
    """Installs a requirements file, telling in plain words how far it is; pip's own words go to `log`.

    Raises:
        SetupError: pip could not; the line says why as far as pip's output tells.
    """
    import subprocess

    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-r", str(wanted)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", env=clean_environment()
    )
    progress = Progress()
    try:
        with log.open("w", encoding="utf-8") as out:
            for line in process.stdout:
                out.write(line)
                out.flush()
                progress.tell(line)
        code = process.wait()
    except BaseException:  # Ctrl-C reaches pip too: let it put its own things in order, then go
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        progress.end()
        process.stdout.close()
    if code:
        raise SetupError(f"{pip_problem(log.read_text(encoding='utf-8', errors='replace'))} (pip's own words: {log})")


def pip_problem(output: str) -> str:
    """Why pip failed and what to do, from what it printed."""
    if "No space left on device" in output or "Errno 28" in output:
        return "the disk is full: free some GB and run the same command again"
    offline = ("name resolution", "getaddrinfo failed", "nodename nor servname", "NewConnectionError", "ConnectTimeoutError", "unreachable", "ProxyError")
    if any(sign in output for sign in offline):
        return "no connection to the Python package index: connect to the internet (or set PIP_INDEX_URL to a mirror) and run the same command again"
    errors = [line.partition("ERROR:")[2].strip() for line in output.splitlines() if line.startswith("ERROR:")]
    return f"pip could not install the packages: {errors[-1] if errors else 'it gave no reason'}"


class Progress:
    """Tells in plain words what pip is doing: on a terminal one line that is rewritten every second, elsewhere a line now and then."""

    def __init__(self) -> None:
        import threading
        import time

        self._clock, self._start = time.monotonic, time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._state, self._seen = "starting pip", 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        if self._terminal:
            self._thread.start()

    def tell(self, line: str) -> None:
        """Takes one line of pip's output."""
        words = line.split()
        if line.startswith("Collecting "):
            self._seen += 1
            self._state = f"package {self._seen}: {words[1].partition('==')[0]}"
        elif words[:1] == ["Downloading"] and line.rstrip().endswith(")"):
            self._state = f"package {self._seen}: downloading {words[1].rpartition('/')[2].partition('-')[0]} {line[line.rindex('(') :].strip()}"
            if not self._terminal and "MB" in line and float(line[line.rindex("(") + 1 :].split()[0]) >= 20:
                say(f"      {self._state}")
        elif line.startswith("Installing collected packages"):
            self._state = f"unpacking {line.count(',') + 1} packages, the last step"
            if not self._terminal:
                say(f"      {self._state}")

    def _tick(self) -> None:
        while not self._ended.wait(1.0):
            print(f"\r      {self._state}, {self._clock() - self._start:.0f} s".ljust(78)[:78], end="", flush=True)

    def end(self) -> None:
        """Stops telling."""
        self._ended.set()
        if self._terminal:
            self._thread.join()
            print("\r".ljust(79) + "\r", end="", flush=True)


def cuda_line(folder: Path, torch_pin: str, windows: bool = WINDOWS) -> str:
    """The one line to type that brings CUDA's torch into an environment."""
    python = rf"{folder.name}\Scripts\python" if windows else f"{folder.name}/bin/python"
    return f"{python} -m pip install --force-reinstall --no-deps {torch_pin} --index-url {CUDA_INDEX}"


def tell_about_cuda(folder: Path) -> None:
    """Prints that line where an NVIDIA card's driver is found and the installed torch can't use it."""
    import shutil

    if not shutil.which("nvidia-smi"):
        return
    try:
        built = (site_packages(folder) / "torch" / "version.py").read_text(encoding="utf-8")
    except OSError:
        return
    if any(line.startswith("cuda") and line.rstrip().endswith("None") for line in built.splitlines()):
        pin = next(line for line in pins(requirements("studio")) if line.startswith("torch=="))
        say(f"An NVIDIA card is here, but this torch runs on the processor only. This line, typed in {HERE}, brings the one for the card:")
        say(f"    {cuda_line(folder, pin)}")


# ---- Run by hand ---------------------------------------------------------------------------------------------------------------


def call(command: list[str]) -> int:
    """The exit code of a command that has the terminal to itself; waits for it after Ctrl-C too.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the command has ended.
    """
    import subprocess

    process = subprocess.Popen(command, env=clean_environment())
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def start(verb: str, arguments: list[str]) -> int:
    """Sets `.venv` up and becomes `python -m lib_lycoris VERB`; the exit code is that command's."""
    check_machine()
    folder = HERE / ".venv"
    python = prepare(folder, sys.executable, "studio")
    tell_about_cuda(folder)
    say(f"Starting: {verb}")
    command = [str(python), "-m", "lib_lycoris", verb, *arguments]
    if WINDOWS:  # there execv returns to the prompt before the new program has ended
        return call(command)
    sys.stdout.flush()
    os.execve(command[0], command, clean_environment())


def split_paths(arguments: list[str]) -> tuple[list[str], list[str]]:
    """pytest's arguments as (paths of tests, the rest); `tests/ui/test_a.py::test_b` is a path."""
    paths = [each for each in arguments if not each.startswith("-") and (HERE / each.partition("::")[0]).exists()]
    return paths, [each for each in arguments if each not in paths]


def host_paths(paths: list[str]) -> list[str]:
    """Those of the paths that belong to a room that lives in the WebUI; of all tests, where none is named."""
    if not paths or paths == ["tests"]:
        found = [HERE / "tests" / room for room in HOST_ROOMS] + [HERE / "tests" / f"test_{room}.py" for room in HOST_ROOMS]
        return [path.relative_to(HERE).as_posix() for path in found if path.exists()]
    rooms = {*HOST_ROOMS, *(f"test_{room}.py" for room in HOST_ROOMS)}
    return [path for path in paths if rooms.intersection(Path(path.partition("::")[0]).parts[1:2])]


def run_pytest(python: Path, folder: Path, arguments: list[str]) -> tuple[bool, dict[str, int]]:
    """Whether the tests passed, and how many passed, failed and were skipped."""
    from xml.etree import ElementTree

    report = folder / "test-report.xml"
    if report.exists():
        report.unlink()
    workers = str(max(1, min(4, os.cpu_count() or 1)))
    code = call([str(python), "-m", "pytest", "-n", workers, "--dist", "loadfile", f"--junitxml={report}", f"--rootdir={HERE}", *arguments])
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests, failed, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "skipped"))
            failed += int(suite.get("errors", 0))
            counts = {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped}
    return code == 0, counts


def test(arguments: list[str]) -> int:
    """Runs ruff and every test, in both sets of packages; 0 where all are green."""
    import time

    check_machine()
    os.chdir(HERE)
    paths, rest = split_paths(arguments)
    rows: list[tuple[str, bool, str]] = []
    total = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest(title: str, python: Path, folder: Path, chosen: list[str]) -> None:
        began = time.monotonic()
        say(f"\n== Tests with {title}")
        green, counts = run_pytest(python, folder, [*chosen, *rest])
        for key, count in counts.items():
            total[key] += count
        numbers = ", ".join(f"{count} {key}" for key, count in counts.items())
        rows.append((title, green, f"{numbers} in {time.monotonic() - began:.0f} s"))

    studio = HERE / ".venv"
    python = prepare(studio, sys.executable, "test", holds=("studio",))
    say("\n== Style (ruff)")
    rows.append(("style", call([str(python), "-m", "ruff", "check", "."]) == 0, "ruff"))
    pytest("the studio's packages", python, studio, paths)

    host, chosen, base = HERE / ".venv-host", host_paths(paths), find_python(HOST_PYTHONS)
    if not chosen:
        rows.append(("the WebUI's packages", True, "SKIPPED: none of the named tests is of a room that lives in the WebUI"))
    elif not base:
        rows.append(("the WebUI's packages", True, "SKIPPED: the WebUI's pins need a Python 3.10 or 3.11, and none is on this machine"))
    else:
        pytest("the WebUI's packages", prepare(host, base, "host"), host, chosen)

    say("\n== Summary")
    for title, green, detail in rows:
        say(f"{'green' if green else 'RED  '}  {title}: {detail}")
    say(", ".join(f"{count} {key}" for key, count in total.items()))
    return 0 if all(green for _, green, _ in rows) else 1


def main(arguments: list[str]) -> int:
    """The exit code: 0 done, 1 it failed (one line on stderr), 2 bad arguments, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a path that a Windows console can't spell is no reason to fail
    if not arguments:
        return run_by_host()
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-h", "--help") or (rest[:1] in (["-h"], ["--help"]) and not is_ready(HERE / ".venv", "studio")):
        print(USAGE)
        return 0
    if verb not in ("studio", "demo", "test"):
        print(f"install.py: unknown command {verb!r}: studio, demo or test (python3 install.py --help)", file=sys.stderr)
        return 2
    try:
        return test(rest) if verb == "test" else start(verb, rest)
    except SetupError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install.py: {error}: free the file or the disk, and run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninstall.py: interrupted; the next run goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
