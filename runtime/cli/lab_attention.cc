// evaluate attention: every attention policy on one model, which is fastest within limits.
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/lab/evaluate/attention.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
struct AttentionArgs {
  LabTrial trial;
  lab::EvaluateAttentionOptions o;
  std::vector<std::string> contexts = {"4k", "8k", "16k"};
  std::string within = "perplexity=1%,facts=3";
  std::string planted = "4k";
  std::string report = "attention";
  LabFacts facts;
  bool fresh = false;
};
absl::Status Evaluate(AttentionArgs a) {
  lab::EvaluateAttentionOptions& o = a.o;
  lab::CompareOptions& c = o.compare;
  lab::WithinOptions limits;
  SLUICE_RETURN_IF_ERROR(lab::ReadWithin(a.within, limits));
  o.perplexity = std::isnan(limits.perplexity) ? HUGE_VAL : limits.perplexity;
  o.facts = std::isnan(limits.facts) ? HUGE_VAL : limits.facts;
  for (const std::string& text : a.contexts) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t n, ReadLength(text));
    c.contexts.push_back(n);
  }
  o.planted = 0;
  if (a.planted != "0") {
    SLUICE_ASSIGN_OR_RETURN(o.planted, ReadLength(a.planted));
    if (o.planted < 256 || o.planted > (int64_t{1} << 17))
      return absl::OutOfRangeError(
          absl::StrCat("--planted: ", o.planted, " keys; allowed: 0, or 256 to 128k"));
  }
  SLUICE_RETURN_IF_ERROR(a.facts.ReadInto(c));
  SLUICE_RETURN_IF_ERROR(CheckWritable(a.report + ".html"));
  KeepProgress(a.report + ".progress.jsonl", a.fresh, c);
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, a.trial.model.Load());
  c.engine = a.trial.model.engine;
  c.progress = LabProgress();
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(a.trial.tokens, 0, -1));
  SLUICE_ASSIGN_OR_RETURN(Report report,
                          lab::EvaluateAttention(model, a.trial.model.path, tokens, o));
  c.progress("done", 1);
  report.title = absl::StrCat("Attention policies on ",
                              std::filesystem::path(a.trial.model.path).filename().string());
  std::printf("%s\n", ReportText(report).c_str());
  SLUICE_RETURN_IF_ERROR(WriteReport(report, a.report));
  std::printf("wrote %s.html, .json, .csv\n", a.report.c_str());
  return absl::OkStatus();
}
}  // namespace

void AddEvaluateAttention(CLI::App& evaluate, const Exit& exit) {
  auto a = std::make_shared<AttentionArgs>();
  a->o.compare.documents = 1;
  a->o.compare.quality_stride = 1021;
  auto* s = evaluate.add_subcommand(
      "attention",
      "Every attention policy on a model and on planted data: density, mass recall, error, time, "
      "perplexity, facts,\nand which is fastest within limits; a table and an HTML page");
  a->trial.AddTo(*s);
  s->add_option("--policy", a->o.compare.policies,
                "the first is the baseline (default: dense, all that need no weights, and those "
                "with weights bundled for the model)");
  s->add_option("--context", a->contexts, "tokens of a document")
      ->delimiter(',')
      ->capture_default_str();
  s->add_option("--documents", a->o.compare.documents, "a context, where the text reaches")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 10000));
  s->add_option("--within", a->within, "what the fastest policy may lose")->capture_default_str();
  a->facts.AddTo(*s, a->o.compare.facts_each, "facts planted in a document");
  s->add_option("--planted", a->planted, "keys of the planted data; 0: none")
      ->capture_default_str();
  s->add_option("--stride", a->o.compare.quality_stride,
                "mass and errors are measured of every so many queries")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1 << 20));
  s->add_option("--seed", a->o.compare.seed, "of facts and planted data")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
  s->add_option("--report", a->report,
                "prefix of the .html, .json and .csv files; finished documents are kept in "
                "PREFIX.progress.jsonl")
      ->capture_default_str();
  s->add_flag("--fresh", a->fresh, "measure again what a former run finished");
  s->footer("Example: sluice evaluate attention --context 4k,16k --facts wording.json");
  s->callback([=] { exit(Done(Evaluate(*a))); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
