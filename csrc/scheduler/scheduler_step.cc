// What runs in a step: running requests, prefixes under way, then what scheduler_admission.cc begins.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace ruprompt {

void Scheduler::check_budget(int64_t token_budget) const {
  if (token_budget < 1 || token_budget > max_step_tokens_) {
    throw std::invalid_argument("token_budget must be 1 to max_step_tokens = " + std::to_string(max_step_tokens_) +
                                ", found " + std::to_string(token_budget));
  }
  for (int64_t count = max_sequences_; count > token_budget; --count) {
    if (num_by_sequences_[count] > 0) {
      throw std::invalid_argument("a token_budget of " + std::to_string(token_budget) +
                                  " is too small for a request of " + std::to_string(count) +
                                  " sequences, which decode in one step");
    }
  }
}

const Plan& Scheduler::step(int64_t token_budget) {
  require_between_steps("step");
  check_budget(token_budget);
  ++now_;
  ++counters_.steps;
  plan_->clear();
  copied_by_.clear();
  ending_.clear();
  budget_ = static_cast<int32_t>(token_budget);
  num_scheduled_ = 0;
  pressed_ = false;
  in_step_ = true;
  schedule_running();
  for (const int32_t prefix : computing_) schedule_prefix(prefix);
  if (!pressed_) {
    admit_waiting();
    warm_prefixes();
  }
  if (num_scheduled_ == 0 && num_unfinished() > 0) admit_first_alone();
  compact();
  emit_rows();
  return *plan_;
}

// ---- room ----

// Free pages first, then cached text, then prefixes nobody uses, then what is newer than the request that grows.
bool Scheduler::make_room(int64_t pages, const Request* grower) {
  while (pages_.num_free() < pages) {
    if (pages_.num_cached() > 0) {
      pages_.evict_cached();
    } else if (prefixes_.least_recently_used() >= 0) {
      evict_prefix(prefixes_.least_recently_used());
    } else if (grower == nullptr || !take_from_newer(*grower)) {
      return false;
    }
  }
  return true;
}

// The oldest request, when nothing else can run, may also take prefixes that came before it: they wait for room that
// it will only give when it ends.
bool Scheduler::take_from_newer(const Request& grower) {
  pressed_ = true;
  const bool last_resort = num_scheduled_ == 0 && requests_[running_.front()].id == grower.id;
  int32_t victim = -1;
  for (auto slot = running_.rbegin(); slot != running_.rend(); ++slot) {
    const Request& request = requests_[*slot];
    if (request.admission == 0 || request.scheduled_step == now_) continue;
    if (request.admission > grower.admission) victim = *slot;
    break;
  }
  const int32_t held = prefixes_.newest_held();
  const int64_t held_since = held < 0 ? 0 : prefixes_[held].admission;
  const int64_t victim_since = victim < 0 ? 0 : requests_[victim].admission;
  if (held_since > victim_since && (held_since > grower.admission || last_resort)) {
    evict_prefix(held);
    return true;
  }
  if (victim < 0) return false;
  preempt(victim);
  return true;
}

// A complete prefix is listed, so that it can be saved before its pages are used again.
void Scheduler::evict_prefix(int32_t slot) {
  const Prefix& prefix = prefixes_[slot];
  if (prefix.residency == Residency::kResident) {
    plan_->evicted_ids[plan_->num_evictions] = prefix.id;
    const int32_t start = plan_->evicted_page_starts[plan_->num_evictions];
    std::copy(prefix.pages.begin(), prefix.pages.end(), plan_->evicted_pages.begin() + start);
    plan_->evicted_page_starts[++plan_->num_evictions] = start + prefix.num_pages;
    ++counters_.prefix_evictions;
  }
  drop_prefix(slot);
}

void Scheduler::preempt(int32_t slot) {
  Request& request = requests_[slot];
  if (request.tainted_step == now_) {
    // Pages copied for it in this step are free again: the copies must not be made.
    int32_t kept = 0;
    for (int32_t i = 0; i < plan_->num_copies; ++i) {
      if (copied_by_[i] == slot) continue;
      std::copy_n(&plan_->copies[2 * i], 2, &plan_->copies[2 * kept]);
      copied_by_[kept++] = copied_by_[i];
    }
    plan_->num_copies = kept;
    copied_by_.resize(kept);
  }
  plan_->preempted_ids[plan_->num_preempted++] = request.id;
  ++counters_.preemptions;
  requeue(slot);
}

// ---- running requests ----

// Decoding first, oldest first. Where the budget does not reach round, the next step starts with the first that was
// left out.
void Scheduler::schedule_running() {
  const size_t count = running_.size();
  size_t start = 0;
  if (rotation_ > 0) {
    while (start < count && requests_[running_[start]].admission < rotation_) ++start;
    rotation_ = 0;
  }
  unready_.clear();
  for (size_t i = 0; i < count; ++i) {
    const int32_t slot = running_[start + i < count ? start + i : start + i - count];
    const Request& request = requests_[slot];
    if (request.admission == 0) continue;
    if (!request.ready) {
      unready_.push_back(slot);
    } else if (request.num_sequences <= budget_) {
      schedule_decode(slot);
    } else if (rotation_ == 0) {
      rotation_ = request.admission;
    }
  }
  std::sort(unready_.begin(), unready_.end(),
            [this](int32_t a, int32_t b) { return requests_[a].admission < requests_[b].admission; });
  for (const int32_t slot : unready_) {
    if (budget_ > 0 && requests_[slot].admission > 0) schedule_prefill(slot);
  }
}

