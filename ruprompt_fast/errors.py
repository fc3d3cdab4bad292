"""Named errors: each says what was expected, what was found, and what to do.

Every error derives from :class:`RupromptError` and from the built-in exception that a caller of ruPrompts,
PyTorch or a plain dictionary would catch for the same mistake, so existing ``except`` clauses keep working.
"""

from __future__ import annotations

import reprlib

MAX_MESSAGE_CHARS = 2_000
"""No message of an error is longer, whatever it quotes."""

_MESSAGE_END_CHARS = 500


def shown(value: object, max_chars: int = 200) -> str:
    """A value as a message quotes it: its ``repr``, with the middle left out if it is long; never an error.

    Args:
        value: anything, also something huge, deeply nested, or with a ``repr`` that fails.
        max_chars: how many characters at most.
    """
    shortener = _Shortener()
    shortener.maxstring = shortener.maxother = max_chars
    return _shortened(shortener.repr(value), max_chars, max_chars // 3)


def described(error: BaseException) -> str:
    """An error's type and message, shortened; never an error, also where its message cannot be made."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"<a message that raises {type(failure).__name__}>"
    return _shortened(f"{type(error).__name__}: {text}", MAX_MESSAGE_CHARS // 2, _MESSAGE_END_CHARS // 2)


class _Shortener(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return repr(x) if x.bit_length() <= 256 else f"<integer of {x.bit_length()} bits>"

    def repr_instance(self, x: object, level: int) -> str:
        try:
            return _shortened(repr(x), self.maxother, self.maxother // 3)
        except Exception:
            return f"<{type(x).__name__}>"


def _shortened(text: str, max_chars: int, end_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    gap = f" ... ({len(text)} characters) ... "
    return text[: max(0, max_chars - end_chars - len(gap))] + gap + text[-end_chars:]


class RupromptError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError shows the repr of its message, which would escape quotes and newlines.
        text = " ".join(str(argument) for argument in self.args)
        # Paths may hold bytes that are no text; a message must be printable everywhere.
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return _shortened(text, MAX_MESSAGE_CHARS, _MESSAGE_END_CHARS)


class NotInitializedError(RupromptError, UserWarning):
    """A prompt, format or provider was used before it was initialized (``UserWarning``, as in ruPrompts)."""


class AlreadyAttachedError(RupromptError, UserWarning):
    """A prompt was attached twice where only one attachment is possible."""


class DuplicatePromptError(RupromptError, UserWarning):
    """A prompt was added under a name that is already in use."""


class UnknownPromptError(RupromptError, KeyError):
    """A request names a prompt that is not loaded; the message lists those that are."""


class TemplateError(RupromptError, ValueError):
    """A template cannot be read: unbalanced braces, a positional field, a bad repeat count."""


class MissingFieldError(RupromptError, KeyError):
    """A field that the template needs was not given."""


class ExtraFieldError(RupromptError, ValueError):
    """A field was given that the template does not have."""


class FieldTypeError(RupromptError, TypeError):
    """A field's value is not a string."""


class MarkerInFieldError(RupromptError, ValueError):
    """A field's text contains a prompt marker or a special token's text: the text form cannot tell it from its own."""


class TextFormError(RupromptError, ValueError):
    """A prompt's layout has no text form: its rows come before special tokens that the tokenizer itself adds."""


class MarkerCountError(RupromptError, ValueError):
    """A sequence holds another number of markers than the prompt has rows."""


class PromptLengthError(RupromptError, ValueError):
    """A prompt has a length that cannot work: no rows, or more than the vocabulary to sample from."""


class PromptTooLongError(PromptLengthError, UserWarning):
    """A prompt has more rows than there are tokens to initialize them from (``UserWarning``, as in ruPrompts)."""


class PromptInitError(RupromptError, ValueError, TypeError):
    """A provider was asked for an initialization that it cannot do (``TypeError`` too, as in ruPrompts)."""


class PromptMismatchError(RupromptError, ValueError):
    """A prompt was made for another width or another model."""


class NonFiniteRowsError(RupromptError, ValueError):
    """Prompt rows contain NaN or infinity."""


class TokenIdError(RupromptError, IndexError):
    """An id lies outside both the token table and the prompt table."""


class TensorArgumentError(RupromptError, ValueError):
    """A tensor given to an operator has a dtype, shape or device that the operator does not take."""


class PageIndexError(RupromptError, IndexError):
    """A page or slot lies outside the key/value cache."""


class PromptFileError(RupromptError, ValueError):
    """A prompt's file is missing, malformed, truncated or of the wrong shape."""


class PromptFolderError(PromptFileError, UserWarning):
    """A prompt was to be saved under the name of a file (``UserWarning``, as in ruPrompts)."""


class UnsafeFileError(PromptFileError):
    """A prompt's file holds something other than plain dense numbers, such as pickled code."""


class FileWriteError(RupromptError, OSError):
    """A file could not be written; the message says why. What was there before is there still."""


class HubError(RupromptError, OSError):
    """A repository of the Hugging Face Hub could not be read or written."""


class EmptyInputError(RupromptError, ValueError):
    """A call has no inputs, or a request nothing to read: no text, no prompt, and no beginning-of-text token."""


class BatchMismatchError(RupromptError, ValueError):
    """Parallel lists of a call have different lengths."""


class LabelError(RupromptError, ValueError):
    """Class labels that cannot be told apart, or are too few."""


class ContextLengthError(RupromptError, ValueError):
    """A request does not fit the model's context."""


class CapacityError(RupromptError, ValueError):
    """A request or prefix can never fit into the pages or sequences that the engine has."""


class UnknownArgumentError(RupromptError, TypeError):
    """A keyword argument is not known; the message names the nearest known ones."""


class SettingError(RupromptError, ValueError):
    """A setting has a value that cannot work, or one that is not supported."""


class NonFiniteLogitsError(RupromptError, ValueError):
    """The logits of a sequence leave nothing to choose: NaN or plus infinity, or every token is ruled out."""


class DetachedModelError(RupromptError, RuntimeError):
    """A model that should carry prompts has had its input embedding replaced or restored."""


class ModelChangedError(RupromptError, RuntimeError):
    """A model's weights, layers or settings were changed while a request ran: it would have mixed old and new ones."""


class UnsupportedModelError(RupromptError, TypeError):
    """A model or tokenizer lacks something that this package needs, or attached prompts rule a change of it out."""


class AttentionError(RupromptError, RuntimeError):
    """A model asks its attention for something that the engine does not compute, or calls it outside the engine."""


class EngineStepError(RupromptError, RuntimeError):
    """A step of the engine failed; the requests in it are lost, the engine goes on. The cause is chained."""


class GraphError(RupromptError, RuntimeError):
    """Work cannot be recorded in a graph, or a graph no longer fits what it was recorded from."""


class IntegrityError(RupromptError, RuntimeError):
    """The engine's parts disagree about what they hold, or a prefix is given back twice; an error of this package."""


class DeadlockError(RupromptError, RuntimeError):
    """A call would wait forever: it is made inside one of the model's own steps, or in a fork of its process."""


class TaskError(RupromptError, ValueError):
    """A task's description does not say what to train, or contradicts itself."""


class TrainingDataError(RupromptError, ValueError):
    """Rows to train or evaluate on are missing, empty or broken; the message names the file and the line."""


class OutputExistsError(RupromptError, FileExistsError):
    """An output folder or file is there already and would be overwritten."""


class OutputInUseError(OutputExistsError):
    """Another run writes to an output folder or file at this moment; the message names it."""


class ConfigError(RupromptError, ValueError):
    """A configuration has an entry that cannot work."""


class FrozenWeightsError(RupromptError, RuntimeError):
    """A weight of the frozen model received a gradient, was set to train, or was written to in vain."""


class DivergenceError(RupromptError, ArithmeticError):
    """Training produced NaN, infinity or a loss far above its best; the message says where the good prompt is."""


class CheckpointError(RupromptError, ValueError):
    """A training checkpoint is missing, incomplete, or of another run."""


class MissingDependencyError(RupromptError, ImportError, UserWarning):
    """An optional package is not installed; the message names the command that installs it."""


class FallbackWarning(UserWarning):
    """A model cannot run on the engine, and takes transformers' own generate, which is slower; the message says why."""


class UnknownBaseModelWarning(UserWarning):
    """Whether a prompt was made for this model cannot be told: its file says too little, or the two differ a bit."""
