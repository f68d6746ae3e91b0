// sluice-compare and sluice-search: what `sluice compare` and `sluice search` run.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/examples/engine/compare/compare.h"
#include "sluice/examples/engine/policy.h"
#include "sluice/policies/search/search.h"

namespace {
using engine::CompareOptions;
using engine::kModels;

int Fail(const absl::Status& s) {
  std::fprintf(stderr, "error: %s\n", std::string(s.message()).c_str());
  return 1;
}
// "4k" or "4096".
absl::StatusOr<int64_t> ReadLength(const std::string& text) {
  int64_t n = 0;
  const bool thousand = !text.empty() && (text.back() == 'k' || text.back() == 'K');
  if (!absl::SimpleAtoi(text.substr(0, text.size() - thousand), &n) || n <= 0 ||
      n > (int64_t{1} << 30))
    return absl::InvalidArgumentError(
        absl::StrCat("context '", text, "' is no length; examples: 4096, 4k"));
  return thousand ? n * 1024 : n;
}
struct Common {
  std::string model = kModels + "/sluice-mini-q8_0.gguf",
              tokens = kModels + "/sluice-mini-eval.u16", cache = "f32";
  engine::EngineOptions engine;
  void Add(CLI::App& app) {
    app.add_option("--model", model, "GGUF file (Llama architecture; F32, F16 or Q8_0)")
        ->capture_default_str();
    app.add_option("--tokens", tokens, "held-out text, little-endian 16-bit token ids")
        ->capture_default_str();
    app.add_option("--cache", cache, "KV cache type: f32, bf16 or f16")->capture_default_str();
    app.add_option("--chunk", engine.chunk, "prompt tokens a pass")
        ->capture_default_str()
        ->check(CLI::Range(1, 65536));
    app.add_option("--threads", engine.threads, "0: one per CPU")
        ->capture_default_str()
        ->check(CLI::Range(0, 1024));
  }
  absl::Status Finish() {
    SLUICE_ASSIGN_OR_RETURN(engine.cache, engine::ReadCacheType(cache));
    return absl::OkStatus();
  }
};

int Compare(int argc, char** argv) {
  CLI::App app{
      "Runs policies over the same documents and says which is better: perplexity and planted "
      "facts with paired\n"
      "intervals, density, MACs, bytes, time beside the time foretold, and the Pareto front.\n"
      "A policy is an attention router (mean_pool:k=16), a composition (cascade(dense<=2048 | "
      "hisa:k=512),\n"
      "fallback(...), per_layer(2*dense | 6*mean_pool:k=16)) or a learned method (flux_attention, "
      "informed_routing, "
      "ftp)."};
  app.name("sluice compare");
  Common common;
  common.Add(app);
  CompareOptions o;
  std::vector<std::string> tasks = {"perplexity", "facts"}, contexts = {"4k", "8k", "16k"};
  std::string report = "compare", title;
  bool no_times = false, fresh = false, spaces = false;
  app.add_option("--policy", o.policies, "the first is the baseline (default: six)");
  app.add_option("--task", tasks, "perplexity, facts")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::IsMember({"perplexity", "facts"}));
  app.add_option("--context", contexts, "tokens of a document")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--documents", o.documents, "a context, where the text reaches")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  app.add_option("--facts", o.facts_each, "facts planted in a document")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  app.add_flag("--spaces", spaces,
               "plant facts between spaces instead of line breaks, as some models learned them");
  app.add_option("--seed", o.seed, "of planted facts and intervals")->capture_default_str();
  app.add_option("--report", report,
                 "prefix of the .html, .json and .csv files; finished documents are kept in "
                 "PREFIX.progress.jsonl")
      ->capture_default_str();
  app.add_flag("--fresh", fresh, "measure again what a former run finished");
  app.add_flag("--no-times", no_times,
               "leave out all that a clock says: the same seed then gives the same bytes");
  app.footer(
      "Example: sluice compare --policy dense --policy hisa:k=2048 --task perplexity --context "
      "4k,8k");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status s = common.Finish(); !s.ok()) return Fail(s);
  for (const std::string& c : contexts) {
    const auto n = ReadLength(c);
    if (!n.ok()) return Fail(n.status());
    o.contexts.push_back(*n);
  }
  o.perplexity = std::count(tasks.begin(), tasks.end(), "perplexity") > 0;
  o.facts = std::count(tasks.begin(), tasks.end(), "facts") > 0;
  o.engine = common.engine;
  if (spaces) o.separator = " ";
  const auto model = engine::LoadModel(common.model);
  if (!model.ok()) return Fail(model.status());
  if (o.policies.empty()) {
    o.policies = {"dense",
                  "sink_window:window=2048",
                  "mean_pool:k=32",
                  "hip:mask_k=2048",
                  "cascade(dense<=4096 | mean_pool:k=32)",
                  "flux_attention"};
    if (engine::LearnedPolicies(*model).empty()) o.policies.back() = "hisa:k=512,m=16";
  }
  const auto tokens = engine::ReadTokens(common.tokens, 0, -1);
  if (!tokens.ok()) return Fail(tokens.status());
  o.resume = report + ".progress.jsonl";
  if (fresh) std::filesystem::remove(o.resume);
  const bool terminal = isatty(2) != 0;
  const auto from = std::chrono::steady_clock::now();
  double first = -1;
  o.progress = [&](const std::string& what, double share) {
    if (first < 0) first = share;
    const double spent =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
    const double left = share > first ? spent / (share - first) * (1 - share) : 0;
    std::fprintf(stderr,
                 terminal ? "\r%3.0f %%  %-60s %4.0f s left\033[K" : "%3.0f %%  %s, %.0f s left\n",
                 100 * share, what.c_str(), left);
    if (terminal && share >= 1) std::fprintf(stderr, "\r\033[K");
  };
  o.foretell = !no_times;
  const auto documents = engine::RunComparison(*model, common.model, *tokens, o);
  if (!documents.ok()) return Fail(documents.status());
  title = absl::StrCat("Policies on ", std::filesystem::path(common.model).filename().string());
  const sluice::Report r = engine::MakeReport(*documents, o, title, !no_times);
  std::printf("%s\n", sluice::ReportText(r).c_str());
  if (const absl::Status s = sluice::WriteReport(r, report); !s.ok()) return Fail(s);
  std::printf("wrote %s.html, .json, .csv\n", report.c_str());
  return 0;
}

