// search: the best router for every layer, within a budget or within limits of quality, or the best
// sparse operator for every group of matrices.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/search.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/prune/search_sparsity.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
// Every policy here keeps facts or is cheap enough to be worth a layer (tests/bench/README.md).
const std::vector<std::string> kLearnedPalette = {"dense",
                                                  "seer_attention:tau=0.003",
                                                  "seer_attention:tau=0.005",
                                                  "seer_attention:tau=0.002",
                                                  "quest",
                                                  "mean_pool:k=16",
                                                  "sink_window:sink=64,window=512"};
// For models without gates.
const std::vector<std::string> kWithinPalette = {
    "dense",
    "seer_attention:gate=identity,block=32,density=0.16,dense_tail=12",
    "seer_attention:gate=identity,block=32,density=0.2,dense_tail=12",
    "seer_attention:gate=identity,block=32,density=0.08,dense_tail=12",
    "quest",
    "mean_pool:k=16",
    "sink_window:sink=64,window=512"};

// Masks of unmodified kernels' patterns: 2:4, and bits of any weights.
const std::vector<std::string> kSparsityPalette = {
    "dense",         "wanda@2:4", "magnitude@0.5", "magnitude@0.6",
    "magnitude@0.7", "wanda@0.5", "wanda@0.6",     "wanda@0.7"};

struct SearchArgs {
  LabTrial trial;
  lab::LayerSearchOptions o;
  std::string context;
  // Within limits.
  std::string within;
  lab::WithinOptions limits;
  LabFacts facts;
  std::string progress = "search.progress.jsonl";
  bool fresh = false;
  std::vector<std::string> palette;
  int64_t evaluations = 0;  // 0: as many as fit the question
  // Of weights.
  std::string groups = "part";
  lab::SparsitySearchOptions sparsity;
};

