#ifndef SLUICE_ROUTERS_ATTENTION_HIP_HIP_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_HIP_HIP_REFERENCE_H_
// HiP's search in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct HipReference {
  int64_t mask_k = 512;
  int64_t block_q = 64;
  int64_t stride_q = 2;
  int64_t block_k = 2;
  int64_t sink = 16;
  int64_t window = 256;

  // Blocks [begin, end) of the candidate range.
  struct Span {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t size() const { return end - begin; }
    int64_t centre() const { return begin + size() / 2; }
  };

  // The candidates of queries [from, to): keys after the sink and before the window of the first
  // of them, in whole blocks; what is left over counts as window.
  int64_t Candidates(const AttentionInputs& in, int64_t from) const {
    const int64_t end = in.q_begin + from - window + 1;
    return std::max<int64_t>(0, end - sink) / block_k;
  }

  // The largest product of any of every stride_q-th query with any key of a block. -inf where all
  // of them are NaN.
  double Score(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
               int64_t block) const {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    double most = -HUGE_VAL;
    for (int64_t i = from; i < to; i += stride_q) {
      for (int64_t j = 0; j < block_k; ++j) {
        const double score =
            reference::Product(reference::Query(in.q, i, head, 1),
                               reference::Key(in.k, sink + block * block_k + j, kv));
        if (score > most) most = score;
      }
    }
    return most;
  }

  // The blocks that the search ends at, ascending.
  std::vector<int64_t> Search(const AttentionInputs& in, int64_t from, int64_t to,
                              int64_t head) const {
    const int64_t candidates = Candidates(in, from);
    const int64_t most = std::min(candidates, mask_k / block_k);
    std::vector<Span> groups;
    for (int64_t g = 0; g < most; ++g)
      groups.push_back({g * candidates / most, (g + 1) * candidates / most});

    const auto single = [](const Span& s) { return s.size() == 1; };
    while (!std::all_of(groups.begin(), groups.end(), single)) {
      std::vector<Span> halves;
      for (const Span& s : groups) {
        const int64_t middle = s.begin + (s.size() + 1) / 2;
        halves.push_back({s.begin, middle});
        if (middle < s.end) halves.push_back({middle, s.end});
      }
      reference::Vector score;
      for (const Span& s : halves) score.push_back(Score(in, from, to, head, s.centre()));
      groups.clear();
      for (int64_t best : reference::Best(score, most)) groups.push_back(halves[best]);
    }

    std::vector<int64_t> blocks;
    for (const Span& s : groups) blocks.push_back(s.begin);
    return blocks;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += block_q) {
        const int64_t to = std::min(in.q.rows, from + block_q);
        const int64_t local = sink + Candidates(in, from) * block_k;
        const std::vector<int64_t> blocks = Search(in, from, to, head);
        for (int64_t i = from; i < to; ++i) {
          for (int64_t s = 0; s <= in.q_begin + i; ++s) {
            const bool found =
                std::binary_search(blocks.begin(), blocks.end(), (s - sink) / block_k);
            if (s < sink || s >= local || found)
              lists[i * in.q.heads + head].push_back(static_cast<uint32_t>(s));
          }
        }
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HIP_HIP_REFERENCE_H_
