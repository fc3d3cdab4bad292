// What begins in a step: waiting requests, and prefixes that they or warm_prefix ask for.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace ruprompt {
namespace {

// A tenant whose first request does not fit may be overtaken, but only so often; then nothing is admitted until its
// request fits. So small requests delay large ones, but not for ever.
constexpr int32_t kMaxBypasses = 16;

// Tenants that may be passed over in one step: bounds the work of a step in which nothing fits.
constexpr size_t kMaxSkipped = 4;

}  // namespace

// The prefix's pages, then those pages of the text after it that are found by their hash. At least the last known
// token is left to compute, and from the text no page that would have to be copied for it.
Scheduler::Reuse Scheduler::find_reuse(const Request& request) const {
  Reuse reuse;
  int32_t first = 0;
  if (request.prefix >= 0) {
    reuse.computed = std::min(prefixes_[request.prefix].length, request.num_known - 1);
    reuse.prefix_pages = pages_for(reuse.computed);
    first = prefixes_[request.prefix].length >> page_shift_;
  }
  const int32_t end =
      std::min<int32_t>((request.num_known - 1) >> page_shift_, static_cast<int32_t>(request.page_hashes.size()));
  for (int32_t i = first; i < end; ++i) {
    const int32_t page = pages_.find(request.page_hashes[i]);
    if (page < 0) break;
    reuse.idle_pages += pages_.references(page) == 0;
    reuse.computed = (i + 1) << page_shift_;
    reuse.prefix_pages = first;
  }
  return reuse;
}

// For all known tokens and a page more per sequence, so that what is admitted is not preempted at once; but no more
// than the request can ever use.
int64_t Scheduler::pages_needed(const Request& request, const Reuse& reuse) const {
  const int64_t limit = pages_for(request.num_input + request.max_new - 1);
  const int64_t each = std::min<int64_t>(pages_for(request.num_known) + 1, limit);
  const int64_t shared = shared_input(request) >> page_shift_;
  return shared - (reuse.computed >> page_shift_) + request.num_sequences * (each - shared);
}

// Without taking anything from running requests, from held prefixes, or this prefix.
int64_t Scheduler::available_pages(int32_t prefix) const {
  const bool own = prefix >= 0 && prefixes_.is_evictable(prefix);
  return pages_.num_free() + pages_.num_cached() + prefixes_.evictable_pages() -
         (own ? prefixes_[prefix].num_pages : 0);
}

void Scheduler::admit_waiting() {
  skipped_.clear();
  while (budget_ > 0 && unreserved_sequences_ > 0 && skipped_.size() < kMaxSkipped) {
    const int32_t tenant = queue_.pop_best();
    if (tenant < 0) break;
    const Outcome outcome = try_admit(queue_.head(tenant));
    if (outcome == Outcome::kNoRoom) {
      skipped_.push_back(tenant);
      if (queue_.bypassed(tenant) >= kMaxBypasses) break;
      continue;
    }
    if (outcome == Outcome::kAdmitted) queue_.restore(tenant);
    for (const int32_t passed : skipped_) ++queue_.bypassed(passed);
  }
  for (const int32_t tenant : skipped_) queue_.restore(tenant);
}

// Nothing runs and nothing is being computed: what is held for other requests is in the way of the first one.
void Scheduler::admit_first_alone() {
  const int32_t tenant = queue_.pop_best();
  if (tenant < 0 || !running_.empty()) throw std::logic_error("requests are unfinished, but none can run");
  const int32_t slot = queue_.head(tenant);
  for (;;) {
    const int32_t held = prefixes_.newest_held(requests_[slot].prefix);
    if (held < 0) break;
    evict_prefix(held);
  }
  const Outcome outcome = try_admit(slot);
  if (outcome == Outcome::kNoRoom) throw std::logic_error("a request that fits alone found no room");
  if (outcome == Outcome::kAdmitted) queue_.restore(tenant);
}

Scheduler::Outcome Scheduler::try_admit(int32_t slot) {
  const Request& request = requests_[slot];
  if (unreserved_sequences_ < request.max_sequences) return Outcome::kNoRoom;
  const Reuse reuse = find_reuse(request);
  const int64_t pages = pages_needed(request, reuse) + reuse.idle_pages;
  if (request.prefix >= 0 && prefixes_[request.prefix].residency != Residency::kResident) {
    const Outcome outcome = bring_for(slot, pages);
    if (outcome != Outcome::kAdmitted) return outcome;
  } else if (pages > available_pages(request.prefix)) {
    return Outcome::kNoRoom;
  }
  admit(slot);
  return Outcome::kAdmitted;
}

