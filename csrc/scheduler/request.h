// What the scheduler knows of a request and of its sequences. No Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

namespace ruprompt {

struct RequestSpec {
  int64_t id;
  int64_t tenant;
  int64_t prefix_id;  // -1: none
  int64_t num_tokens;  // of the input, the prefix included
  int64_t max_new_tokens;
  int64_t max_sequences;
  std::vector<uint64_t> page_hashes;  // one per full page of the input, or none: then nothing is shared
};

// All sequences of a request have the same number of known tokens: they sample in lockstep.
struct Request {
  int64_t id = -1;
  int64_t arrival = 0;
  int64_t admission = 0;  // rises from admission to admission; 0: not running
  int64_t tenant_name = 0;
  int64_t prefix_id = -1;
  int32_t tenant = -1;
  int32_t prefix = -1;
  int32_t num_input = 0;
  int32_t num_known = 0;  // input and sampled tokens
  int32_t max_new = 0;
  int32_t max_sequences = 1;
  int32_t num_sequences = 1;        // as the caller sees them
  std::vector<int32_t> sequences;   // one alone until the input is computed, then num_sequences; none unless running
  std::vector<uint64_t> page_hashes;
  int64_t scheduled_step = -1;
  int64_t tainted_step = -1;  // the step whose copies or loads its pages rest on
  bool ready = false;         // all sequences lack only their last token
  bool charged = false;
  bool cancelled = false;     // leaves when the step under way ends
  bool waits_for_prefix = false;
  bool missed_prefix = false;
};

struct Sequence {
  int32_t computed = 0;   // tokens whose keys and values are in the pages
  int32_t query = 0;      // tokens that the step under way adds
  int32_t num_pages = 0;
  uint64_t version = 0;   // unique; changes with any entry of the block table, but not when entries are appended
};

}  // namespace ruprompt
