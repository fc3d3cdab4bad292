// Who holds which page of the key/value pool. Integers only: no Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/index_list.h"
#include "scheduler/page_hash_table.h"

namespace ruprompt {

// Every page is in exactly one of three states:
//   free    no reference, no hash;
//   in use  at least one reference, with or without a hash;
//   cached  no reference, but a hash: its content may be shared again until the page is needed.
class PageAllocator {
 public:
  explicit PageAllocator(int32_t num_pages);

  int32_t num_pages() const { return static_cast<int32_t>(references_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return cached_.size; }
  int32_t references(int32_t page) const { return references_[page]; }
  bool is_published(int32_t page) const { return published_[page] != 0; }

  // A free page, with one reference. There must be one.
  int32_t take();

  // One more reference to a page in use or cached.
  void share(int32_t page);

  // One reference less; without any left the page is cached if it has a hash, else free.
  void release(int32_t page);

  // The page whose content has this hash, or -1.
  int32_t find(uint64_t hash) const { return by_hash_.find(hash); }

  // Makes the content of a page in use findable. The first page under a hash stays; a second one is not published.
  void publish(int32_t page, uint64_t hash);

  // The least recently used cached page becomes free. There must be one.
  void evict_cached();

  // Throws std::logic_error unless each page is in exactly one state.
  void check() const;

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;  // the last one is taken first
  std::vector<uint64_t> hashes_;
  std::vector<uint8_t> published_;
  PageHashTable by_hash_;
  IndexLinks links_;
  IndexList cached_;  // least recently used first
};

}  // namespace ruprompt
