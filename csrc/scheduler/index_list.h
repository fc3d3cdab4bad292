// Doubly linked lists of small integers. The links of all lists over one index space lie in two shared arrays, so an
// element is added or removed in O(1) and without allocation. No Python, no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ruprompt {

// An index is in at most one of the lists that share the links.
struct IndexLinks {
  std::vector<int32_t> next, prev;

  void resize(size_t count) {
    next.resize(count, -1);
    prev.resize(count, -1);
  }
};

struct IndexList {
  int32_t head = -1, tail = -1;
  int32_t size = 0;

  bool empty() const { return size == 0; }

  // `at` of -1 means the end.
  void insert_before(IndexLinks& links, int32_t at, int32_t index) {
    const int32_t before = at < 0 ? tail : links.prev[at];
    links.prev[index] = before;
    links.next[index] = at;
    (before < 0 ? head : links.next[before]) = index;
    (at < 0 ? tail : links.prev[at]) = index;
    ++size;
  }

  void push_back(IndexLinks& links, int32_t index) { insert_before(links, -1, index); }

  void erase(IndexLinks& links, int32_t index) {
    const int32_t before = links.prev[index], after = links.next[index];
    (before < 0 ? head : links.next[before]) = after;
    (after < 0 ? tail : links.prev[after]) = before;
    links.prev[index] = links.next[index] = -1;
    --size;
  }
};

}  // namespace ruprompt
