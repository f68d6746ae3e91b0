#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_REFERENCE_H_
// SeerAttention's routing with identity maps in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct SeerAttentionReference {
  int64_t block = 64;
  double tau = 2e-3;
  double density = 0;
  int64_t dense_tail = 0;

  // RoPE of interleaved pairs; base 0: none.
  static reference::Vector Turned(reference::Vector x, int64_t position, double base) {
    const int64_t d = std::ssize(x);
    for (int64_t i = 0; base > 0 && i + 1 < d; i += 2) {
      const double angle = static_cast<double>(position) *
                           std::pow(base, -static_cast<double>(i) / static_cast<double>(d));
      const double a = x[i];
      const double b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }

  // Gate probabilities of the blocks that the last of queries [from, to) sees: mean query and mean
  // keys up to there, from before RoPE, each turned to the start of its block.
  reference::Vector Gate(const AttentionInputs& in, int64_t from, int64_t to, int64_t head) const {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const int64_t own = (in.q_begin + from) / block;
    std::vector<reference::Vector> queries;
    for (int64_t i = from; i < to; ++i)
      queries.push_back(reference::Query(in.q_pre, i, head, in.scale));
    const reference::Vector q = Turned(reference::MeanOf(queries), own * block, in.rope_base);

    reference::Vector score;
    for (int64_t b = 0; b * block <= in.q_begin + to - 1; ++b) {
      const reference::Vector mean = reference::MeanKey(in.k_pre, b, block, in.q_begin + to, kv);
      score.push_back(reference::Product(q, Turned(mean, b * block, in.rope_base)));
    }
    return reference::Softmax(score);
  }

  // The blocks of a list: by the share of the prompt's blocks, else by tau; everything in its last
  // rows. The tile's own blocks are always kept.
  std::vector<int64_t> Blocks(const AttentionInputs& in, int64_t from, int64_t to,
                              int64_t head) const {
    const int64_t length = std::max(in.prompt_end, in.k.rows);
    const int64_t of_prompt = (length + block - 1) / block;
    reference::Budget budget = {.tau = tau, .sink = 0, .local = 1};
    if ((in.q_begin + to - 1) / block >= of_prompt - dense_tail) {
      budget.tau = -1;
    } else if (density > 0) {
      const double share = (1 - std::sqrt(1 - density)) * static_cast<double>(of_prompt);
      budget.k = std::max<int64_t>(1, static_cast<int64_t>(std::floor(share)));
    }
    return budget.Select(Gate(in, from, to, head), (in.q_begin + from) / block);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += block) {
        const int64_t to = std::min(in.q.rows, from + block);
        const std::vector<int64_t> blocks = Blocks(in, from, to, head);
        for (int64_t i = from; i < to; ++i)
          lists[i * in.q.heads + head] = reference::KeysOf(blocks, block, in.q_begin + i);
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_REFERENCE_H_
