#include "scheduler/page_allocator.h"

#include <stdexcept>
#include <string>

namespace ruprompt {
namespace {

[[noreturn]] void broken(int32_t page, const char* what) {
  throw std::logic_error("page " + std::to_string(page) + " " + what);
}

}  // namespace

PageAllocator::PageAllocator(int32_t num_pages)
    : references_(num_pages, 0), hashes_(num_pages, 0), published_(num_pages, 0), by_hash_(num_pages) {
  free_.reserve(num_pages);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
  links_.resize(num_pages);
}

int32_t PageAllocator::take() {
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PageAllocator::share(int32_t page) {
  if (references_[page]++ == 0) cached_.erase(links_, page);
}

void PageAllocator::release(int32_t page) {
  if (--references_[page] > 0) return;
  if (published_[page]) {
    cached_.push_back(links_, page);
  } else {
    free_.push_back(page);
  }
}

void PageAllocator::publish(int32_t page, uint64_t hash) {
  if (published_[page] || by_hash_.find(hash) >= 0) return;
  by_hash_.insert(hash, page);
  hashes_[page] = hash;
  published_[page] = 1;
}

void PageAllocator::evict_cached() {
  const int32_t page = cached_.head;
  cached_.erase(links_, page);
  by_hash_.erase(hashes_[page]);
  published_[page] = 0;
  free_.push_back(page);
}

void PageAllocator::check() const {
  std::vector<uint8_t> idle(references_.size(), 0);
  for (const int32_t page : free_) {
    if (idle[page]++) broken(page, "is on the free list twice");
    if (published_[page]) broken(page, "is free but has a hash");
  }
  int32_t listed = 0;
  for (int32_t page = cached_.head; page >= 0; page = links_.next[page], ++listed) {
    if (idle[page]++) broken(page, "is on the free list and cached");
    if (!published_[page]) broken(page, "is cached but has no hash");
  }
  if (listed != cached_.size) throw std::logic_error("the list of cached pages is damaged");
  for (int32_t page = 0; page < num_pages(); ++page) {
    if ((references_[page] == 0) != (idle[page] == 1)) broken(page, "has references exactly when it is idle");
    if (published_[page] && by_hash_.find(hashes_[page]) != page) broken(page, "is not found under its hash");
  }
}

}  // namespace ruprompt
