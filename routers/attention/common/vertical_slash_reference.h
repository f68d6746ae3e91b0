#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_REFERENCE_H_
// Vertical lines and slashes in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention::reference {
// Which keys a query sees, by key.
using Mask = std::vector<bool>;
inline std::vector<uint32_t> KeysOf(const Mask& mask) {
  std::vector<uint32_t> keys;
  for (size_t s = 0; s < mask.size(); ++s) {
    if (mask[s]) keys.push_back(static_cast<uint32_t>(s));
  }
  return keys;
}

// Sums of the probabilities of queries [from, to), by key and by distance; those of NaN left out.
struct LineSums {
  Vector column;    // [keys]
  Vector distance;  // [keys]

  LineSums(const AttentionInputs& in, int64_t from, int64_t to, int64_t head)
      : column(in.q_begin + to), distance(in.q_begin + to) {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    for (int64_t i = from; i < to; ++i) {
      const Vector q = Query(in.q, i, head, in.scale);
      Vector logits;
      for (int64_t s = 0; s <= in.q_begin + i; ++s) logits.push_back(Product(q, Key(in.k, s, kv)));
      const Vector p = Softmax(logits);
      if (std::isnan(p[0])) continue;
      for (int64_t s = 0; s <= in.q_begin + i; ++s) {
        column[s] += p[s];
        distance[in.q_begin + i - s] += p[s];
      }
    }
  }
};

// Units by falling score; of equal ones the first, or the last, first.
inline std::vector<int64_t> RankedFrom(const Vector& score, bool last_first) {
  if (!last_first) return Ranked(score);
  std::vector<int64_t> order = Ranked({score.rbegin(), score.rend()});
  for (int64_t& u : order) u = std::ssize(score) - 1 - u;
  return order;
}
// The fewest units that hold the share p of the score, and `least` of them if there are so many.
inline std::vector<int64_t> Fewest(const Vector& score, double p, int64_t least,
                                   bool last_first = false) {
  double total = 0;
  for (double x : score) total += x > 0 ? x : 0;
  double held = 0;
  std::vector<int64_t> kept;
  for (int64_t u : RankedFrom(score, last_first)) {
    if (p < 1 && held >= p * total && std::ssize(kept) >= least) break;
    held += score[u];
    kept.push_back(u);
  }
  return kept;
}

// What the queries of a tile, at positions [first, last], see of columns and distances: of a
// distance the keys that lie there from any of them. Then the first and the last keys.
inline Mask LinesOfTile(const std::vector<int64_t>& columns, const std::vector<int64_t>& distances,
                        int64_t first, int64_t last) {
  Mask mask(last + 1);
  for (int64_t s : columns) {
    if (s <= last) mask[s] = true;
  }
  for (int64_t distance : distances) {
    for (int64_t at = first; at <= last; ++at) {
      if (at >= distance) mask[at - distance] = true;
    }
  }
  return mask;
}
inline void Guard(Mask& mask, int64_t sink, int64_t local, int64_t first) {
  for (int64_t s = 0; s < std::ssize(mask); ++s) {
    if (s < sink || s > first - local) mask[s] = true;
  }
}
// A tile's mask for one of its queries.
inline std::vector<uint32_t> KeysUpTo(const Mask& mask, int64_t position) {
  return KeysOf(Mask(mask.begin(), mask.begin() + position + 1));
}
}  // namespace attention::reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_VERTICAL_SLASH_REFERENCE_H_
