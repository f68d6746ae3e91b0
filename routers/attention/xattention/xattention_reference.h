#ifndef SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_REFERENCE_H_
// XAttention in plain loops and double precision, pair by pair.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct XAttentionReference {
  int64_t block = 128;
  int64_t stride = 16;
  double threshold = 0.9;
  int64_t sink = 1;
  bool sum_pairs = true;
  int64_t least_queries = 16;

  // The mean over the antidiagonal of the square of `stride` queries from position `row` on and as
  // many keys from `column` on; queries and keys at or after `end` are zero.
  double Antidiagonal(const AttentionInputs& in, int64_t head, int64_t row, int64_t column,
                      int64_t end) const {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const reference::Vector zero(in.q.dim);
    double sum = 0;
    for (int64_t step = 0; step < stride; ++step) {
      const int64_t query = row + stride - 1 - step;
      const int64_t key = column + step;
      sum += reference::Product(
          query < end ? reference::Query(in.q, query - in.q_begin, head, in.scale) : zero,
          key < end ? reference::Key(in.k, key, kv) : zero);
    }
    return sum / static_cast<double>(stride);
  }

  // Scores of the blocks that queries at positions [from, to) see.
  reference::Vector Scores(const AttentionInputs& in, int64_t from, int64_t to,
                           int64_t head) const {
    reference::Vector score((to - 1) / block + 1);
    for (int64_t row = from; row < to; row += stride) {
      reference::Vector logits;
      for (int64_t column = 0; column < std::min(to, row + stride); column += stride)
        logits.push_back(Antidiagonal(in, head, row, column, to));
      const reference::Vector p = reference::Softmax(logits);
      for (int64_t j = 0; j < std::ssize(p) && !std::isnan(p[0]); ++j) {
        double& of_block = score[j * stride / block];
        of_block = sum_pairs ? of_block + p[j] : std::max(of_block, p[j]);
      }
    }
    return score;
  }

  std::vector<int64_t> Blocks(const AttentionInputs& in, int64_t from, int64_t to,
                              int64_t head) const {
    const reference::Vector score = Scores(in, from, to, head);
    reference::Budget budget = {.p = threshold, .tau = HUGE_VAL, .sink = sink, .local = 1};
    if (to - from < least_queries) budget.p = 1;
    return budget.Select(score, from / block);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += block) {
        const int64_t to = std::min(in.q.rows, from + block);
        const std::vector<int64_t> blocks = Blocks(in, in.q_begin + from, in.q_begin + to, head);
        for (int64_t i = from; i < to; ++i)
          lists[i * in.q.heads + head] = reference::KeysOf(blocks, block, in.q_begin + i);
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_XATTENTION_XATTENTION_REFERENCE_H_
