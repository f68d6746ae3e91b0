#ifndef SLUICE_ROUTERS_ATTENTION_HISA_HISA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_HISA_HISA_REFERENCE_H_
// HISA in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct HisaReference {
  int64_t k = 2048;
  int64_t m = 64;
  int64_t block = 128;

  // sum_j w(i, j) ReLU(q(i, j) . keys[stream of j]): of a token, or of a block's means. Without
  // index inputs every query head is an index head of weight 1 and reads its KV head's stream.
  static double Score(const AttentionInputs& in, int64_t i,
                      const std::vector<reference::Vector>& keys) {
    const bool own = in.index.q.empty();
    const HeadsView<const float>& q = own ? in.q : in.index.q;
    double sum = 0;
    for (int64_t j = 0; j < q.heads; ++j) {
      const int64_t stream = j / (q.heads / std::ssize(keys));
      const double dot = reference::Product(reference::Query(q, i, j, 1), keys[stream]);
      const double weight = own ? 1 : in.index.weight.row(i)[j];
      sum += weight * (dot < 0 ? 0 : dot);
    }
    return sum;
  }

  // The tokens that query i keeps.
  std::vector<uint32_t> Tokens(const AttentionInputs& in, int64_t i) const {
    const KvView& keys = in.index.q.empty() ? in.k : in.index.k;
    const int64_t last = in.q_begin + i;
    reference::Vector of_block;
    for (int64_t b = 0; b * block <= last; ++b) {
      std::vector<reference::Vector> means;
      for (int64_t stream = 0; stream < keys.heads; ++stream)
        means.push_back(reference::MeanKey(keys, b, block, last + 1, stream));
      of_block.push_back(Score(in, i, means));
    }
    of_block.front() = HUGE_VAL;
    of_block.back() = HUGE_VAL;

    std::vector<uint32_t> candidates = reference::KeysOf(reference::Best(of_block, m), block, last);
    reference::Vector of_token;
    for (uint32_t s : candidates) {
      std::vector<reference::Vector> token;
      for (int64_t stream = 0; stream < keys.heads; ++stream)
        token.push_back(reference::Key(keys, s, stream));
      of_token.push_back(Score(in, i, token));
    }
    std::vector<uint32_t> tokens;
    for (int64_t best : reference::Best(of_token, k)) tokens.push_back(candidates[best]);
    if (tokens.empty()) tokens = {static_cast<uint32_t>(last)};  // all is NaN
    return tokens;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists;
    for (int64_t i = 0; i < in.q.rows; ++i) lists.insert(lists.end(), in.q.heads, Tokens(in, i));
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HISA_HISA_REFERENCE_H_
