"""Model files on the Hugging Face hub, or a mirror that ``HF_ENDPOINT`` names."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from polydet.engine.errors import ConfigError
from polydet.engine.portable import NAME
from polydet.model_file import ModelFileError, is_model_file, read_model_file

_PLACE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+\.safetensors))?")


def is_hub_name(name: str | Path) -> bool:
    """Whether a name means a file on the hub."""
    return str(name).startswith(("hf://", "hf:/"))  # a Path has one slash less


def fetch(name: str) -> Path:
    """The model file of ``hf://owner/name[@revision][/file.safetensors]``, from the hub's cache where it is there.

    The file is data like any other: nothing in it runs, and its digest is checked when it is opened.

    Raises:
        ConfigError: a name of another form, or a file that neither the cache nor the hub has.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = re.sub("^hf:/+", "hf://", name)
    place = _PLACE.fullmatch(name)
    if place is None:
        raise ConfigError(f"{name!r} is not of the form hf://owner/name[@revision][/file.safetensors]")
    try:
        path = Path(hf_hub_download(place["repo"], place["file"] or NAME, revision=place["revision"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{name} is neither in the hub's cache nor to be had: {str(error).splitlines()[0]} (without network, copy "
            "the file and give its path)"
        ) from error
    if not is_model_file(path):
        raise ConfigError(f"{name} is no model file of this project; name a config and give the file as weights")
    return path


def push(path: str | Path, repo: str, private: bool = True, message: str = "", api: Any = None) -> str:
    """Upload a model file and a card that says what is in it.

    Args:
        path: file of :func:`polydet.model_zoo.save` or of a run.
        repo: ``owner/name``, made if it is not there.
        private: of a repository that is made.
        message: of the commit.
        api: ``huggingface_hub.HfApi``, by default one with the credentials of ``hf auth login``.

    Returns:
        the name that :func:`polydet.model_zoo.get` takes, with the revision.

    Raises:
        ConfigError: not a model file, or a damaged one.
    """
    from huggingface_hub import HfApi

    try:
        header = read_model_file(path).header
    except ModelFileError as error:
        raise ConfigError(str(error)) from error
    api = api or HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAME).symlink_to(Path(path).resolve())
        (Path(folder) / "README.md").write_text(card(header, repo), encoding="utf-8")
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message or f"Upload {NAME}")
    return f"hf://{repo}@{done.oid}"


def card(header: dict[str, Any], repo: str) -> str:
    """The README of a repository, from a file's header."""
    licence, words = header.get("licence") or "other", header.get("words") or {}
    classes, provenance = header["classes"], header.get("provenance") or {}
    lines = ["---", f"license: {licence.lower()}", "library_name: polydet", "pipeline_tag: object-detection", "---", ""]
    more = " ..." if len(classes) > 20 else ""
    lines += [f"# {repo}", "", f"{len(classes)} classes: {', '.join(classes[:20])}{more}", ""]
    if words:
        lines += [f"Open vocabulary: any words, by the text encoder `{words['encoder']}`.", ""]
    lines += ["```python", "from polydet import model_zoo", f'model = model_zoo.get("hf://{repo}")', "```", ""]
    datasets = provenance.get("datasets", [])
    sources = [f"- {d['name']}: {d['from']} ({d['licence'] or 'terms not stated'})" for d in datasets]
    lines += ["Trained on", "", *sources, ""] if sources else []
    if provenance.get("results"):
        lines += ["```json", json.dumps(provenance["results"], indent=1), "```", ""]
    return "\n".join(lines)