// kAdmitted: the prefix is there. kComesLater: it is being computed, and the request's tenant stays set aside.
Scheduler::Outcome Scheduler::bring_for(int32_t slot, int64_t pages_beside) {
  Request& request = requests_[slot];
  Prefix& prefix = prefixes_[request.prefix];
  if (prefix.residency == Residency::kAbsent && !bring_prefix(request.prefix, pages_beside)) return Outcome::kNoRoom;
  request.missed_prefix = true;
  if (prefix.residency == Residency::kResident) return Outcome::kAdmitted;
  if (!request.waits_for_prefix) {
    request.waits_for_prefix = true;
    prefix.waiters.push_back(slot);
    prefixes_.update(request.prefix);
  }
  return Outcome::kComesLater;
}

// Loads the prefix or starts to compute it, if as many pages are left beside it.
bool Scheduler::bring_prefix(int32_t slot, int64_t pages_beside) {
  Prefix& prefix = prefixes_[slot];
  if (prefix.num_pages + pages_beside > available_pages(-1) || !prefixes_.within_budget(slot)) return false;
  if (!prefix.host_copy && computing_.size() >= static_cast<size_t>(max_sequences_)) return false;
  while (prefixes_.over_budget(slot)) evict_prefix(prefixes_.least_recently_used());
  make_room(prefix.num_pages, nullptr);
  prefixes_.start(slot, ++admissions_);
  if (prefix.host_copy) {
    prefixes_.finish(slot);
    prefix.loaded_step = now_;
    plan_->load_ids[plan_->num_loads++] = prefix.id;
    ++counters_.prefix_loads;
  } else {
    computing_.push_back(slot);
    schedule_prefix(slot);
  }
  return true;
}

void Scheduler::admit(int32_t slot) {
  Request& request = requests_[slot];
  const int32_t sequence = new_sequence();
  Sequence& state = sequences_[sequence];
  const Reuse reuse = find_reuse(request);
  if (request.prefix >= 0) {
    Prefix& prefix = prefixes_[request.prefix];
    ++prefix.users;
    stop_waiting(slot);
    prefixes_.update(request.prefix);
    ++(request.missed_prefix ? counters_.prefix_misses : counters_.prefix_hits);
    if (prefix.loaded_step == now_) request.tainted_step = now_;
    std::copy_n(prefix.pages.begin(), reuse.prefix_pages, table(sequence));
  }
  state.computed = reuse.computed;
  state.num_pages = pages_for(reuse.computed);
  for (int32_t i = reuse.prefix_pages; i < state.num_pages; ++i) {
    table(sequence)[i] = pages_.find(request.page_hashes[i]);
    ++counters_.text_page_hits;
  }
  for (int32_t i = 0; i < state.num_pages; ++i) pages_.share(table(sequence)[i]);

  request.sequences.assign(1, sequence);
  request.admission = ++admissions_;
  unreserved_sequences_ -= request.max_sequences;
  running_.push_back(slot);
  const auto key = [this](int32_t other) {
    const Request& r = requests_[other];
    return std::make_tuple(r.prefix_id, r.tenant_name, r.admission);
  };
  order_.insert(std::upper_bound(order_.begin(), order_.end(), slot,
                                 [&key](int32_t a, int32_t b) { return key(a) < key(b); }),
                slot);
  queue_.admit_head(request.tenant, now_);
  if (!request.charged) queue_.charge(request.tenant, FairQueue::kInputWeight * (request.num_known - reuse.computed));
  request.charged = true;
  request.missed_prefix = false;
  // All pages of the prefill are taken now, so that prefills never wait for each other's.
  prepare_write(slot, sequence, request.num_sequences == 1 ? request.num_known : shared_input(request));
  expand(request);
  update_ready(request);
  schedule(slot);
}

// In the order of the calls of warm_prefix.
void Scheduler::warm_prefixes() {
  for (const int32_t slot : warming_) {
    if (budget_ == 0) return;
    if (prefixes_[slot].residency == Residency::kAbsent && !bring_prefix(slot, 0)) return;
  }
}

}  // namespace ruprompt
