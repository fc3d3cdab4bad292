"""Loading models and tokenizers for serving."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.errors import HubError, PromptInitError, SettingError, UnsupportedModelError, shown
from ruprompt_fast.prompts import MultiPrompt
from ruprompt_fast.prompts.files.hub import is_reachable
from ruprompt_fast.prompts.files.paths import is_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def unwrapped(model: object) -> object:
    """What a PEFT wrapper is around, with the adapters that it has put into the layers; any other object is itself.

    Raises:
        UnsupportedModelError: the wrapper puts rows of its own before the text, which the model in it does not have.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model"):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} holds a soft prompt of PEFT's, which is served as a prompt: save it, read its "
            "folder with Prompt.from_pretrained(), and give the model alone, which get_base_model() returns."
        )
    return model.get_base_model()


def check_served(model: object, tokenizer: object, options: object) -> None:
    """Refuse what is no model, or none with numbers, no tokenizer or no options.

    Raises:
        UnsupportedModelError, SettingError: see above.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"model must be a transformers model, a folder or a hub id; found {type(model).__name__}."
        )
    if getattr(getattr(model.get_input_embeddings(), "weight", None), "is_meta", False):
        raise UnsupportedModelError(
            "the model's token table has no numbers (its device is 'meta'). Load the model with its weights; if parts "
            "of it are offloaded, keep the token table in memory (device_map)."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UnsupportedModelError(
            f"tokenizer must be a transformers tokenizer, a folder or a hub id; found {type(tokenizer).__name__}."
        )
    if not isinstance(options, EngineOptions):
        raise SettingError(f"options must be EngineOptions; found {type(options).__name__}.")


def sources_of(prompts: Any) -> Mapping[str, Any]:
    """Prompts, or where they are, by name.

    Raises:
        PromptInitError: this is something else.
    """
    if isinstance(prompts, MultiPrompt):
        return prompts.prompts
    if prompts is not None and not isinstance(prompts, Mapping):
        raise PromptInitError(f"prompts must be a dict by name, or a MultiPrompt; found {type(prompts).__name__}.")
    return prompts or {}


def load_model(
    model: Any,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> PreTrainedModel:
    """A frozen model from a folder or the hub, encoder-decoder or decoder.

    Args:
        model: a folder or a hub id.
        dtype: the weights'; None takes the file's on a GPU and float32 on a CPU.
        device: None takes the GPU if there is one.

    Raises:
        HubError: there is no such model, or it cannot be read.
        SettingError: there is no such device.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    target = device_of(device) or _default_device()
    if dtype is None:
        # float16 arithmetic on a CPU is many times slower than float32.
        dtype = torch.float32 if target.type == "cpu" else "auto"

    def load(source: str, **found: Any) -> Any:
        config = AutoConfig.from_pretrained(source, **found)
        factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return factory.from_pretrained(source, dtype=dtype, **found)

    network = _loaded("model", model, load)
    return cast("PreTrainedModel", network.to(target).requires_grad_(False))


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by object or name; None for the model's own, ``"auto"``.

    Raises:
        SettingError: models do not compute in it.
    """
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise SettingError(
            f"unknown dtype {shown(dtype)}; expected one of {', '.join(_DTYPES)} and auto. Weights of 8 bits are asked "
            'for with quantization="int8".'
        )
    return found


def weight_dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """The dtype to load weights in; None leaves it to the device, ``"auto"`` to the file.

    Raises:
        SettingError: models do not compute in it.
    """
    return "auto" if isinstance(dtype, str) and dtype == "auto" else dtype_of(dtype)


def device_of(device: torch.device | str | int | None) -> torch.device | None:
    """A device by object or name; None stays None.

    Raises:
        SettingError: there is no such device here.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
        usable = found.type != "meta"
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError):
        usable = False  # torch has an error of its own for every kind of device
    if not usable:
        raise SettingError(f"device must name one that torch can use here, such as 'cpu'; found {shown(device)}.")
    return found


def _loaded(kind: str, source: str | os.PathLike[str], load: Callable[..., Any]) -> Any:
    """What ``load`` gives for a folder or for a repository of the hub, which is never asked for what is a path.

    Raises:
        HubError: it fails, or there is no such folder.
    """
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        source, found = path, {}
    elif is_path(source):
        what = "that is a file" if os.path.exists(path) else "there is no such folder"
        raise HubError(f"the {kind} {shown(os.fspath(source))}: {what}. Give a folder or a hub id.")
    else:
        found = {} if is_reachable() else {"local_files_only": True}
    try:
        return load(source, **found)
    except MemoryError:
        raise
    except Exception as error:  # the hub's, the files' and the model's own
        where = "there is no such folder, the hub was not reached, and its cache has no such model: " if found else ""
        raise HubError(
            f"the {kind} {shown(source)} cannot be loaded: {where}{type(error).__name__}: {shown(str(error), 800)} "
            "Give a folder or a hub id."
        ) from error


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, or the model's own.

    Raises:
        UnsupportedModelError: no tokenizer, and a model object that does not say where it comes from.
        HubError: there is no such tokenizer, or it cannot be read.
    """
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    is_object = not isinstance(model, (str, os.PathLike))
    source: Any = tokenizer or (getattr(getattr(model, "config", None), "name_or_path", None) if is_object else model)
    if not source:
        raise UnsupportedModelError("this model object does not say where it comes from; give its tokenizer too.")
    from transformers import AutoTokenizer

    return cast("PreTrainedTokenizerBase", _loaded("tokenizer", source, AutoTokenizer.from_pretrained))
