"""Checkpoints pushed to the hub, whose client is replaced: nothing leaves this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from xgem.checkpoints.hub import push_checkpoint
from xgem.checkpoints.index import checkpoint_hash
from xgem.checkpoints.store import verify
from xgem.cli import main
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import CheckpointError, InputError, OutputError


class Hub:
    """Stands for ``HfApi``; keeps a copy of what is uploaded."""

    calls: list[tuple[str, Any]]
    place: Path
    fails = False

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))
        if self.fails:
            raise ConnectionError("no way\nout")

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append((repo_id, branch if exist_ok else None))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.place)
        self.calls.append((repo_id, (revision, commit_message)))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    class Replaced(Hub):
        calls: list[tuple[str, Any]] = []  # noqa: RUF012
        place = tmp_path / "uploaded"

    monkeypatch.setattr(huggingface_hub, "HfApi", Replaced)
    return Replaced


def test_a_pipeline_is_pushed(debug_checkpoint: Path, tmp_path: Path, hub: type[Hub]) -> None:
    source = tmp_path / "run"
    shutil.copytree(debug_checkpoint, source)
    (source / "README.md").unlink(missing_ok=True)
    (source / "training-state.bin").write_bytes(b"not of the checkpoint")
    address = XgemPipeline.from_pretrained(source, device="cpu").push_to_hub("me/mine", revision="v1", token="t")
    assert address == "https://hub/me/mine/commit/1"
    assert hub.calls == [
        ("token", "t"),
        ("me/mine", {"private": True, "exist_ok": True}),
        ("me/mine", "v1"),
        ("me/mine", ("v1", "Upload of an xgem checkpoint")),
    ]
    verify(hub.place)
    assert checkpoint_hash(hub.place) == checkpoint_hash(source)
    assert not (hub.place / "training-state.bin").exists()
    assert checkpoint_hash(source) in (hub.place / "README.md").read_text()


def test_a_card_that_is_there_goes_along(debug_checkpoint: Path, tmp_path: Path, hub: type[Hub]) -> None:
    shutil.copytree(debug_checkpoint, tmp_path / "run")
    (tmp_path / "run/README.md").write_text("# Mine\n")
    push_checkpoint(tmp_path / "run", "me/mine", private=False)
    assert (hub.place / "README.md").read_text() == "# Mine\n"
    assert hub.calls[1] == ("me/mine", {"private": False, "exist_ok": True})


def test_refusals(debug_checkpoint: Path, tmp_path: Path, hub: type[Hub]) -> None:
    for name in ("mine", "a/b/c", "../me/x"):
        with pytest.raises(InputError, match="expected owner/name"):
            push_checkpoint(debug_checkpoint, name)
    with pytest.raises(CheckpointError):
        push_checkpoint(tmp_path, "me/mine")
    assert hub.calls == []
    hub.fails = True
    with pytest.raises(OutputError, match="me/mine: cannot be uploaded to the hub: no way out"):
        push_checkpoint(debug_checkpoint, "me/mine")


def test_export_writes_a_card(debug_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(debug_checkpoint, tmp_path / "run")
    (tmp_path / "run/README.md").unlink(missing_ok=True)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: xgem\n")
    assert checkpoint_hash(tmp_path / "out") in card
    assert "has not been evaluated yet" in card
    (tmp_path / "run/README.md").write_text("# Mine\n")
    told = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32", "--overwrite"]
    assert main(told) == 0
    assert (tmp_path / "out/README.md").read_text() == "# Mine\n"
