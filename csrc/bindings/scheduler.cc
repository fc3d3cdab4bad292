// The scheduler for Python. A call takes a few microseconds, so the interpreter lock is kept: it is also what keeps two
// threads apart. The plan's arrays are made once and shown as they are, without a copy.
#include "bindings/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "scheduler/scheduler.h"

namespace py = pybind11;

namespace ruprompt {
namespace {

// The arrays keep the plan's memory alive, whatever becomes of the scheduler.
class PlanView {
 public:
  explicit PlanView(const std::shared_ptr<Plan>& plan) : plan_(plan) {
    const py::capsule owner(new std::shared_ptr<Plan>(plan),
                            [](void* pointer) { delete static_cast<std::shared_ptr<Plan>*>(pointer); });
    const py::ssize_t width = plan->max_pages_per_sequence;
    const auto flat = [&owner](auto& values) {
      return py::array(py::dtype::of<typename std::decay_t<decltype(values)>::value_type>(),
                       {static_cast<py::ssize_t>(values.size())}, values.data(), owner);
    };
    const auto matrix = [&owner](auto& values, py::ssize_t columns) {
      return py::array(py::dtype::of<typename std::decay_t<decltype(values)>::value_type>(),
                       {static_cast<py::ssize_t>(values.size()) / columns, columns}, values.data(), owner);
    };
    request_ids = flat(plan->request_ids);
    sequence_indices = flat(plan->sequence_indices);
    query_starts = flat(plan->query_starts);
    context_lens = flat(plan->context_lens);
    samples = flat(plan->samples);
    block_tables = matrix(plan->block_tables, width);
    write_slots = flat(plan->write_slots);
    copies = matrix(plan->copies, 2);
    evicted_ids = flat(plan->evicted_ids);
    evicted_page_starts = flat(plan->evicted_page_starts);
    evicted_pages = flat(plan->evicted_pages);
    load_ids = flat(plan->load_ids);
    preempted_ids = flat(plan->preempted_ids);
  }

  const Plan& plan() const { return *plan_; }

  py::array request_ids, sequence_indices, query_starts, context_lens, samples, block_tables, write_slots, copies;
  py::array evicted_ids, evicted_page_starts, evicted_pages, load_ids, preempted_ids;

 private:
  std::shared_ptr<Plan> plan_;
};

struct BoundScheduler {
  explicit BoundScheduler(const SchedulerConfig& config)
      : scheduler(config), plan(py::cast(std::make_unique<PlanView>(scheduler.plan()))) {}

