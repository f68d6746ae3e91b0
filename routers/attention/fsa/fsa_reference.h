#ifndef SLUICE_ROUTERS_ATTENTION_FSA_FSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_FSA_FSA_REFERENCE_H_
// FSA's order of work in plain loops and double precision: lists of blocks are inverted, every
// block leaves a partial result for each (query, slot), and each query merges its own.
#include <vector>

#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct FsaReference {
  using Lists = std::vector<std::vector<int64_t>>;  // [queries]: blocks, ascending
  struct Slot {
    int64_t query = 0;
    int64_t slot = 0;  // in the query's list
  };
  struct Partial {
    double m = -HUGE_VAL;
    double l = 0;
    reference::Vector o;
  };
  int64_t block = 64;

  // Who chose each block, queries ascending.
  static std::vector<std::vector<Slot>> Invert(const Lists& lists, int64_t blocks) {
    std::vector<std::vector<Slot>> chosen(blocks);
    for (int64_t i = 0; i < std::ssize(lists); ++i) {
      for (int64_t s = 0; s < std::ssize(lists[i]); ++s) chosen[lists[i][s]].push_back({i, s});
    }
    return chosen;
  }

  Partial OfBlock(const AttentionInputs& in, int64_t i, int64_t head, int64_t b) const {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const reference::Vector q = reference::Query(in.q, i, head, in.scale);
    Partial p;
    std::vector<double> logit;
    for (int64_t s = b * block; s < (b + 1) * block && s <= in.q_begin + i; ++s)
      logit.push_back(reference::Product(q, reference::Key(in.k, s, kv)));
    for (double x : logit) p.m = std::max(p.m, x);
    p.o.resize(in.v.dim);
    for (int64_t j = 0; j < std::ssize(logit); ++j) {
      const double w = std::exp(logit[j] - p.m);
      p.l += w;
      for (int64_t x = 0; x < in.v.dim; ++x) p.o[x] += w * in.v.Get(b * block + j, kv, x);
    }
    return p;
  }

  // Outputs of a query head whose queries chose such blocks.
  std::vector<reference::Vector> Attend(const AttentionInputs& in, int64_t head,
                                        const Lists& lists) const {
    std::vector<std::vector<Partial>> partial(lists.size());
    for (size_t i = 0; i < lists.size(); ++i) partial[i].resize(lists[i].size());
    const int64_t blocks = (in.kv_len() + block - 1) / block;
    const std::vector<std::vector<Slot>> chosen = Invert(lists, blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      for (const Slot& s : chosen[b]) partial[s.query][s.slot] = OfBlock(in, s.query, head, b);
    }
    std::vector<reference::Vector> o(lists.size(), reference::Vector(in.v.dim));
    for (size_t i = 0; i < lists.size(); ++i) {
      double m = -HUGE_VAL;
      double l = 0;
      for (const Partial& p : partial[i]) m = std::max(m, p.m);
      for (const Partial& p : partial[i]) l += p.l * std::exp(p.m - m);
      for (const Partial& p : partial[i]) {
        for (int64_t x = 0; x < in.v.dim; ++x) o[i][x] += p.o[x] * std::exp(p.m - m) / l;
      }
    }
    return o;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_FSA_FSA_REFERENCE_H_
