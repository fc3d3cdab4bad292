// Short stretches of memory that others write to, and a copy of what they held. No Python: addresses and sizes.
#pragma once

#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

namespace ruprompt {

class MemoryBlocks {
 public:
  struct Block {
    const char* start;
    size_t size;
  };

  // Copies what the blocks hold now. They must stay readable for as long as differ() is asked.
  explicit MemoryBlocks(std::vector<Block> blocks) : blocks_(std::move(blocks)) {
    for (const Block& block : blocks_) copy_.insert(copy_.end(), block.start, block.start + block.size);
  }

  // Whether any block holds something else now. The blocks lie far apart, so each is a cache miss: all are asked for
  // before the first is compared.
  bool differ() const {
    for (const Block& block : blocks_) __builtin_prefetch(block.start);
    const char* expected = copy_.data();
    for (const Block& block : blocks_) {
      if (std::memcmp(block.start, expected, block.size) != 0) return true;
      expected += block.size;
    }
    return false;
  }

 private:
  std::vector<Block> blocks_;
  std::vector<char> copy_;
};

}  // namespace ruprompt
