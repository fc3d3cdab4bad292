"""Saving and loading prompts."""

from __future__ import annotations

import abc
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ruprompt_fast.errors import NotInitializedError, PromptFolderError, UnknownArgumentError
from ruprompt_fast.file_writer import checked_path
from ruprompt_fast.prompts.files.prompt_config import PromptConfig
from ruprompt_fast.prompts.files.prompt_folder import StoredPrompt, write_prompt
from ruprompt_fast.prompts.files.prompt_sources import load_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self


class StoredPromptMixin(abc.ABC):
    """The half of a prompt that deals with folders and the Hugging Face Hub."""

    config: PromptConfig

    @abc.abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What ``prompt.json`` holds."""

    @abc.abstractmethod
    def rows(self) -> Tensor:
        """The rows, [prompt_length, width]."""

    @classmethod
    @abc.abstractmethod
    def _from_stored(cls, stored: StoredPrompt) -> Self:
        """An initialized prompt."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        save_bin: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the prompt to a folder, and on request to the Hugging Face Hub.

        Args:
            save_directory: the folder; created if it does not exist.
            push_to_hub: whether to upload the prompt too.
            save_bin: whether to write ``prompt_provider.bin`` beside the safetensors file, for ruPrompts.
            kwargs: arguments of :meth:`push_to_hub`; ``repo_id`` is the folder's name unless given.

        Raises:
            NotInitializedError: the prompt is not initialized.
            PromptFolderError: ``save_directory`` is a file.
            FileWriteError: it cannot be written to; what is there stays as it is.
            UnknownArgumentError: arguments for an upload that was not asked for.
        """
        content = self.as_dict()
        folder = Path(checked_path(save_directory))
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise PromptFolderError(f"{folder}: expected a folder to save the prompt in; found a file.")
        if kwargs and not push_to_hub:
            raise UnknownArgumentError(f"{', '.join(kwargs)} only mean something with push_to_hub=True.")
        write_prompt(folder, content, self.rows(), save_bin)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": folder.resolve().name, "save_bin": save_bin, **kwargs})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        save_bin: bool = False,
        endpoint: str | None = None,
    ) -> str:
        """Upload the prompt to a repository of the Hugging Face Hub, which is created if it does not exist.

        Args:
            repo_id: ``owner/name``; the owner may be left out.
            commit_message: the commit's first line.
            private: whether a new repository is private; defaults to the owner's default.
            token: an access token; defaults to the saved one.
            revision: the branch; defaults to the main one.
            create_pr: whether to open a pull request instead of committing.
            save_bin: whether to upload ``prompt_provider.bin`` too, for ruPrompts.
            endpoint: another hub's address; defaults to ``HF_ENDPOINT``.

        Returns:
            The commit's address.

        Raises:
            NotInitializedError: the prompt is not initialized.
            HubError: the upload failed; the message says what to do.
        """
        from ruprompt_fast.prompts.files.hub import upload_prompt

        content = self.as_dict()
        with tempfile.TemporaryDirectory() as folder:
            write_prompt(Path(folder), content, self.rows(), save_bin)
            return upload_prompt(
                Path(folder),
                repo_id,
                commit_message=commit_message or "Upload prompt",
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                endpoint=endpoint,
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_prompt_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str | None = None,
        task_id: int | None = None,
        endpoint: str | None = None,
    ) -> Self:
        """Load a prompt from a folder or from the Hugging Face Hub.

        Reads what :meth:`save_pretrained` writes, ruPrompts' files, and PEFT adapters of embedding rows (prompt tuning,
        P-tuning, CPT and multitask prompt tuning) or of keys and values (prefix tuning).

        Args:
            pretrained_prompt_name_or_path: a folder, or ``owner/name`` of a repository.
            revision: a branch, tag or commit of the repository.
            token: an access token; defaults to the saved one.
            cache_dir: where downloads are kept.
            local_files_only: whether to use only what was downloaded before, as with ``HF_HUB_OFFLINE=1``.
            force_download: whether to download again what was downloaded before.
            subfolder: a folder inside the repository, or inside the folder.
            task_id: which task of a multitask adapter.
            endpoint: another hub's address; defaults to ``HF_ENDPOINT``.

        Raises:
            PromptFileError: a file is missing, malformed, or does not belong to the others.
            UnsafeFileError: the rows are not plain dense numbers.
            NonFiniteRowsError: they contain NaN or infinity.
            HubError: the repository could not be read.
            SettingError: ``task_id`` is no number.
        """
        stored = load_prompt(
            pretrained_prompt_name_or_path,
            subfolder,
            task_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            endpoint=endpoint,
        )
        return cls._from_stored(stored)

    def get_default_model(self, **kwargs: Any) -> PreTrainedModel:
        """Load the model that the prompt was made for, with its output layer.

        Args:
            kwargs: arguments of transformers' ``from_pretrained``.

        Raises:
            NotInitializedError: the config does not name a model.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        name = self._model_name()
        hub = {key: kwargs[key] for key in ("cache_dir", "local_files_only", "revision", "token") if key in kwargs}
        config = AutoConfig.from_pretrained(name, **hub)
        factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return cast("PreTrainedModel", factory.from_pretrained(name, **kwargs))

    def get_default_tokenizer(self, **kwargs: Any) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the model that the prompt was made for.

        Args:
            kwargs: arguments of transformers' ``from_pretrained``.

        Raises:
            NotInitializedError: the config does not name a model.
        """
        from transformers import AutoTokenizer

        return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(self._model_name(), **kwargs))

    def _model_name(self) -> str:
        name = self.config.pretrained_model_name
        if not name:
            raise NotInitializedError(
                "the prompt's config does not say which model it is for; load the model yourself."
            )
        return name
