// compare: policies against each other.
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
struct CompareArgs {
  LabTrial trial;
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

absl::Status Compare(CompareArgs a) {
  lab::CompareOptions& o = a.o;
  for (const std::string& c : a.contexts) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t n, ReadLength(c));
    o.contexts.push_back(n);
  }
  o.perplexity = std::count(a.tasks.begin(), a.tasks.end(), "perplexity") > 0;
  o.facts = std::count(a.tasks.begin(), a.tasks.end(), "facts") > 0;
  SLUICE_RETURN_IF_ERROR(a.facts.ReadInto(o));
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
  SLUICE_RETURN_IF_ERROR(CheckWritable(a.report + ".html"));
  KeepProgress(a.report + ".progress.jsonl", a.fresh, o);
  o.progress = LabProgress();
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
}  // namespace

void AddComparison(CLI::App& app, const Exit& exit) { AddCompare(app, exit); }
}  // namespace cli
SLUICE_END_NAMESPACE
