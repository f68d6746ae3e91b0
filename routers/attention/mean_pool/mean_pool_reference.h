#ifndef SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_REFERENCE_H_
// Block selection by mean-pooled keys in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct MeanPoolReference {
  int64_t block = 64;
  reference::Budget budget;
  bool pool_queries = false;
  int64_t tile = 64;

  // What queries [from, to) of all heads of a group say of the blocks that the last of them sees:
  // the largest probability, of means over keys up to there. -inf where all of them are NaN.
  reference::Vector Scores(const AttentionInputs& in, int64_t from, int64_t to, int64_t kv) const {
    const int64_t group = in.q.heads / in.k.heads;
    const int64_t blocks = (in.q_begin + to - 1) / block + 1;
    std::vector<reference::Vector> means;
    for (int64_t b = 0; b < blocks; ++b)
      means.push_back(reference::MeanKey(in.k, b, block, in.q_begin + to, kv));

    reference::Vector best(blocks, -HUGE_VAL);
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      std::vector<reference::Vector> queries;
      for (int64_t i = from; i < to; ++i)
        queries.push_back(reference::Query(in.q, i, head, in.scale));
      if (pool_queries) queries = {reference::MeanOf(queries)};
      for (const reference::Vector& q : queries) {
        reference::Vector score;
        for (const reference::Vector& mean : means) score.push_back(reference::Product(q, mean));
        score = reference::Softmax(score);
        for (int64_t b = 0; b < blocks; ++b) {
          if (score[b] > best[b]) best[b] = score[b];
        }
      }
    }
    return best;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    return reference::BlockLists(
        in, tile, block, budget,
        [&](int64_t from, int64_t to, int64_t kv) { return Scores(in, from, to, kv); });
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MEAN_POOL_MEAN_POOL_REFERENCE_H_
