// What can be read from outside, and the check of everything that is kept twice.
#include "scheduler/scheduler.h"

namespace ruprompt {

std::vector<int32_t> Scheduler::pages_of_prefix(int64_t id) const { return prefixes_[prefixes_.slot(id)].pages; }

std::vector<int32_t> Scheduler::pages_of(int64_t id, int64_t sequence) const {
  const Request& request = known_request(id);
  if (sequence < 0 || sequence >= static_cast<int64_t>(request.sequences.size())) {
    throw std::out_of_range("request " + std::to_string(id) + " has " + std::to_string(request.sequences.size()) +
                            " sequences on the device, found index " + std::to_string(sequence));
  }
  const int32_t* const pages = table(request.sequences[sequence]);
  return {pages, pages + sequences_[request.sequences[sequence]].num_pages};
}

std::map<std::string, int64_t> Scheduler::stats() const {
  return {{"waiting", queue_.num_waiting()},
          {"running", static_cast<int64_t>(running_.size())},
          {"sequences", max_sequences_ - static_cast<int64_t>(free_sequences_.size())},
          {"tenants", queue_.num_tenants()},
          {"prefixes", static_cast<int64_t>(prefixes_.slots().size())},
          {"resident_prefixes", prefixes_.num_resident()},
          {"computing_prefixes", static_cast<int64_t>(computing_.size())},
          {"warming_prefixes", num_warming()},
          {"num_pages", pages_.num_pages()},
          {"free_pages", pages_.num_free()},
          {"cached_pages", pages_.num_cached()},
          {"prefix_pages", prefixes_.device_pages()},
          {"prefix_hits", counters_.prefix_hits},
          {"prefix_misses", counters_.prefix_misses},
          {"prefix_evictions", counters_.prefix_evictions},
          {"prefix_loads", counters_.prefix_loads},
          {"text_page_hits", counters_.text_page_hits},
          {"preemptions", counters_.preemptions},
          {"copies", counters_.copies},
          {"steps", counters_.steps},
          {"tokens", counters_.tokens},
          {"sampled_tokens", counters_.sampled_tokens}};
}

void Scheduler::check() const {
  pages_.check();
  prefixes_.check();
  queue_.check();
  std::vector<int32_t> references(pages_.num_pages(), 0);
  for (const auto& [id, slot] : prefixes_.slots()) {
    for (const int32_t page : prefixes_[slot].pages) ++references[page];
  }
  int64_t running = 0, sequences = 0, reserved = 0, cancelled = 0;
  for (const auto& [id, slot] : slots_) {
    const Request& request = requests_[slot];
    const std::string name = "request " + std::to_string(id);
    cancelled += request.cancelled;
    if (request.id != id) throw std::logic_error(name + " is filed under a wrong slot");
    if (request.admission == 0) {
      if (!request.sequences.empty()) throw std::logic_error(name + " waits but has sequences");
      continue;
    }
    ++running;
    reserved += request.max_sequences;
    sequences += static_cast<int64_t>(request.sequences.size());
    const size_t logical = request.num_sequences;
    const bool one = request.sequences.size() == 1;
    if (!one && request.sequences.size() != logical) throw std::logic_error(name + " has a wrong number of sequences");
    for (const int32_t sequence : request.sequences) {
      const Sequence& state = sequences_[sequence];
      if (state.computed < 0 || state.computed >= request.num_known || pages_for(state.computed) > state.num_pages) {
        throw std::logic_error(name + " has " + std::to_string(state.computed) + " of " +
                               std::to_string(request.num_known) + " tokens computed on " +
                               std::to_string(state.num_pages) + " pages");
      }
      if (one && logical > 1 && state.computed >= shared_input(request)) {
        throw std::logic_error(name + " has not become several sequences");
      }
      for (int32_t i = 0; i < state.num_pages; ++i) {
        const int32_t page = table(sequence)[i];
        ++references[page];
        if (i > state.computed >> page_shift_ && (pages_.references(page) != 1 || pages_.is_published(page))) {
          throw std::logic_error(name + " shares page " + std::to_string(page) + ", to which it will write");
        }
      }
    }
  }
  for (int32_t page = 0; page < pages_.num_pages(); ++page) {
    if (references[page] != pages_.references(page)) {
      throw std::logic_error("page " + std::to_string(page) + " has " + std::to_string(references[page]) +
                             " holders and " + std::to_string(pages_.references(page)) + " references");
    }
  }
  const int64_t waiting = static_cast<int64_t>(slots_.size()) - running;
  if (running != static_cast<int64_t>(running_.size()) || running != static_cast<int64_t>(order_.size()) ||
      waiting != queue_.num_waiting() || sequences != max_sequences_ - static_cast<int64_t>(free_sequences_.size()) ||
      reserved != max_sequences_ - unreserved_sequences_ || cancelled != num_cancelled_) {
    throw std::logic_error("the counts of requests or sequences are wrong");
  }
}

}  // namespace ruprompt