void Scheduler::schedule(int32_t slot) {
  const Request& request = requests_[slot];
  if (!request.ready) {
    schedule_prefill(slot);
  } else if (request.num_sequences <= budget_) {
    schedule_decode(slot);
  }
}

// All sequences or none.
void Scheduler::schedule_decode(int32_t slot) {
  Request& request = requests_[slot];
  for (const int32_t sequence : request.sequences) {
    if (!prepare_write(slot, sequence, request.num_known)) return;
  }
  for (const int32_t sequence : request.sequences) sequences_[sequence].query = 1;
  budget_ -= request.num_sequences;
  num_scheduled_ += request.num_sequences;
  request.scheduled_step = now_;
}

// A request of one sequence runs to its last token and samples there. One of several stops a token before, so that all
// sequences sample in one step.
void Scheduler::schedule_prefill(int32_t slot) {
  Request& request = requests_[slot];
  int32_t end = request.num_known - (request.num_sequences > 1);
  if (request.sequences.size() < static_cast<size_t>(request.num_sequences)) end = shared_input(request);
  for (const int32_t sequence : request.sequences) sequences_[sequence].query = 0;
  for (const int32_t sequence : request.sequences) {
    Sequence& state = sequences_[sequence];
    const int32_t query = std::min(end - state.computed, budget_);
    if (query <= 0) continue;
    if (!prepare_write(slot, sequence, state.computed + query)) return;
    state.query = query;
    budget_ -= query;
    ++num_scheduled_;
    request.scheduled_step = now_;
  }
}

void Scheduler::schedule_prefix(int32_t slot) {
  Prefix& prefix = prefixes_[slot];
  prefix.query = std::min(prefix.length - prefix.computed, budget_);
  budget_ -= prefix.query;
  num_scheduled_ += prefix.query > 0;
}

// ---- the plan ----

void Scheduler::emit_rows() {
  Plan& plan = *plan_;
  for (const int32_t slot : order_) {
    const Request& request = requests_[slot];
    if (request.scheduled_step != now_) continue;
    for (size_t i = 0; i < request.sequences.size(); ++i) {
      const int32_t sequence = request.sequences[i];
      const Sequence& state = sequences_[sequence];
      if (state.query == 0) continue;
      row_requests_[plan.num_rows] = slot;
      row_sequences_[plan.num_rows] = sequence;
      emit_page_table(sequence);
      emit_row(request.id, static_cast<int32_t>(i), state.computed, state.query,
               state.computed + state.query == request.num_known, table(sequence));
    }
    const bool samples = plan.samples[plan.num_rows - 1] != 0;
    if (samples && request.num_known + 1 - request.num_input >= request.max_new) ending_.push_back(slot);
  }
  for (const int32_t slot : computing_) {
    const Prefix& prefix = prefixes_[slot];
    if (prefix.query == 0) continue;
    row_sequences_[plan.num_rows] = slot;
    row_versions_[plan.num_rows] = 0;
    std::copy(prefix.pages.begin(), prefix.pages.end(),
              plan.block_tables.begin() + static_cast<size_t>(plan.num_rows) * max_pages_);
    emit_row(-1 - prefix.id, 0, prefix.computed, prefix.query, false, prefix.pages.data());
    ++plan.num_prefix_rows;
  }
}

// Most rows hold the sequence that they held in the last step, with the same pages or one more.
void Scheduler::emit_page_table(int32_t sequence) {
  const Sequence& state = sequences_[sequence];
  const int32_t row = plan_->num_rows;
  const int32_t from = row_versions_[row] == state.version ? row_filled_[row] : 0;
  if (from < state.num_pages) {
    int32_t* const out = plan_->block_tables.data() + static_cast<size_t>(row) * max_pages_;
    std::copy(table(sequence) + from, table(sequence) + state.num_pages, out + from);
  }
  row_versions_[row] = state.version;
  row_filled_[row] = state.num_pages;
}

void Scheduler::emit_row(int64_t id, int32_t index, int32_t computed, int32_t query, bool samples,
                         const int32_t* pages) {
  Plan& plan = *plan_;
  const int32_t row = plan.num_rows++;
  plan.request_ids[row] = id;
  plan.sequence_indices[row] = index;
  plan.context_lens[row] = computed + query;
  plan.samples[row] = samples;
  int64_t* const slots = plan.write_slots.data() + plan.num_tokens;
  for (int32_t i = 0; i < query; ++i) {
    const int32_t position = computed + i;
    slots[i] = (static_cast<int64_t>(pages[position >> page_shift_]) << page_shift_) | (position & (page_size_ - 1));
  }
  plan.num_tokens += query;
  plan.query_starts[row + 1] = plan.num_tokens;
}

}  // namespace ruprompt
