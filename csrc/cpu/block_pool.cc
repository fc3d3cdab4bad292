#include "cpu/block_pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace ruprompt {
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kKeptBlocks = 2;
constexpr size_t kKeptBytes = size_t{512} << 20;

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kHugePage, bytes);
  if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Advice only: without huge pages the block works as well, its first use is slower.
  (void)madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

BlockPool& BlockPool::instance() {
  static auto* pool = new BlockPool();
  return *pool;
}

void* BlockPool::take(size_t bytes, size_t* capacity) {
  const size_t wanted = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      // A block of more than twice the size would be held for little use.
      const bool fits = block->capacity >= wanted && block->capacity <= 2 * wanted;
      if (fits && (best == kept_.end() || block->capacity < best->capacity)) best = block;
    }
    if (best != kept_.end()) {
      const Block block = *best;
      kept_.erase(best);
      *capacity = block.capacity;
      return block.data;
    }
    kept_.reserve(kKeptBlocks + 1);  // so that giving back never allocates
  }
  *capacity = wanted;
  return allocate(wanted);
}

void BlockPool::give_back(void* data, size_t capacity) noexcept {
  if (capacity > kKeptBytes) {
    std::free(data);
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_.push_back({data, capacity});
  size_t total = 0;
  for (const Block& block : kept_) total += block.capacity;
  while (kept_.size() > kKeptBlocks || total > kKeptBytes) {
    total -= kept_.front().capacity;
    std::free(kept_.front().data);
    kept_.erase(kept_.begin());
  }
}

size_t BlockPool::release() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t total = 0;
  for (const Block& block : kept_) {
    total += block.capacity;
    std::free(block.data);
  }
  kept_.clear();
  return total;
}

}  // namespace ruprompt
