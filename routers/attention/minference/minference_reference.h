#ifndef SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_REFERENCE_H_
// MInference in plain loops and double precision.
#include "sluice/routers/attention/common/vertical_slash_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct MInferenceReference {
  struct Pattern {
    char kind = 'v';  // a_shape, vertical_slash or block_sparse, by its first letter
    int64_t a = 0;
    int64_t b = 0;
  };
  std::vector<Pattern> patterns;  // one, or one a head
  int64_t sink = 30;
  int64_t local = 100;
  int64_t last = 64;
  int64_t segment = 512;
  int64_t least_queries = 16;
  static constexpr int64_t kTile = 64;

  // The k best units, the first `guarded` of them before all others.
  static std::vector<int64_t> BestLines(reference::Vector sums, int64_t k, int64_t guarded,
                                        bool last_first) {
    for (int64_t u = 0; u < std::min(guarded, std::ssize(sums)); ++u) sums[u] = HUGE_VAL;
    std::vector<int64_t> best = reference::RankedFrom(sums, last_first);
    if (std::ssize(best) > k) best.resize(k);
    return best;
  }

  // The blocks of the tile of queries [from, to).
  reference::Mask BestBlocks(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
                             int64_t k) const {
    std::vector<reference::Vector> queries;
    for (int64_t i = from; i < to; ++i)
      queries.push_back(reference::Query(in.q, i, head, in.scale));
    const reference::Vector query = reference::MeanOf(queries);
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const int64_t end = in.q_begin + to;
    const int64_t own = (in.q_begin + from) / kTile;
    reference::Vector score;
    int64_t room = k;
    for (int64_t b = 0; b * kTile < end; ++b) {
      score.push_back(reference::Product(query, reference::MeanKey(in.k, b, kTile, end, kv)));
      if (b >= own) score[b] = NAN;
      if (b >= own) --room;
    }
    const std::vector<int64_t> best = reference::Best(score, std::max<int64_t>(0, room));
    reference::Mask mask(end);
    for (int64_t s = 0; s < end; ++s) {
      for (int64_t b : best) mask[s] = mask[s] || s / kTile == b;
      if (s / kTile >= own) mask[s] = true;
    }
    return mask;
  }

  // What queries [from, to) see where queries [looked, end) are looked at.
  reference::Mask TileMask(const AttentionInputs& in, int64_t from, int64_t to, int64_t looked,
                           int64_t end, int64_t head) const {
    const Pattern& p = patterns[patterns.size() == 1 ? 0 : head];
    const int64_t first = in.q_begin + from;
    const int64_t length = in.q_begin + to;
    reference::Mask mask(length);
    if (p.kind == 'a') {
      reference::Guard(mask, p.a, p.b, first);
    } else if (p.kind == 'b') {
      mask = BestBlocks(in, from, to, head, p.a);
    } else {
      const reference::LineSums sums(in, looked, end, head);
      mask = reference::LinesOfTile(BestLines(sums.column, p.a, sink, false),
                                    BestLines(sums.distance, p.b, local, true), first, length - 1);
      reference::Guard(mask, sink, local, first);
    }
    return mask;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += kTile) {
        const int64_t to = std::min(in.q.rows, from + kTile);
        const int64_t begin = from / segment * segment;
        const int64_t end = std::min(in.q.rows, begin + segment);
        const reference::Mask mask =
            end - begin < least_queries
                ? reference::Mask(in.q_begin + to, true)
                : TileMask(in, from, to, std::max(begin, end - last), end, head);
        for (int64_t i = from; i < to; ++i)
          lists[i * in.q.heads + head] = reference::KeysUpTo(mask, in.q_begin + i);
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_REFERENCE_H_
