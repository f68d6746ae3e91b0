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

#include "absl/types/span.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
class BestCandidates {
 public:
  static constexpr size_t kMost = 3;

  // Of one stage's candidates at most kMost. O(candidates).
  void Find(absl::Span<const AgentCandidate> of) {
    static_assert(kMost == 3);
    Ranked first, second, third;
    for (const AgentCandidate& c : of) {
      const Ranked now = {RankOf(c), c.agent};
      const bool above_first = now.rank > first.rank;
      const bool above_second = now.rank > second.rank;
      const bool above_third = now.rank > third.rank;
      third = Either(above_second, second, Either(above_third, now, third));
      second = Either(above_first, first, Either(above_second, now, second));
      first = Either(above_first, now, first);
    }
    agents_ = {first.agent, second.agent, third.agent};
    size_ = static_cast<size_t>(first.rank != 0) + static_cast<size_t>(second.rank != 0) +
            static_cast<size_t>(third.rank != 0);
  }
  size_t size() const { return size_; }
  // From the best.
  int32_t agent(size_t k) const { return agents_[k]; }

 private:
  struct Ranked {
    uint64_t rank = 0;
    int32_t agent = 0;
  };
  static Ranked Either(bool yes, const Ranked& a, const Ranked& b) {
    return {yes ? a.rank : b.rank, yes ? a.agent : b.agent};
  }
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

  std::array<int32_t, kMost> agents_{};
  size_t size_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_BEST_CANDIDATES_H_
