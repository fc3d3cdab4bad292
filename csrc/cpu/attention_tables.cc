// The rows of a step: checked, copied, and divided into tiles.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/attention.h"

namespace ruprompt {
namespace {

int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

std::string number(int64_t value) { return std::to_string(value); }

}  // namespace

AttentionTables::AttentionTables(const int32_t* query_starts, const int32_t* context_lens, int64_t rows,
                                 const int32_t* block_tables, int64_t table_stride, int64_t table_width) {
  if (query_starts[0] != 0) {
    throw std::invalid_argument("query_starts begins with " + number(query_starts[0]) + ", not 0");
  }
  rows_.reserve(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t queries = static_cast<int64_t>(query_starts[r + 1]) - query_starts[r];
    const int64_t context = context_lens[r];
    if (queries < 0) throw std::invalid_argument("query_starts decreases after row " + number(r));
    if (context < queries) {
      throw std::invalid_argument("row " + number(r) + " has " + number(queries) + " query tokens but a context of " +
                                  number(context) + ": the context includes the query tokens");
    }
    if (pages_of(context) > table_width) {
      throw std::invalid_argument("row " + number(r) + " has a context of " + number(context) + " tokens, " +
                                  number(pages_of(context)) + " pages, but block_tables is " + number(table_width) +
                                  " wide");
    }
    rows_.push_back({query_starts[r], queries, context, static_cast<int64_t>(pages_.size()), 0});
    copy_pages(block_tables + r * table_stride, r, pages_of(context));
    if (r > 0) rows_[r].shared_pages = common_pages(rows_[r - 1], rows_[r]);
    max_context_len_ = std::max(max_context_len_, context);
  }
  num_tokens_ = query_starts[rows];
}

void AttentionTables::copy_pages(const int32_t* table, int64_t row, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (table[i] < 0) {
      throw std::out_of_range("block_tables[" + number(row) + ", " + number(i) + "] is " + number(table[i]));
    }
    max_page_ = std::max<int64_t>(max_page_, table[i]);
    pages_.push_back(table[i]);
  }
}

int64_t AttentionTables::common_pages(const Row& left, const Row& right) const {
  const int64_t full = std::min(left.context_len, right.context_len) / kPageTokens;
  const int32_t* begin = pages(left);
  return std::mismatch(begin, begin + full, pages(right)).first - begin;
}

void AttentionTables::divide(int64_t queries_per_token, int64_t capacity, std::vector<Tile>* tiles) const {
  tiles->clear();
  const auto rows = static_cast<int64_t>(rows_.size());
  for (int64_t r = 0; r < rows;) {
    const int64_t queries = rows_[r].num_tokens * queries_per_token;
    Tile tile{r, 1, 0, queries, 0};
    for (++r; r < rows; ++r) {
      const int64_t shared = tile.num_rows == 1 ? rows_[r].shared_pages
                                                : std::min(tile.shared_pages, rows_[r].shared_pages);
      const int64_t more = rows_[r].num_tokens * queries_per_token;
      // A row that shares much less than those before it would take from them what they share.
      if (tile.num_queries == 0 || more == 0 || tile.num_queries + more > capacity) break;
      if (shared == 0 || 2 * shared < tile.shared_pages) break;
      tile.num_rows += 1;
      tile.num_queries += more;
      tile.shared_pages = shared;
    }
    if (tile.num_rows > 1) {
      tiles->push_back(tile);
      continue;
    }
    for (int64_t first = 0; first < queries; first += capacity) {
      tiles->push_back({tile.first_row, 1, first, std::min(capacity, queries - first), 0});
    }
  }
}

}  // namespace ruprompt
