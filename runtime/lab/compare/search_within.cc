// The fastest policy per layer within limits of quality, and whether it holds on other text.
#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/within.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/compare/totals.h"
#include "sluice/runtime/lab/evaluate/statistics.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using Documents = std::vector<CompareDocument>;

double AttentionSeconds(const CompareDocument& d) { return d.plan_s + d.attend_s; }

// Of one policy against the reference, document by document.
std::vector<double> Changes(const Documents& mine, const Documents& reference,
                            double (*of)(const CompareDocument&)) {
  std::vector<double> changes;
  for (size_t i = 0; i < mine.size(); ++i) changes.push_back(of(mine[i]) - of(reference[i]));
  return changes;
}
MeanInterval Mapped(const MeanInterval& m, const std::function<double(double)>& shown) {
  return {shown(m.value), shown(m.low), shown(m.high)};
}

class LimitedSearch {
 public:
  LimitedSearch(const host::Model& model, const std::string& path,
                const std::vector<int32_t>& tokens, const WithinOptions& o)
      : model_(model), path_(path), tokens_(tokens), o_(o) {}
  absl::StatusOr<std::vector<WithinPlan>> Run() {
    SLUICE_RETURN_IF_ERROR(Check());
    SLUICE_RETURN_IF_ERROR(MeasureTimes());
    std::vector<WithinPlan> plans;
    for (const bool random : {false, true}) {
      SearchOptions s = {.evaluations = o_.evaluations, .seed = o_.compare.seed};
      // The control gets as many evaluations as the search took.
      if (random) s.evaluations = std::max<int64_t>(1, plans[0].evaluations);
      doing_ = random ? "random search" : "search";
      SLUICE_ASSIGN_OR_RETURN(const WithinResult found, SearchWithin(problem_, random, s));
      SLUICE_ASSIGN_OR_RETURN(WithinPlan plan, FirstThatHolds(found));
      plan.evaluations = found.evaluations;
      plan.method = random ? "random" : "greedy";
      plans.push_back(std::move(plan));
    }
    return plans;
  }

 private:
  bool by_perplexity() const { return !std::isnan(o_.perplexity); }
  bool by_facts() const { return !std::isnan(o_.facts); }
  int64_t context() const { return o_.compare.contexts[0]; }

  absl::Status Check() const {
    if (o_.palette.size() < 2)
      return absl::InvalidArgumentError(absl::StrCat("search: ", o_.palette.size(),
                                                     " policies; wanted two or more, the first "
                                                     "is what the limits are counted from"));
    if (!by_perplexity() && !by_facts())
      return absl::InvalidArgumentError("search: wanted a limit of perplexity or of facts");
    const int64_t wanted = 2 * o_.documents * context();
    if (context() > model_.shape.context || wanted > std::ssize(tokens_))
      return absl::OutOfRangeError(
          absl::StrCat("search: ", o_.documents, " documents of ", context(),
                       " tokens to search on and as many "
                       "to verify on are ",
                       wanted, " tokens; there are ", tokens_.size(),
                       " tokens and the model takes ", model_.shape.context));
    return absl::OkStatus();
  }

  // A policy on the text of the search, or on what follows it.
  absl::StatusOr<Documents> Measure(const std::string& policy, bool verify) {
    CompareOptions c = o_.compare;
    c.policies = {policy};
    c.perplexity = by_perplexity();
    c.facts = by_facts();
    c.documents = o_.documents;
    // Facts of their own: the same names and codes would be known by the choice.
    if (verify) c.seed += 7919;
    c.progress = [&](const std::string& what, double share) {
      if (!o_.compare.progress || share >= 1) return;
      const double spent = static_cast<double>(tried_) / static_cast<double>(2 * o_.evaluations);
      o_.compare.progress(
          absl::StrCat(verify ? "held-out text" : doing_, ", plan ", tried_, ": ", what),
          std::min(0.99, spent));
    };
    const int64_t n = o_.documents * context();
    const auto begin = tokens_.begin() + (verify ? n : 0);
    return RunComparison(model_, path_, {begin, begin + n}, c);
  }

