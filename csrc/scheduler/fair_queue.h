// Waiting requests, first in first out within a tenant, tenants by least service. Integers only: no Python, no torch.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "scheduler/index_list.h"

namespace ruprompt {

// Virtual token counters after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): what a tenant is
// served adds to its counter (an input token 1, an output token 2), and the next request comes from the backlogged
// tenant with the least counter. A tenant that starts to wait is lifted to the least counter among those that wait, so
// that idle time earns no credit.
//
// Aging: a tenant's counter counts as kAgingPerStep lower for each step since it began to wait or was last served. All
// waiting tenants age alike, so the order is that of counter + kAgingPerStep * (step since which it waits), a key that
// only ever rises: a heap with stale keys stays right, and needs no work for tenants that are not looked at. A tenant
// whose counter is d above the least one is chosen after at most d / kAgingPerStep steps of waiting, whatever arrives.
class FairQueue {
 public:
  static constexpr int64_t kInputWeight = 1;
  static constexpr int64_t kOutputWeight = 2;
  static constexpr int64_t kAgingPerStep = 8;

  // The slot of a tenant, made on first use. It stays valid while the tenant has requests (see join and leave).
  int32_t tenant_slot(int64_t tenant);

  // A request of the tenant begins and ends, waiting or not.
  void join(int32_t tenant) { ++tenants_[tenant].num_requests; }
  void leave(int32_t tenant) { --tenants_[tenant].num_requests; }

  // Puts a request in its place by order of arrival. `now` is the number of the step.
  void push(int32_t tenant, int32_t request, int64_t arrival, int64_t now);

  // Takes a waiting request out, wherever it is in its queue.
  void erase(int32_t tenant, int32_t request);

  // Takes the best tenant that is neither empty nor set aside out of the order and returns it, or -1. Its queue is as
  // before; put it back with restore, or leave it set aside until then.
  int32_t pop_best();
  void restore(int32_t tenant);

  int32_t head(int32_t tenant) const { return tenants_[tenant].requests.head; }
  int32_t num_waiting() const { return num_waiting_; }
  int32_t num_tenants() const { return static_cast<int32_t>(slots_.size()); }

  // The first request of the tenant is admitted at step `now`: it leaves the queue, and the tenant's wait starts again.
  void admit_head(int32_t tenant, int64_t now);

  void charge(int32_t tenant, int64_t tokens) { tenants_[tenant].counter += tokens; }

  // How often others were admitted while this tenant was first but did not fit; admit_head starts it again.
  int32_t& bypassed(int32_t tenant) { return tenants_[tenant].bypassed; }

  // The counter of a tenant by its name; 0 if it is not known.
  int64_t counter(int64_t tenant) const;

  // Throws std::logic_error unless every tenant with waiting requests is in the order or set aside.
  void check() const;

 private:
  struct Tenant {
    int64_t name = 0;
    int64_t counter = 0;
    int64_t since = 0;  // the step since which it waits unserved
    int64_t stored_key = 0, stored_since = 0;  // as its place in the heap has it
    int32_t heap_position = -1;
    int32_t num_requests = 0;
    int32_t bypassed = 0;
    IndexList requests;
  };

  int64_t key(const Tenant& tenant) const { return tenant.counter + kAgingPerStep * tenant.since; }
  bool before(int32_t a, int32_t b) const;
  void place(int32_t tenant, int32_t position);
  void sift_up(int32_t position);
  void sift_down(int32_t position);
  void heap_erase(int32_t tenant);
  void refresh_top();
  int64_t least_counter(int64_t now);
  void forget_idle();

  std::vector<Tenant> tenants_;
  std::vector<int32_t> free_slots_;
  std::unordered_map<int64_t, int32_t> slots_;
  std::vector<int32_t> heap_;
  IndexLinks links_;
  std::vector<int64_t> arrivals_;  // by request
  int32_t num_waiting_ = 0;
  int64_t now_ = 0;            // of the last push
  int64_t last_counter_ = 0;   // of the tenant that last ceased to wait
  size_t forget_above_ = 1024;  // tenants
};

}  // namespace ruprompt
