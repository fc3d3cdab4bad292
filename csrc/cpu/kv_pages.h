// Writing keys and values into pages of 16 tokens, and copying pages. No Python, no torch: pointers and sizes.
#pragma once

#include <cstdint>

namespace ruprompt {

constexpr int64_t kPageTokens = 16;

// One new tensor of keys or values: `tokens` x `heads` x `width` elements, each head's elements contiguous; the strides
// count elements.
struct KvSource {
  const void* data;
  int64_t token_stride;
  int64_t head_stride;
  int64_t width;
};

// key_pages [num_pages, heads, key.width, 16] and value_pages [num_pages, heads, 16, value.width], contiguous.
struct KvPages {
  void* keys;
  void* values;
  int64_t num_pages;
  int64_t heads;
  int64_t element_bytes;  // 2 or 4
};

// Writes token n to slot slots[n] = page * 16 + place in the page, and returns -1; or returns the position of the first
// slot that lies in no page, with nothing written. Of several tokens with one slot any may win.
int64_t write_kv(const KvSource& key, const KvSource& value, const KvPages& pages, const int64_t* slots, int64_t tokens,
                 int threads);

// Copies page pairs[2 * i] over page pairs[2 * i + 1], one pair after another, and returns -1; or returns the position
// in `pairs` of the first page that does not exist, with nothing written.
template <typename Index>
int64_t copy_pages(char* pages, int64_t num_pages, int64_t page_bytes, const Index* pairs, int64_t count, int threads);

}  // namespace ruprompt
