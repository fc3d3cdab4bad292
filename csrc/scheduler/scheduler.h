// Decides which sequences run in a step, with how many tokens, on which pages. Integers only: no Python, no torch.
//
// Invariants, at every moment between two calls:
//   1. A page has as many references as there are block tables of running sequences and page lists of prefixes on the
//      device that hold it. It is free or cached exactly when it has none.
//   2. A sequence writes only to pages that it alone holds and that have no hash. So no page has two writers, and
//      nothing that is shared, or may be found by its hash, ever changes.
//   3. The first `computed` tokens of a sequence are in its pages, in order; 0 <= computed < known tokens.
//   4. While a request has one sequence of several, that one is still within the input, which all of them share. So
//      the full pages of the input exist once per request, however many sequences it has, and how often they fork.
//   5. A prefix with running users is resident. A prefix on the device without users is held (it is being computed, or
//      the head of a queue waits for it, or it is to be warmed) or evictable.
//   6. Admissions and prefixes that start are numbered on one scale. Pages are only taken away from what is newer than
//      the request that needs them, so the oldest request never loses any, and always ends.
//   7. A request fits into the pool alone (else add refuses it), with nothing but its prefix beside it. So the oldest
//      running request can run after preempting the others, and the first waiting one after dropping what is held: a
//      step is empty only if nothing is unfinished.
//   8. Nothing is read from the clock, from addresses or from the order of a hash table: same calls, same plans.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "scheduler/fair_queue.h"
#include "scheduler/page_allocator.h"
#include "scheduler/plan.h"
#include "scheduler/prefix_table.h"
#include "scheduler/request.h"

namespace ruprompt {

// Something that can never fit into what the scheduler was given.
class CapacityError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct SchedulerConfig {
  int64_t num_pages;
  int64_t page_size;  // tokens, a power of two
  int64_t max_sequences;
  int64_t max_model_len;
  int64_t max_prefix_pages;  // -1: no limit of their own
  int64_t max_step_tokens;
};

// Mistakes of the caller throw std::invalid_argument, std::out_of_range for an unknown id, std::logic_error for a call
// out of order, and leave the state as it was.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  void add_prefix(int64_t id, int64_t length);
  void remove_prefix(int64_t id);
  void warm_prefix(int64_t id);
  void set_host_copy(int64_t id, bool exists);

  // Throws CapacityError if the request could not even run alone.
  void add(RequestSpec spec);

  // Whether the request was unfinished. If it may be part of a step under way, its pages stay until that step ends.
  bool cancel(int64_t id);

  // The plan is the same object every time; it is valid until the next call of step.
  const Plan& step(int64_t token_budget);
  // What requests in `again` have sampled in this step does not count: they were given a wrong last token, and start
  // again with another one.
  void commit(const std::vector<int64_t>& finished, const std::vector<int64_t>& again = {});
  void abort();

  // Sequence i of the request becomes a copy of its sequence parents[i].
  void fork(int64_t id, const std::vector<int32_t>& parents);

  std::vector<int32_t> pages_of_prefix(int64_t id) const;
  std::vector<int32_t> pages_of(int64_t id, int64_t sequence) const;
  std::map<std::string, int64_t> stats() const;
  int64_t num_unfinished() const { return static_cast<int64_t>(slots_.size()) - num_cancelled_; }
  int64_t num_warming() const { return static_cast<int64_t>(warming_.size()); }
  bool in_step() const { return in_step_; }
  int64_t tenant_counter(int64_t tenant) const { return queue_.counter(tenant); }
  const std::shared_ptr<Plan>& plan() const { return plan_; }

  // Compares everything that is kept twice. Throws std::logic_error with what is wrong.
  void check() const;

 private:
  enum class Outcome { kAdmitted, kComesLater, kNoRoom };

  // What an admission finds in the pool: `computed` tokens, on `pages`, the first ones from the prefix.
  struct Reuse {
    int32_t computed = 0;
    int32_t prefix_pages = 0;
    int32_t idle_pages = 0;  // of the text pages, those without another user
  };

  struct Counters {
    int64_t prefix_hits = 0, prefix_misses = 0, prefix_evictions = 0, prefix_loads = 0;
    int64_t text_page_hits = 0, preemptions = 0, copies = 0, steps = 0, tokens = 0, sampled_tokens = 0;
  };

  // scheduler.cc: requests between steps
  void check_fits_alone(const RequestSpec& spec, const Prefix* prefix) const;
  const Request& known_request(int64_t id) const;
  void require_between_steps(const char* call) const;
  void forget(int32_t slot);
  void requeue(int32_t slot);
  void stop_running(int32_t slot);
  void stop_waiting(int32_t slot);
  void compact();

