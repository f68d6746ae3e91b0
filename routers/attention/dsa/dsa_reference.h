#ifndef SLUICE_ROUTERS_ATTENTION_DSA_DSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_DSA_DSA_REFERENCE_H_
// The lightning indexer in plain loops and double precision.
#include "sluice/routers/attention/common/int_keys_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct DsaReference {
  int64_t k = 2048;
  int limit = 0;  // of whole numbers that keys are rounded to; 0: none are
  double rescore = 0;

  // I(i, s) = sum_j w(i, j) ReLU(q(i, j) . k(s)). Without index inputs every query head is an index
  // head of weight 1 and reads its KV head's keys. ReLU of NaN is NaN.
  static double Score(const AttentionInputs& in, int64_t i, int64_t s, int limit = 0) {
    const bool own = in.index.q.empty();
    const HeadsView<const float>& q = own ? in.q : in.index.q;
    const KvView& keys = own ? in.k : in.index.k;
    double sum = 0;
    for (int64_t j = 0; j < q.heads; ++j) {
      const int64_t stream = j / (q.heads / keys.heads);
      const double dot = reference::ProductIn(limit, reference::Query(q, i, j, 1),
                                              reference::Key(keys, s, stream));
      const double weight = own ? 1 : in.index.weight.row(i)[j];
      sum += weight * (dot < 0 ? 0 : dot);
    }
    return sum;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists;
    for (int64_t i = 0; i < in.q.rows; ++i) {
      std::vector<int64_t> best = reference::BestInDoubt(
          in.q_begin + i + 1, k, rescore, [&](int64_t s) { return Score(in, i, s, limit); },
          [&](int64_t s) { return Score(in, i, s); });
      if (best.empty()) best = {in.q_begin + i};  // all is NaN
      for (int64_t head = 0; head < in.q.heads; ++head)
        lists.emplace_back(best.begin(), best.end());
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DSA_DSA_REFERENCE_H_
