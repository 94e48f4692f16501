"""Models from the Hugging Face hub: a repository's model or one file of it, downloaded once."""

from pathlib import Path, PurePosixPath

PREFIX = "hf:"
BESIDE = (".json", ".md")  # config, index, tokenizer, card


def fetch(name: str) -> Path:
    """The file of "hf:owner/repo/file", or a folder with the model of "hf:owner/repo". Raises ValueError, in one line,
    where there is no such thing, or the hub cannot be reached and it was not downloaded before."""
    owner, repository, file = (*name.removeprefix(PREFIX).split("/", 2), "", "")[:3]
    if not owner or not repository:
        raise ValueError(f"{name!r} names no repository, expected 'hf:owner/repo' or 'hf:owner/repo/file'")
    repo = f"{owner}/{repository}"
    return fetch_file(repo, file) if file else _fetch_folder(repo)


def fetch_file(repo: str, file: str) -> Path:
    """One file of a repository, as the hub's cache keeps it. Raises ValueError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError

    try:
        return Path(hf_hub_download(repo, file))
    except (EntryNotFoundError, HFValidationError, HTTPError) as error:
        raise _explained(f"{PREFIX}{repo}/{file}", error) from error


def _fetch_folder(repo: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    name = PREFIX + repo
    try:
        found = HfApi().model_info(repo, revision="main")
    except (HfHubHTTPError, HFValidationError) as error:
        raise _explained(name, error) from error
    except (HTTPError, ConnectionError) as error:
        try:
            return Path(snapshot_download(repo, local_files_only=True))
        except LocalEntryNotFoundError:
            raise _explained(name, error) from error
    files = [sibling.rfilename for sibling in found.siblings or () if "/" not in sibling.rfilename]
    wanted = _weights(name, files) + [file for file in files if PurePosixPath(file).suffix in BESIDE]
    return {fetch_file(repo, file).parent for file in wanted}.pop()


def _weights(name: str, files: list[str]) -> list[str]:
    """The files that hold the repository's one model."""
    if split := [file for file in files if file.endswith(".safetensors")]:
        return split
    whole = [file for file in files if file.endswith((".pth", ".bin"))]
    if len(whole) == 1:
        return whole
    if not whole:
        raise ValueError(f"{name} holds no model: it has no .safetensors, .pth or .bin file")
    raise ValueError(f"{name} holds {len(whole)} models, name one of them: {name}/{whole[0]}, ...")


def _explained(name: str, error: Exception) -> ValueError:
    """What went wrong, in words that say what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, HFValidationError):
        reason = "this cannot be the name of a repository"
    elif isinstance(error, GatedRepoError):
        reason = "its terms must be accepted on the hub first, and a token given (`hf auth login`)"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "the hub has no such repository, or it is private (`hf auth login`)"
    elif isinstance(error, RemoteEntryNotFoundError):
        reason = "the repository has no such file"
    elif isinstance(error, HfHubHTTPError):
        reason = str(error).strip().split("\n")[0]
    else:
        reason = f"the hub did not answer, and it was not downloaded before ({type(error.__cause__ or error).__name__})"
    return ValueError(f"{name} cannot be fetched: {reason}")
