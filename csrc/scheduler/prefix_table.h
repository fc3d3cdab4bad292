// The prefixes that are known, which of them are on the device, and which of those may leave it. No Python, no torch.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "scheduler/index_list.h"
#include "scheduler/page_allocator.h"

namespace ruprompt {

enum class Residency : uint8_t { kAbsent, kComputing, kResident };

struct Prefix {
  int64_t id = -1;
  int32_t length = 0;      // tokens
  int32_t num_pages = 0;   // that it takes on the device
  int32_t references = 0;  // unfinished requests that name it
  int32_t users = 0;       // running requests, which share its pages
  int32_t computed = 0;    // tokens, while it is being computed
  int32_t query = 0;       // tokens that the step under way adds
  Residency residency = Residency::kAbsent;
  bool warm = false;       // wanted without a request
  bool removed = false;    // leaves with its last request
  bool host_copy = false;
  int64_t admission = 0;      // when it came to the device, on one scale with the requests' admissions
  int64_t loaded_step = -1;   // the last step that lists it as a load
  std::vector<int32_t> pages;
  std::vector<int32_t> waiters;  // requests at the head of their queues that wait for it; they keep it on the device
};

// A prefix on the device is in use (it has users), or held (it is being computed, or it has waiters, or it is warm and
// no step has used it yet), or evictable.
class PrefixTable {
 public:
  PrefixTable(PageAllocator& pages, int64_t max_device_pages) : pages_(pages), max_device_pages_(max_device_pages) {}

  // The slot of a new prefix. Throws std::invalid_argument if the id is known.
  int32_t add(int64_t id, int32_t length, int32_t num_pages);

  // Throws std::out_of_range if the id is not known.
  int32_t slot(int64_t id) const;

  Prefix& operator[](int32_t slot) { return prefixes_[slot]; }
  const Prefix& operator[](int32_t slot) const { return prefixes_[slot]; }

  int64_t max_device_pages() const { return max_device_pages_; }
  int64_t device_pages() const { return device_pages_; }
  int64_t evictable_pages() const { return evictable_pages_; }
  int32_t num_resident() const { return num_resident_; }
  int32_t least_recently_used() const { return evictable_.head; }  // of the evictable ones, or -1
  bool is_evictable(int32_t slot) const { return placed_[slot] == Place::kEvictable; }

  // The held prefix that came last to the device, other than `except`; or -1.
  int32_t newest_held(int32_t except = -1) const;

  // Whether the prefix may come to the device if all evictable ones leave it.
  bool within_budget(int32_t slot) const;

  // Whether another prefix must leave before this one comes.
  bool over_budget(int32_t slot) const;

  // Takes the pages, which must be free. The prefix is then being computed.
  void start(int32_t slot, int64_t admission);
  void finish(int32_t slot);

  // Gives up the pages, whatever the prefix's state; it must have no users.
  void drop(int32_t slot);

  // Forgets a removed prefix. Its id may be added again.
  void erase(int32_t slot);

  // Call after a change of users, waiters or warm: finds the prefix's place among held and evictable ones.
  void update(int32_t slot);

  // Throws std::logic_error with what is wrong.
  void check() const;

  const std::unordered_map<int64_t, int32_t>& slots() const { return slots_; }

 private:
  enum class Place : uint8_t { kNone, kHeld, kEvictable };

  Place place_of(const Prefix& prefix) const;

  PageAllocator& pages_;
  const int64_t max_device_pages_;
  std::vector<Prefix> prefixes_;
  std::vector<Place> placed_;
  std::vector<int32_t> free_slots_;
  std::unordered_map<int64_t, int32_t> slots_;
  IndexLinks links_;
  IndexList held_;
  IndexList evictable_;  // least recently used first
  int64_t device_pages_ = 0;
  int64_t evictable_pages_ = 0;
  int32_t num_resident_ = 0;
};

}  // namespace ruprompt
