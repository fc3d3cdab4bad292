// From the hash of a page's tokens to the page. Open addressing, memory taken once. No Python, no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ruprompt {

class PageHashTable {
 public:
  // Holds at most `max_pages` entries at a time.
  explicit PageHashTable(int32_t max_pages);

  // The page under this hash, or -1.
  int32_t find(uint64_t hash) const;

  // `hash` must be absent.
  void insert(uint64_t hash, int32_t page);

  // `hash` must be present.
  void erase(uint64_t hash);

 private:
  struct Entry {
    uint64_t hash = 0;
    int32_t page = -1;
  };

  size_t home(uint64_t hash) const { return (hash * 0x9E3779B97F4A7C15u) >> shift_; }
  size_t after(size_t position) const { return (position + 1) & (entries_.size() - 1); }

  int shift_;
  std::vector<Entry> entries_;  // a power of two of them, at least twice as many as pages
};

}  // namespace ruprompt
