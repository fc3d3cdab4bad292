#include "scheduler/prefix_table.h"

#include <stdexcept>
#include <string>

namespace ruprompt {

int32_t PrefixTable::add(int64_t id, int32_t length, int32_t num_pages) {
  if (slots_.count(id) > 0) {
    throw std::invalid_argument("prefix " + std::to_string(id) +
                                " is known already: give the new one an id of its own");
  }
  int32_t slot = static_cast<int32_t>(prefixes_.size());
  if (free_slots_.empty()) {
    prefixes_.emplace_back();
    placed_.push_back(Place::kNone);
    links_.resize(prefixes_.size());
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
    prefixes_[slot] = Prefix();
  }
  prefixes_[slot].id = id;
  prefixes_[slot].length = length;
  prefixes_[slot].num_pages = num_pages;
  slots_.emplace(id, slot);
  return slot;
}

int32_t PrefixTable::slot(int64_t id) const {
  const auto found = slots_.find(id);
  if (found == slots_.end()) {
    throw std::out_of_range("prefix " + std::to_string(id) + " is not known; " + std::to_string(slots_.size()) +
                            " prefixes are: add it first");
  }
  return found->second;
}

int32_t PrefixTable::newest_held(int32_t except) const {
  int32_t newest = -1;
  for (int32_t slot = held_.head; slot >= 0; slot = links_.next[slot]) {
    if (slot == except) continue;
    if (newest < 0 || prefixes_[slot].admission > prefixes_[newest].admission) newest = slot;
  }
  return newest;
}

bool PrefixTable::within_budget(int32_t slot) const {
  return max_device_pages_ < 0 || device_pages_ - evictable_pages_ + prefixes_[slot].num_pages <= max_device_pages_;
}

bool PrefixTable::over_budget(int32_t slot) const {
  return max_device_pages_ >= 0 && device_pages_ + prefixes_[slot].num_pages > max_device_pages_;
}

void PrefixTable::start(int32_t slot, int64_t admission) {
  Prefix& prefix = prefixes_[slot];
  prefix.residency = Residency::kComputing;
  prefix.computed = 0;
  prefix.query = 0;
  prefix.admission = admission;
  for (int32_t i = 0; i < prefix.num_pages; ++i) prefix.pages.push_back(pages_.take());
  device_pages_ += prefix.num_pages;
  update(slot);
}

void PrefixTable::finish(int32_t slot) {
  prefixes_[slot].residency = Residency::kResident;
  ++num_resident_;
  update(slot);
}

void PrefixTable::drop(int32_t slot) {
  Prefix& prefix = prefixes_[slot];
  if (prefix.residency == Residency::kResident) --num_resident_;
  prefix.residency = Residency::kAbsent;
  for (auto page = prefix.pages.rbegin(); page != prefix.pages.rend(); ++page) pages_.release(*page);
  prefix.pages.clear();
  device_pages_ -= prefix.num_pages;
  update(slot);
}

void PrefixTable::erase(int32_t slot) {
  if (prefixes_[slot].residency != Residency::kAbsent) drop(slot);
  slots_.erase(prefixes_[slot].id);
  prefixes_[slot] = Prefix();
  free_slots_.push_back(slot);
}

PrefixTable::Place PrefixTable::place_of(const Prefix& prefix) const {
  if (prefix.residency == Residency::kAbsent || prefix.users > 0) return Place::kNone;
  const bool wanted = prefix.residency == Residency::kComputing || !prefix.waiters.empty() || prefix.warm;
  return wanted ? Place::kHeld : Place::kEvictable;
}

void PrefixTable::update(int32_t slot) {
  const Place from = placed_[slot], to = place_of(prefixes_[slot]);
  if (from == to) return;
  if (from == Place::kHeld) held_.erase(links_, slot);
  if (from == Place::kEvictable) {
    evictable_.erase(links_, slot);
    evictable_pages_ -= prefixes_[slot].num_pages;
  }
  if (to == Place::kHeld) held_.push_back(links_, slot);
  if (to == Place::kEvictable) {
    evictable_.push_back(links_, slot);
    evictable_pages_ += prefixes_[slot].num_pages;
  }
  placed_[slot] = to;
}

void PrefixTable::check() const {
  int64_t device_pages = 0, evictable_pages = 0;
  int32_t resident = 0;
  for (const auto& [id, slot] : slots_) {
    const Prefix& prefix = prefixes_[slot];
    const bool absent = prefix.residency == Residency::kAbsent;
    const bool pages_right = prefix.pages.size() == static_cast<size_t>(absent ? 0 : prefix.num_pages);
    const bool users_right = prefix.users == 0 || prefix.residency == Residency::kResident;
    if (prefix.id != id || !pages_right || !users_right || placed_[slot] != place_of(prefix)) {
      throw std::logic_error("prefix " + std::to_string(id) + " has a wrong state");
    }
    device_pages += absent ? 0 : prefix.num_pages;
    evictable_pages += placed_[slot] == Place::kEvictable ? prefix.num_pages : 0;
    resident += prefix.residency == Residency::kResident;
  }
  if (device_pages != device_pages_ || evictable_pages != evictable_pages_ || resident != num_resident_) {
    throw std::logic_error("the counts of prefix pages are wrong");
  }
  if (max_device_pages_ >= 0 && device_pages_ > max_device_pages_) {
    throw std::logic_error("prefixes hold " + std::to_string(device_pages_) + " pages, more than their budget of " +
                           std::to_string(max_device_pages_));
  }
}

}  // namespace ruprompt