std::string Interval(const MeanInterval& m, const char* unit) {
  if (std::isnan(m.value)) return "";
  const std::string value = absl::StrFormat("%+.2f %s", m.value, unit);
  if (std::isnan(m.low)) return value;
  return absl::StrFormat("%s [%+.2f, %+.2f]", value, m.low, m.high);
}
void PrintWithin(const lab::WithinPlan& p) {
  std::printf(
      "%-8s attention %.2f s a document (%.2f s for the first policy, %.2fx), %lld plans "
      "tried\n  %s\n",
      p.method.c_str(), p.seconds, p.reference_seconds, p.reference_seconds / p.seconds,
      static_cast<long long>(p.evaluations), p.policy.c_str());
  std::string changes;
  if (!std::isnan(p.perplexity.value))
    absl::StrAppend(&changes, "perplexity ", Interval(p.perplexity, "%"), ", ");
  if (!std::isnan(p.facts.value))
    absl::StrAppend(&changes, "facts ", Interval(p.facts, "points"), ", ");
  std::printf("  held out: %sattention %.2fx", changes.c_str(), p.speed.value);
  if (!std::isnan(p.speed.low)) std::printf(" [%.2f, %.2f]", p.speed.low, p.speed.high);
  std::printf(": %s", p.within ? "within the limits" : "NOT within the limits");
  if (p.verified > 1 && p.within) {
    std::printf(", plan %lld of those verified: faster ones were not",
                static_cast<long long>(p.verified));
  } else if (p.verified > 1) {
    std::printf(", nor were %lld safer ones", static_cast<long long>(p.verified - 1));
  }
  std::printf("\n");
}
// A plan names the weights of its layers' routers.
absl::StatusOr<std::vector<std::string>> WithinPalette(const SearchArgs& a,
                                                       const host::Model& model) {
  std::vector<std::string> palette = a.palette;
  if (palette.empty()) {
    const std::vector<std::string> learned = host::LearnedPolicies(model);
    const bool gates = std::count(learned.begin(), learned.end(), "seer_attention") > 0;
    palette = gates ? kLearnedPalette : kWithinPalette;
  }
  for (std::string& policy : palette) {
    SLUICE_ASSIGN_OR_RETURN(policy, host::WithBundledWeights(policy, model));
  }
  return palette;
}
absl::Status SearchLimits(SearchArgs& a) {
  lab::WithinOptions& o = a.limits;
  SLUICE_RETURN_IF_ERROR(lab::ReadWithin(a.within, o));
  o.documents = a.o.documents;
  if (a.evaluations > 0) o.evaluations = a.evaluations;
  lab::CompareOptions& c = o.compare;
  SLUICE_ASSIGN_OR_RETURN(const int64_t context, ReadLength(a.context.empty() ? "16k" : a.context));
  c.contexts = {context};
  c.seed = a.o.seed;
  SLUICE_RETURN_IF_ERROR(a.facts.ReadInto(c));
  SLUICE_RETURN_IF_ERROR(CheckWritable(a.progress));
  KeepProgress(a.progress, a.fresh, c);
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, a.trial.model.Load());
  SLUICE_ASSIGN_OR_RETURN(o.palette, WithinPalette(a, model));
  c.engine = a.trial.model.engine;
  c.progress = LabProgress();
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<lab::WithinPlan> plans,
                          lab::SearchWithinLimits(model, a.trial.model.path, tokens, o));
  c.progress("done", 1);
  for (const lab::WithinPlan& plan : plans) PrintWithin(plan);
  return absl::OkStatus();
}
absl::Status Search(SearchArgs a) {
  lab::LayerSearchOptions& o = a.o;
  if (!a.palette.empty()) o.palette = a.palette;
  if (a.evaluations > 0) o.evaluations = a.evaluations;
  SLUICE_ASSIGN_OR_RETURN(o.context, ReadLength(a.context.empty() ? "2k" : a.context));
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, a.trial.model.Load());
  o.engine = a.trial.model.engine;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  const bool terminal = isatty(2) != 0;
  o.progress = [&](int64_t done) {
    if (terminal)
      std::fprintf(stderr, "\r%lld of at most %lld plans of a seed\033[K",
                   static_cast<long long>(done), static_cast<long long>(o.evaluations));
  };
  SLUICE_ASSIGN_OR_RETURN(const lab::LayerSearch found, lab::SearchLayers(model, tokens, o));
  if (terminal) std::fprintf(stderr, "\r\033[K");
  const auto print = [&](const std::string& method, const lab::LayerPlan& plan) {
    std::printf("%-8s perplexity %.3f, density %.3f of %.3f, %lld plans tried\n  %s\n",
                method.c_str(), plan.perplexity, plan.density, o.budget,
                static_cast<long long>(plan.evaluations), plan.policy.c_str());
  };
  print(o.method, found.found);
  if (!found.random.has_value()) return absl::OkStatus();
  print("random", *found.random);
  std::printf("%s %s (quality: mean log-likelihood)\n", o.method.c_str(), found.verdict.c_str());
  return absl::OkStatus();
}
void PrintSparsity(const std::string& name, const lab::SparsityPlan& p) {
  std::printf("%-8s keeps %.3f, perplexity %.3f, held out %.3f", name.c_str(), p.kept, p.searched,
              p.held_out);
  if (!std::isnan(p.change.value)) std::printf(", log perplexity %+.4f", p.change.value);
  if (!std::isnan(p.change.value) && !std::isnan(p.change.low))
    std::printf(" [%+.4f, %+.4f]", p.change.low, p.change.high);
  if (p.evaluations > 0) std::printf(", %lld plans tried", static_cast<long long>(p.evaluations));
  std::printf("\n  %s\n", p.text.c_str());
}
absl::Status SearchWeights(SearchArgs& a) {
  lab::SparsitySearchOptions& o = a.sparsity;
  o.model = a.trial.model.path;
  o.method = a.o.method;
  o.palette = a.palette.empty() ? kSparsityPalette : a.palette;
  o.documents = a.o.documents;
  o.seed = a.o.seed;
  o.seeds = a.o.seeds;
  if (a.evaluations > 0) o.evaluations = a.evaluations;
  const auto* groups =
      std::find(std::begin(lab::kSparsityGroups), std::end(lab::kSparsityGroups), a.groups);
  o.groups = static_cast<lab::SparsityGroups>(groups - std::begin(lab::kSparsityGroups));
  SLUICE_ASSIGN_OR_RETURN(o.context, ReadLength(a.context.empty() ? "2k" : a.context));
  SLUICE_ASSIGN_OR_RETURN(host::Model model, a.trial.model.Load());
  o.engine = a.trial.model.engine;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  const bool terminal = isatty(2) != 0;
  o.progress = [&](const std::string& what, double share) {
    if (terminal) std::fprintf(stderr, "\r%-32s %3.0f %%\033[K", what.c_str(), 100 * share);
  };
  SLUICE_ASSIGN_OR_RETURN(const lab::SparsitySearch found, lab::SearchSparsity(model, tokens, o));
  if (terminal) std::fprintf(stderr, "\r\033[K");
  std::printf(
      "%lld weights in %lld groups, of which %.3f may stay; %lld documents of %lld tokens are "
      "searched on, %lld others held out\n",
      static_cast<long long>(found.weights), static_cast<long long>(found.groups), o.keep,
      static_cast<long long>(o.documents), static_cast<long long>(o.context),
      static_cast<long long>(found.held_out));
  PrintSparsity("dense", found.dense);
  if (found.uniform.has_value()) PrintSparsity("uniform", *found.uniform);
  PrintSparsity(o.method, found.found);
  if (!o.out.empty()) std::printf("wrote %s\n", o.out.c_str());
  if (!found.random.has_value()) return absl::OkStatus();
  PrintSparsity("random", *found.random);
  std::printf("%s %s (quality: mean log-likelihood)\n", o.method.c_str(), found.verdict.c_str());
  std::printf("held out: %s %s\n", o.method.c_str(), found.held_out_verdict.c_str());
  return absl::OkStatus();
}
void AddSearchOptions(CLI::App& s, SearchArgs& a) {
  a.trial.AddTo(s);
  s.add_option("--palette", a.palette,
               "routers to choose from, two or more; the first is what limits are counted from; "
               "with --keep sparse operators: dense, wanda@0.6, magnitude@2:4")
      ->default_str("three; seven with --within; eight with --keep");
  s.add_option("--context", a.context, "tokens of a document")
      ->default_str("2k; 16k with --within");
  s.add_option("--documents", a.o.documents, "documents a plan is tried on")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
  s.add_option("--evaluations", a.evaluations, "plans tried at most")
      ->default_str("80; 32 with --within")
      ->check(Allowed<int64_t>(2, 100000));
  s.add_option("--seed", a.o.seed, "of the search")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
}
void AddMethodOptions(CLI::App& group, SearchArgs& a) {
  group.add_option("--method", a.o.method, "random, greedy, genetic, dynamic, budget or dass")
      ->capture_default_str()
      ->check(CLI::IsMember(
          std::vector<std::string>(std::begin(kSearchMethods), std::end(kSearchMethods))));
  group
      .add_option(
          "--seeds", a.o.seeds,
          "seeds from --seed on that the search and random search are compared over; 1: one "
          "search alone")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
}
CLI::Option* AddWeightOptions(CLI::App& group, SearchArgs& a) {
  CLI::Option* keep =
      group
          .add_option("--keep", a.sparsity.keep,
                      "search sparse operators of weights instead of routers, such that at most "
                      "this share of the layers' weights stays")
          ->check(Allowed(0.0, 1.0));
  group.add_option("--groups", a.groups, "what has an operator of its own: layer, part or matrix")
      ->capture_default_str()
      ->check(CLI::IsMember(std::vector<std::string>(std::begin(lab::kSparsityGroups),
                                                     std::end(lab::kSparsityGroups))));
  group
      .add_option("--held-out", a.sparsity.held_out,
                  "documents at most, none searched on, that plans are reported on")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
  group.add_option("--out", a.sparsity.out, "GGUF file to write the plan that was found to");
  for (CLI::Option* o : group.get_options({})) {
    if (o != keep) o->needs(keep);
  }
  return keep;
}
void AddWithinOptions(CLI::App& group, SearchArgs& a, CLI::Option* within) {
  group.add_option("--margin", a.limits.margin, "share of the limits that is left unused")
      ->capture_default_str()
      ->check(Allowed(0.0, 0.9));
  group
      .add_option("--verifications", a.limits.verifications,
                  "plans tried on other text: where one leaves the limits there, the next safer")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 100));
  group.add_option("--progress", a.progress, "file of finished documents, to go on from")
      ->capture_default_str();
  group.add_flag("--fresh", a.fresh, "measure again what a former run finished");
  a.facts.AddTo(group, a.limits.compare.facts_each, "facts planted in a document");
  for (CLI::Option* o : group.get_options({})) {
    if (o != within) o->needs(within);
  }
}
}  // namespace