  // scheduler_prefixes.cc: prefixes between steps
  void drop_prefix(int32_t prefix);
  void settle_prefix(int32_t prefix);

  // scheduler_sequences.cc: sequences and their pages
  int32_t* table(int32_t sequence) { return tables_.data() + static_cast<size_t>(sequence) * max_pages_; }
  const int32_t* table(int32_t sequence) const { return tables_.data() + static_cast<size_t>(sequence) * max_pages_; }
  int32_t pages_for(int64_t tokens) const { return static_cast<int32_t>((tokens + page_size_ - 1) >> page_shift_); }
  int32_t shared_input(const Request& request) const;
  int32_t new_sequence();
  int32_t clone(int32_t sequence);
  void end_sequence(int32_t sequence);
  void expand(Request& request);
  void reorder(Request& request, const std::vector<int32_t>& parents);
  void update_ready(Request& request);
  bool prepare_write(int32_t slot, int32_t sequence, int32_t end);
  void publish_pages(const Request& request, int32_t sequence, int32_t before);

  // scheduler_step.cc: what runs
  void check_budget(int64_t token_budget) const;
  bool make_room(int64_t pages, const Request* grower);
  bool take_from_newer(const Request& grower);
  void evict_prefix(int32_t prefix);
  void preempt(int32_t slot);
  void schedule_running();
  void schedule(int32_t slot);
  void schedule_decode(int32_t slot);
  void schedule_prefill(int32_t slot);
  void schedule_prefix(int32_t prefix);
  void emit_rows();
  void emit_row(int64_t id, int32_t index, int32_t computed, int32_t query, bool samples, const int32_t* pages);
  void emit_page_table(int32_t sequence);

  // scheduler_admission.cc: what begins
  Reuse find_reuse(const Request& request) const;
  int64_t pages_needed(const Request& request, const Reuse& reuse) const;
  int64_t available_pages(int32_t prefix) const;
  void admit_waiting();
  void admit_first_alone();
  Outcome try_admit(int32_t slot);
  Outcome bring_for(int32_t slot, int64_t pages_beside);
  bool bring_prefix(int32_t prefix, int64_t pages_beside);
  void admit(int32_t slot);
  void warm_prefixes();

  // scheduler_commit.cc: what became of it
  void commit_rows();
  bool samples_in_step(const Request& request) const;
  void take_back(int64_t id);
  void commit_prefixes();
  void end_step();

  const int32_t page_size_, max_pages_, max_sequences_, max_model_len_, max_step_tokens_;
  int page_shift_ = 0;

  PageAllocator pages_;
  PrefixTable prefixes_;
  FairQueue queue_;
  std::shared_ptr<Plan> plan_;

  std::vector<Request> requests_;
  std::vector<int32_t> free_requests_;
  std::unordered_map<int64_t, int32_t> slots_;
  std::vector<int64_t> num_by_sequences_;  // unfinished requests by max_sequences
  std::vector<int32_t> running_;           // by admission
  std::vector<int32_t> order_;             // the same, by prefix, tenant, admission: the order of rows
  std::vector<int32_t> computing_;         // prefixes, by start
  std::vector<int32_t> warming_;           // prefixes, by call
  std::vector<int32_t> removed_;           // prefixes that may have left since the step began

  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_sequences_;
  std::vector<int32_t> tables_;  // [max_sequences, max_pages]
  int32_t unreserved_sequences_;
  uint64_t versions_ = 0;

  bool in_step_ = false;
  bool stale_ = false;     // running_ and order_ list requests that no longer run
  bool pressed_ = false;   // a running request lacked pages in this step
  int64_t now_ = 0;        // the number of the step
  int32_t budget_ = 0;     // tokens left in this step
  int32_t num_scheduled_ = 0;
  int64_t rotation_ = 0;   // the admission from which the next step's decoding starts
  int64_t admissions_ = 0, arrivals_ = 0;
  int64_t num_cancelled_ = 0;
  std::vector<int32_t> unready_;
  std::vector<int32_t> ending_;       // requests that sample the last token they may
  std::vector<int32_t> copied_by_;    // the request of each copy
  std::vector<int32_t> row_requests_, row_sequences_;  // slots; the prefix's slot for a prefix row
  std::vector<uint64_t> row_versions_;  // of the block table that is in the plan's row
  std::vector<int32_t> row_filled_;     // entries of it that do
  std::vector<int32_t> skipped_;
  Counters counters_;
};

}  // namespace ruprompt
