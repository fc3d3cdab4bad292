"""What an engine on a CUDA device takes of its memory, gives back, and does without."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from backends.cuda.cuda_cases import CUDA, ENDLESS, bits, engines_with, ids_of, llama, loaded, serve, with_norm
from backends.cuda.engine_cases import Troubled, case, trouble
from engine.reference import NAMES, TEXTS, assert_at_rest, counts
from patience import wait_for
from tiny_models import tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends.cuda import CudaOptions
from ruprompt_fast.backends.cuda.device import CudaDevice
from ruprompt_fast.backends.cuda.kv_pool import DevicePages
from ruprompt_fast.backends.page_layout import bytes_per_page
from ruprompt_fast.cache import HostPages
from ruprompt_fast.concurrency import threads
from ruprompt_fast.errors import DetachedModelError, EngineStepError, ModelChangedError
from ruprompt_fast.ops import paged_decode, write_kv_token_major
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE
from ruprompt_fast.prompts import KVShape

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

KV_BYTES = 64 << 20
CLOSED_BYTES = 1 << 20  # what a closed engine has that somebody holds: the inputs of a step, the settings of its rows


def allocated_bytes() -> int:
    """Bytes of the card that tensors and libraries have."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(CUDA)


def test_refreshing_keeps_no_memory() -> None:
    """Also while somebody holds a stream of the first of all those engines."""
    served = serve()
    expected = ids_of(served, 3)
    served.refresh()
    assert ids_of(served, 3) == expected
    before, num_pages = allocated_bytes(), counts(served).num_pages
    stream = served.stream(TEXTS[0], NAMES[0], max_new_tokens=50, **ENDLESS)
    next(stream)
    sizes = set()
    for _ in range(20):
        served.refresh()
        assert counts(served).num_pages == num_pages
        sizes.add(allocated_bytes())
    assert len(sizes) == 1, sizes
    with pytest.raises(ModelChangedError):
        "".join(stream)
    del stream
    served.refresh()
    assert ids_of(served, 3) == expected
    assert allocated_bytes() == before
    served.detach()


def test_detaching_in_the_midst_of_a_stream() -> None:
    ids = torch.tensor([[5, 9, 12, 40, 7]], device=CUDA)
    model = copy.deepcopy(case().base).to(CUDA)

    def once() -> tuple[int, int]:
        """Bytes that the engine takes, and those that it still has after."""
        with torch.inference_mode():
            logits = model(ids).logits.clone()
        before = allocated_bytes()
        served = FastPromptModel.from_pretrained(
            model, case().prompts, tiny_tokenizer(), max_batch_size=4, kv_cache_bytes=KV_BYTES
        )
        stream = served.stream(TEXTS[0], NAMES[0], max_new_tokens=50, **ENDLESS)
        next(stream)
        during = allocated_bytes()
        assert served.detach() is model
        after = allocated_bytes()
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, logits)
        with pytest.raises(DetachedModelError):
            "".join(stream)
        return during - before, after - before

    running = set(threads._PROGRAM.own)
    once()  # libraries take memory of their own at their first use
    gc.collect()
    wait_for(lambda: threads._PROGRAM.own <= running)  # the engine's thread leaves it to the next one
    before = allocated_bytes()
    during, after = once()
    assert during > 0.9 * KV_BYTES
    assert after < CLOSED_BYTES
    assert allocated_bytes() == before


@pytest.mark.parametrize(("graphs", "at"), [(True, 1), (False, 4)], ids=["prefill", "decode"])
def test_a_step_without_memory(graphs: bool, at: int) -> None:
    """Its requests are told, what it had computed is not kept, and the next request is answered."""

    def allocate() -> None:
        torch.empty(1 << 42, dtype=torch.uint8, device=CUDA)

    with engines_with(CudaOptions(graphs=graphs)):
        served = loaded(with_norm(Troubled), case().prompts)
        assert ids_of(served, 3) == ids_of(llama(), 3)
        with trouble(allocate, at) as seen, pytest.raises(EngineStepError, match="Tried to allocate") as caught:
            ids_of(served, 3)
        assert "max_step_tokens" in str(caught.value)
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
        gc.collect()
        assert [tensor() for tensor in seen] == [None]
        assert_at_rest(served)
        assert ids_of(served, 3) == ids_of(llama(), 3)
        served.detach()


LARGE = KVShape(1, 8, 256, 16)
LARGE_PAGES = 2**31 // (8 * PAGE_SIZE * 256) + 3


def random_pages(num: int) -> HostPages:
    """Bits of every kind, also those that are no numbers."""
    parts = [
        torch.randint(-(2**15), 2**15, (num, 8, PAGE_SIZE, width), dtype=torch.int16).view(torch.float16)
        for width in (LARGE.head_dim, LARGE.value_width)
    ]
    return HostPages((parts[0],), (parts[1],))


def test_the_last_page_of_a_large_pool() -> None:
    """Where offsets in elements need more than 31 bits."""
    device = CudaDevice(CUDA)
    needed = bytes_per_page([LARGE], PAGE_SIZE, torch.float16) * (LARGE_PAGES + 1)
    if device.free_bytes() < 2 * needed:
        pytest.skip(f"needs {2 * needed >> 20} MiB of free memory")
    pages = DevicePages(device, [LARGE], LARGE_PAGES, torch.float16)
    last = LARGE_PAGES - 1
    assert pages.keys[0].numel() - pages.keys[0][0].numel() > 2**31
    given = random_pages(2)
    pages.write_pages([last, 1], given)
    pages.copy_pages(np.array([[last, 0], [1, last - 1]], dtype=np.int32))
    for before, after in zip(bits(given), bits(pages.read_pages([last, 1, 0, last - 1])), strict=True):
        assert torch.equal(after, before[[0, 1, 0, 1]])
    key, value = (torch.randn(PAGE_SIZE, 8, width).half().to(CUDA) for width in (LARGE.head_dim, LARGE.value_width))
    for page in (last, 0):
        slots = torch.arange(PAGE_SIZE, device=CUDA) + page * PAGE_SIZE
        write_kv_token_major(key, value, pages.keys[0], pages.values[0], slots)
    query = torch.randn(1, 8, LARGE.head_dim).half().to(CUDA)
    lens = torch.tensor([PAGE_SIZE], dtype=torch.int32, device=CUDA)
    found = []
    for page in (last, 0):
        table = torch.tensor([[page]], dtype=torch.int32, device=CUDA)
        found.append(paged_decode(query, pages.keys[0], pages.values[0], table, lens, scaling=0.1))
        assert torch.equal(pages.keys[0][page], key.transpose(0, 1))
        assert torch.equal(pages.values[0][page], value.transpose(0, 1))
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0
    pages.close()