void AddSearch(CLI::App& app, const Exit& exit) {
  auto a = std::make_shared<SearchArgs>();
  a->o.palette = {"dense", "mean_pool:k=16", "sink_window:sink=64,window=256"};
  auto* s = app.add_subcommand(
      "search",
      "Searches the best router for every layer, and prints it as a policy for `sluice compare`, "
      "engines and the\nllama.cpp backend: with --within the least attention time that keeps "
      "perplexity and facts, verified on text\nthat no choice has seen; else the best perplexity "
      "within a budget of attention pairs. Random search with as\nmany evaluations is printed "
      "beside it, as the control. Layers are chosen for; heads of a layer share its router.\n"
      "With --keep the best sparse operator for every group of matrices, within a budget of "
      "weights that stay, reported on\ntext that no choice has seen.");
  AddSearchOptions(*s, *a);
  CLI::App* limits = s->add_option_group("limits", "of --within");
  CLI::Option* within = limits->add_option(
      "--within", a->within, "perplexity=1%,facts=3: may rise by 1 %, may fall by 3 points");
  AddWithinOptions(*limits, *a, within);
  CLI::App* budget = s->add_option_group("budget", "of a search without --within");
  AddMethodOptions(*budget, *a);
  CLI::Option* pairs =
      budget
          ->add_option("--budget", a->o.budget, "attention pairs of the whole plan, share of dense")
          ->capture_default_str()
          ->check(Allowed(0.0, 1.0));
  for (CLI::Option* o : budget->get_options({})) o->excludes(within);
  CLI::App* weights = s->add_option_group("weights", "of a search with --keep");
  CLI::Option* keep = AddWeightOptions(*weights, *a);
  keep->excludes(within);
  keep->excludes(pairs);
  s->footer(
      "Example: sluice search --within perplexity=1%,facts=3 --context 16k\n"
      "         sluice search --method dynamic --budget 0.5 --palette dense --palette "
      "mean_pool:k=16\n"
      "         sluice search --method dass --keep 0.5");
  s->callback([=] {
    if (keep->count() > 0) {
      exit(Done(SearchWeights(*a)));
      return;
    }
    exit(Done(a->within.empty() ? Search(*a) : SearchLimits(*a)));
  });
}
}  // namespace cli
SLUICE_END_NAMESPACE
