#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/control.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/compare/compare.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
std::string PerLayer(const std::vector<int>& plan, const std::vector<std::string>& palette) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < plan.size();) {
    size_t end = i;
    while (end < plan.size() && plan[end] == plan[i]) ++end;
    parts.push_back(absl::StrCat(end - i, "*", palette[plan[i]]));
    i = end;
  }
  return absl::StrCat("per_layer(", absl::StrJoin(parts, " | "), ")");
}

absl::StatusOr<LayerSearch> SearchLayers(const host::Model& model,
                                         const std::vector<int32_t>& tokens,
                                         const LayerSearchOptions& o) {
  const auto* method = std::find(std::begin(kSearchMethods), std::end(kSearchMethods), o.method);
  if (method == std::end(kSearchMethods))
    return absl::InvalidArgumentError(absl::StrCat(
        "search method '", o.method, "'; allowed: ", absl::StrJoin(kSearchMethods, ", ")));
  if (o.palette.size() < 2)
    return absl::InvalidArgumentError("search: wanted a palette of two or more routers");
  if (o.context < 64 || o.context > model.shape.context || o.documents < 1 ||
      o.documents * o.context > static_cast<int64_t>(tokens.size()))
    return absl::OutOfRangeError(absl::StrCat("search: ", o.documents, " documents of ", o.context,
                                              " tokens; there are ", tokens.size(),
                                              " tokens and the model takes ", model.shape.context));
  struct Run {
    double mean_nll = 0, density = 0;
  };
  const auto run = [&](const std::string& policy) -> absl::StatusOr<Run> {
    host::EngineOptions e = o.engine;
    e.router = policy;
    e.max_tokens = o.context;
    e.quality_stride = 0;
    SLUICE_ASSIGN_OR_RETURN(const auto engine, host::Engine::Create(model, e));
    Run r;
    for (int64_t d = 0; d < o.documents; ++d) {
      SLUICE_ASSIGN_OR_RETURN(const double p,
                              host::Perplexity(*engine, {tokens.begin() + d * o.context,
                                                         tokens.begin() + (d + 1) * o.context}));
      r.mean_nll += std::log(p) / static_cast<double>(o.documents);
      r.density += engine->counters().density() / static_cast<double>(o.documents);
    }
    return r;
  };
  SearchProblem problem;
  std::vector<double> cost;  // of a router in one layer, measured with it in all
  for (const std::string& p : o.palette) {
    auto r = run(p);
    if (!r.ok())
      return absl::Status(r.status().code(), absl::StrCat(p, ": ", r.status().message()));
    cost.push_back(r->density);
  }
  const auto layers = static_cast<size_t>(model.shape.layers);
  for (double& c : cost) c /= static_cast<double>(layers);
  problem.cost.assign(layers, cost);
  problem.budget = o.budget;
  problem.quality = [&](const Plan& plan) -> absl::StatusOr<double> {
    SLUICE_ASSIGN_OR_RETURN(const Run r, run(PerLayer(plan, o.palette)));
    return -r.mean_nll;
  };
  SearchOptions s;
  s.evaluations = o.evaluations;
  s.seed = o.seed;
  s.progress = o.progress;
  const auto which = static_cast<SearchMethod>(method - std::begin(kSearchMethods));
  const auto best = [&](const std::vector<SearchResult>& of_seeds) {
    const auto less = [](const SearchResult& a, const SearchResult& b) {
      return a.quality < b.quality;
    };
    const SearchResult& r = *std::max_element(of_seeds.begin(), of_seeds.end(), less);
    return LayerPlan{.policy = PerLayer(r.plan, o.palette),
                     .perplexity = std::exp(-r.quality),
                     .density = r.cost,
                     .evaluations = r.evaluations};
  };
  LayerSearch r;
  if (which == SearchMethod::kRandom || o.seeds < 2) {
    SLUICE_ASSIGN_OR_RETURN(const SearchResult found, SearchPlan(problem, which, s));
    r.found = best({found});
    return r;
  }
  SLUICE_ASSIGN_OR_RETURN(const SearchTrial trial, TrySearch(problem, which, s, o.seeds));
  r.found = best(trial.found);
  r.random = best(trial.random);
  r.verdict = VerdictText(trial.gains);
  return r;
}
}  // namespace lab
SLUICE_END_NAMESPACE
