#ifndef SLUICE_ROUTERS_ATTENTION_COMMON_TOKEN_CHOICE_H_
#define SLUICE_ROUTERS_ATTENTION_COMMON_TOKEN_CHOICE_H_
// SELECT: the best tokens of a query by an indexer, one list for all heads (DSA, HISA).
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// How many tokens are kept, and what they are scored in.
struct TokenBudget {
  int64_t k = 2048;
  ScoreIn score = ScoreIn::kF32;
  double rescore = 0;
  template <class V>
  void VisitFields(V&& v) {
    v("k", k, Range<int64_t>{1, kEverything}, "tokens kept per query");
    v("score", score, Choices{"f32", "int8", "int4"},
      "arithmetic of token scores: as given, or rotated queries of 8 bits with keys of 8 or 4");
    v("rescore", rescore, Range<double>{0, 1},
      "of int8 and int4: how far from rank k, as a share of k, ranks are doubtful; such tokens are "
      "scored again as given, better ones are kept and worse ones left without");
  }
  absl::Status Check() const {
    if (score != ScoreIn::kF32 || rescore == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("rescore=", rescore,
                     " with score=f32, which leaves no doubt; allowed: 0, or score=int8 "
                     "or int4"));
  }
};

class TokenChoice {
 public:
  struct Layout {
    Scratch<float> scores, index;
    Scratch<uint32_t> sure, considered, doubtful, picked;
    Scratch<std::byte> top;
  };
  // `indexed`: the plan's shape, with the indexer's heads and width; at least `picked` picks.
  static Layout AddTo(RouterPlan& plan, const AttentionShape& indexed, const TokenBudget& budget,
                      int64_t picked = 0) {
    const int64_t keys = plan.shape.max_kv;
    const int64_t twice = budget.rescore > 0 ? std::min(keys, 2 * std::min(budget.k, keys)) : 0;
    Layout l;
    l.scores = plan.AddScratch<float>(keys);
    l.index = plan.AddScratch<float>(Indexer::ScratchFloats(indexed, keys));
    l.sure = plan.AddScratch<uint32_t>(twice);
    l.considered = plan.AddScratch<uint32_t>(twice);
    l.doubtful = plan.AddScratch<uint32_t>(twice);
    l.picked = plan.AddScratch<uint32_t>(std::max(picked, std::min(budget.k, keys)));
    l.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(keys));
    return l;
  }

  TokenChoice(const Layout& layout, const TokenBudget& budget, const Indexer& indexer)
      : l_(layout), budget_(budget), indexer_(indexer) {}

  // out: the best of tokens ids[0, n), ascending, or of the first n; returns how many. NaN is never
  // chosen.
  int64_t Best(int64_t i, const uint32_t* ids, int64_t n, WorkerScratch scratch,
               uint32_t* out) const {
    indexer_.ScoreKeys(i, ids, n, scratch[l_.scores], scratch[l_.index]);
    const int64_t kept = std::min(budget_.k, n);
    if (budget_.rescore == 0 || kept == n) return Top(n, kept, ids, scratch, out);

    // Ranks by the rounded scores: sure ones, then doubtful ones.
    const auto margin =
        static_cast<int64_t>(std::ceil(budget_.rescore * static_cast<double>(kept)));
    uint32_t* sure = scratch[l_.sure];
    uint32_t* considered = scratch[l_.considered];
    uint32_t* doubtful = scratch[l_.doubtful];
    const int64_t num_sure = Top(n, kept - margin, ids, scratch, sure);
    const int64_t num_considered = Top(n, std::min(n, kept + margin), ids, scratch, considered);
    const int64_t num_doubtful = std::set_difference(considered, considered + num_considered, sure,
                                                     sure + num_sure, doubtful) -
                                 doubtful;

    indexer_.ScoreKeysAsGiven(i, doubtful, num_doubtful, scratch[l_.scores], scratch[l_.index]);
    uint32_t* picked = scratch[l_.picked];
    const int64_t num_picked =
        Top(num_doubtful, std::min(num_doubtful, kept - num_sure), doubtful, scratch, picked);
    return std::merge(sure, sure + num_sure, picked, picked + num_picked, out) - out;
  }

 private:
  // The k best of n scores, as ids; ascending.
  int64_t Top(int64_t n, int64_t k, const uint32_t* ids, WorkerScratch scratch,
              uint32_t* out) const {
    if (k == 0) return 0;
    const int64_t count = kernels::TopK(scratch[l_.scores], n, k, out, scratch[l_.top]).count;
    for (int64_t j = 0; j < count && ids != nullptr; ++j) out[j] = ids[out[j]];
    return count;
  }

  const Layout& l_;
  const TokenBudget& budget_;
  const Indexer& indexer_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_COMMON_TOKEN_CHOICE_H_
