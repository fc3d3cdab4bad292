// Random operations on the scheduler, for builds with sanitizers.
//
//   scheduler_random_ops [operations = 1000000] [seed = 0]
//
// Each world is a scheduler of random size; after some thousand operations it is drained, and every page must be back.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "scheduler/scheduler.h"

namespace {

using ruprompt::CapacityError;
using ruprompt::Plan;
using ruprompt::Scheduler;

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

struct Known {
  int64_t left;  // new tokens
  int32_t sequences, max_sequences;
  bool has_sampled = false;
};

class World {
 public:
  World(std::mt19937_64& random, int64_t* operations)
      : random_(random),
        operations_(*operations),
        pages_(pick(6, 60)),
        sequences_(pick(1, 10)),
        scheduler_({pages_, kPageSize, sequences_, 200, pick(0, 2) > 0 ? -1 : pick(1, 12), kMaxStepTokens}) {}

  void run(int64_t count) {
    const int64_t end = operations_ + count;
    while (operations_ < end) {
      operate(pick(0, 99));
      ++operations_;
      if (pick(0, 15) == 0) scheduler_.check();
    }
    drain();
  }

 private:
  static constexpr int64_t kPageSize = 16, kMaxStepTokens = 64;

  int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_() % (high - low + 1)); }

  void operate(int64_t kind) {
    if (kind < 4) {
      if (prefixes_.size() < 8) {
        scheduler_.add_prefix(next_id_, pick(1, 70));
        prefixes_.push_back(next_id_++);
      }
    } else if (kind < 5) {
      remove_prefix();
    } else if (kind < 8) {
      touch_prefix();
    } else if (kind < 28) {
      if (requests_.size() < 40) add();
    } else if (kind < 32) {
      cancel();
    } else if (kind < 38) {
      if (!in_step_) fork();
    } else if (kind < 39) {
      misuse();
    } else if (!in_step_) {
      begin_step(pick(sequences_, kMaxStepTokens));
    } else if (kind < 42) {
      scheduler_.abort();
      in_step_ = false;
    } else {
      commit();
    }
  }

  int64_t any_prefix() { return prefixes_.empty() ? -1 : prefixes_[pick(0, prefixes_.size() - 1)]; }

  int64_t any_request() {
    if (ids_.empty()) return -1;
    return ids_[pick(0, ids_.size() - 1)];
  }

  void remove_prefix() {
    const int64_t id = any_prefix();
    if (id < 0) return;
    scheduler_.remove_prefix(id);
    prefixes_.erase(std::find(prefixes_.begin(), prefixes_.end(), id));
  }

  void touch_prefix() {
    const int64_t id = any_prefix();
    if (id < 0) return;
    scheduler_.set_host_copy(id, pick(0, 1) == 0);
    try {
      scheduler_.warm_prefix(id);
    } catch (const CapacityError&) {
    }
    scheduler_.pages_of_prefix(id);
  }

  void add() {
    const int64_t tokens = pick(1, 120), max_sequences = pick(1, sequences_), max_new = pick(1, 60);
    std::vector<uint64_t> hashes;
    const uint64_t text = pick(0, 2);
    for (int64_t i = 0; i < tokens / kPageSize; ++i) hashes.push_back((text << 32) + i);
    if (pick(0, 3) == 0) hashes.clear();
    try {
      const int64_t prefix = pick(0, 2) == 0 ? -1 : any_prefix();
      scheduler_.add({next_id_, pick(0, 4), prefix, tokens, max_new, max_sequences, hashes});
    } catch (const CapacityError&) {
      return;
    } catch (const std::invalid_argument&) {
      return;  // shorter than its prefix
    }
    requests_[next_id_] = {max_new, 1, static_cast<int32_t>(max_sequences), false};
    ids_.push_back(next_id_++);
  }

  void gone(int64_t id) {
    requests_.erase(id);
    ids_.erase(std::find(ids_.begin(), ids_.end(), id));
  }

  void cancel() {
    const int64_t id = any_request();
    if (id < 0) return;
    require(scheduler_.cancel(id), "an unfinished request was not cancelled");
    require(!scheduler_.cancel(id), "a request was cancelled twice");
    gone(id);
  }

  void fork() {
    const int64_t id = any_request();
    if (id < 0) return;
    Known& known = requests_[id];
    std::vector<int32_t> parents(pick(1, known.max_sequences));
    for (int32_t& parent : parents) parent = static_cast<int32_t>(pick(0, known.sequences - 1));
    scheduler_.fork(id, parents);
    known.sequences = static_cast<int32_t>(parents.size());
  }

  template <typename Error, typename Call>
  void must_throw(Call call) {
    try {
      call();
    } catch (const Error&) {
      return;
    }
    throw std::runtime_error("a misuse was not refused");
  }

  void misuse() {
    must_throw<std::out_of_range>([this] { scheduler_.pages_of(1 << 30, 0); });
    must_throw<std::out_of_range>([this] { scheduler_.warm_prefix(1 << 30); });
    must_throw<std::invalid_argument>([this] { scheduler_.add({-1, 0, -1, 4, 4, 1, {}}); });
    if (in_step_) {
      must_throw<std::logic_error>([this] { scheduler_.step(kMaxStepTokens); });
      must_throw<std::out_of_range>([this] { scheduler_.commit({1 << 30}); });
    } else {
      must_throw<std::logic_error>([this] { scheduler_.commit({}); });
      must_throw<std::invalid_argument>([this] { scheduler_.step(kMaxStepTokens + 1); });
    }
  }

  void begin_step(int64_t budget) {
    const Plan& plan = scheduler_.step(budget);
    in_step_ = true;
    require(plan.num_tokens <= budget, "the budget is exceeded");
    require(plan.num_rows > 0 || requests_.empty(), "nothing runs");
    std::unordered_set<int64_t> slots(plan.write_slots.begin(), plan.write_slots.begin() + plan.num_tokens);
    require(static_cast<int32_t>(slots.size()) == plan.num_tokens, "a slot is written twice");
    for (const int64_t slot : slots) require(slot >= 0 && slot < pages_ * kPageSize, "a slot lies outside");
  }

  void commit() {
    const Plan& plan = *scheduler_.plan();
    std::vector<int64_t> finished, again;
    for (int32_t row = 0; row < plan.num_rows; ++row) {
      const int64_t id = plan.request_ids[row];
      const auto known = requests_.find(id);
      if (!plan.samples[row] || known == requests_.end() || plan.sequence_indices[row] != 0) continue;
      if (known->second.has_sampled && pick(0, 40) == 0) {
        again.push_back(id);
        continue;
      }
      known->second.has_sampled = true;
      if (--known->second.left == 0 || pick(0, 40) == 0) finished.push_back(id);
    }
    scheduler_.commit(finished, again);
    in_step_ = false;
    for (const int64_t id : finished) gone(id);
  }

  void drain() {
    if (in_step_) commit();
    for (int steps = 0; scheduler_.num_unfinished() > 0 || scheduler_.num_warming() > 0; ++steps) {
      require(steps < 100000, "requests do not finish");
      begin_step(kMaxStepTokens);
      commit();
    }
    while (!prefixes_.empty()) remove_prefix();
    scheduler_.check();
    const auto stats = scheduler_.stats();
    require(stats.at("free_pages") + stats.at("cached_pages") == pages_, "pages are lost");
    require(stats.at("sequences") == 0 && stats.at("prefixes") == 0, "something is left");
  }

  std::mt19937_64& random_;
  int64_t& operations_;
  const int64_t pages_, sequences_;
  Scheduler scheduler_;
  bool in_step_ = false;
  int64_t next_id_ = 0;
  std::vector<int64_t> prefixes_, ids_;
  std::unordered_map<int64_t, Known> requests_;
};

}  // namespace

int main(int argc, char** argv) {
  const int64_t total = argc > 1 ? std::atoll(argv[1]) : 1000000;
  std::mt19937_64 random(argc > 2 ? std::atoll(argv[2]) : 0);
  int64_t operations = 0;
  try {
    while (operations < total) World(random, &operations).run(std::min<int64_t>(5000, total - operations));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "after %lld operations: %s\n", static_cast<long long>(operations), error.what());
    return 1;
  }
  std::printf("%lld operations\n", static_cast<long long>(operations));
  return 0;
}
