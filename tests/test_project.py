"""The project around the package: layout, links, what a wheel holds, what may never be tracked, what loads lazily."""

from __future__ import annotations

import fnmatch
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOMS = ("encoders", "generators", "alignment", "configs", "eval")
HEAVY = (
    "torch", "torchvision", "diffusers", "transformers", "open_clip", "accelerate", "pydicom", "pyarrow",
    "numpy", "PIL", "scipy", "sklearn", "matplotlib", "pandas", "jinja2",
)  # fmt: skip
"""What takes long to import."""


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``command`` with the checkout importable, and returns what it printed."""
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def tracked(project: Path) -> list[Path]:
    """Every file that git tracks, links left out."""
    if not (project / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", "-z", cwd=project).stdout.split("\0")
    files = [project / name for name in names if name]
    return [file for file in files if file.is_file() and not file.is_symlink()]


@pytest.mark.parametrize("room", ROOMS)
def test_links_at_the_root_point_into_the_package(project: Path, room: str) -> None:
    link = project / room
    assert link.is_symlink()
    assert link.readlink() == Path("xgem") / room
    assert (link / "__init__.py").is_file()


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
def test_ruff_sees_each_file_once(project: Path) -> None:
    listed = run(sys.executable, "-m", "ruff", "check", "--show-files", ".", cwd=project)
    assert listed.returncode == 0, listed.stderr
    rooms = {Path(line).relative_to(project).parts[0] for line in listed.stdout.splitlines()}
    assert "xgem" in rooms
    assert rooms.isdisjoint(ROOMS)
    assert str(project / "xgem" / "eval" / "__init__.py") in listed.stdout.splitlines()


def test_every_folder_of_tests_is_collected(project: Path) -> None:
    """The rooms' names lead twice: to links at the root, which hold no tests, and to folders of tests."""
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    folders = {file.parent.name for file in (project / "tests").rglob("test_*.py")}
    assert len(folders) > 5
    left_out = {name for name in folders for pattern in settings["norecursedirs"] if fnmatch.fnmatch(name, pattern)}
    assert not left_out


def test_version_is_said_once(project: Path) -> None:
    import xgem

    declared = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert xgem.__version__ == declared["project"]["version"]


def test_changelog_has_an_unreleased_part(project: Path) -> None:
    assert "\n## [Unreleased]\n" in (project / "CHANGELOG.md").read_text(encoding="utf-8")


HEAVY_LOADED = f"import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"


def test_importing_xgem_imports_no_torch(project: Path) -> None:
    done = run(sys.executable, "-c", f"import xgem; {HEAVY_LOADED}", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "command", [(), ("generate",), ("data",), ("train",), ("eval",), ("cohort",), ("readers",)], ids=" ".join
)
def test_help_imports_no_torch(project: Path, command: tuple[str, ...]) -> None:
    program = f"""
import sys
from xgem.cli import main
sys.argv = ["xgem", *{command!r}, "--help"]
try:
    status = main()
except SystemExit as exit:
    status = exit.code
{HEAVY_LOADED}
sys.exit(status)
"""
    done = run(sys.executable, "-c", program, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.skipif(find_spec("build") is None or find_spec("hatchling") is None, reason="needs build and hatchling")
def test_wheel_holds_presets_and_weights_and_no_links(project: Path, tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, project, cwd=project)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("xgem-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "xgem = xgem.cli:main" in archive.read(entry_points).decode()
    files = [file for file in (project / "xgem").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    shipped = {file.relative_to(project).as_posix() for file in files if not file.name.startswith(".")}
    assert shipped <= names
    assert any(name.startswith("xgem/configs/presets/") and name.endswith(".yaml") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"xgem"}


# What would tie a file to one machine or one package index. Written as patterns, so that they do not match themselves.
PRIVATE = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|farm|tmp|home|Users)/\w"),
    "the host of a package index": re.compile(r"files\.pythonhosted|pypi\.org|deb\.debian\.org|registry\.npmjs"),
}


@pytest.mark.parametrize("kind", PRIVATE)
def test_no_tracked_file_names(tracked: list[Path], project: Path, kind: str) -> None:
    found = []
    for file in tracked:
        data = file.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if PRIVATE[kind].search(line):
                found.append(f"{file.relative_to(project)}:{number}: {line.strip()[:100]}")
    assert not found, f"{kind} stands in\n" + "\n".join(found)


def is_image(data: bytes) -> bool:
    """By content: PNG, JPEG, TIFF, DICOM or a NumPy array."""
    magic = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"\x93NUMPY")
    return data.startswith(magic) or data[128:132] == b"DICM"


SHOWN = Path("docs") / "images"
"""Synthetic samples for the documentation, the only images that may be tracked."""


def test_only_small_marked_synthetic_samples_are_tracked(tracked: list[Path], project: Path) -> None:
    from PIL import Image

    suffixes = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".npy", ".npz"}
    shown = [file for file in tracked if file.parent == project / SHOWN and file.suffix == ".png"]
    for file in shown:
        with Image.open(file) as image:
            assert image.info.get("Synthetic") == "true", f"{file.name}: not marked as synthetic"
    assert sum(file.stat().st_size for file in shown) < 2_000_000
    large = [file for file in tracked if file.stat().st_size > 2000 and file not in shown]
    images = []
    for file in large:
        with file.open("rb") as stream:
            if file.suffix.lower() in suffixes or is_image(stream.read(132)):
                images.append(str(file.relative_to(project)))
    assert not images


FILE_LINES, FUNCTION_LINES = 400, 80


def test_files_and_functions_are_short(project: Path) -> None:
    structure = runpy.run_path(str(project / "benchmarks" / "structure.py"))
    files = sorted((project / "xgem").rglob("*.py"))
    assert len(files) > 200
    too_long: list[str] = []
    for file in files:
        name, lines = file.relative_to(project), len(file.read_text(encoding="utf-8").splitlines())
        too_long += [f"{name}: {lines} lines"] if lines > FILE_LINES else []
        too_long += [f"{name}: {f} has {n} lines" for f, n in structure["function_lengths"](file) if n > FUNCTION_LINES]
    assert not too_long, "\n".join(too_long)


def test_ci_runs_the_readme_test_command(project: Path) -> None:
    script = project / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script, cwd=project).returncode == 0
    assert "make --no-print-directory test" in script.read_text(encoding="utf-8")
    assert "\nmake test " in (project / "README.md").read_text(encoding="utf-8")


GREEN = "=== 3 passed in 1.20s ==="
RED = "=== 1 failed, 2 passed in 61.20s (0:01:01) ==="
NONE = "pytest gave no summary: the run did not finish"
CI_STAND_INS = {
    "green": (f"echo '{GREEN}'; echo more", 0, GREEN),
    "red": (f"echo '{RED}'; exit 2", 2, RED),
    "no summary": ("echo installing", 1, NONE),
    "broken": ("echo installing; exit 2", 2, NONE),
}


@pytest.mark.parametrize("case", CI_STAND_INS)
def test_ci_passes_on_status_and_ends_with_the_summary(project: Path, tmp_path: Path, case: str) -> None:
    recipe, status, last = CI_STAND_INS[case]
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\n{recipe}\n", encoding="utf-8")
    make.chmod(0o755)
    done = run(project / ".ci" / "run", cwd=project, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == last