int Search(int argc, char** argv) {
  CLI::App app{
      "Searches the best router for every layer within a budget of attention pairs, and prints it "
      "as a policy for\n"
      "`sluice compare`. Random search with as many evaluations is printed beside it, as the "
      "control."};
  app.name("sluice search");
  Common common;
  common.Add(app);
  engine::LayerSearchOptions o;
  o.palette = {"dense", "mean_pool:k=16", "sink_window:sink=64,window=256"};
  std::string context = "2k";
  app.add_option("--method", o.method, "random, greedy, genetic, dynamic or budget")
      ->capture_default_str()
      ->check(CLI::IsMember(std::vector<std::string>(std::begin(sluice::kSearchMethods),
                                                     std::end(sluice::kSearchMethods))));
  app.add_option("--palette", o.palette, "routers to choose from, two or more")
      ->capture_default_str();
  app.add_option("--budget", o.budget, "attention pairs of the whole plan, share of dense")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--context", context, "tokens of a document")->capture_default_str();
  app.add_option("--documents", o.documents, "documents a plan is tried on")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--evaluations", o.evaluations, "plans tried at most")
      ->capture_default_str()
      ->check(CLI::Range(2, 100000));
  app.add_option("--seed", o.seed, "of the search")->capture_default_str();
  app.footer(
      "Example: sluice search --method dynamic --budget 0.5 --palette dense --palette "
      "mean_pool:k=16");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status s = common.Finish(); !s.ok()) return Fail(s);
  o.engine = common.engine;
  const auto n = ReadLength(context);
  if (!n.ok()) return Fail(n.status());
  o.context = *n;
  const auto model = engine::LoadModel(common.model);
  if (!model.ok()) return Fail(model.status());
  const auto tokens = engine::ReadTokens(common.tokens, 0, -1);
  if (!tokens.ok()) return Fail(tokens.status());
  const int64_t most = o.evaluations;
  std::vector<std::string> methods = {o.method};
  if (o.method != "random") methods.push_back("random");
  for (const std::string& method : methods) {
    o.method = method;
    o.progress = [&](int64_t done) {
      if (isatty(2))
        std::fprintf(stderr, "\r%s: %lld of at most %lld plans\033[K", method.c_str(),
                     static_cast<long long>(done), static_cast<long long>(most));
    };
    const auto found = engine::SearchLayers(*model, *tokens, o);
    if (!found.ok()) return Fail(found.status());
    if (isatty(2)) std::fprintf(stderr, "\r\033[K");
    std::printf("%-8s perplexity %.3f, density %.3f of %.3f, %lld plans tried\n  %s\n",
                method.c_str(), found->perplexity, found->density, o.budget,
                static_cast<long long>(found->evaluations), found->policy.c_str());
    o.evaluations = found->evaluations;  // the control gets as many
    if (o.evaluations < 2) o.evaluations = 2;
  }
  return 0;
}
}  // namespace

int main(int argc, char** argv) {
  const std::string name = std::filesystem::path(argv[0]).filename().string();
  return name == "sluice-search" ? Search(argc, argv) : Compare(argc, argv);
}
