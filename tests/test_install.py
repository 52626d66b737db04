"""install.py: quiet and harmless in the WebUI, and the set-up by hand as far as it can be told without a network."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "install.py"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The module, fresh for each test, with an empty folder in the place of the project's."""
    spec = importlib.util.spec_from_file_location("lyco_install", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("studio", "test", "host"):
        (tmp_path / "requirements" / f"{name}.txt").write_text(f"# {name}\na==1\n", encoding="utf-8")
    return module


def make_host(folder: Path, *more: str, version: str = "1.10.1") -> Path:
    """A folder laid out like a WebUI: `launch.py`, `modules/`, `CHANGELOG.md`, and what else is named (a `/` at the end makes a folder)."""
    for name in ("modules/", "launch.py", "webui.py", *more):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    (folder / "CHANGELOG.md").write_text(f"## {version}\n\n### Bug Fixes:\n", encoding="utf-8")
    return folder


def run(*arguments: str, cwd: Path, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """install.py in a process of its own, as the WebUI's launcher and a person start it."""
    command = [sys.executable, *(["-c", code] if code else [str(FILE)]), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


WATCH = f"""
import runpy, sys
did = []
processes = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "socket.connect")
def watch(event, arguments):
    if event in (*processes, "os.mkdir", "os.remove", "os.rename", "shutil.rmtree"):
        did.append(event)
    if event == "open" and set(str(arguments[1])) & set("wax+") and "__pycache__" not in str(arguments[0]):
        did.append(f"open {{arguments[0]}} {{arguments[1]}}")
sys.addaudithook(watch)
sys.argv = [{str(FILE)!r}]
try:
    runpy.run_path({str(FILE)!r}, run_name="__main__")
except SystemExit as end:
    did.append(f"exit {{end.code}}")
heavy = ["pip", "torch", "gradio", "numpy", "transformers", "subprocess", "argparse", "venv", "urllib.request", "lib_lycoris"]
print(did, [name for name in heavy if name in sys.modules], file=sys.stderr)
"""


# ---- Run by the WebUI


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed here: a WebUI without it is not a whole one")
def test_in_a_whole_webui_nothing_is_printed(tmp_path) -> None:
    host = make_host(tmp_path / "webui")
    done = run(cwd=host, PYTHONPATH=str(host))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_in_the_webui_nothing_heavy_is_imported_nothing_started_and_nothing_written(tmp_path) -> None:
    host = make_host(tmp_path / "webui")
    done = run(cwd=host, code=WATCH, PYTHONPATH=str(host))
    assert done.stderr.strip() == "['exit 0'] []"


def test_the_root_is_found_from_pythonpath_when_the_webui_is_started_elsewhere(tmp_path) -> None:
    host = make_host(tmp_path / "webui", "modules_forge/")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(cwd=elsewhere, PYTHONPATH=f"{host}{os.pathsep}")
    assert done.returncode == 0 and "this is Forge" in done.stdout


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["modules_forge/", "backend/"], "Forge"),
        (["modules_forge/", "ldm_patched/"], "reForge"),
        (["installer.py"], "SD.Next"),
    ],
)
def test_on_another_host_one_line_says_what_is_supported(tmp_path, more, name) -> None:
    done = run(cwd=make_host(tmp_path / "webui", *more))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert f"this is {name};" in done.stdout and "v1.10.1" in done.stdout


