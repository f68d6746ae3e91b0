#include "sluice/runtime/service/tune.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/api/config.h"
#include "sluice/policies/search/search.h"
#include "sluice/runtime/base/hash.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int kSteps = 32;  // of a range

struct Setting {
  std::string key;
  std::string fixed;  // empty: a range
  double low = 0;
  double high = 0;

  std::string At(int step) const {
    if (!fixed.empty()) return fixed;
    const double share = static_cast<double>(step) / (kSteps - 1);
    const double x = low > 0 ? low * std::pow(high / low, share) : low + (high - low) * share;
    return absl::StrCat(x);
  }
};
struct Space {
  std::string name;
  std::vector<Setting> settings;

  size_t ranges() const {
    size_t n = 0;
    for (const Setting& s : settings) n += s.fixed.empty();
    return n;
  }
  std::string At(const std::vector<int>& steps) const {
    std::string text = name;
    size_t next = 0;
    for (size_t i = 0; i < settings.size(); ++i) {
      const int step = settings[i].fixed.empty() ? steps[next++] : 0;
      absl::StrAppend(&text, i == 0 ? ":" : ",", settings[i].key, "=", settings[i].At(step));
    }
    return text;
  }
};

absl::StatusOr<Space> SpaceOf(const std::string& policy) {
  SLUICE_ASSIGN_OR_RETURN(const Spec spec, ParseSpec(policy));
  Space space{std::string(spec.name), {}};
  for (const auto& [key, value] : spec.options) {
    Setting s{std::string(key), std::string(value)};
    if (absl::StrContains(value, "..")) {
      const std::pair<std::string, std::string> ends =
          absl::StrSplit(value, absl::MaxSplits("..", 1));
      if (!absl::SimpleAtod(ends.first, &s.low) || !absl::SimpleAtod(ends.second, &s.high) ||
          !(s.low >= 0 && s.low < s.high && std::isfinite(s.high)))
        return absl::InvalidArgumentError(
            absl::StrCat(key, "=", value, ": wanted LOW..HIGH, two numbers with 0 <= LOW < HIGH"));
      s.fixed.clear();
    }
    space.settings.push_back(std::move(s));
  }
  return space;
}
absl::StatusOr<double> MeanUtility(const OutcomeLog& log, const std::string& policy,
                                   const TuneOptions& o) {
  double sum = 0;
  for (int s = 0; s < o.seeds; ++s) {
    const auto run = Replay(log, policy, o.replay, o.first_seed + static_cast<uint64_t>(s));
    if (!run.ok())
      return absl::Status(run.status().code(), absl::StrCat(policy, ": ", run.status().message()));
    sum += run->LastThird();
  }
  return sum / o.seeds;
}
}  // namespace

absl::StatusOr<OutcomeLog> HalfOf(const OutcomeLog& log, Half half) {
  OutcomeLog kept;
  kept.tasks = log.tasks;
  kept.agents = log.agents;
  for (const OutcomeLog::Row& r : log.rows) {
    if (HashText(r.id) % 2 == static_cast<uint64_t>(half)) kept.rows.push_back(r);
  }
  if (kept.rows.empty())
    return absl::InvalidArgumentError(
        absl::StrCat("none of ", log.rows.size(), " queries is in the ",
                     half == Half::kFirst ? "first" : "second", " half"));
  return kept;
}

bool HasRanges(const std::string& policy) { return absl::StrContains(policy, ".."); }

absl::StatusOr<Tuned> Tune(const OutcomeLog& log, const std::string& policy, const TuneOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const Space space, SpaceOf(policy));
  if (space.ranges() == 0) {
    SLUICE_ASSIGN_OR_RETURN(const double utility, MeanUtility(log, policy, o));
    return Tuned{policy, utility};
  }
  SearchProblem problem;
  problem.cost.assign(space.ranges(), std::vector<double>(kSteps, 0.0));
  problem.quality = [&](const std::vector<int>& steps) {
    return MeanUtility(log, space.At(steps), o);
  };
  SearchOptions search;
  search.evaluations = o.trials;
  search.seed = o.first_seed;
  search.progress = o.progress;
  SLUICE_ASSIGN_OR_RETURN(const SearchResult best,
                          SearchPlan(problem, SearchMethod::kRandom, search));
  return Tuned{space.At(best.plan), best.quality};
}
SLUICE_END_NAMESPACE
