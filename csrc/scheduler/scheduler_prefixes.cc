// Prefixes between steps: known, wanted, given up.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace ruprompt {

void Scheduler::add_prefix(int64_t id, int64_t length) {
  if (id < 0) throw std::invalid_argument("a prefix id must be at least 0, found " + std::to_string(id));
  if (length < 1 || length > max_model_len_) {
    throw std::invalid_argument("prefix " + std::to_string(id) + " must have 1 to " + std::to_string(max_model_len_) +
                                " tokens (max_model_len), found " + std::to_string(length));
  }
  prefixes_.add(id, static_cast<int32_t>(length), pages_for(length));
}

void Scheduler::remove_prefix(int64_t id) {
  const int32_t slot = prefixes_.slot(id);
  Prefix& prefix = prefixes_[slot];
  if (prefix.removed) return;
  prefix.removed = true;
  if (prefix.warm) {
    prefix.warm = false;
    warming_.erase(std::find(warming_.begin(), warming_.end(), slot));
    prefixes_.update(slot);
  }
  settle_prefix(slot);
}

void Scheduler::warm_prefix(int64_t id) {
  const int32_t slot = prefixes_.slot(id);
  Prefix& prefix = prefixes_[slot];
  if (prefix.removed) throw std::invalid_argument("prefix " + std::to_string(id) + " is removed and cannot be warmed");
  const int64_t limit = prefixes_.max_device_pages() < 0
                            ? pages_.num_pages()
                            : std::min<int64_t>(pages_.num_pages(), prefixes_.max_device_pages());
  if (prefix.num_pages > limit) {
    throw CapacityError("prefix " + std::to_string(id) + " takes " + std::to_string(prefix.num_pages) +
                        " pages, more than the " + std::to_string(limit) +
                        " that prefixes may have: give the pool more pages");
  }
  if (prefix.warm || prefix.residency == Residency::kResident) return;
  prefix.warm = true;
  warming_.push_back(slot);
  prefixes_.update(slot);
}

void Scheduler::set_host_copy(int64_t id, bool exists) { prefixes_[prefixes_.slot(id)].host_copy = exists; }

// Without listing it: for prefixes whose content is not worth saving.
void Scheduler::drop_prefix(int32_t slot) {
  Prefix& prefix = prefixes_[slot];
  if (prefix.residency == Residency::kComputing) {
    computing_.erase(std::find(computing_.begin(), computing_.end(), slot));
  }
  for (const int32_t waiter : prefix.waiters) {
    requests_[waiter].waits_for_prefix = false;
    queue_.restore(requests_[waiter].tenant);
  }
  prefix.waiters.clear();
  prefixes_.drop(slot);
}

// Gives up what nobody wants any longer. During a step the pages are part of the plan: then at its end.
void Scheduler::settle_prefix(int32_t slot) {
  Prefix& prefix = prefixes_[slot];
  if (in_step_) {
    if (prefix.removed) removed_.push_back(slot);
    return;
  }
  const bool unwanted = prefix.residency == Residency::kComputing && prefix.waiters.empty() && !prefix.warm;
  if (unwanted) drop_prefix(slot);
  if (prefix.removed && prefix.references == 0) prefixes_.erase(slot);
}

}  // namespace ruprompt
