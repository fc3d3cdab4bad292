#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/attention_tile.h"
#include "cpu/isa.h"

namespace ruprompt {
namespace {

using Tile = AttentionTables::Tile;

// A context is split at multiples of this, whether or not threads are to spare, so that sums run in one order.
constexpr int64_t kPartPages = 32;
// Below this a parallel region costs more than it saves.
constexpr int64_t kParallelBytes = 64 << 10;
// With fewer pieces of work per thread than this the parts of the contexts are pieces of their own.
constexpr int64_t kPiecesPerThread = 4;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Floats that a thread keeps between calls, at the alignment of a cache line; it only grows.
class Scratch {
 public:
  float* reserve(int64_t floats) {
    if (floats > capacity_) {
      const auto bytes = static_cast<size_t>(round_up(floats * static_cast<int64_t>(sizeof(float)), 64));
      data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      if (!data_) throw std::bad_alloc();
      capacity_ = floats;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

TileKernels choose_kernels(Dtype dtype) {
#ifdef RUPROMPT_X86
  if (cpu_isa() == Isa::kAvx512) return tile_kernels_avx512(dtype);
  if (cpu_isa() == Isa::kAvx2) return tile_kernels_avx2(dtype);
#endif
  return tile_kernels_generic(dtype);
}

// The memory of one tile, in floats.
struct Layout {
  explicit Layout(const AttentionCall& call)
      : out_stride(round_up(call.value_dim, 16)),
        scores(kTileQueries * round_up(call.head_dim, 16)),
        block_out(scores + kTileQueries * kBlockTokens),
        states(block_out + kTileQueries * out_stride),
        state_floats(kTileQueries * (out_stride + 2)) {}

  TileState state(float* at) const {
    float* highest = at + kTileQueries * out_stride;
    return {at, highest, highest + kTileQueries, out_stride};
  }

  int64_t out_stride;
  int64_t scores;  // where they begin, after the queries
  int64_t block_out;
  int64_t states;
  int64_t state_floats;
};

void add_row(const AttentionTables::Row& row, const int32_t* pages, int64_t first, int64_t count, int64_t group,
             TileJob* job) {
  const AttentionCall& call = *job->call;
  TileRow& to = job->rows[job->num_rows++];
  to = {pages, job->num_queries, count, 0, 0};
  for (int64_t i = first; i < first + count; ++i) {
    const int64_t token = i / group;
    const int64_t end = row.context_len - row.num_tokens + token + 1;
    const int64_t start = call.window > 0 ? std::max<int64_t>(0, end - call.window) : 0;
    if (i == first) to.start = start;
    to.end = end;
    job->queries[job->num_queries++] = {row.first_token + token, job->kv_head * group + i % group, start, end};
  }
}

TileJob make_job(const AttentionTables& tables, const AttentionCall& call, const Tile& tile, int64_t kv_head,
                 int64_t next_head) {
  TileJob job;
  job.call = &call;
  job.kv_head = kv_head;
  job.next_head = next_head;
  job.shared_pages = tile.shared_pages;
  job.num_rows = job.num_queries = 0;
  const int64_t group = call.heads / call.kv_heads;
  for (int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
    const AttentionTables::Row& row = tables.rows()[r];
    const int64_t count = tile.num_rows == 1 ? tile.num_queries : row.num_tokens * group;
    add_row(row, tables.pages(row), tile.first_query, count, group, &job);
  }
  job.start = job.rows[0].start;
  job.end = job.rows[0].end;
  for (int64_t r = 1; r < job.num_rows; ++r) {
    job.start = std::min(job.start, job.rows[r].start);
    job.end = std::max(job.end, job.rows[r].end);
  }
  return job;
}

int64_t first_part(const TileJob& job) { return job.start / (kPartPages * kPageTokens); }
int64_t end_part(const TileJob& job) { return (job.end + kPartPages * kPageTokens - 1) / (kPartPages * kPageTokens); }

// Adds a later part of the context to `total`.
void merge(const TileState& part, int64_t queries, const TileState& total) {
  for (int64_t q = 0; q < queries; ++q) {
    const float highest = std::max(total.highest[q], part.highest[q]);
    const float before = std::exp2(total.highest[q] - highest);
    const float after = std::exp2(part.highest[q] - highest);
    total.highest[q] = highest;
    total.sum[q] = total.sum[q] * before + part.sum[q] * after;
    float* out = total.out + q * total.out_stride;
    const float* more = part.out + q * part.out_stride;
    for (int64_t d = 0; d < total.out_stride; ++d) out[d] = out[d] * before + more[d] * after;
  }
}

struct Run {
  const AttentionTables& tables;
  const AttentionCall& call;
  TileKernels kernels;
  Layout layout;
  const std::vector<Tile>& tiles;

  int64_t num_jobs() const { return static_cast<int64_t>(tiles.size()) * call.kv_heads; }
  TileJob job(int64_t index, bool more) const {
    const int64_t head = index % call.kv_heads;
    return make_job(tables, call, tiles[index / call.kv_heads], head, more && head + 1 < call.kv_heads ? head + 1 : -1);
  }

  void attend(const TileJob& job, int64_t part, float* work, const TileState& state) const {
    kernels.attend(job, part * kPartPages, (part + 1) * kPartPages, work, work + layout.scores,
                   work + layout.block_out, state);
  }

  // `work` has room for two states.
  void whole(const TileJob& job, float* work) const {
    float* states = work + layout.states;
    const TileState total = layout.state(states), part = layout.state(states + layout.state_floats);
    kernels.load_queries(job, work);
    const int64_t first = first_part(job), end = end_part(job);
    attend(job, first, work, total);
    for (int64_t p = first + 1; p < end; ++p) {
      attend(job, p, work, part);
      merge(part, job.num_queries, total);
    }
    kernels.finish(job, total);
  }

  void finish_parts(const TileJob& job, float* states) const {
    const TileState total = layout.state(states);
    for (int64_t p = first_part(job) + 1; p < end_part(job); ++p) {
      states += layout.state_floats;
      merge(layout.state(states), job.num_queries, total);
    }
    kernels.finish(job, total);
  }
};

thread_local Scratch thread_scratch;

void run_whole(const Run& run, int threads) {
  const int64_t jobs = run.num_jobs();
  const int64_t piece = std::min(run.call.kv_heads, std::max<int64_t>(1, jobs / (2 * threads)));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* work = thread_scratch.reserve(run.layout.states + 2 * run.layout.state_floats);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < jobs; first += piece) {
      const int64_t end = std::min(first + piece, jobs);
      for (int64_t j = first; j < end; ++j) run.whole(run.job(j, j + 1 < end), work);
    }
  }
}

// As run_whole, with the parts of the contexts worked on at the same time.
void run_split(const Run& run, int64_t parts, int threads) {
  static thread_local Scratch state_scratch;
  const int64_t jobs = run.num_jobs();
  const int64_t job_floats = parts * run.layout.state_floats;
  float* states = state_scratch.reserve(jobs * job_floats);
#pragma omp parallel num_threads(threads)
  {
    float* work = thread_scratch.reserve(run.layout.states);
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t j = 0; j < jobs; ++j) {
      for (int64_t p = 0; p < parts; ++p) {
        const TileJob job = run.job(j, false);
        const int64_t part = first_part(job) + p;
        if (part >= end_part(job)) continue;
        run.kernels.load_queries(job, work);
        run.attend(job, part, work, run.layout.state(states + j * job_floats + p * run.layout.state_floats));
      }
    }
#pragma omp for schedule(dynamic)
    for (int64_t j = 0; j < jobs; ++j) run.finish_parts(run.job(j, false), states + j * job_floats);
  }
}

}  // namespace

void paged_attention(const AttentionTables& tables, const AttentionCall& call, int threads) {
  if (tables.max_page() >= call.num_pages) {
    throw std::out_of_range("block_tables names page " + std::to_string(tables.max_page()) + ", but there are " +
                            std::to_string(call.num_pages) + " pages");
  }
  static thread_local std::vector<Tile> tiles;
  tables.divide(call.heads / call.kv_heads, kTileQueries, &tiles);
  if (tiles.empty()) return;
  const Run run{tables, call, choose_kernels(call.dtype), Layout(call), tiles};
  const int64_t token_bytes = (call.head_dim + call.value_dim) * static_cast<int64_t>(dtype_bytes(call.dtype));
  if (run.num_jobs() * tables.max_context_len() * token_bytes < kParallelBytes) threads = 1;
  const int64_t parts = (tables.max_context_len() + kPartPages * kPageTokens - 1) / (kPartPages * kPageTokens);
  if (threads > 1 && parts > 1 && run.num_jobs() < kPiecesPerThread * threads) {
    run_split(run, parts, threads);
  } else {
    run_whole(run, threads);
  }
}

}  // namespace ruprompt
