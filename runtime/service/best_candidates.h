#ifndef SLUICE_RUNTIME_SERVICE_BEST_CANDIDATES_H_
#define SLUICE_RUNTIME_SERVICE_BEST_CANDIDATES_H_
// The candidates of a stage that come next: likelier first, then by what the method expects of
// them, then whoever is named first. Neither the chosen one nor those that are barred. Which of a
// team is better than which no processor foretells, and a wrong guess costs it more than looking
// again: candidates become numbers that order as they do, and those are looked through without
// branches.
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
class BestCandidates {
 public:
  static constexpr size_t kMost = 3;

  // Of one stage's candidates at most kMost. O(candidates).
  void Find(absl::Span<const AgentCandidate> of) {
    ranks_.resize(of.size());
    for (size_t i = 0; i < of.size(); ++i) ranks_[i] = RankOf(of[i]);
    for (size_ = 0; size_ < kMost; ++size_) {
      uint64_t best = 0;
      size_t at = 0;
      for (size_t i = 0; i < of.size(); ++i) {
        const bool better = ranks_[i] > best;
        best = better ? ranks_[i] : best;
        at = better ? i : at;
      }
      if (best == 0) return;
      ranks_[at] = 0;
      agents_[size_] = of[at].agent;
    }
  }
  size_t size() const { return size_; }
  // From the best.
  int32_t agent(size_t k) const { return agents_[k]; }

 private:
  static uint64_t AllOnes(bool yes) { return uint64_t{0} - static_cast<uint64_t>(yes); }
  // Orders as the candidates do; what is no number comes last. 0: not to be offered.
  static uint64_t RankOf(const AgentCandidate& c) {
    // The bits of floats above 0 order as they do; below 0 the other way round.
    const uint64_t p = std::bit_cast<uint32_t>(c.p) & AllOnes(c.p > 0);
    const auto eta = std::bit_cast<uint32_t>(c.eta + 0.0F);  // -0 is 0
    const uint32_t flip = (uint32_t{0} - (eta >> 31)) | 0x80000000U;
    const uint64_t ascending = (eta ^ flip) & AllOnes(c.eta == c.eta);
    const uint64_t rank = (p << 32 | ascending) + 1;
    return rank & AllOnes(!c.chosen) & AllOnes(c.block == Block::kNone);
  }

  std::vector<uint64_t> ranks_;
  std::array<int32_t, kMost> agents_{};
  size_t size_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_BEST_CANDIDATES_H_
