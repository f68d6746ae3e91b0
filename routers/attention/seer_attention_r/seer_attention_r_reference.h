#ifndef SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_REFERENCE_H_
// SeerAttention-R's routing in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct SeerAttentionRReference {
  int64_t block = 64;
  int64_t k = 64;
  double tau = 5e-3;
  bool dense_prompt = false;
  // The layer's gate.
  std::vector<float> key;         // [kv_heads, dim, 3 dim]
  std::vector<float> query;       // [kv_heads, dim, group dim]
  std::vector<float> key_norm;    // [dim]
  std::vector<float> query_norm;  // [dim]

  // x through a KV head's map, divided by its root mean square and weighted, turned to a position.
  static reference::Vector Gated(const std::vector<float>& map, const std::vector<float>& norm,
                                 const reference::Vector& x, int64_t kv, int64_t position,
                                 double rope_base) {
    const int64_t d = std::ssize(norm);
    const int64_t n = std::ssize(x);
    reference::Vector y(d);
    double squares = 0;
    for (int64_t o = 0; o < d; ++o) {
      for (int64_t i = 0; i < n; ++i) y[o] += map[(kv * d + o) * n + i] * x[i];
      squares += y[o] * y[o] / static_cast<double>(d);
    }
    for (int64_t o = 0; o < d; ++o) y[o] = y[o] / std::sqrt(squares + 1e-6) * norm[o];
    for (int64_t o = 0; rope_base > 0 && o + 1 < d; o += 2) {
      const double angle = static_cast<double>(position) *
                           std::pow(rope_base, -static_cast<double>(o) / static_cast<double>(d));
      const double a = y[o];
      const double b = y[o + 1];
      y[o] = a * std::cos(angle) - b * std::sin(angle);
      y[o + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return y;
  }
  reference::Vector BlockKey(const AttentionInputs& in, int64_t b, int64_t kv) const {
    const int64_t d = in.k_pre.dim;
    reference::Vector most(d, -HUGE_VAL);
    reference::Vector least(d, HUGE_VAL);
    reference::Vector mean(d);
    for (int64_t x = 0; x < d; ++x) {
      for (int64_t s = b * block; s < (b + 1) * block; ++s) {
        const double e = in.k_pre.Get(s, kv, x);
        if (std::isnan(e) || e > most[x]) most[x] = e;
        if (std::isnan(e) || e < least[x]) least[x] = e;
        mean[x] += e / static_cast<double>(block);
      }
    }
    reference::Vector side = most;
    side.insert(side.end(), least.begin(), least.end());
    side.insert(side.end(), mean.begin(), mean.end());
    return Gated(key, key_norm, side, kv, b * block, in.rope_base);
  }

  std::vector<reference::Vector> BlockKeys(const AttentionInputs& in, int64_t kv) const {
    std::vector<reference::Vector> keys;
    for (int64_t b = 0; (b + 1) * block <= in.k_pre.rows; ++b) keys.push_back(BlockKey(in, b, kv));
    return keys;
  }

  // Probabilities of the blocks that query i sees a part of; keys: those of the whole blocks.
  reference::Vector Gate(const AttentionInputs& in, int64_t i, int64_t kv,
                         const std::vector<reference::Vector>& keys) const {
    const int64_t position = in.q_begin + i;
    const int64_t group = in.q.heads / in.k.heads;
    reference::Vector side;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      const reference::Vector q = reference::Query(in.q_pre, i, h, 1);
      side.insert(side.end(), q.begin(), q.end());
    }
    const reference::Vector q = Gated(query, query_norm, side, kv, position, in.rope_base);
    reference::Vector score;
    for (int64_t b = 0; b * block <= position; ++b) {
      const bool whole = (b + 1) * block <= position + 1;
      const double dot = whole ? reference::Product(q, keys[b]) : 0;
      score.push_back(dot / std::sqrt(static_cast<double>(in.q_pre.dim)));
    }
    return reference::Softmax(score);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    const int64_t group = in.q.heads / in.k.heads;
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t kv = 0; kv < in.k.heads; ++kv) {
      const std::vector<reference::Vector> keys = BlockKeys(in, kv);
      for (int64_t i = 0; i < in.q.rows; ++i) {
        const std::vector<uint32_t> list = List(in, i, Gate(in, i, kv, keys));
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) lists[i * in.q.heads + h] = list;
      }
    }
    return lists;
  }

 private:
  std::vector<uint32_t> List(const AttentionInputs& in, int64_t i, reference::Vector gate) const {
    const int64_t position = in.q_begin + i;
    const int64_t own = position / block;
    const bool dense = dense_prompt && in.q_begin < in.prompt_end;
    std::vector<int64_t> kept = {own};
    gate[own] = NAN;  // kept already
    if (dense || k == 0) {
      for (int64_t b = 0; b < own; ++b) {
        if (dense || gate[b] > tau) kept.push_back(b);
      }
    } else {
      for (int64_t b : reference::Best(gate, k - 1)) kept.push_back(b);
    }
    std::sort(kept.begin(), kept.end());
    return reference::KeysOf(kept, block, position);
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SEER_ATTENTION_R_SEER_ATTENTION_R_REFERENCE_H_
