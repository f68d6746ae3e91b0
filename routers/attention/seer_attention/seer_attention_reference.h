#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_SEER_ATTENTION_REFERENCE_H_
// SeerAttention's routing in plain loops and double precision.
#include <numeric>

#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct SeerAttentionReference {
  int64_t block = 64;
  double tau = 2e-3;
  double density = 0;
  int64_t dense_tail = 0;
  // The gate's maps, of keys [heads, dim, 3 dim], empty: the mean as it is; where there is one of
  // queries [heads, dim, 3 dim] too, that of keys is [kv_heads, dim, 3 dim].
  std::vector<float> map = {};
  std::vector<float> query_map = {};
  int64_t tile = 0;  // queries a row; 0: a block

  // Maxima, minima and mean of vectors, side by side.
  static reference::Vector Pooled(const std::vector<reference::Vector>& all) {
    const reference::Vector mean = reference::MeanOf(all);
    const int64_t d = std::ssize(mean);
    reference::Vector side(3 * d);
    for (int64_t x = 0; x < d; ++x) {
      side[x] = -HUGE_VAL;
      side[d + x] = HUGE_VAL;
      side[2 * d + x] = mean[x];
    }
    for (const reference::Vector& one : all) {
      for (int64_t x = 0; x < d; ++x) {
        side[x] = std::max(side[x], one[x]);
        side[d + x] = std::min(side[d + x], one[x]);
      }
    }
    return side;
  }
  // One [dim, 3 dim] of a map.
  static reference::Vector Mapped(const std::vector<float>& maps, int64_t which,
                                  const reference::Vector& side) {
    const int64_t d = std::ssize(side) / 3;
    reference::Vector out(d);
    for (int64_t o = 0; o < d; ++o) {
      for (int64_t i = 0; i < 3 * d; ++i)
        out[o] += static_cast<double>(maps[(which * d + o) * 3 * d + i]) * side[i];
    }
    return out;
  }
  // The gate's key of keys [block * size, end) of a KV head, for a query head.
  reference::Vector GateKey(const KvView& keys, int64_t b, int64_t end, int64_t head,
                            int64_t kv) const {
    if (map.empty()) return reference::MeanKey(keys, b, block, end, kv);
    std::vector<reference::Vector> all;
    for (int64_t s = b * block; s < std::min(end, (b + 1) * block); ++s)
      all.push_back(reference::Key(keys, s, kv));
    return Mapped(map, query_map.empty() ? head : kv, Pooled(all));
  }

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
    const double scale = map.empty() ? static_cast<double>(in.scale)
                                     : 1 / std::sqrt(static_cast<double>(in.q_pre.dim));
    std::vector<reference::Vector> queries;
    for (int64_t i = from; i < to; ++i)
      queries.push_back(reference::Query(in.q_pre, i, head, scale));
    const reference::Vector mixed =
        query_map.empty() ? reference::MeanOf(queries) : Mapped(query_map, head, Pooled(queries));
    const reference::Vector q = Turned(mixed, own * block, in.rope_base);

    reference::Vector score;
    for (int64_t b = 0; b * block <= in.q_begin + to - 1; ++b) {
      const reference::Vector key = GateKey(in.k_pre, b, in.q_begin + to, head, kv);
      score.push_back(reference::Product(q, Turned(key, b * block, in.rope_base)));
    }
    return reference::Softmax(score);
  }

  // The blocks of a list: by the share of the prompt's blocks, else by tau; everything in its last
  // rows, whatever their scores. The tile's own blocks are always kept.
  std::vector<int64_t> Blocks(const AttentionInputs& in, int64_t from, int64_t to,
                              int64_t head) const {
    const int64_t length = std::max(in.prompt_end, in.k.rows);
    const int64_t of_prompt = (length + block - 1) / block;
    reference::Budget budget = {.tau = tau, .sink = 0, .local = 1};
    const int64_t last = (in.q_begin + to - 1) / block;
    if (last >= of_prompt - dense_tail) {
      std::vector<int64_t> all(last + 1);
      std::iota(all.begin(), all.end(), 0);
      return all;
    }
    if (density > 0) {
      const double share = (1 - std::sqrt(1 - density)) * static_cast<double>(of_prompt);
      budget.k = std::max<int64_t>(1, static_cast<int64_t>(std::floor(share)));
    }
    return budget.Select(Gate(in, from, to, head), (in.q_begin + from) / block);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    const int64_t step = tile > 0 ? tile : block;
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += step) {
        const int64_t to = std::min(in.q.rows, from + step);
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