def test_an_older_webui_is_told_which_one_is_supported(install, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(install, "missing_modules", list)
    assert install.host_report(make_host(tmp_path / "webui", version="1.9.4")) == "Lyco Studio: this is WebUI 1.9.4; supported is v1.10.1"
    assert install.host_report(make_host(tmp_path / "newer", version="1.10.2")) == ""


def test_a_missing_package_is_told_in_one_line_with_the_command_that_brings_it(install, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(install, "missing_modules", lambda: ["safetensors", "gradio"])
    line = install.host_report(make_host(tmp_path / "webui"))
    assert "missing in this WebUI: safetensors, gradio." in line and "requirements_versions.txt" in line and "\n" not in line


def test_a_module_that_is_not_there_is_missing_and_one_that_is_there_is_not_imported(install) -> None:
    assert install.missing_modules(("json", "no_such_module_of_any_kind", "this")) == ["no_such_module_of_any_kind"]
    assert "this" not in sys.modules


def test_without_a_webui_in_sight_no_argument_prints_the_usage(tmp_path) -> None:
    done = run(cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 2 and "usage: python3 install.py {studio,demo,test}" in done.stderr


# ---- Run by hand


def test_an_unknown_command_is_refused_with_the_known_ones(tmp_path) -> None:
    done = run("stduio", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["install.py: unknown command 'stduio': studio, demo or test (python3 install.py --help)"]


def test_help_is_printed_and_installs_nothing(tmp_path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage:") and list(tmp_path.iterdir()) == []


def test_an_environment_keeps_its_python_where_the_system_puts_it(install) -> None:
    assert install.venv_python(Path("a"), windows=True).parts == ("a", "Scripts", "python.exe")
    assert install.venv_python(Path("a"), windows=False).parts == ("a", "bin", "python")
    assert install.site_packages(Path("a"), windows=True).parts == ("a", "Lib", "site-packages")


def test_the_line_for_cuda_is_one_that_can_be_typed(install) -> None:
    assert install.cuda_line(Path("x") / ".venv", "torch==2.13.0", windows=True).startswith(r".venv\Scripts\python -m pip install ")
    line = install.cuda_line(Path("x") / ".venv", "torch==2.13.0", windows=False)
    assert line.startswith(".venv/bin/python -m pip install ") and "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu" in line


@pytest.mark.parametrize(
    ("cuda", "driver", "told"), [("None", True, True), ("'13.0'", True, False), ("None", False, False)], ids=["cpu torch", "cuda torch", "no card"]
)
def test_only_who_has_an_nvidia_card_and_a_torch_that_cannot_use_it_is_told(install, tmp_path, monkeypatch, capsys, cuda, driver, told) -> None:
    torch = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\n", encoding="utf-8")
    (tmp_path / "requirements" / "studio.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    monkeypatch.setattr(install, "site_packages", lambda folder: torch.parent)
    monkeypatch.setattr("shutil.which", lambda name: "nvidia-smi" if driver and name == "nvidia-smi" else None)
    install.tell_about_cuda(tmp_path / ".venv")
    assert ("--index-url" in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (("Linux", "x86_64", "", True), ""),
        (("Darwin", "arm64", "14.2", True), ""),
        (("Darwin", "arm64", "10.16", True), ""),
        (("Windows", "AMD64", "", True), ""),
        (("Windows", "x86", "", False), "32-bit"),
        (("Darwin", "x86_64", "14.2", True), "Intel"),
        (("Darwin", "arm64", "13.6", True), "macOS 13.6"),
        (("Windows", "ARM64", "", True), "ARM"),
    ],
)
def test_a_machine_without_a_torch_is_told_why(install, machine, words) -> None:
    problem = install.unsupported_machine(*machine)
    assert words in problem and bool(words) == bool(problem)


@pytest.mark.parametrize(("version", "age"), [((3, 9, 1), "old"), ((3, 14, 0), "new")])
def test_a_python_that_is_too_old_or_too_new_is_refused_with_what_to_do(install, monkeypatch, version, age) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(install, "find_python", lambda versions: "/opt/python3.12" if (3, 12) in versions else "")
    with pytest.raises(install.SetupError, match=f"is too {age}, 3.10 to 3.13 is needed: run it with /opt/python3.12"):
        install.check_machine()


def test_a_python_without_venv_is_told_debians_package(install, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(install.SetupError, match=rf"sudo apt install python3\.{sys.version_info[1]}-venv"):
        install.check_machine()


def test_this_python_is_found_by_its_version_and_it_really_runs(install) -> None:
    assert install.find_python((sys.version_info[:2],)) == sys.executable
    assert install.find_python(((3, 99),)) == ""


# ---- The environment: ready, stale, broken


def make_environment(install, folder: Path) -> Path:
    """An environment as far as install.py looks at it without running it."""
    python = install.venv_python(folder)
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n", encoding="utf-8")
    install.stamp(folder, "studio").write_text(install.digest(install.requirements("studio")), encoding="utf-8")
    return folder


def test_a_finished_environment_is_ready_and_no_program_runs_to_find_out(install, tmp_path, monkeypatch) -> None:
    folder = make_environment(install, tmp_path / ".venv")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert install.prepare(folder, sys.executable, "studio") == install.venv_python(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda install, folder: install.unfinished(folder).touch(),
        lambda install, folder: install.venv_python(folder).unlink(),
        lambda install, folder: install.stamp(folder, "studio").unlink(),
        lambda install, folder: (folder / "pyvenv.cfg").write_text("home = /gone/with/an/update\n", encoding="utf-8"),
        lambda install, folder: (folder.parent / "requirements" / "studio.txt").write_text("a==2\n", encoding="utf-8"),
    ],
    ids=["interrupted", "no python", "never finished", "its base python is gone", "other pins"],
)
def test_an_environment_that_is_not_whole_or_not_todays_is_not_ready(install, tmp_path, spoil) -> None:
    folder = make_environment(install, tmp_path / ".venv")
    assert install.is_ready(folder, "studio") and not install.is_ready(folder, "test")
    spoil(install, folder)
    assert not install.is_ready(folder, "studio")


def test_a_comment_or_a_line_ending_makes_no_environment_stale(install) -> None:
    assert install.digest("# one\na==1\nb==2 ; python_version < '3.11'\n") == install.digest("a==1   # two\r\n\r\nb==2 ; python_version < '3.11'\r\n")
    assert install.digest("a==1\n") != install.digest("a==2\n")


def test_an_environment_of_somebody_else_without_pip_is_left_alone(install, tmp_path) -> None:
    python = install.venv_python(tmp_path / ".venv")
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(install.SetupError, match="made by something else"):
        install.prepare(tmp_path / ".venv", sys.executable, "studio")
    assert python.is_file()


def make_package(packages: Path, name: str, *, size: int = 3, finished: bool = True) -> None:
    """A package as pip leaves it; `size` is what the record says of a file of three bytes."""
    info = packages / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (packages / f"{name}.py").write_text("a=1", encoding="utf-8")
    installer = f"{name}-1.dist-info/INSTALLER,,\n" if finished else ""
    (info / "INSTALLER").touch()
    (info / "RECORD").write_text(f"{name}.py,sha256=x,{size}\n{installer}{name}-1.dist-info/RECORD,,\n", encoding="utf-8")


def test_a_half_installed_package_is_forgotten_and_a_whole_one_kept(install, tmp_path) -> None:
    packages = tmp_path / "site-packages"
    make_package(packages, "whole")
    make_package(packages, "short", size=4)
    make_package(packages, "early", finished=False)
    make_package(packages, "lost")
    (packages / "lost.py").unlink()
    (packages / "bare-1.dist-info").mkdir()
    (packages / "~orch").mkdir()
    assert sorted(install.mend(packages)) == ["bare", "early", "lost", "short"]
    assert sorted(path.name for path in packages.iterdir()) == ["early.py", "short.py", "whole-1.dist-info", "whole.py"]


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory) -> Path:
    """A real environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("made") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=600)
    return folder


def test_an_interrupted_install_is_mended_by_the_next_run(install, empty_environment, capsys, monkeypatch) -> None:
    packages = install.site_packages(empty_environment)
    make_package(packages, "torn", size=9)
    install.unfinished(empty_environment).touch()
    installed = []
    monkeypatch.setattr(install, "pip_install", lambda python, wanted, log: installed.append(wanted.name))
    python = install.prepare(empty_environment, sys.executable, "test", holds=("studio",))
    assert python == install.venv_python(empty_environment) and installed == ["test.txt"]
    assert install.is_ready(empty_environment, "studio") and install.is_ready(empty_environment, "test")
    assert not (packages / "torn-1.dist-info").exists() and "torn" in capsys.readouterr().out


def test_a_failed_install_says_why_in_one_line_and_leaves_what_was_whole(install, empty_environment, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (tmp_path / "requirements" / "host.txt").write_text("no-such-package-of-lyco==1\n", encoding="utf-8")
    with pytest.raises(install.SetupError, match="no-such-package-of-lyco") as caught:
        install.prepare(empty_environment, sys.executable, "host")
    assert "\n" not in str(caught.value) and (empty_environment / "install.log").is_file()
    assert not install.unfinished(empty_environment).exists() and not install.is_ready(empty_environment, "host")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("WARNING: Retrying ... NewConnectionError('...: Failed to establish')\nERROR: No matching distribution found for torch==2.13.0", "no connection"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Collecting x\nERROR: Cannot install a and b", "Cannot install a and b"),
        ("", "no reason"),
    ],
)
def test_what_pip_says_becomes_a_line_that_can_be_acted_on(install, output, words) -> None:
    assert words in install.pip_problem(output)


def test_pips_output_is_told_in_plain_words(install, capsys) -> None:
    progress = install.Progress()
    numpy = ("Collecting numpy==2.4.6 (from -r x)", "  Downloading numpy-2.4.6-cp311.whl (17.1 MB)")
    for line in (*numpy, "Collecting torch==2.13.0", "  Downloading torch-2.13.0.whl (190.5 MB)"):
        progress.tell(line + "\n")
    progress.tell("Installing collected packages: a, b, c\n")
    progress.end()
    assert capsys.readouterr().out.split("\n")[:2] == ["      package 2: downloading torch (190.5 MB)", "      unpacking 3 packages, the last step"]


# ---- The pins


def pins(name: str) -> set[str]:
    return {line.strip() for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}


@pytest.mark.parametrize("name", ["studio", "test", "host"])
def test_every_pin_is_exact_and_none_is_a_local_version(name) -> None:
    for pin in pins(name):
        version = pin.partition(";")[0].strip().partition("==")[2]
        assert version and "+" not in version and "*" not in version, pin
    assert "torch==2.13.0" in pins(name)


def test_the_test_packages_hold_the_studios() -> None:
    assert pins("studio") <= pins("test")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_the_pins_that_a_person_updates_and_the_written_ones_agree() -> None:
    import tomllib

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for name in ("studio", "test", "host"):
        written = {pin.partition(";")[0].strip().lower() for pin in pins(name)}
        own = {pin.partition(";")[0].strip().lower() for pin in groups[name] if isinstance(pin, str)}
        assert {pin if pin.count(".") > 1 else f"{pin}.0" for pin in own} <= written, name


# ---- The test run


def test_only_the_rooms_of_the_webui_are_run_with_its_packages(install, monkeypatch) -> None:
    monkeypatch.setattr(install, "HERE", ROOT)
    assert "tests/prompt" in install.host_paths([]) and "tests/studio" not in install.host_paths([]) and "tests/test_install.py" not in install.host_paths([])
    assert install.split_paths(["tests/prompt", "--slow", "-k", "a_word"]) == (["tests/prompt"], ["--slow", "-k", "a_word"])
    assert install.host_paths(["tests/prompt/test_chunks.py::test_a", "tests/studio", "tests/test_install.py"]) == ["tests/prompt/test_chunks.py::test_a"]
