#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_REFERENCE_H_
// A trained indexer's projections in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct LearnedIndexReference {
  int64_t heads = 4;
  int64_t dim = 16;
  int64_t rope = 8;
  std::vector<float> query, key, key_norm, key_shift, weight;

  using Vector = reference::Vector;
  // Turns the first n numbers, pair by pair, to a position.
  static void Turn(Vector& x, int64_t n, double position, double base) {
    for (int64_t c = 0; c + 1 < n && base > 0; c += 2) {
      const double angle =
          position * std::pow(base, -static_cast<double>(c) / static_cast<double>(n));
      const double a = x[c];
      const double b = x[c + 1];
      x[c] = a * std::cos(angle) - b * std::sin(angle);
      x[c + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
  // The heads of a token side by side, as they were before RoPE.
  template <class Head>
  static Vector Before(const AttentionInputs& in, int64_t heads, int64_t position, Head&& head) {
    Vector all;
    for (int64_t h = 0; h < heads; ++h) {
      Vector x = head(h);
      Turn(x, std::ssize(x), -static_cast<double>(position), in.rope_base);
      all.insert(all.end(), x.begin(), x.end());
    }
    return all;
  }
  static Vector Mapped(const std::vector<float>& map, const Vector& x, int64_t from, int64_t n) {
    Vector y(n);
    for (int64_t o = 0; o < n; ++o) {
      for (int64_t i = 0; i < std::ssize(x); ++i)
        y[o] += x[i] * map[(from + o) * std::ssize(x) + i];
    }
    return y;
  }
  Vector IndexKey(const AttentionInputs& in, int64_t s) const {
    const Vector before =
        Before(in, in.k.heads, s, [&](int64_t kv) { return reference::Key(in.k, s, kv); });
    Vector x = Mapped(key, before, 0, dim);
    double mean = 0;
    double spread = 0;
    for (double e : x) mean += e / static_cast<double>(dim);
    for (double e : x) spread += (e - mean) * (e - mean) / static_cast<double>(dim);
    for (int64_t c = 0; c < dim; ++c)
      x[c] = (x[c] - mean) / std::sqrt(spread + 1e-5) * key_norm[c] + key_shift[c];
    Turn(x, rope, static_cast<double>(s), in.rope_base);
    return x;
  }

  // The inputs with index projections, which lie in the reference until the next call.
  AttentionInputs With(const AttentionInputs& in) const {
    q_.clear();
    w_.clear();
    k_.clear();
    for (int64_t i = 0; i < in.q.rows; ++i) {
      const int64_t position = in.q_begin + i;
      const Vector before = Before(in, in.q.heads, position,
                                   [&](int64_t h) { return reference::Query(in.q, i, h, 1); });
      for (int64_t j = 0; j < heads; ++j) {
        Vector x = Mapped(query, before, j * dim, dim);
        Turn(x, rope, static_cast<double>(position), in.rope_base);
        q_.insert(q_.end(), x.begin(), x.end());
      }
      const Vector of_heads = Mapped(weight, before, 0, heads);
      w_.insert(w_.end(), of_heads.begin(), of_heads.end());
    }
    for (int64_t s = 0; s < in.k.rows; ++s) {
      const Vector x = IndexKey(in, s);
      k_.insert(k_.end(), x.begin(), x.end());
    }
    AttentionInputs with = in;
    with.index.q = {q_.data(), in.q.rows, heads, dim, heads * dim, dim};
    with.index.weight = {w_.data(), in.q.rows, heads, heads};
    with.index.k = {k_.data(), DType::kF32, in.k.rows, 1, dim, dim, dim};
    return with;
  }

 private:
  mutable std::vector<float> q_, w_, k_;
};
// A method's reference over a trained indexer.
template <class Reference>
struct WithLearnedIndex {
  LearnedIndexReference index;
  Reference method;
  attention::reference::Lists Lists(const AttentionInputs& in) const {
    return method.Lists(index.With(in));
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_LEARNED_INDEX_REFERENCE_H_
