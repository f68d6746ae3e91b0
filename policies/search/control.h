#ifndef SLUICE_POLICIES_SEARCH_CONTROL_H_
#define SLUICE_POLICIES_SEARCH_CONTROL_H_
// Random search beside every search (arXiv 2403.08265 proposes it as the neutral baseline): the
// same problem, as many evaluations as the search used, the same seeds, and a verdict.
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/policies/common/bootstrap.h"
#include "sluice/policies/search/search.h"

SLUICE_BEGIN_NAMESPACE
enum class SearchVerdict : uint8_t { kBeats, kTies, kLoses };
inline constexpr const char* kSearchVerdicts[] = {"beats", "ties with", "loses to"};

// What a search gained over random search, a seed each.
struct SearchGains {
  std::vector<double> gains;
  MeanInterval mean;  // 95 %, FewInterval's
  int64_t better = 0, equal = 0, worse = 0;
  SearchVerdict verdict = SearchVerdict::kTies;
};
// Beats: the interval of the mean gain is above 0; loses: below 0; ties: it holds 0. Where a
// quality is infinite there is no mean: then a search beats or loses only if it does with every
// seed. Two qualities that are equal, infinite ones too, gain 0.
inline SearchGains JudgeSearch(absl::Span<const double> found, absl::Span<const double> random,
                               uint64_t seed) {
  constexpr int64_t kDraws = 2000;
  SearchGains g;
  bool finite = true;
  for (size_t i = 0; i < found.size(); ++i) {
    const double gain = found[i] == random[i] ? 0 : found[i] - random[i];
    finite = finite && std::isfinite(gain);
    g.better += gain > 0;
    g.equal += gain == 0;
    g.worse += gain < 0;
    g.gains.push_back(gain);
  }
  const auto n = static_cast<int64_t>(found.size());
  g.mean = FewInterval(g.gains, kDraws, seed);
  const bool above = finite ? g.mean.low > 0 : g.better == n;
  const bool below = finite ? g.mean.high < 0 : g.worse == n;
  if (above) g.verdict = SearchVerdict::kBeats;
  if (below) g.verdict = SearchVerdict::kLoses;
  return g;
}

struct SearchTrial {
  std::vector<SearchResult> found, random;  // a seed each
  SearchGains gains;
};
// `method` with seeds o.seed, o.seed + 1, ..., and random search with the same and as many
// evaluations as it used. What one run evaluated is not measured again for another, and counts for
// each that asks. InvalidArgument for random search itself and for fewer than 2 seeds, which say
// nothing.
inline absl::StatusOr<SearchTrial> TrySearch(const SearchProblem& problem, SearchMethod method,
                                             SearchOptions o, int64_t seeds) {
  if (method == SearchMethod::kRandom)
    return absl::InvalidArgumentError("search: random search is the control, not what it controls");
  if (seeds < 2)
    return absl::InvalidArgumentError(absl::StrCat(
        "search: ", seeds, " seeds; a verdict wants 2 or more, of which it knows the spread"));
  std::map<Plan, double> known;
  SearchProblem remembered = problem;
  remembered.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
    const auto at = known.find(plan);
    if (at != known.end()) return at->second;
    SLUICE_ASSIGN_OR_RETURN(const double q, problem.quality(plan));
    known.emplace(plan, q);
    return q;
  };
  SearchTrial t;
  std::vector<double> found;
  std::vector<double> random;
  const uint64_t first = o.seed;
  const int64_t most = o.evaluations;
  for (int64_t s = 0; s < seeds; ++s) {
    o.seed = first + static_cast<uint64_t>(s);
    o.evaluations = most;
    SLUICE_ASSIGN_OR_RETURN(t.found.emplace_back(), SearchPlan(remembered, method, o));
    o.evaluations = t.found.back().evaluations;
    SLUICE_ASSIGN_OR_RETURN(t.random.emplace_back(),
                            SearchPlan(remembered, SearchMethod::kRandom, o));
    found.push_back(t.found.back().quality);
    random.push_back(t.random.back().quality);
  }
  t.gains = JudgeSearch(found, random, first);
  return t;
}

// "beats random search: quality +0.0123 [0.0040, 0.0210] over 5 seeds (4 better, 1 equal, 0
// worse)".
inline std::string VerdictText(const SearchGains& g) {
  return absl::StrFormat(
      "%s random search: quality %+.4f [%+.4f, %+.4f] over %d seeds (%d better, %d equal, %d "
      "worse)",
      kSearchVerdicts[static_cast<size_t>(g.verdict)], g.mean.value, g.mean.low, g.mean.high,
      g.gains.size(), g.better, g.equal, g.worse);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_CONTROL_H_
