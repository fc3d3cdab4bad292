// Attention of query tokens over keys and values that lie in pages of 16 tokens. No Python, no torch: pointers and
// sizes. The recurrence over blocks of the context is the online softmax of Milakov and Gimelshein (2018,
// arXiv:1805.02867); the split of a long context and the merge of its parts follow Flash-Decoding (Dao et al. 2023).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/kv_pages.h"

namespace ruprompt {

// Who attends to what in one step: for every row (sequence) its query tokens, its context and its pages. A checked
// copy: later changes of the arrays that it was made from have no effect.
class AttentionTables {
 public:
  struct Row {
    int64_t first_token;   // of the packed query
    int64_t num_tokens;    // query tokens, the last ones of the context
    int64_t context_len;   // tokens
    int64_t first_page;    // where the row's block table begins in `pages`
    int64_t shared_pages;  // leading full pages that it has in common with the row before
  };

  // A number of queries that are worked on together: whole rows of one prefix, or a piece of one row. A row's queries
  // are counted over its tokens and, within a token, over the query heads that share one key head.
  struct Tile {
    int64_t first_row;
    int64_t num_rows;
    int64_t first_query;  // of the one row; 0 for several
    int64_t num_queries;
    int64_t shared_pages;  // leading pages that all the rows have in common; 0 for one row
  };

  // query_starts [rows + 1], context_lens [rows], block_tables [rows, >= table_width] with rows `table_stride` apart.
  // Throws std::invalid_argument for counts that contradict each other, std::out_of_range for a negative page.
  AttentionTables(const int32_t* query_starts, const int32_t* context_lens, int64_t rows, const int32_t* block_tables,
                  int64_t table_stride, int64_t table_width);

  // Replaces `tiles` by the division of all queries into tiles of at most `capacity`.
  void divide(int64_t queries_per_token, int64_t capacity, std::vector<Tile>* tiles) const;

  const std::vector<Row>& rows() const { return rows_; }
  const int32_t* pages(const Row& row) const { return pages_.data() + row.first_page; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t max_context_len() const { return max_context_len_; }
  int64_t max_page() const { return max_page_; }

 private:
  void copy_pages(const int32_t* table, int64_t row, int64_t count);
  int64_t common_pages(const Row& left, const Row& right) const;

  std::vector<Row> rows_;
  std::vector<int32_t> pages_;
  int64_t num_tokens_ = 0;
  int64_t max_context_len_ = 0;
  int64_t max_page_ = -1;
};

// The tensors of one layer, all of one dtype (float32, float16 or bfloat16). Strides count elements.
struct AttentionCall {
  Dtype dtype;
  const void* query;  // [tokens, heads, head_dim], the last dimension contiguous
  int64_t query_token_stride;
  int64_t query_head_stride;
  const void* key_pages;    // [num_pages, kv_heads, head_dim, 16]
  const void* value_pages;  // [num_pages, kv_heads, 16, value_dim]
  int64_t num_pages;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t value_dim;
  float scaling;
  float softcap;   // 0: none
  int64_t window;  // 0: none; otherwise the number of last positions that a query sees, itself among them
  void* out;       // [tokens, heads, value_dim], contiguous
};

// Writes the attention of every query token. The result of a token is bitwise identical whatever other rows there
// are, however its row's tokens are divided over calls, and whatever the number of threads.
// Throws std::out_of_range if a page of the tables is none of the call's.
void paged_attention(const AttentionTables& tables, const AttentionCall& call, int threads);

}  // namespace ruprompt
