#include "scheduler/page_hash_table.h"

namespace ruprompt {

PageHashTable::PageHashTable(int32_t max_pages) : shift_(63) {
  size_t capacity = 2;
  while (capacity < 2 * static_cast<size_t>(max_pages)) {
    capacity *= 2;
    --shift_;
  }
  entries_.resize(capacity);
}

int32_t PageHashTable::find(uint64_t hash) const {
  for (size_t i = home(hash);; i = after(i)) {
    if (entries_[i].page < 0 || entries_[i].hash == hash) return entries_[i].page;
  }
}

void PageHashTable::insert(uint64_t hash, int32_t page) {
  size_t i = home(hash);
  while (entries_[i].page >= 0) i = after(i);
  entries_[i] = {hash, page};
}

void PageHashTable::erase(uint64_t hash) {
  size_t hole = home(hash);
  while (entries_[hole].hash != hash || entries_[hole].page < 0) hole = after(hole);
  // Entries after the hole move up where that brings them nearer to their home, so that no search stops too early.
  const size_t mask = entries_.size() - 1;
  for (size_t i = after(hole); entries_[i].page >= 0; i = after(i)) {
    const size_t distance = (i - home(entries_[i].hash)) & mask;
    if (distance >= ((i - hole) & mask)) {
      entries_[hole] = entries_[i];
      hole = i;
    }
  }
  entries_[hole] = {};
}

}  // namespace ruprompt
