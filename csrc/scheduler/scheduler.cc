#include "scheduler/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace ruprompt {
namespace {

std::string number(int64_t value) { return std::to_string(value); }

int32_t in_range(int64_t value, int64_t least, const char* name) {
  if (value < least || value > std::numeric_limits<int32_t>::max() / 2) {
    throw std::invalid_argument(std::string(name) + " must be at least " + number(least) + " and below 2^30, found " +
                                number(value));
  }
  return static_cast<int32_t>(value);
}

int32_t power_of_two(int64_t value) {
  if (value < 1 || value > 65536 || (value & (value - 1)) != 0) {
    throw std::invalid_argument("page_size must be a power of two up to 65536, found " + number(value));
  }
  return static_cast<int32_t>(value);
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : page_size_(power_of_two(config.page_size)),
      max_pages_(static_cast<int32_t>(
          (in_range(config.max_model_len, 1, "max_model_len") + config.page_size - 1) / config.page_size)),
      max_sequences_(in_range(config.max_sequences, 1, "max_sequences")),
      max_model_len_(static_cast<int32_t>(config.max_model_len)),
      max_step_tokens_(in_range(config.max_step_tokens, 1, "max_step_tokens")),
      pages_(in_range(config.num_pages, 1, "num_pages")),
      prefixes_(pages_, config.max_prefix_pages),
      unreserved_sequences_(max_sequences_) {
  if (max_sequences_ > max_step_tokens_) {
    throw std::invalid_argument("max_step_tokens must be at least max_sequences, so that all may decode in one step: " +
                                number(max_step_tokens_) + " < " + number(max_sequences_));
  }
  if (config.max_prefix_pages < -1) {
    throw std::invalid_argument("max_prefix_pages must be -1 (no limit) or more, found " +
                                number(config.max_prefix_pages));
  }
  while ((1 << page_shift_) < page_size_) ++page_shift_;
  const int32_t max_rows = 2 * max_sequences_;  // as many prefixes may be computed at a time as sequences run
  plan_ = std::make_shared<Plan>(max_rows, max_step_tokens_, max_sequences_, pages_.num_pages(), max_sequences_,
                                 max_pages_);
  row_requests_.resize(max_rows);
  row_sequences_.resize(max_rows);
  row_versions_.resize(max_rows);
  row_filled_.resize(max_rows);
  sequences_.resize(max_sequences_);
  tables_.resize(static_cast<size_t>(max_sequences_) * max_pages_);
  num_by_sequences_.resize(max_sequences_ + 1);
  for (int32_t i = max_sequences_ - 1; i >= 0; --i) free_sequences_.push_back(i);
  for (auto* list : {&running_, &order_, &computing_, &unready_, &copied_by_}) list->reserve(max_sequences_);
}

void Scheduler::require_between_steps(const char* call) const {
  if (in_step_) {
    throw std::logic_error(std::string(call) + " was called while a step is under way: commit or abort it first");
  }
}

void Scheduler::check_fits_alone(const RequestSpec& spec, const Prefix* prefix) const {
  const std::string name = "request " + number(spec.id);
  if (spec.num_tokens > max_model_len_ || spec.max_new_tokens > max_model_len_ - spec.num_tokens) {
    throw CapacityError(name + " has " + number(spec.num_tokens) + " tokens and may sample " +
                        number(spec.max_new_tokens) + " more, together more than max_model_len = " +
                        number(max_model_len_));
  }
  if (spec.max_sequences > max_sequences_) {
    throw CapacityError(name + " needs " + number(spec.max_sequences) + " sequences at a time, more than " +
                        "max_sequences = " + number(max_sequences_));
  }
  const int64_t length = prefix == nullptr ? 0 : prefix->length;
  const int64_t prefix_pages = prefix == nullptr ? 0 : prefix->num_pages;
  if (prefixes_.max_device_pages() >= 0 && prefix_pages > prefixes_.max_device_pages()) {
    throw CapacityError(name + " uses prefix " + number(spec.prefix_id) + " of " + number(prefix_pages) +
                        " pages, more than the " + number(prefixes_.max_device_pages()) + " that prefixes may have");
  }
  // The last sampled token is never computed. At least the last input token is computed for the request itself, so a
  // prefix that ends there does not lend the page of that token.
  const int64_t total = pages_for(spec.num_tokens + spec.max_new_tokens - 1);
  const int64_t shared = (spec.num_tokens - 1) >> page_shift_;
  const int64_t from_prefix = std::min(length, spec.num_tokens - 1) >> page_shift_;
  const int64_t pages = prefix_pages + (shared - from_prefix) + spec.max_sequences * (total - shared);
  if (pages > pages_.num_pages()) {
    throw CapacityError(name + " needs up to " + number(pages) + " pages (" + number(prefix_pages) +
                        " of its prefix, " + number(shared - from_prefix) + " of its input, and " +
                        number(total - shared) + " for each of " + number(spec.max_sequences) +
                        " sequences), and there are " + number(pages_.num_pages()) +
                        ": give the pool more pages, or ask for fewer tokens");
  }
}

void Scheduler::add(RequestSpec spec) {
  const std::string name = "request " + number(spec.id);
  if (spec.id < 0) throw std::invalid_argument("a request id must be at least 0, found " + number(spec.id));
  if (slots_.count(spec.id) > 0) throw std::invalid_argument(name + " is already there: request ids are unique");
  if (spec.num_tokens < 1 || spec.max_new_tokens < 1 || spec.max_sequences < 1) {
    throw std::invalid_argument(name + " must have at least one token, one new token and one sequence, found " +
                                number(spec.num_tokens) + ", " + number(spec.max_new_tokens) + " and " +
                                number(spec.max_sequences));
  }
  const size_t full_pages = static_cast<size_t>(spec.num_tokens >> page_shift_);
  if (!spec.page_hashes.empty() && spec.page_hashes.size() != full_pages) {
    throw std::invalid_argument(name + " must have one page hash per full page of its input, " +
                                std::to_string(full_pages) + ", or none, found " +
                                std::to_string(spec.page_hashes.size()));
  }
  const int32_t prefix = spec.prefix_id == -1 ? -1 : prefixes_.slot(spec.prefix_id);
  if (prefix >= 0) {
    if (prefixes_[prefix].removed) {
      throw std::invalid_argument("prefix " + number(spec.prefix_id) + " is removed: " + name + " cannot use it");
    }
    if (prefixes_[prefix].length > spec.num_tokens) {
      throw std::invalid_argument(name + " has " + number(spec.num_tokens) + " tokens, fewer than the " +
                                  number(prefixes_[prefix].length) + " of its prefix, which are to be counted");
    }
  }
  check_fits_alone(spec, prefix < 0 ? nullptr : &prefixes_[prefix]);

  int32_t slot = static_cast<int32_t>(requests_.size());
  if (free_requests_.empty()) {
    requests_.emplace_back();
  } else {
    slot = free_requests_.back();
    free_requests_.pop_back();
  }
  Request& request = requests_[slot];
  request = Request();
  request.id = spec.id;
  request.arrival = ++arrivals_;
  request.tenant_name = spec.tenant;
  request.tenant = queue_.tenant_slot(spec.tenant);
  request.prefix_id = spec.prefix_id;
  request.prefix = prefix;
  request.num_input = request.num_known = static_cast<int32_t>(spec.num_tokens);
  request.max_new = static_cast<int32_t>(spec.max_new_tokens);
  request.max_sequences = static_cast<int32_t>(spec.max_sequences);
  request.page_hashes = std::move(spec.page_hashes);
  if (prefix >= 0) ++prefixes_[prefix].references;
  slots_.emplace(spec.id, slot);
  ++num_by_sequences_[request.max_sequences];
  queue_.join(request.tenant);
  queue_.push(request.tenant, slot, request.arrival, now_);
}

bool Scheduler::cancel(int64_t id) {
  const auto found = slots_.find(id);
  if (found == slots_.end() || requests_[found->second].cancelled) return false;
  const int32_t slot = found->second;
  if (requests_[slot].admission > 0 && in_step_) {
    requests_[slot].cancelled = true;
    ++num_cancelled_;
    return true;
  }
  forget(slot);
  compact();
  return true;
}

// Ends a request in whatever state it is. Lists of running requests are stale afterwards.
void Scheduler::forget(int32_t slot) {
  Request& request = requests_[slot];
  if (request.admission > 0) {
    stop_running(slot);
  } else {
    queue_.erase(request.tenant, slot);
    stop_waiting(slot);
    queue_.restore(request.tenant);
  }
  slots_.erase(request.id);
  --num_by_sequences_[request.max_sequences];
  queue_.leave(request.tenant);
  if (request.cancelled) --num_cancelled_;
  request.cancelled = false;
  if (request.prefix >= 0) {
    --prefixes_[request.prefix].references;
    settle_prefix(request.prefix);
  }
  request.page_hashes = {};
  free_requests_.push_back(slot);
}

void Scheduler::stop_running(int32_t slot) {
  Request& request = requests_[slot];
  for (const int32_t sequence : request.sequences) end_sequence(sequence);
  request.sequences.clear();
  request.admission = 0;
  request.ready = false;
  unreserved_sequences_ += request.max_sequences;
  stale_ = true;
  if (request.prefix >= 0) {
    --prefixes_[request.prefix].users;
    prefixes_.update(request.prefix);
  }
}

// The request no longer keeps its prefix on the device.
void Scheduler::stop_waiting(int32_t slot) {
  Request& request = requests_[slot];
  if (!request.waits_for_prefix) return;
  request.waits_for_prefix = false;
  std::vector<int32_t>& waiters = prefixes_[request.prefix].waiters;
  waiters.erase(std::find(waiters.begin(), waiters.end(), slot));
  prefixes_.update(request.prefix);
}

// Back to the head of its tenant's queue, with nothing computed.
void Scheduler::requeue(int32_t slot) {
  Request& request = requests_[slot];
  stop_running(slot);
  queue_.push(request.tenant, slot, request.arrival, now_);
  queue_.restore(request.tenant);
}

// Slots of requests that ended may be listed until here, so none is given away before.
void Scheduler::compact() {
  if (!stale_) return;
  stale_ = false;
  const auto gone = [this](int32_t slot) { return requests_[slot].admission == 0; };
  running_.erase(std::remove_if(running_.begin(), running_.end(), gone), running_.end());
  order_.erase(std::remove_if(order_.begin(), order_.end(), gone), order_.end());
}

const Request& Scheduler::known_request(int64_t id) const {
  const auto found = slots_.find(id);
  if (found == slots_.end()) throw std::out_of_range("request " + number(id) + " is not known or has ended");
  return requests_[found->second];
}

void Scheduler::fork(int64_t id, const std::vector<int32_t>& parents) {
  require_between_steps("fork");
  const int32_t slot = static_cast<int32_t>(&known_request(id) - requests_.data());
  Request& request = requests_[slot];
  if (parents.empty() || parents.size() > static_cast<size_t>(request.max_sequences)) {
    throw std::invalid_argument("request " + number(id) + " may have 1 to " + number(request.max_sequences) +
                                " sequences (max_sequences of add), found " + std::to_string(parents.size()) +
                                " parents");
  }
  for (const int32_t parent : parents) {
    if (parent < 0 || parent >= request.num_sequences) {
      throw std::invalid_argument("request " + number(id) + " has sequences 0 to " + number(request.num_sequences - 1) +
                                  ", found parent " + number(parent));
    }
  }
  request.num_sequences = static_cast<int32_t>(parents.size());
  if (request.admission == 0) return;
  if (request.sequences.size() > 1) reorder(request, parents);
  expand(request);
  update_ready(request);
}

}  // namespace ruprompt
