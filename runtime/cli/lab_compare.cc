// compare and search: policies against each other, and the best one within a budget.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/policies/search/search.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
// "4k" or "4096".
absl::StatusOr<int64_t> ReadLength(const std::string& text) {
  constexpr int64_t kMost = int64_t{1} << 30;
  int64_t n = 0;
  const bool thousand = !text.empty() && (text.back() == 'k' || text.back() == 'K');
  if (!absl::SimpleAtoi(text.substr(0, text.size() - thousand), &n) || n <= 0 || n > kMost)
    return absl::InvalidArgumentError(
        absl::StrCat("context '", text, "' is no length; examples: 4096, 4k"));
  return thousand ? n * 1024 : n;
}
// A model and the held-out text that it is tried on.
struct Trial {
  LabModel model;
  std::string tokens = host::ModelsFolder() + "/sluice-mini-eval.u16";
  void AddTo(CLI::App& app) {
    model.AddTo(app);
    app.add_option("--tokens", tokens, absl::StrCat("held-out text, ", kTokensHelp))
        ->capture_default_str();
  }
};

struct CompareArgs {
  Trial trial;
  lab::CompareOptions o;
  std::vector<std::string> tasks = {"perplexity", "facts"};
  std::vector<std::string> contexts = {"4k", "8k", "16k"};
  std::string report = "compare";
  bool no_times = false;
  bool fresh = false;
  LabFacts facts;
};
void AddCompareOptions(CLI::App& s, CompareArgs& a) {
  a.trial.AddTo(s);
  s.add_option("--policy", a.o.policies, "the first is the baseline (default: six)");
  s.add_option("--task", a.tasks, "perplexity, facts")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"perplexity", "facts"}));
  s.add_option("--context", a.contexts, "tokens of a document")
      ->delimiter(',')
      ->capture_default_str();
  s.add_option("--documents", a.o.documents, "a context, where the text reaches")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 10000));
  a.facts.AddTo(s, a.o.facts_each, "facts planted in a document");
  s.add_option("--seed", a.o.seed, "of planted facts and intervals")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
  s.add_option("--report", a.report,
               "prefix of the .html, .json and .csv files; finished documents are kept in "
               "PREFIX.progress.jsonl")
      ->capture_default_str();
  s.add_flag("--fresh", a.fresh, "measure again what a former run finished");
  s.add_flag("--no-times", a.no_times,
             "leave out all that a clock says: the same seed then gives the same bytes");
}

// Says what is measured and how long the rest will take.
std::function<void(const std::string&, double)> CompareProgress() {
  const bool terminal = isatty(2) != 0;
  const auto from = std::chrono::steady_clock::now();
  return [=, first = -1.0](const std::string& what, double share) mutable {
    if (first < 0) first = share;
    const double spent =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
    const double left = share > first ? spent / (share - first) * (1 - share) : 0;
    std::fprintf(stderr,
                 terminal ? "\r%3.0f %%  %-60s %4.0f s left\033[K" : "%3.0f %%  %s, %.0f s left\n",
                 100 * share, what.c_str(), left);
    if (terminal && share >= 1) std::fprintf(stderr, "\r\033[K");
  };
}

absl::Status Compare(CompareArgs a) {
  lab::CompareOptions& o = a.o;
  for (const std::string& c : a.contexts) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t n, ReadLength(c));
    o.contexts.push_back(n);
  }
  o.perplexity = std::count(a.tasks.begin(), a.tasks.end(), "perplexity") > 0;
  o.facts = std::count(a.tasks.begin(), a.tasks.end(), "facts") > 0;
  SLUICE_ASSIGN_OR_RETURN(const lab::FactChoice facts, a.facts.Read(o.facts_each));
  o.facts_each = facts.count;
  o.wording = facts.wording;
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, a.trial.model.Load());
  o.engine = a.trial.model.engine;
  if (o.policies.empty()) {
    o.policies = {"dense",
                  "sink_window:window=2048",
                  "mean_pool:k=32",
                  "hip:mask_k=2048",
                  "cascade(dense<=4096 | mean_pool:k=32)",
                  "flux_attention"};
    if (host::LearnedPolicies(model).empty()) o.policies.back() = "hisa:k=512,m=16";
  }
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  o.resume = a.report + ".progress.jsonl";
  SLUICE_RETURN_IF_ERROR(CheckWritable(a.report + ".html"));
  std::error_code ignored;  // of a file that is not there
  if (a.fresh) std::filesystem::remove(o.resume, ignored);
  o.progress = CompareProgress();
  o.foretell = !a.no_times;
  const std::string& path = a.trial.model.path;
  SLUICE_ASSIGN_OR_RETURN(const auto documents, lab::RunComparison(model, path, tokens, o));
  const std::string title =
      absl::StrCat("Policies on ", std::filesystem::path(path).filename().string());
  const Report r = lab::MakeReport(documents, o, title, !a.no_times);
  std::printf("%s\n", ReportText(r).c_str());
  SLUICE_RETURN_IF_ERROR(WriteReport(r, a.report));
  std::printf("wrote %s.html, .json, .csv\n", a.report.c_str());
  return absl::OkStatus();
}
void AddCompare(CLI::App& app, const Exit& exit) {
  auto a = std::make_shared<CompareArgs>();
  auto* s = app.add_subcommand(
      "compare",
      "Runs policies over the same documents and says which is better: perplexity and planted "
      "facts with paired\n"
      "intervals, density, MACs, bytes, time beside the time foretold, and the Pareto front.\n"
      "A policy is an attention router (mean_pool:k=16), a composition (cascade(dense<=2048 | "
      "hisa:k=512),\n"
      "fallback(...), per_layer(2*dense | 6*mean_pool:k=16)) or a learned method (flux_attention, "
      "informed_routing, ftp).");
  AddCompareOptions(*s, *a);
  s->footer(
      "Example: sluice compare --policy dense --policy hisa:k=2048 --task perplexity --context "
      "4k,8k");
  s->callback([=] { exit(Done(Compare(*a))); });
}

