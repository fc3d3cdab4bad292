"""Prompts on the Hugging Face Hub, through ``huggingface_hub``: its cache, tokens, mirrors and offline mode."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import cast

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ruprompt_fast.errors import HubError, RupromptError, shown
from ruprompt_fast.prompts.files.ensemble_folder import ENSEMBLE_FILE_NAME, member_folders
from ruprompt_fast.prompts.files.paths import local_path
from ruprompt_fast.prompts.files.peft_folder import PEFT_CONFIG_NAME, PEFT_SAFETENSORS_NAME, PEFT_TORCH_NAME
from ruprompt_fast.prompts.files.prompt_folder import (
    PROMPT_FILE_NAME,
    PROMPT_PROVIDER_FILE_NAME,
    PROMPT_SAFETENSORS_FILE_NAME,
)

# What describes one prompt, and the files that may hold its rows, the preferred one first.
_FILES = {
    PROMPT_FILE_NAME: (PROMPT_SAFETENSORS_FILE_NAME, PROMPT_PROVIDER_FILE_NAME),
    PEFT_CONFIG_NAME: (PEFT_SAFETENSORS_NAME, PEFT_TORCH_NAME),
}

# The hub's error derives from that of its HTTP library, which is another one in every generation of huggingface_hub.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_COMMIT = re.compile("[0-9a-f]{40}")
_hf_hub_download = cast("Callable[..., str]", hf_hub_download)
_FAILURES = (_TransportError, HFValidationError, OfflineModeIsEnabled, OSError)


def download_prompt(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Bring the files of a prompt or an ensemble into the cache, all of one commit, and nothing else of the repository.

    Args:
        repo_id: ``owner/name``.
        revision: a branch, tag or commit; defaults to the main branch.
        token: an access token; defaults to the saved one.
        cache_dir: the cache; defaults to ``HF_HOME``'s.
        local_files_only: whether to use only what is in the cache.
        force_download: whether to download again what is there.
        subfolder: the folder of the prompt inside the repository.
        endpoint: another hub's address; defaults to ``HF_ENDPOINT``.

    Returns:
        The folder with the files.

    Raises:
        HubError: the repository, revision or files are not there, not allowed, or out of reach.
        PromptFileError: an ensemble's index cannot be read.
    """
    _check_texts(repo_id=repo_id, revision=revision, endpoint=endpoint)
    cache = None if cache_dir is None else local_path(cache_dir)
    local_files_only = local_files_only or not (force_download or is_reachable(endpoint))
    source = _Source(repo_id, subfolder, token, cache, local_files_only, force_download, endpoint)
    try:
        return _download(source, [*_FILES, ENSEMBLE_FILE_NAME], revision)
    except RupromptError:
        raise
    except _FAILURES as error:
        raise HubError(_explain(error, repo_id, revision)) from error


def _download(source: _Source, descriptions: Sequence[str], revision: str | None) -> Path:
    """The folder with the first of these descriptions that is there, and the files that it describes."""
    found = source.first(sorted(descriptions, key=lambda name: source.is_known_missing(name, revision)), revision)
    if found is None:
        raise HubError(
            f"{source}: expected {' or '.join(descriptions)} at revision {revision or 'main'}; found none of them. "
            "The repository holds no prompt, or holds it in another folder: give its subfolder."
        )
    folder = found.parent
    # The other files must be of the same commit, also if somebody pushes a new one in between.
    commit = source.commit_of(found)
    if found.name == ENSEMBLE_FILE_NAME:
        for member in member_folders(folder):
            _download(source.below(member.relative_to(folder).as_posix()), list(_FILES), commit)
    elif source.first(_FILES[found.name], commit) is None:
        raise HubError(f"{source}: expected {' or '.join(_FILES[found.name])} beside {found.name}; found neither.")
    return folder


