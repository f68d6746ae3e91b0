#ifndef SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_REFERENCE_H_
// Quest in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct QuestReference {
  int64_t page = 16;
  reference::Budget budget = {.k = 64, .sink = 0, .local = 1, .count_forced = false};
  bool sum_group = true;
  int64_t tile = 64;

  // The highest product with q of a vector whose elements lie within those of the keys [begin,
  // end); NaN where one of the keys has a NaN.
  static double Bound(const reference::Vector& q, const KvView& k, int64_t begin, int64_t end,
                      int64_t kv) {
    double bound = 0;
    for (int64_t x = 0; x < k.dim; ++x) {
      double least = HUGE_VAL;
      double most = -HUGE_VAL;
      for (int64_t s = begin; s < end; ++s) {
        const double e = k.Get(s, kv, x);
        if (std::isnan(e)) return e;
        least = std::min(least, e);
        most = std::max(most, e);
      }
      bound += std::max(q[x] * least, q[x] * most);
    }
    return bound;
  }

  // Of the pages that the last of queries [from, to) sees, by their keys up to there. -inf where
  // all say NaN.
  reference::Vector Scores(const AttentionInputs& in, int64_t from, int64_t to, int64_t kv) const {
    const int64_t group = in.q.heads / in.k.heads;
    const int64_t end = in.q_begin + to;
    reference::Vector score;
    for (int64_t begin = 0; begin < end; begin += page) {
      double best = -HUGE_VAL;
      for (int64_t i = from; i < to; ++i) {
        double sum = 0;
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
          const double bound = Bound(reference::Query(in.q, i, head, in.scale), in.k, begin,
                                     std::min(end, begin + page), kv);
          sum += bound;
          if (!sum_group && bound > best) best = bound;
        }
        if (sum_group && sum > best) best = sum;
      }
      score.push_back(best);
    }
    return budget.k > 0 ? score : reference::Softmax(score);
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    return reference::BlockLists(in, tile, page, budget, [&](int64_t from, int64_t to, int64_t kv) {
      return Scores(in, from, to, kv);
    });
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_QUEST_QUEST_REFERENCE_H_
