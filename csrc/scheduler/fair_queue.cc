#include "scheduler/fair_queue.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

namespace ruprompt {

int32_t FairQueue::tenant_slot(int64_t tenant) {
  const auto found = slots_.find(tenant);
  if (found != slots_.end()) return found->second;
  if (slots_.size() >= forget_above_) forget_idle();
  int32_t slot = static_cast<int32_t>(tenants_.size());
  if (free_slots_.empty()) {
    tenants_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
    tenants_[slot] = Tenant();
  }
  tenants_[slot].name = tenant;
  slots_.emplace(tenant, slot);
  return slot;
}

// A tenant without requests whose counter would be lifted on its return anyway is no loss.
void FairQueue::forget_idle() {
  const int64_t least = least_counter(now_);
  for (int32_t slot = 0; slot < static_cast<int32_t>(tenants_.size()); ++slot) {
    const Tenant& tenant = tenants_[slot];
    const auto found = slots_.find(tenant.name);
    if (found == slots_.end() || found->second != slot) continue;
    if (tenant.num_requests > 0 || tenant.counter > least) continue;
    slots_.erase(found);
    free_slots_.push_back(slot);
  }
  forget_above_ = std::max<size_t>(1024, 2 * slots_.size());
}

int64_t FairQueue::least_counter(int64_t now) {
  if (heap_.empty()) return last_counter_;
  refresh_top();
  return key(tenants_[heap_[0]]) - kAgingPerStep * now;
}

void FairQueue::push(int32_t slot, int32_t request, int64_t arrival, int64_t now) {
  if (static_cast<size_t>(request) >= arrivals_.size()) {
    const size_t count = std::max<size_t>(request + 1, 2 * arrivals_.size());
    arrivals_.resize(count);
    links_.resize(count);
  }
  arrivals_[request] = arrival;
  now_ = now;
  Tenant& tenant = tenants_[slot];
  const bool starts = tenant.requests.empty();
  int32_t at = -1;
  if (!starts && arrivals_[tenant.requests.tail] > arrival) {
    // Only a preempted request comes here, and nearly always it is the first.
    for (at = tenant.requests.head; arrivals_[at] < arrival;) at = links_.next[at];
  }
  tenant.requests.insert_before(links_, at, request);
  ++num_waiting_;
  if (starts) {
    tenant.counter = std::max(tenant.counter, least_counter(now));
    tenant.since = now;
    tenant.bypassed = 0;
    restore(slot);
  }
}

void FairQueue::erase(int32_t slot, int32_t request) {
  Tenant& tenant = tenants_[slot];
  tenant.requests.erase(links_, request);
  --num_waiting_;
  if (tenant.requests.empty()) {
    last_counter_ = tenant.counter;
    if (tenant.heap_position >= 0) heap_erase(slot);
  }
}

void FairQueue::admit_head(int32_t slot, int64_t now) {
  Tenant& tenant = tenants_[slot];
  tenant.since = now;
  tenant.bypassed = 0;
  erase(slot, tenant.requests.head);
}

int32_t FairQueue::pop_best() {
  if (heap_.empty()) return -1;
  refresh_top();
  const int32_t best = heap_[0];
  heap_erase(best);
  return best;
}

void FairQueue::restore(int32_t slot) {
  Tenant& tenant = tenants_[slot];
  if (tenant.heap_position >= 0 || tenant.requests.empty()) return;
  tenant.stored_key = key(tenant);
  tenant.stored_since = tenant.since;
  heap_.push_back(slot);
  place(slot, static_cast<int32_t>(heap_.size()) - 1);
  sift_up(tenant.heap_position);
}

int64_t FairQueue::counter(int64_t tenant) const {
  const auto found = slots_.find(tenant);
  return found == slots_.end() ? 0 : tenants_[found->second].counter;
}

bool FairQueue::before(int32_t a, int32_t b) const {
  const Tenant &x = tenants_[a], &y = tenants_[b];
  return std::tie(x.stored_key, x.stored_since, x.name) < std::tie(y.stored_key, y.stored_since, y.name);
}

void FairQueue::place(int32_t slot, int32_t position) {
  heap_[position] = slot;
  tenants_[slot].heap_position = position;
}

void FairQueue::sift_up(int32_t position) {
  const int32_t slot = heap_[position];
  while (position > 0 && before(slot, heap_[(position - 1) / 2])) {
    place(heap_[(position - 1) / 2], position);
    position = (position - 1) / 2;
  }
  place(slot, position);
}

void FairQueue::sift_down(int32_t position) {
  const int32_t slot = heap_[position], count = static_cast<int32_t>(heap_.size());
  for (int32_t child = 2 * position + 1; child < count; child = 2 * position + 1) {
    if (child + 1 < count && before(heap_[child + 1], heap_[child])) ++child;
    if (!before(heap_[child], slot)) break;
    place(heap_[child], position);
    position = child;
  }
  place(slot, position);
}

void FairQueue::heap_erase(int32_t slot) {
  const int32_t position = tenants_[slot].heap_position, last = heap_.back();
  heap_.pop_back();
  tenants_[slot].heap_position = -1;
  if (last == slot) return;
  place(last, position);
  sift_up(position);
  sift_down(tenants_[last].heap_position);
}

// Keys only rise, so a top whose stored key is its key is the least.
void FairQueue::refresh_top() {
  for (;;) {
    Tenant& top = tenants_[heap_[0]];
    if (top.stored_key == key(top)) return;
    top.stored_key = key(top);
    top.stored_since = top.since;
    sift_down(0);
  }
}

void FairQueue::check() const {
  int32_t waiting = 0, ordered = 0;
  for (const auto& [name, slot] : slots_) {
    const Tenant& tenant = tenants_[slot];
    waiting += tenant.requests.size;
    if (tenant.heap_position < 0) continue;
    ++ordered;
    if (tenant.requests.empty() || heap_[tenant.heap_position] != slot || tenant.stored_key > key(tenant)) {
      throw std::logic_error("tenant " + std::to_string(name) + " has a wrong place in the order of tenants");
    }
  }
  if (waiting != num_waiting_ || ordered != static_cast<int32_t>(heap_.size())) {
    throw std::logic_error("the counts of waiting requests or tenants are wrong");
  }
}

}  // namespace ruprompt