  absl::Status MeasureTimes() {
    doing_ = "times";
    const auto layers = static_cast<size_t>(model_.shape.layers);
    problem_.cost.assign(layers, std::vector<double>(o_.palette.size()));
    for (size_t choice = 0; choice < o_.palette.size(); ++choice) {
      SLUICE_ASSIGN_OR_RETURN(const Documents documents, Measure(o_.palette[choice], false));
      ++tried_;
      for (size_t layer = 0; layer < layers; ++layer) {
        std::vector<double> seconds;
        for (const CompareDocument& d : documents) seconds.push_back(d.layer_attention_s[layer]);
        problem_.cost[layer][choice] = Median(seconds);
      }
      uniform_.push_back(documents);
    }
    const double used = 1 - o_.margin;
    if (by_perplexity()) problem_.limits.push_back(std::log1p(o_.perplexity / 100) * used);
    if (by_facts()) problem_.limits.push_back(o_.facts / 100 * used);
    problem_.losses = [this](const Plan& plan) { return Losses(plan); };
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<double>> Losses(const Plan& plan) {
    const bool uniform = std::count(plan.begin(), plan.end(), plan[0]) == std::ssize(plan);
    Documents documents;
    if (uniform) {
      documents = uniform_[static_cast<size_t>(plan[0])];
    } else {
      ++tried_;
      SLUICE_ASSIGN_OR_RETURN(documents, Measure(PerLayer(plan, o_.palette), false));
    }
    std::vector<double> losses;
    if (by_perplexity()) losses.push_back(Mean(Changes(documents, uniform_[0], LogPerplexity)));
    if (by_facts()) losses.push_back(FactsLoss(documents));
    return losses;
  }

  // Of many plans that lose a fact here or there the luckiest would win.
  double FactsLoss(const Documents& documents) const {
    double asked = 0;
    for (const CompareDocument& d : documents) asked += static_cast<double>(d.asked);
    return WithStandardError(-Mean(Changes(documents, uniform_[0], Accuracy)), asked);
  }

  absl::StatusOr<WithinPlan> FirstThatHolds(const WithinResult& found) {
    std::vector<WithinPlan> verified;
    const auto holds = [&](const Plan& plan) -> absl::StatusOr<bool> {
      SLUICE_ASSIGN_OR_RETURN(WithinPlan next, Verify(plan));
      verified.push_back(std::move(next));
      return verified.back().within;
    };
    SLUICE_ASSIGN_OR_RETURN(const StepBack steps, UntilOneHolds(found, o_.verifications, holds));
    WithinPlan& plan = steps.holds ? verified.back() : verified.front();
    plan.verified = steps.asked;
    return std::move(plan);
  }

  absl::StatusOr<WithinPlan> Verify(const Plan& choices) {
    WithinPlan plan;
    plan.policy = PerLayer(choices, o_.palette);
    for (size_t layer = 0; layer < choices.size(); ++layer) {
      plan.seconds += problem_.cost[layer][static_cast<size_t>(choices[layer])];
      plan.reference_seconds += problem_.cost[layer][0];
    }
    if (held_out_.empty()) {
      SLUICE_ASSIGN_OR_RETURN(held_out_, Measure(o_.palette[0], true));
    }
    const Documents& reference = held_out_;
    SLUICE_ASSIGN_OR_RETURN(const Documents mine, Measure(plan.policy, true));
    const auto interval = [&](const std::vector<double>& x) {
      return ChangeInterval(x, o_.compare);
    };
    plan.within = true;
    if (by_perplexity()) {
      plan.perplexity = Mapped(interval(Changes(mine, reference, LogPerplexity)),
                               [](double x) { return 100 * std::expm1(x); });
      plan.within = plan.within && plan.perplexity.value <= o_.perplexity;
    }
    if (by_facts()) {
      plan.facts =
          Mapped(interval(Changes(mine, reference, Accuracy)), [](double x) { return 100 * x; });
      plan.within = plan.within && plan.facts.value >= -o_.facts;
    }
    const auto log_seconds = [](const CompareDocument& d) {
      return -std::log(AttentionSeconds(d));
    };
    plan.speed = Mapped(interval(Changes(mine, reference, log_seconds)),
                        [](double x) { return std::exp(x); });
    return plan;
  }

  const host::Model& model_;
  const std::string& path_;
  const std::vector<int32_t>& tokens_;
  const WithinOptions& o_;
  WithinProblem problem_;
  std::vector<Documents> uniform_;  // of every choice in all layers; the first is the reference
  Documents held_out_;              // of the reference on other text, once a plan is verified
  std::string doing_;
  int64_t tried_ = 0;
};
}  // namespace

double WithStandardError(double share, double of) {
  return share <= 0 ? share : share + std::sqrt(share / of);
}

absl::Status ReadWithin(const std::string& text, WithinOptions& options) {
  const auto bad = [&](absl::string_view part) {
    return absl::InvalidArgumentError(
        absl::StrCat("--within: '", part, "' of '", text,
                     "'; allowed: perplexity=PERCENT%, facts=POINTS or both with a comma between, "
                     "each from 0 to 100"));
  };
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    const bool perplexity = pair.first == "perplexity";
    if (!perplexity && pair.first != "facts") return bad(part);
    absl::string_view number = pair.second;
    if (perplexity) absl::ConsumeSuffix(&number, "%");
    double& limit = perplexity ? options.perplexity : options.facts;
    double value = 0;
    if (!std::isnan(limit) || !absl::SimpleAtod(number, &value) || !(value >= 0 && value <= 100))
      return bad(part);
    limit = value;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<WithinPlan>> SearchWithinLimits(const host::Model& model,
                                                           const std::string& model_path,
                                                           const std::vector<int32_t>& tokens,
                                                           const WithinOptions& options) {
  return LimitedSearch(model, model_path, tokens, options).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
