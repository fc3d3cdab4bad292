// Memory for large outputs, kept from one call to the next. No Python, no torch.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace ruprompt {

// The C library gives every block above 32 MB back to the system when it is freed, so each output of that size pays
// for its pages again: for 48 MiB these are 12,288 page faults, 14 of 17 ms measured, where the copy itself takes 3.
// The pool keeps the last few freed blocks, in huge pages where the system has them.
class BlockPool {
 public:
  // Blocks are used by tensors that may outlive the module, so the one pool is never destroyed.
  static BlockPool& instance();

  // Memory of at least `bytes`, aligned to 2 MB, and its true size in `capacity`.
  // Throws std::bad_alloc.
  void* take(size_t bytes, size_t* capacity);

  // Keeps the block for a later take, or frees it.
  void give_back(void* data, size_t capacity) noexcept;

  // Frees what is kept and returns how many bytes that was.
  size_t release() noexcept;

 private:
  struct Block {
    void* data;
    size_t capacity;
  };

  std::mutex mutex_;
  std::vector<Block> kept_;  // least recently given back first
};

}  // namespace ruprompt
