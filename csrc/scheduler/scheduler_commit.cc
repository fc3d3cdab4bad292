// The end of a step: what became of it.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace ruprompt {

void Scheduler::commit(const std::vector<int64_t>& finished, const std::vector<int64_t>& again) {
  if (!in_step_) throw std::logic_error("commit was called without a step under way: call step first");
  const auto contains = [](const std::vector<int64_t>& ids, int64_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  for (const int64_t id : finished) known_request(id);
  for (const int64_t id : again) {
    const Request& request = known_request(id);
    if (!samples_in_step(request) || request.num_known == request.num_input || contains(finished, id)) {
      throw std::invalid_argument("request " + std::to_string(id) + " cannot start again: in this step it is finished, "
                                  "or does not sample after a token that it has sampled before");
    }
  }
  for (const int32_t slot : ending_) {
    const Request& request = requests_[slot];
    if (request.cancelled || contains(finished, request.id) || contains(again, request.id)) continue;
    throw std::invalid_argument("request " + std::to_string(request.id) + " samples the last of its " +
                                std::to_string(request.max_new) + " new tokens in this step and must be finished");
  }
  commit_rows();
  commit_prefixes();
  in_step_ = false;
  for (const int64_t id : finished) {
    const auto found = slots_.find(id);
    if (found != slots_.end()) forget(found->second);
  }
  for (const int64_t id : again) take_back(id);
  end_step();
}

// Nothing that was computed from the wrong token remains: a page of sampled tokens is never found by its hash.
void Scheduler::take_back(int64_t id) {
  const int32_t slot = slots_.at(id);
  Request& request = requests_[slot];
  if (request.cancelled) return;
  --request.num_known;
  counters_.sampled_tokens -= request.num_sequences;
  requeue(slot);
}

bool Scheduler::samples_in_step(const Request& request) const {
  if (request.scheduled_step != now_ || request.sequences.empty()) return false;
  const Sequence& state = sequences_[request.sequences.front()];
  return state.computed + state.query == request.num_known;
}

void Scheduler::commit_rows() {
  const Plan& plan = *plan_;
  const int32_t rows = plan.num_rows - plan.num_prefix_rows;
  for (int32_t row = 0; row < rows; ++row) {
    Request& request = requests_[row_requests_[row]];
    Sequence& state = sequences_[row_sequences_[row]];
    const int32_t before = state.computed;
    state.computed += state.query;
    if (before < request.num_input) publish_pages(request, row_sequences_[row], before);
    const bool last = row + 1 == rows || row_requests_[row + 1] != row_requests_[row];
    if (!last) continue;
    if (plan.samples[row]) {
      ++request.num_known;
      request.ready = true;
      queue_.charge(request.tenant, FairQueue::kOutputWeight * request.num_sequences);
      counters_.sampled_tokens += request.num_sequences;
    } else {
      expand(request);
      update_ready(request);
    }
  }
  counters_.tokens += plan.num_tokens;
  counters_.copies += plan.num_copies;
}

void Scheduler::commit_prefixes() {
  for (const int32_t slot : computing_) {
    Prefix& prefix = prefixes_[slot];
    prefix.computed += prefix.query;
    prefix.query = 0;
    if (prefix.computed < prefix.length) continue;
    prefix.warm = false;
    prefixes_.finish(slot);
    for (const int32_t waiter : prefix.waiters) queue_.restore(requests_[waiter].tenant);
  }
  const auto resident = [this](int32_t slot) { return prefixes_[slot].residency == Residency::kResident; };
  computing_.erase(std::remove_if(computing_.begin(), computing_.end(), resident), computing_.end());
  for (const int32_t slot : warming_) {
    if (!resident(slot)) continue;
    prefixes_[slot].warm = false;
    prefixes_.update(slot);
  }
}

// What was put off because the plan still spoke of it.
void Scheduler::end_step() {
  in_step_ = false;
  if (num_cancelled_ > 0) {
    for (const int32_t slot : running_) {
      if (requests_[slot].cancelled) forget(slot);
    }
  }
  compact();
  warming_.erase(
      std::remove_if(warming_.begin(), warming_.end(), [this](int32_t slot) { return !prefixes_[slot].warm; }),
      warming_.end());
  const std::vector<int32_t> computing = computing_;
  for (const int32_t slot : computing) settle_prefix(slot);
  for (const int32_t slot : removed_) {
    if (prefixes_[slot].removed) settle_prefix(slot);
  }
  removed_.clear();
}

// Requests whose pages rest on copies or loads of this step start again; the others go on from where they were.
void Scheduler::abort() {
  if (!in_step_) throw std::logic_error("abort was called without a step under way: call step first");
  for (auto slot = running_.rbegin(); slot != running_.rend(); ++slot) {
    if (requests_[*slot].tainted_step == now_) requeue(*slot);
  }
  const std::vector<int32_t> computing = computing_;
  for (const int32_t slot : computing) {
    if (prefixes_[slot].query == 0) continue;
    prefixes_[slot].warm = false;
    drop_prefix(slot);
  }
  for (int32_t i = 0; i < plan_->num_loads; ++i) {
    const int32_t slot = prefixes_.slot(plan_->load_ids[i]);
    prefixes_[slot].warm = false;
    drop_prefix(slot);
  }
  end_step();
}

}  // namespace ruprompt
