"""The errors about what is in a tensor, which kernels and references find alike."""

from __future__ import annotations

from torch import Tensor

from ruprompt_fast.errors import MarkerCountError, PageIndexError, TokenIdError


def bad_id_error(id_: int, position: int, token_limit: int, first_prompt_id: int, prompt_rows: int) -> TokenIdError:
    """The error for an id in neither table; ``position`` counts in the flattened ids."""
    tokens = f"0..{token_limit - 1}" if token_limit else "none"
    prompts = f"{first_prompt_id}..{first_prompt_id + prompt_rows - 1}" if prompt_rows else "none"
    return TokenIdError(
        f"id {id_} at flat position {position} of input_ids is in neither table: "
        f"token ids are {tokens}, prompt ids are {prompts}"
    )


def raise_on_bad_id(input_ids: Tensor, token_rows: int, prompt_rows: int, first_prompt_id: int) -> None:
    """Raises :class:`TokenIdError` for the first id in neither table, if there is one."""
    token_limit = max(0, min(first_prompt_id, token_rows))
    ids = input_ids.reshape(-1).long()
    is_token = (ids >= 0) & (ids < token_limit)
    is_prompt = (ids >= first_prompt_id) & (ids < first_prompt_id + prompt_rows)
    bad = (~(is_token | is_prompt)).nonzero()
    if bad.numel():
        position = int(bad[0])
        raise bad_id_error(int(ids[position]), position, token_limit, first_prompt_id, prompt_rows)


def marker_count_error(sequence: int, marker: int, found: int, rows: int) -> MarkerCountError:
    """The error for a sequence that has ``found`` of a prompt's markers."""
    return MarkerCountError(
        f"sequence {sequence} has {found} markers of id {marker}, but its prompt has {rows} rows; "
        "a prompt's markers must all be present (check for truncation) and appear once per sequence"
    )


def slot_error(write_slots: Tensor, position: int, num_pages: int, page_size: int) -> PageIndexError:
    """The error for a slot that lies in no page."""
    return PageIndexError(
        f"slot {int(write_slots[position])} at position {position} of write_slots lies in no page: "
        f"{num_pages} pages have the slots 0..{num_pages * page_size - 1}"
    )


def copy_error(copies: Tensor, position: int, num_pages: int) -> PageIndexError:
    """The error for a copy from or to a page that does not exist; ``position`` counts in the flattened pairs."""
    return PageIndexError(
        f"page {int(copies.reshape(-1)[position])} in row {position // 2} of copies does not exist: "
        f"the pages are 0..{num_pages - 1}"
    )
