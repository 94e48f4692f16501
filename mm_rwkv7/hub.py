"""Models from the Hugging Face hub: a repository's model, or one file with what belongs to it, downloaded once."""

import sys
from collections.abc import Collection
from contextlib import suppress
from json import JSONDecodeError
from pathlib import Path, PurePosixPath

from mm_rwkv7.interop.naming import CONFIG, INDEX, PILE_TOKENIZERS, SHARD, one_model, other_half, shards
from mm_rwkv7.whole import replacing_file

PREFIX = "hf:"
MAIN = "main"
BESIDE = (".json", ".md")  # config, index, tokenizer, card
WEIGHTS = (".safetensors", ".pth", ".bin", INDEX)


def fetch(name: str) -> Path:
    """The file of "hf:owner/repo/file", with what belongs to it beside it, or a folder with the model of
    "hf:owner/repo": all of one commit, the newest.

    Where the hub does not answer or is out of order, the latest commit that was downloaded before takes its place, and
    a line on stderr says so. Raises ValueError, in one line, where there is none, and where the hub has no such thing.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    owner, repository, file = (*name.removeprefix(PREFIX).split("/", 2), "", "")[:3]
    if not owner or not repository:
        raise ValueError(f"{name!r} names no repository, expected 'hf:owner/repo' or 'hf:owner/repo/file'")
    repo = f"{owner}/{repository}"
    try:
        return _download(repo, file)
    except HFValidationError as error:
        raise ValueError(f"{name} cannot be fetched: this cannot be the name of a repository") from error
    except (HfHubHTTPError, HTTPError, ConnectionError, JSONDecodeError) as error:
        return _instead(name, repo, file, error)
    except LocalEntryNotFoundError as error:  # neither there nor here
        return _instead(name, repo, file, error.__cause__ or error)


def _download(repo: str, file: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    found = HfApi().model_info(repo, revision=MAIN, timeout=HF_HUB_ETAG_TIMEOUT)

    def bring(wanted: str) -> Path:
        return Path(hf_hub_download(repo, wanted, revision=found.sha))

    names = [sibling.rfilename for sibling in found.siblings or ()]
    path = [bring(wanted) for wanted in _wanted(f"{PREFIX}{repo}", file, names)][-1]
    if path.name == INDEX:
        for shard in shards(path):
            bring(PurePosixPath(file or INDEX).with_name(shard).as_posix())
    snapshot = path.parents[file.count("/")]
    _note(snapshot)
    return path if file else snapshot


def _wanted(where: str, file: str, names: Collection[str]) -> list[str]:
    """What to download, weights last: where they are, the rest is. A ValueError says what there is not."""
    if not file:
        here = [name for name in names if "/" not in name]
        held = one_model(where, here)
        return [*(name for name in here if name.endswith(BESIDE) and name not in held), *held[::-1]]
    if file not in names:
        raise ValueError(f"{where}/{file} cannot be fetched: the repository has no such file")
    if SHARD.fullmatch(file):
        raise ValueError(f"{where}/{file} is one shard of a model: name {where}, or its index, .../{INDEX}")
    if not file.endswith(WEIGHTS):
        return [file]
    path = PurePosixPath(file)
    config = CONFIG if file.endswith((".safetensors", INDEX)) else None
    beside = [path.with_name(name).as_posix() for name in (other_half(path.name), config, *PILE_TOKENIZERS) if name]
    return [*(name for name in beside if name in names), file]


def _note(snapshot: Path) -> None:
    """Write into the cache which commit `main` is, as a download of `main`, which does not name a commit, does."""
    reference = snapshot.parent.parent / "refs" / MAIN
    with suppress(OSError):  # a cache that may only be read
        reference.parent.mkdir(exist_ok=True)
        with replacing_file(reference) as draft:
            draft.write_text(snapshot.name)


def _instead(name: str, repo: str, file: str, error: BaseException) -> Path:
    """What was downloaded before, where the hub is out of order. Raises ValueError."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status is not None and status < 500 and status != 429:
        raise ValueError(f"{name} cannot be fetched: {_refusal(error)}") from error
    reason = f"the hub answered {status}" if status else f"the hub did not answer ({type(error).__name__})"
    for snapshot in _snapshots(repo):
        if _is_whole(snapshot, file):
            if not isinstance(error, OfflineModeIsEnabled):  # which somebody wished
                print(f"{name}: {reason}; {snapshot.name[:12]}, downloaded before, is used", file=sys.stderr)
            return snapshot / file
    raise ValueError(f"{name} cannot be fetched: {reason}, and it was not downloaded before") from error


def _snapshots(repo: str) -> list[Path]:
    """The commits of `main` in the hub's cache, the newest first."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    named = folder / "refs"
    refs = {ref.relative_to(named).as_posix(): ref.read_text() for ref in named.rglob("*") if ref.is_file()}
    main = refs.pop(MAIN, None)
    others = set(refs.values()) - {main}
    commits = [commit for commit in (folder / "snapshots").glob("*") if commit.name not in others]
    return sorted(commits, key=lambda commit: (commit.name == main, commit.stat().st_mtime), reverse=True)


def _is_whole(snapshot: Path, file: str) -> bool:
    """Whether a snapshot holds a file, or one model where none is named, with all its shards."""
    try:
        path = snapshot / (
            file or one_model(snapshot, [path.name for path in snapshot.iterdir() if path.is_file()])[-1]
        )
        return path.is_file() and (path.name != INDEX or all(path.with_name(s).is_file() for s in shards(path)))
    except ValueError:
        return False


def _refusal(error: BaseException) -> str:
    """What the hub said, in words that say what to do."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "its terms must be accepted on the hub first, and a token given (`hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or it is private (`hf auth login`)"
    if isinstance(error, RemoteEntryNotFoundError):
        return "the repository has no such file"
    return str(error).strip().split("\n")[0]
