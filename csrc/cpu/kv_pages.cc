#include "cpu/kv_pages.h"

#include <algorithm>
#include <cstring>

namespace ruprompt {
namespace {

// Below this a parallel region costs more than it saves.
constexpr int64_t kParallelBytes = 64 << 10;

// Tokens first .. first + count - 1 go to consecutive places of one page.
struct Run {
  int64_t first;
  int64_t count;
  int64_t page;
  int64_t place;
};

template <typename T>
void write_keys(const KvSource& key, const KvPages& pages, const Run& run) {
  T* page = static_cast<T*>(pages.keys) + run.page * pages.heads * key.width * kPageTokens + run.place;
  for (int64_t h = 0; h < pages.heads; ++h) {
    const T* from = static_cast<const T*>(key.data) + run.first * key.token_stride + h * key.head_stride;
    T* to = page + h * key.width * kPageTokens;
    for (int64_t d = 0; d < key.width; ++d) {
      for (int64_t t = 0; t < run.count; ++t) to[d * kPageTokens + t] = from[t * key.token_stride + d];
    }
  }
}

template <typename T>
void write_values(const KvSource& value, const KvPages& pages, const Run& run) {
  T* page = static_cast<T*>(pages.values) + (run.page * pages.heads * kPageTokens + run.place) * value.width;
  for (int64_t h = 0; h < pages.heads; ++h) {
    const T* from = static_cast<const T*>(value.data) + run.first * value.token_stride + h * value.head_stride;
    T* to = page + h * kPageTokens * value.width;
    for (int64_t t = 0; t < run.count; ++t) {
      std::memcpy(to + t * value.width, from + t * value.token_stride, static_cast<size_t>(value.width) * sizeof(T));
    }
  }
}

// The tokens from `first` on, fewer than `end`, whose slots follow each other in one page.
Run next_run(const int64_t* slots, int64_t first, int64_t end) {
  const int64_t page = slots[first] / kPageTokens, place = slots[first] % kPageTokens;
  const int64_t limit = std::min(end - first, kPageTokens - place);
  int64_t count = 1;
  while (count < limit && slots[first + count] == slots[first] + count) ++count;
  return {first, count, page, place};
}

template <typename T>
void write_typed(const KvSource& key, const KvSource& value, const KvPages& pages, const int64_t* slots, int64_t tokens,
                 int threads) {
  const int64_t bytes = tokens * pages.heads * (key.width + value.width) * static_cast<int64_t>(sizeof(T));
  const int64_t pieces = threads > 1 && bytes >= kParallelBytes ? std::min<int64_t>(threads, tokens) : 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t end = tokens * (piece + 1) / pieces;
    for (int64_t token = tokens * piece / pieces; token < end;) {
      const Run run = next_run(slots, token, end);
      write_keys<T>(key, pages, run);
      write_values<T>(value, pages, run);
      token += run.count;
    }
  }
}

}  // namespace

int64_t write_kv(const KvSource& key, const KvSource& value, const KvPages& pages, const int64_t* slots, int64_t tokens,
                 int threads) {
  const auto limit = static_cast<uint64_t>(pages.num_pages * kPageTokens);
  for (int64_t n = 0; n < tokens; ++n) {
    // One unsigned comparison holds both ends of the range.
    if (static_cast<uint64_t>(slots[n]) >= limit) return n;
  }
  if (pages.element_bytes == 4) {
    write_typed<uint32_t>(key, value, pages, slots, tokens, threads);
  } else {
    write_typed<uint16_t>(key, value, pages, slots, tokens, threads);
  }
  return -1;
}

template <typename Index>
int64_t copy_pages(char* pages, int64_t num_pages, int64_t page_bytes, const Index* pairs, int64_t count, int threads) {
  for (int64_t i = 0; i < 2 * count; ++i) {
    if (pairs[i] < 0 || pairs[i] >= num_pages) return i;
  }
  // Every thread copies its slice of all the pages, so that one pair follows another in each.
  const int64_t pieces = threads > 1 && count * page_bytes >= kParallelBytes ? threads : 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 1)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = page_bytes * piece / pieces, end = page_bytes * (piece + 1) / pieces;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t source = pairs[2 * i], destination = pairs[2 * i + 1];
      std::memmove(pages + destination * page_bytes + begin, pages + source * page_bytes + begin,
                   static_cast<size_t>(end - begin));
    }
  }
  return -1;
}

template int64_t copy_pages<int32_t>(char*, int64_t, int64_t, const int32_t*, int64_t, int);
template int64_t copy_pages<int64_t>(char*, int64_t, int64_t, const int64_t*, int64_t, int);

}  // namespace ruprompt