  Scheduler scheduler;
  py::object plan;
};

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

using Hashes = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;

void add(BoundScheduler& self, int64_t request_id, int64_t tenant, int64_t prefix_id, int64_t num_tokens,
         int64_t max_new_tokens, int64_t max_sequences, const Hashes& page_hashes) {
  self.scheduler.add({request_id, tenant, prefix_id, num_tokens, max_new_tokens, max_sequences,
                      std::vector<uint64_t>(page_hashes.data(), page_hashes.data() + page_hashes.size())});
}

void register_errors() {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const CapacityError& error) {
      const py::object type = py::module_::import("ruprompt_fast.errors").attr("CapacityError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });
}

void register_plan(py::module_& m) {
  py::class_<PlanView> plan(m, "Plan", py::is_final(), plain_metaclass(),
                            R"(What one step does; made by Scheduler.step, the same object every time.

The arrays have their full capacity; the counts say how much of each belongs to the current step. They are views of
the scheduler's own memory, valid until the next step, and only to be read.)");
  const auto count = [&plan](const char* name, int32_t Plan::*field) {
    plan.def_property_readonly(name, [field](const PlanView& view) { return view.plan().*field; });
  };
  count("num_rows", &Plan::num_rows);
  count("num_tokens", &Plan::num_tokens);
  count("num_prefix_rows", &Plan::num_prefix_rows);
  count("num_copies", &Plan::num_copies);
  count("num_evictions", &Plan::num_evictions);
  count("num_loads", &Plan::num_loads);
  count("num_preempted", &Plan::num_preempted);
  const auto array = [&plan](const char* name, py::array PlanView::*field, const char* doc) {
    plan.def_property_readonly(name, [field](const PlanView& view) { return view.*field; }, doc);
  };
  array("request_ids", &PlanView::request_ids, "int64 [rows]; -1 - prefix id for a prefix that is being computed.");
  array("sequence_indices", &PlanView::sequence_indices, "int32 [rows]: which of the request's sequences.");
  array("query_starts", &PlanView::query_starts, "int32 [rows + 1]: where each row's tokens start in the batch.");
  array("context_lens", &PlanView::context_lens, "int32 [rows]: tokens of the row in the cache after this step.");
  array("samples", &PlanView::samples, "uint8 [rows]: 1 where the row's last token is the last one known.");
  array("block_tables", &PlanView::block_tables, "int32 [rows, max pages]: the row's pages, right up to its context.");
  array("write_slots", &PlanView::write_slots, "int64 [tokens]: page * page_size + offset of each token.");
  array("copies", &PlanView::copies, "int32 [copies, 2]: from page, to page; no page is a target of two.");
  array("evicted_ids", &PlanView::evicted_ids, "int64 [evictions]: prefixes that leave the device.");
  array("evicted_page_starts", &PlanView::evicted_page_starts, "int32 [evictions + 1], into evicted_pages.");
  array("evicted_pages", &PlanView::evicted_pages, "int32: the pages that still hold the evicted prefixes.");
  array("load_ids", &PlanView::load_ids, "int64 [loads]: prefixes to fill from their host copies.");
  array("preempted_ids", &PlanView::preempted_ids, "int64 [preempted]: requests that wait again, nothing computed.");
}

}  // namespace

void register_scheduler(py::module_& m) {
  register_errors();
  register_plan(m);
  using Self = BoundScheduler;
  py::class_<Self>(m, "Scheduler", py::is_final(), plain_metaclass(),
                   R"(Decides which sequences run in a step, with how many tokens, on which pages.

num_pages pages of page_size tokens (a power of two) are shared by all; at most max_sequences sequences run at a time,
none longer than max_model_len tokens, with at most max_step_tokens >= max_sequences tokens in a step. Prefixes take at
most max_prefix_pages pages (-1: no limit of their own). Same calls, same plans. Not thread-safe beyond the interpreter
lock.)")
      .def(py::init([](int64_t num_pages, int64_t page_size, int64_t max_sequences, int64_t max_model_len,
                       int64_t max_step_tokens, int64_t max_prefix_pages) {
             return std::make_unique<Self>(SchedulerConfig{num_pages, page_size, max_sequences, max_model_len,
                                                           max_prefix_pages, max_step_tokens});
           }),
           py::arg("num_pages"), py::arg("page_size"), py::arg("max_sequences"), py::arg("max_model_len"),
           py::arg("max_step_tokens"), py::arg("max_prefix_pages") = -1)
      .def(
          "add_prefix", [](Self& self, int64_t id, int64_t length) { self.scheduler.add_prefix(id, length); },
          "Makes a prefix of `length` tokens known; it costs no pages until it is used. ValueError: known already.",
          py::arg("prefix_id"), py::arg("length"))
      .def(
          "remove_prefix", [](Self& self, int64_t id) { self.scheduler.remove_prefix(id); },
          "No new request may use the prefix; its pages are freed with its last request. IndexError: not known.",
          py::arg("prefix_id"))
      .def(
          "warm_prefix", [](Self& self, int64_t id) { self.scheduler.warm_prefix(id); },
          "Computes or loads the prefix as soon as there is room. IndexError: not known. CapacityError: never fits.",
          py::arg("prefix_id"))
      .def(
          "set_host_copy", [](Self& self, int64_t id, bool exists) { self.scheduler.set_host_copy(id, exists); },
          "Says whether the prefix can be loaded instead of computed. IndexError: not known.", py::arg("prefix_id"),
          py::arg("exists"))
      .def("add", &add, R"(Puts a request into its tenant's queue.

num_tokens counts the input with its prefix (prefix_id -1: none); page_hashes is uint64 [num_tokens // page_size], or
empty to share no text pages. At most max_sequences sequences come of it by fork. ValueError: the id is taken, or a
number makes no sense. IndexError: the prefix is not known. CapacityError: it could not even run alone.)",
           py::arg("request_id"), py::arg("tenant"), py::arg("prefix_id"), py::arg("num_tokens"),
           py::arg("max_new_tokens"), py::arg("max_sequences"), py::arg("page_hashes"))
      .def(
          "cancel", [](Self& self, int64_t id) { return self.scheduler.cancel(id); },
          "Ends a request, at the end of the step if one is under way. Returns whether it was unfinished.",
          py::arg("request_id"))
      .def(
          "step",
          [](Self& self, int64_t token_budget) {
            self.scheduler.step(token_budget);
            return self.plan;
          },
          R"(Plans the next step, of at most token_budget tokens. Then commit or abort.

ValueError: the budget is above max_step_tokens, or below the number of sequences of an unfinished request.
RuntimeError: a step is under way.)",
          py::arg("token_budget"))
      .def(
          "commit",
          [](Self& self, const std::vector<int64_t>& finished, const std::vector<int64_t>& again) {
            self.scheduler.commit(finished, again);
          },
          R"(The step is done: its tokens count as computed, sampling sequences have one more, finished requests end.

Requests in restarted_request_ids were given a wrong last token: what they sampled does not count, and their tokens are
computed again.

IndexError: an id is not known. ValueError: a request that sampled its last token is not among the finished, or one that
is to start again did not sample after a token that it had sampled before. RuntimeError: no step is under way. After an
error the step is still under way.)",
          py::arg("finished_request_ids"), py::arg("restarted_request_ids") = std::vector<int64_t>())
      .def(
          "abort", [](Self& self) { self.scheduler.abort(); },
          R"(The step failed: none of its tokens count as computed, and prefixes computed or loaded in it are absent.

Requests whose pages depended on a copy or load of the step wait again. Warming of the prefixes in it is given up.)")
      .def(
          "fork",
          [](Self& self, int64_t id, const std::vector<int32_t>& parents) { self.scheduler.fork(id, parents); },
          "Sequence i of the request becomes a copy of sequence parents[i]; pages are shared until written to.",
          py::arg("request_id"), py::arg("parents"))
      .def(
          "pages_of_prefix", [](const Self& self, int64_t id) { return to_array(self.scheduler.pages_of_prefix(id)); },
          "int32: the prefix's pages; none unless it is on the device. IndexError: not known.", py::arg("prefix_id"))
      .def(
          "pages_of",
          [](const Self& self, int64_t id, int64_t sequence) {
            return to_array(self.scheduler.pages_of(id, sequence));
          },
          "int32: the pages of a running sequence. IndexError: not known, or not running.", py::arg("request_id"),
          py::arg("sequence_index"))
      .def(
          "tenant_counter", [](const Self& self, int64_t tenant) { return self.scheduler.tenant_counter(tenant); },
          "What the tenant has been served: an input token counts 1, an output token 2.", py::arg("tenant"))
      .def(
          "stats", [](const Self& self) { return self.scheduler.stats(); }, "Counts of the present and of the past.")
      .def(
          "check", [](const Self& self) { self.scheduler.check(); },
          "Compares everything that is kept twice. RuntimeError: what is wrong.")
      .def_property_readonly(
          "in_step", [](const Self& self) { return self.scheduler.in_step(); }, "Whether a step is under way.")
      .def_property_readonly(
          "num_unfinished", [](const Self& self) { return self.scheduler.num_unfinished(); }, "Requests.")
      .def_property_readonly(
          "num_warming", [](const Self& self) { return self.scheduler.num_warming(); },
          "Prefixes that warm_prefix asked for and that are not there yet.");
}

}  // namespace ruprompt
