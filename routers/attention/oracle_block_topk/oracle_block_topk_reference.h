#ifndef SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_REFERENCE_H_
// The blocks of most attention mass in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct OracleBlockTopKReference {
  int64_t block = 64;
  reference::Budget budget;
  int64_t tile = 64;

  // The probability that queries [from, to) of all heads of a group give to each block.
  reference::Vector Mass(const AttentionInputs& in, int64_t from, int64_t to, int64_t kv) const {
    const int64_t group = in.q.heads / in.k.heads;
    reference::Vector mass((in.q_begin + to - 1) / block + 1);
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      for (int64_t i = from; i < to; ++i) {
        const reference::Vector q = reference::Query(in.q, i, head, in.scale);
        reference::Vector p;
        for (int64_t s = 0; s <= in.q_begin + i; ++s)
          p.push_back(reference::Product(q, reference::Key(in.k, s, kv)));
        p = reference::Softmax(p);
        for (int64_t s = 0; s < std::ssize(p); ++s) mass[s / block] += p[s];
      }
    }
    return mass;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    return reference::BlockLists(
        in, tile, block, budget,
        [&](int64_t from, int64_t to, int64_t kv) { return Mass(in, from, to, kv); });
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_ORACLE_BLOCK_TOPK_ORACLE_BLOCK_TOPK_REFERENCE_H_
