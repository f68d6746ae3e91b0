#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_REFERENCE_H_
// Steps that references of attention routers share: plain loops, full sorts, double precision, and
// nothing of the routers' own primitives.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
namespace attention::reference {
using Vector = std::vector<double>;
using Lists = std::vector<std::vector<uint32_t>>;  // [queries * heads]: keys, ascending

inline double Product(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t x = 0; x < a.size(); ++x) sum += a[x] * b[x];
  return sum;
}
inline Vector Query(const HeadsView<const float>& q, int64_t i, int64_t head, double scale) {
  Vector query(q.at(i, head), q.at(i, head) + q.dim);
  for (double& x : query) x *= scale;
  return query;
}
inline Vector Key(const KvView& k, int64_t s, int64_t kv) {
  Vector key(k.dim);
  for (int64_t x = 0; x < k.dim; ++x) key[x] = k.Get(s, kv, x);
  return key;
}
inline Vector MeanOf(const std::vector<Vector>& rows) {
  Vector mean(rows[0].size());
  for (const Vector& row : rows) {
    for (size_t x = 0; x < mean.size(); ++x) mean[x] += row[x];
  }
  for (double& x : mean) x /= static_cast<double>(rows.size());
  return mean;
}
// The mean of those keys of a block that stand before `end`.
inline Vector MeanKey(const KvView& k, int64_t b, int64_t block, int64_t end, int64_t kv) {
  std::vector<Vector> keys;
  for (int64_t s = b * block; s < std::min(end, (b + 1) * block); ++s)
    keys.push_back(Key(k, s, kv));
  return MeanOf(keys);
}

// NaN anywhere: all is NaN. Only -inf: all is 0.
inline Vector Softmax(const Vector& x) {
  double most = -HUGE_VAL;
  for (double e : x) most = std::max(most, e);
  Vector p(x.size());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    p[i] = most == -HUGE_VAL && !std::isnan(x[i]) ? 0 : std::exp(x[i] - most);
    sum += p[i];
  }
  for (double& e : p) e = sum == 0 ? 0 : e / sum;
  return p;
}
// Plain attention in which every query sees every key: [queries, heads, value_dim], row by row.
inline Vector WithoutMask(const AttentionInputs& in) {
  Vector o;
  for (int64_t i = 0; i < in.q.rows; ++i) {
    for (int64_t h = 0; h < in.q.heads; ++h) {
      const int64_t kv = h / (in.q.heads / in.k.heads);
      const Vector q = Query(in.q, i, h, in.scale);
      Vector logits;
      for (int64_t s = 0; s < in.kv_len(); ++s) logits.push_back(Product(q, Key(in.k, s, kv)));
      const Vector p = Softmax(logits);
      for (int64_t x = 0; x < in.v.dim; ++x) {
        double sum = 0;
        for (int64_t s = 0; s < in.kv_len(); ++s) sum += p[s] * in.v.Get(s, kv, x);
        o.push_back(sum);
      }
    }
  }
  return o;
}

// Units by falling score, equal ones by rising number. NaN and -inf are left out.
inline std::vector<int64_t> Ranked(const Vector& score) {
  std::vector<int64_t> order;
  for (int64_t u = 0; u < std::ssize(score); ++u) {
    if (score[u] > -HUGE_VAL) order.push_back(u);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  return order;
}
// The k best units, ascending.
inline std::vector<int64_t> Best(const Vector& score, int64_t k) {
  std::vector<int64_t> best = Ranked(score);
  if (std::ssize(best) > k) best.resize(k);
  std::sort(best.begin(), best.end());
  return best;
}

// How many blocks a list keeps: k, else the share p of the score, else those above tau. Forced
// blocks come first and use the budget up, or are kept beside it.
struct Budget {
  int64_t k = 0;
  double p = 0;
  double tau = 0;
  int64_t sink = 1;
  int64_t local = 2;
  bool count_forced = true;

  // Ascending. `own` is the block of the tile's first query; blocks after it overlap the tile.
  std::vector<int64_t> Select(const Vector& score, int64_t own) const {
    std::vector<int64_t> kept;
    int64_t room = k;
    double total = 0;
    double held = 0;
    for (int64_t b = 0; b < std::ssize(score); ++b) {
      const double weight = score[b] > 0 ? score[b] : 0;
      const bool forced = b < sink || b > own - local;
      if (forced) kept.push_back(b);
      if (!forced || count_forced) total += weight;
      if (!forced || !count_forced) continue;
      --room;
      held += weight;
    }
    for (int64_t b : Ranked(score)) {
      if (b < sink || b > own - local) continue;
      const bool wanted = k > 0   ? room > 0
                          : p > 0 ? score[b] >= 0 && (p >= 1 || held < p * total)
                                  : score[b] > tau;
      if (!wanted) break;
      kept.push_back(b);
      --room;
      held += score[b];
    }
    std::sort(kept.begin(), kept.end());
    return kept;
  }
};

// The keys of blocks that the query at a position sees.
inline std::vector<uint32_t> KeysOf(const std::vector<int64_t>& blocks, int64_t block,
                                    int64_t position) {
  std::vector<uint32_t> keys;
  for (int64_t b : blocks) {
    for (int64_t s = b * block; s < (b + 1) * block && s <= position; ++s)
      keys.push_back(static_cast<uint32_t>(s));
  }
  return keys;
}

// Lists of blocks that a tile's queries and a group's heads share. score(from, to, kv) says what
// queries [from, to) think of the blocks that the last of them sees.
template <class Score>
Lists BlockLists(const AttentionInputs& in, int64_t tile, int64_t block, const Budget& budget,
                 const Score& score) {
  const int64_t group = in.q.heads / in.k.heads;
  Lists lists(in.q.rows * in.q.heads);
  for (int64_t kv = 0; kv < in.k.heads; ++kv) {
    for (int64_t from = 0; from < in.q.rows; from += tile) {
      const int64_t to = std::min(in.q.rows, from + tile);
      const std::vector<int64_t> kept =
          budget.Select(score(from, to, kv), (in.q_begin + from) / block);
      for (int64_t i = from; i < to; ++i) {
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
          lists[i * in.q.heads + head] = KeysOf(kept, block, in.q_begin + i);
      }
    }
  }
  return lists;
}
}  // namespace attention::reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_REFERENCE_H_