def is_reachable(endpoint: str | None = None) -> bool:
    """Whether the hub answers, asked twice at most.

    The hub's library asks six times, with longer and longer pauses, before it says that nobody answers.

    Args:
        endpoint: another hub's address; defaults to ``HF_ENDPOINT``.
    """
    if constants.is_offline_mode():
        return False
    for _ in range(2):
        try:
            get_session().head(endpoint or constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except _FAILURES:
            continue
        return True
    return False


def upload_prompt(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload a folder's files to a repository, in one commit; repository and branch are created if they do not exist.

    Args:
        folder: the folder.
        repo_id: ``owner/name``; the owner may be left out.
        commit_message: the commit's first line.
        private: whether a new repository is private.
        token: an access token; defaults to the saved one.
        revision: the branch; defaults to the main one.
        create_pr: whether to open a pull request instead of committing.
        endpoint: another hub's address; defaults to ``HF_ENDPOINT``.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        HubError: the upload failed; the message says what to do.
    """
    _check_texts(repo_id=repo_id, revision=revision, endpoint=endpoint, commit_message=commit_message)
    api = HfApi(endpoint=endpoint, token=token, library_name="ruprompt-fast")
    try:
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            full_id,
            [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except _FAILURES as error:
        raise HubError(_explain(error, repo_id, revision)) from error
    return str(commit.pr_url or commit.commit_url)


@dataclass
class _Source:
    """A folder of a repository; the arguments are those of :func:`download_prompt`."""

    repo_id: str
    subfolder: str | None
    token: str | bool | None
    cache_dir: Path | None
    local_files_only: bool
    force_download: bool
    endpoint: str | None

    def first(self, names: Iterable[str], revision: str | None) -> Path | None:
        """The first of these files that is there; None if the repository has none of them.

        Raises:
            LocalEntryNotFoundError: none is in the cache, and the hub was not reached.
        """
        unreachable: LocalEntryNotFoundError | None = None
        for name in names:
            found = self._fetch(name, revision)
            if isinstance(found, Path):
                return found
            if found is not None:
                # One of the other names may be in the cache; asking for them would only wait as long again.
                unreachable = found
                self.local_files_only, self.force_download = True, False
        if unreachable is not None:
            raise unreachable
        return None

    def below(self, folder: str) -> _Source:
        """A folder inside this one."""
        return replace(self, subfolder=f"{self.subfolder}/{folder}" if self.subfolder else folder)

    def is_known_missing(self, name: str, revision: str | None) -> bool:
        """Whether the cache remembers that the revision had no such file when the hub was last asked."""
        path = f"{self.subfolder}/{name}" if self.subfolder else name
        known = try_to_load_from_cache(self.repo_id, path, cache_dir=self.cache_dir, revision=revision)
        return known is not None and not isinstance(known, str) and not self.force_download

    def commit_of(self, path: Path) -> str:
        """The commit of a file in the cache, which is ``.../snapshots/<commit>/<subfolder>/<name>``."""
        depth = len(PurePosixPath(self.subfolder).parts) if self.subfolder else 0
        return path.parents[depth].name

    def _fetch(self, name: str, revision: str | None) -> Path | LocalEntryNotFoundError | None:
        """The file in the cache; None if the repository has no such file, an error if nobody could be asked."""
        # A commit never changes; a branch may have got the file since.
        if revision is not None and _COMMIT.fullmatch(revision) and self.is_known_missing(name, revision):
            return None
        try:
            path = _hf_hub_download(
                self.repo_id,
                name,
                subfolder=self.subfolder,
                revision=revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                force_download=self.force_download,
                endpoint=self.endpoint,
                library_name="ruprompt-fast",
            )
        except LocalEntryNotFoundError as error:
            return error
        except EntryNotFoundError:
            return None
        return Path(path)

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.subfolder}" if self.subfolder else self.repo_id


def _check_texts(repo_id: object, **optional: object) -> None:
    """Check arguments that name something.

    Raises:
        HubError: one is no string.
    """
    for name, value in {"repo_id": repo_id, **optional}.items():
        if not isinstance(value, str) and (name == "repo_id" or value is not None):
            raise HubError(f"expected {name} to be a string; found {shown(value)}.")


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    if isinstance(error, GatedRepoError):
        advice = f"access is granted on request: ask for it on the page of {repo_id}, then give your token."
    elif isinstance(error, RepositoryNotFoundError):
        advice = "no such repository, or a private one: check the name, run 'hf auth login', or give a token."
    elif isinstance(error, RevisionNotFoundError):
        advice = f"no revision {shown(revision)}: give a branch, tag or commit of the repository."
    elif isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        advice = (
            "there is no such folder, it is not in the cache, and the hub was not asked or not reached: check the "
            "spelling, the network and HF_HUB_OFFLINE."
        )
    elif isinstance(error, HFValidationError):
        advice = "neither a folder nor a valid id owner/name: check the spelling."
    elif isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        advice = "the hub refused: run 'hf auth login', or give a token with the needed permissions."
    else:
        advice = "the hub could not be used: check the network and try again."
    return f"{shown(repo_id)[1:-1]}: {advice} ({type(error).__name__}: {shown(str(error).strip(), 1_000)[1:-1]})"
