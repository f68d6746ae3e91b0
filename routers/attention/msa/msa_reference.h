#ifndef SLUICE_ROUTERS_ATTENTION_MSA_MSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_MSA_MSA_REFERENCE_H_
// MiniMax sparse attention's routing in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct MsaReference {
  int64_t block = 128;
  int64_t k = 16;
  int64_t sink = 0;
  int64_t local = 1;
  // Index projections of the layer; none: the attention's own.
  std::vector<float> query;       // [kv_heads * dim, width]
  std::vector<float> key;         // [key_heads * dim, width]
  std::vector<float> query_norm;  // [dim]
  std::vector<float> key_norm;    // [dim]
  int64_t rope_dim = 0;
  // The layer's inputs from position `hidden_begin` on, of earlier calls too.
  MatrixView<const float> hidden;
  int64_t hidden_begin = 0;

  // Head `head` of a projection at a position.
  reference::Vector Project(const std::vector<float>& map, const std::vector<float>& norm,
                            int64_t head, int64_t position, double rope_base) const {
    const int64_t dim = std::ssize(norm);
    const float* h = hidden.row(position - hidden_begin);
    reference::Vector x(dim);
    double squares = 0;
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < hidden.cols; ++j)
        x[i] += map[(head * dim + i) * hidden.cols + j] * h[j];
      squares += x[i] * x[i];
    }
    for (int64_t i = 0; i < dim; ++i)
      x[i] *= norm[i] / std::sqrt(squares / static_cast<double>(dim) + 1e-6);
    for (int64_t i = 0; i + 1 < rope_dim; i += 2) {
      const double angle =
          static_cast<double>(position) *
          std::pow(rope_base, -static_cast<double>(i) / static_cast<double>(rope_dim));
      const double a = x[i];
      const double b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }

  reference::Vector IndexQuery(const AttentionInputs& in, int64_t i, int64_t kv) const {
    if (!query.empty()) return Project(query, query_norm, kv, in.q_begin + i, in.rope_base);
    const int64_t group = in.q.heads / in.k.heads;
    std::vector<reference::Vector> heads;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
      heads.push_back(reference::Query(in.q, i, h, 1));
    return reference::MeanOf(heads);
  }
  // Empty: a key whose layer's input nobody brought.
  reference::Vector IndexKey(const AttentionInputs& in, int64_t s, int64_t kv) const {
    if (key.empty()) return reference::Key(in.k, s, kv);
    if (s < hidden_begin) return {};
    const bool shared = key.size() == key_norm.size() * static_cast<size_t>(hidden.cols);
    return Project(key, key_norm, shared ? 0 : kv, s, in.rope_base);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    const int64_t group = in.q.heads / in.k.heads;
    for (int64_t kv = 0; kv < in.k.heads; ++kv) {
      std::vector<reference::Vector> keys;
      for (int64_t s = 0; s < in.k.rows; ++s) keys.push_back(IndexKey(in, s, kv));
      for (int64_t i = 0; i < in.q.rows; ++i) {
        const std::vector<uint32_t> list = List(in, i, IndexQuery(in, i, kv), keys);
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) lists[i * in.q.heads + h] = list;
      }
    }
    return lists;
  }

 private:
  std::vector<uint32_t> List(const AttentionInputs& in, int64_t i, const reference::Vector& q,
                             const std::vector<reference::Vector>& keys) const {
    const int64_t position = in.q_begin + i;
    const int64_t own = position / block;
    std::vector<int64_t> kept;
    reference::Vector score;
    for (int64_t b = 0; b <= own; ++b) {
      double most = -HUGE_VAL;
      bool forced = b < sink || b > own - local;
      for (int64_t s = b * block; s < (b + 1) * block && s <= position; ++s) {
        forced = forced || keys[s].empty();
        if (forced) continue;
        const double product = reference::Product(q, keys[s]);
        if (product > most) most = product;
      }
      if (forced) kept.push_back(b);
      score.push_back(forced ? NAN : most);
    }
    const int64_t room = std::max<int64_t>(0, k - std::ssize(kept));
    for (int64_t b : reference::Best(score, room)) kept.push_back(b);
    std::sort(kept.begin(), kept.end());
    return reference::KeysOf(kept, block, position);
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MSA_MSA_REFERENCE_H_