struct SearchArgs {
  Trial trial;
  lab::LayerSearchOptions o;
  std::string context = "2k";
};
absl::Status Search(SearchArgs a) {
  lab::LayerSearchOptions& o = a.o;
  SLUICE_ASSIGN_OR_RETURN(o.context, ReadLength(a.context));
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, a.trial.model.Load());
  o.engine = a.trial.model.engine;
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  const int64_t most = o.evaluations;
  const bool terminal = isatty(2) != 0;
  std::vector<std::string> methods = {o.method};
  if (o.method != "random") methods.push_back("random");
  for (const std::string& method : methods) {
    o.method = method;
    o.progress = [&](int64_t done) {
      if (terminal)
        std::fprintf(stderr, "\r%s: %lld of at most %lld plans\033[K", method.c_str(),
                     static_cast<long long>(done), static_cast<long long>(most));
    };
    SLUICE_ASSIGN_OR_RETURN(const lab::LayerPlan found, lab::SearchLayers(model, tokens, o));
    if (terminal) std::fprintf(stderr, "\r\033[K");
    std::printf("%-8s perplexity %.3f, density %.3f of %.3f, %lld plans tried\n  %s\n",
                method.c_str(), found.perplexity, found.density, o.budget,
                static_cast<long long>(found.evaluations), found.policy.c_str());
    o.evaluations = std::max<int64_t>(2, found.evaluations);  // the control gets as many
  }
  return absl::OkStatus();
}
void AddSearch(CLI::App& app, const Exit& exit) {
  auto a = std::make_shared<SearchArgs>();
  a->o.palette = {"dense", "mean_pool:k=16", "sink_window:sink=64,window=256"};
  auto* s = app.add_subcommand(
      "search",
      "Searches the best router for every layer within a budget of attention pairs, and prints it "
      "as a policy for\n"
      "`sluice compare`. Random search with as many evaluations is printed beside it, as the "
      "control.");
  a->trial.AddTo(*s);
  s->add_option("--method", a->o.method, "random, greedy, genetic, dynamic or budget")
      ->capture_default_str()
      ->check(CLI::IsMember(
          std::vector<std::string>(std::begin(kSearchMethods), std::end(kSearchMethods))));
  s->add_option("--palette", a->o.palette, "routers to choose from, two or more")
      ->capture_default_str();
  s->add_option("--budget", a->o.budget, "attention pairs of the whole plan, share of dense")
      ->capture_default_str()
      ->check(Allowed(0.0, 1.0));
  s->add_option("--context", a->context, "tokens of a document")->capture_default_str();
  s->add_option("--documents", a->o.documents, "documents a plan is tried on")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
  s->add_option("--evaluations", a->o.evaluations, "plans tried at most")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, 100000));
  s->add_option("--seed", a->o.seed, "of the search")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
  s->footer(
      "Example: sluice search --method dynamic --budget 0.5 --palette dense --palette "
      "mean_pool:k=16");
  s->callback([=] { exit(Done(Search(*a))); });
}
}  // namespace

void AddComparison(CLI::App& app, const Exit& exit) {
  AddCompare(app, exit);
  AddSearch(app, exit);
}
}  // namespace cli
SLUICE_END_NAMESPACE
