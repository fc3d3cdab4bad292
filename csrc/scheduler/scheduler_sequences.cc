// Sequences of a running request, and the pages that they hold.
#include <algorithm>

#include "scheduler/scheduler.h"

namespace ruprompt {

// As far as one sequence alone computes for all: the input, but not the last known token, which every sequence computes
// for itself.
int32_t Scheduler::shared_input(const Request& request) const {
  return std::min(request.num_input, request.num_known - 1);
}

int32_t Scheduler::new_sequence() {
  const int32_t sequence = free_sequences_.back();
  free_sequences_.pop_back();
  sequences_[sequence] = {0, 0, 0, ++versions_};
  return sequence;
}

int32_t Scheduler::clone(int32_t parent) {
  const int32_t sequence = new_sequence();
  Sequence& copy = sequences_[sequence];
  copy.computed = sequences_[parent].computed;
  copy.num_pages = pages_for(copy.computed);
  for (int32_t i = 0; i < copy.num_pages; ++i) {
    table(sequence)[i] = table(parent)[i];
    pages_.share(table(parent)[i]);
  }
  return sequence;
}

// The last page is released first: a cached page is of no use without those before it, and the first released is the
// first to be evicted.
void Scheduler::end_sequence(int32_t sequence) {
  for (int32_t i = sequences_[sequence].num_pages - 1; i >= 0; --i) pages_.release(table(sequence)[i]);
  sequences_[sequence].num_pages = 0;
  free_sequences_.push_back(sequence);
}

// One sequence becomes several once it has computed what all of them share.
void Scheduler::expand(Request& request) {
  if (request.sequences.size() != 1 || request.num_sequences == 1) return;
  const int32_t first = request.sequences[0];
  if (sequences_[first].computed < shared_input(request)) return;
  while (request.sequences.size() < static_cast<size_t>(request.num_sequences)) {
    request.sequences.push_back(clone(first));
  }
}

// The first child of a sequence goes on with it; only further ones are copies.
void Scheduler::reorder(Request& request, const std::vector<int32_t>& parents) {
  std::vector<int32_t> old = request.sequences;
  std::vector<uint8_t> used(old.size(), 0);
  for (const int32_t parent : parents) used[parent] = 1;
  for (size_t i = 0; i < old.size(); ++i) {
    if (!used[i]) end_sequence(old[i]);
  }
  request.sequences.resize(parents.size());
  for (size_t i = 0; i < parents.size(); ++i) {
    const int32_t parent = parents[i];
    request.sequences[i] = used[parent] == 1 ? old[parent] : clone(old[parent]);
    used[parent] = 2;
  }
}

void Scheduler::update_ready(Request& request) {
  request.ready = request.sequences.size() == static_cast<size_t>(request.num_sequences);
  for (const int32_t sequence : request.sequences) {
    request.ready = request.ready && sequences_[sequence].computed == request.num_known - 1;
  }
}

// Makes the sequence the only holder of pages for its tokens from `computed` to `end`. False if there is no room; then
// the request may not run in this step.
bool Scheduler::prepare_write(int32_t slot, int32_t sequence, int32_t end) {
  Sequence& state = sequences_[sequence];
  if (end <= state.computed) return true;
  int32_t* const pages = table(sequence);
  const int32_t first = state.computed >> page_shift_, wanted = pages_for(end);
  const bool shared = first < state.num_pages && pages_.references(pages[first]) > 1;
  if (!shared && wanted <= state.num_pages) return true;
  Request& request = requests_[slot];
  if (!make_room(shared + std::max(0, wanted - state.num_pages), &request)) return false;
  if (shared) {
    const int32_t copy = pages_.take();
    plan_->copies[2 * plan_->num_copies] = pages[first];
    plan_->copies[2 * plan_->num_copies + 1] = copy;
    ++plan_->num_copies;
    copied_by_.push_back(slot);
    pages_.release(pages[first]);
    pages[first] = copy;
    state.version = ++versions_;
    request.tainted_step = now_;
  }
  while (state.num_pages < wanted) pages[state.num_pages++] = pages_.take();
  return true;
}

// Pages of the input that were filled since `before` tokens were computed.
void Scheduler::publish_pages(const Request& request, int32_t sequence, int32_t before) {
  const int32_t prefix_pages = request.prefix < 0 ? 0 : prefixes_[request.prefix].length >> page_shift_;
  const int32_t end = std::min<int32_t>(std::min(sequences_[sequence].computed, request.num_input) >> page_shift_,
                                        static_cast<int32_t>(request.page_hashes.size()));
  for (int32_t i = std::max(before >> page_shift_, prefix_pages); i < end; ++i) {
    pages_.publish(table(sequence)[i], request.page_hashes[i]);
  }
}

}  // namespace ruprompt
