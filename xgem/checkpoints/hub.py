"""Checkpoints to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from xgem.checkpoints.card import card_text
from xgem.checkpoints.locate import HUB_ID
from xgem.checkpoints.store import CARD_NAME, copy_checkpoint
from xgem.types import InputError, OutputError
from xgem.utils.files import one_line


def push_checkpoint(
    root: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str = "Upload of an xgem checkpoint",
    token: str | None = None,
) -> str:
    """Upload a verified copy of the checkpoint ``root``, its files and card and nothing else that lies in the folder.

    A card is written where the checkpoint has none.

    Args:
        repo_id: ``owner/name``; made if there is none.
        private: of a repository that is made. Weights of patients' images are not public by mistake.
        revision: branch to upload to; made if need be.
        token: of the hub; None takes the one that ``hf auth login`` keeps.

    Returns:
        the address of the commit.

    Raises:
        InputError: no such id. CheckpointError: the checkpoint is not whole.
        OutputError: the hub refuses or is out of reach.
    """
    from huggingface_hub import HfApi

    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"repository {repo_id!r}: expected owner/name")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        copy_checkpoint(root, folder)
        card = folder / CARD_NAME
        if not card.is_file():
            card.write_text(card_text(folder), encoding="utf-8")
        hub = HfApi(token=token)
        try:
            hub.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                hub.create_branch(repo_id, branch=revision, exist_ok=True)
            made = hub.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        # Without a connection the hub's client raises whatever its HTTP library does
        except Exception as error:
            raise OutputError(f"{repo_id}: cannot be uploaded to the hub: {one_line(error)}") from error
    return str(made.commit_url)
