#ifndef SLUICE_ROUTERS_ATTENTION_HISA_HISA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_HISA_HISA_REFERENCE_H_
// HISA in plain loops and double precision.
#include "sluice/routers/attention/common/int_keys_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct HisaReference {
  int64_t k = 2048;
  int64_t m = 64;
  int64_t block = 128;
  int limit = 0;  // of whole numbers that tokens' keys are rounded to; 0: none are
  double rescore = 0;
  bool bounds = false;  // of blocks, not their means

  // sum_j w(i, j) ReLU(q(i, j) . keys[stream of j]): of a token, or of a block's means. Without
  // index inputs every query head is an index head of weight 1 and reads its KV head's stream.
  static double Score(const AttentionInputs& in, int64_t i,
                      const std::vector<reference::Vector>& keys, int limit) {
    const bool own = in.index.q.empty();
    const HeadsView<const float>& q = own ? in.q : in.index.q;
    double sum = 0;
    for (int64_t j = 0; j < q.heads; ++j) {
      const int64_t stream = j / (q.heads / std::ssize(keys));
      const double dot = reference::ProductIn(limit, reference::Query(q, i, j, 1), keys[stream]);
      const double weight = own ? 1 : in.index.weight.row(i)[j];
      sum += weight * (dot < 0 ? 0 : dot);
    }
    return sum;
  }

  // What no key of [begin, end) scores above: every head's largest product with a vector within
  // their elements' maxima and minima, its least where its weight is negative.
  static double Bound(const AttentionInputs& in, int64_t i, int64_t begin, int64_t end) {
    const bool own = in.index.q.empty();
    const HeadsView<const float>& q = own ? in.q : in.index.q;
    const KvView& keys = own ? in.k : in.index.k;
    double sum = 0;
    for (int64_t j = 0; j < q.heads; ++j) {
      const int64_t stream = j / (q.heads / keys.heads);
      const double weight = own ? 1 : in.index.weight.row(i)[j];
      double dot = 0;
      for (int64_t x = 0; x < q.dim; ++x) {
        double least = HUGE_VAL;
        double most = -HUGE_VAL;
        for (int64_t s = begin; s < end; ++s) {
          const double product = static_cast<double>(q.at(i, j)[x]) * keys.Get(s, stream, x);
          if (std::isnan(product)) return NAN;
          least = std::min(least, product);
          most = std::max(most, product);
        }
        dot += weight < 0 ? least : most;
      }
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
      if (bounds) {
        of_block.push_back(Bound(in, i, b * block, std::min(last + 1, (b + 1) * block)));
        continue;
      }
      std::vector<reference::Vector> means;
      for (int64_t stream = 0; stream < keys.heads; ++stream)
        means.push_back(reference::MeanKey(keys, b, block, last + 1, stream));
      of_block.push_back(Score(in, i, means, 0));
    }
    of_block.front() = HUGE_VAL;
    of_block.back() = HUGE_VAL;

    std::vector<uint32_t> candidates = reference::KeysOf(reference::Best(of_block, m), block, last);
    const auto score = [&](int64_t candidate, int rounded_to) {
      std::vector<reference::Vector> token;
      for (int64_t stream = 0; stream < keys.heads; ++stream)
        token.push_back(reference::Key(keys, candidates[candidate], stream));
      return Score(in, i, token, rounded_to);
    };
    std::vector<uint32_t> tokens;
    for (int64_t best : reference::BestInDoubt(
             std::ssize(candidates), k, rescore, [&](int64_t c) { return score(c, limit); },
             [&](int64_t c) { return score(c, 0); }))
      tokens.push_back(candidates[best]);
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
