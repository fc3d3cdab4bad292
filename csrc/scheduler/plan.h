// What one step does. Integers only: no Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

namespace ruprompt {

// All arrays are allocated once at full capacity; the counts say how much of them the current step uses. Order of
// work: save the evicted prefixes if they are to be kept, fill the loaded ones, copy pages, run the forward pass.
struct Plan {
  Plan(int32_t max_rows, int32_t max_tokens, int32_t max_copies, int32_t num_pages, int32_t max_requests,
       int32_t max_pages_per_sequence)
      : max_pages_per_sequence(max_pages_per_sequence),
        request_ids(max_rows),
        sequence_indices(max_rows),
        query_starts(max_rows + 1),
        context_lens(max_rows),
        samples(max_rows),
        block_tables(static_cast<size_t>(max_rows) * max_pages_per_sequence),
        write_slots(max_tokens),
        copies(2 * static_cast<size_t>(max_copies)),
        evicted_ids(num_pages),
        evicted_page_starts(num_pages + 1),
        evicted_pages(num_pages),
        load_ids(num_pages),
        preempted_ids(max_requests) {}

  void clear() {
    num_rows = num_tokens = num_prefix_rows = num_copies = num_evictions = num_loads = num_preempted = 0;
    query_starts[0] = evicted_page_starts[0] = 0;
  }

  const int32_t max_pages_per_sequence;
  int32_t num_rows = 0, num_tokens = 0, num_prefix_rows = 0;
  int32_t num_copies = 0, num_evictions = 0, num_loads = 0, num_preempted = 0;

  std::vector<int64_t> request_ids;       // [rows]; -1 - prefix id for a prefix that is being computed
  std::vector<int32_t> sequence_indices;  // [rows]
  std::vector<int32_t> query_starts;      // [rows + 1]
  std::vector<int32_t> context_lens;      // [rows]; tokens in the cache after this step
  std::vector<uint8_t> samples;           // [rows]
  std::vector<int32_t> block_tables;      // [rows, max_pages_per_sequence]; right up to the context's last page
  std::vector<int64_t> write_slots;       // [tokens]
  std::vector<int32_t> copies;            // [copies, 2]: from page, to page; no page is in two copies as a target
  std::vector<int64_t> evicted_ids;
  std::vector<int32_t> evicted_page_starts;
  std::vector<int32_t> evicted_pages;
  std::vector<int64_t> load_ids;
  std::vector<int64_t> preempted_ids;
};

}  // namespace ruprompt
