#include "sluice/runtime/lab/demo.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/generate.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/progress.h"
#include "sluice/runtime/lab/score.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int64_t kAnswerTokens = 12;
constexpr int64_t kQuestionTokens = 52;  // what one more question takes at most

struct Row {
  std::string router, spec;
  double prefill_s = 0;
  double plan_s = 0;
  double attend_s = 0;
  double decode_ms = 0;
  double density = 0;
  double mass_recall = 0;
  double perplexity = 0;
  double accuracy = 0;
  int64_t pairs = 0;
  std::string said;  // answer to the first planted fact
};

// The project's own documentation and headers, as one text.
absl::StatusOr<std::string> ProjectText(const std::filesystem::path& root) {
  std::vector<std::filesystem::path> files = {root / "README.md", root / "CHANGELOG.md"};
  for (const char* dir : {"api", "runtime", "routers", "examples/training"}) {
    std::vector<std::filesystem::path> more;
    if (!std::filesystem::exists(root / dir)) continue;
    for (const auto& e : std::filesystem::recursive_directory_iterator(root / dir)) {
      const std::string end = e.path().extension().string();
      if (end == ".h" || end == ".py" || end == ".md") more.push_back(e.path());
    }
    std::sort(more.begin(), more.end());
    files.insert(files.end(), more.begin(), more.end());
  }
  std::string text;
  for (const auto& p : files) {
    std::ifstream f(p);
    std::stringstream s;
    s << f.rdbuf();
    text += s.str() + "\n";
  }
  if (text.size() < 4096)
    return absl::NotFoundError(absl::StrCat("the project's sources are no longer in ",
                                            root.string(), "; give a text with --text"));
  return text;
}

absl::StatusOr<host::FactPrompt> Prompt(const host::Model& model, const DemoOptions& demo) {
  std::string text;
  if (demo.text.empty()) {
    SLUICE_ASSIGN_OR_RETURN(text, ProjectText(SLUICE_SOURCE_DIR));
  } else {
    SLUICE_ASSIGN_OR_RETURN(text, ReadTextFile(demo.text));
  }
  const std::string enough = text.substr(0, static_cast<size_t>(demo.length) * 6);
  return PlantFacts(model, model.tokenizer.Encode(enough), demo.length, demo.facts, 7,
                    demo.wording);
}

std::vector<std::string> AllRouters(const host::Model& model) {
  std::vector<std::string> all = {"dense"};
  for (const std::string& name : host::LearnedPolicies(model)) all.push_back(name);
  // Those that keep the facts and most of the perplexity first.
  for (const char* spec :
       {"seer_attention:gate=identity,block=32,density=0.14,dense_tail=12", "dhsa:dense_tail=1024",
        "quest", "flex_prefill", "sink_window:window=512", "sink_window:window=2048",
        "mean_pool:k=16", "mean_pool:k=32", "mean_pool:k=0,p=0.9", "hip:mask_k=512",
        "hip:mask_k=2048", "dsa:k=512", "hisa:k=512,m=16", "oracle_block_topk:k=16"})
    all.push_back(spec);
  return all;
}

// Asks for the first planted fact again, in words, and times the steps after the question.
absl::Status Decode(host::Engine& e, const host::FactPrompt& prompt,
                    const host::FactWording& wording, Row& r) {
  using Clock = std::chrono::steady_clock;
  const Tokenizer& tokenizer = e.model().tokenizer;
  const std::string question = wording.Question(prompt.facts[0].first);
  int64_t steps = 0;
  Clock::time_point first;
  const auto see = [&](int32_t) {
    if (steps == 0) first = Clock::now();
    ++steps;
    return true;
  };
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> made,
                          host::Generate(e, tokenizer.Encode(question), kAnswerTokens, {}, see));
  if (steps > 1) {
    const double seconds = std::chrono::duration<double>(Clock::now() - first).count();
    r.decode_ms = 1e3 * seconds / static_cast<double>(steps - 1);
  }
  r.said = tokenizer.Decode(made);
  r.said = r.said.substr(0, r.said.find('\n'));
  return absl::OkStatus();
}

// `dense_pairs`: of the first router, 0 while it runs.
absl::StatusOr<Row> Measure(const host::Model& model, const host::EngineOptions& options,
                            const std::string& spec, const host::FactPrompt& prompt,
                            const host::FactWording& wording, int64_t dense_pairs) {
  const auto n = static_cast<int64_t>(prompt.tokens.size());
  SLUICE_ASSIGN_OR_RETURN(const auto e, host::CreateWithPolicy(model, options, spec));
  SLUICE_ASSIGN_OR_RETURN(
      const host::Score score,
      host::ScoreMarked(*e, prompt.tokens, prompt.answer, prompt.text, Progress(spec, n)));
  Row r;
  r.spec = spec;
  r.router = spec.substr(0, spec.find(':'));
  r.prefill_s = e->timing().total_s;
  r.plan_s = e->timing().plan_s;
  r.attend_s = e->timing().attend_s;
  r.pairs = e->counters().exact_pairs;
  // Of the pairs that the first router evaluates, where tokens are missing altogether.
  const int64_t all = std::max<int64_t>(1, dense_pairs > 0 ? dense_pairs : r.pairs);
  r.density = e->prunes() ? static_cast<double>(r.pairs) / static_cast<double>(all)
                          : e->counters().density();
  r.mass_recall = e->quality().mass_recall.mean();
  r.perplexity = score.perplexity;
  r.accuracy = score.accuracy;
  SLUICE_RETURN_IF_ERROR(Decode(*e, prompt, wording, r));
  return r;
}

void PrintHead(const host::Model& model, const host::EngineOptions& options,
               const DemoOptions& demo, int64_t tokens) {
  std::printf("%lld tokens of %s with %lld planted facts; %s cache, %lld layers\n\n",
              static_cast<long long>(tokens),
              demo.text.empty() ? "this project's text" : demo.text.c_str(),
              static_cast<long long>(demo.facts), DTypeName(options.cache),
              static_cast<long long>(model.shape.layers));
  std::printf("%-30s %9s %7s %9s %9s %8s %7s %8s %9s %7s\n", "router", "prefill s", "plan s",
              "attend s", "decode ms", "density", "mass", "ppl", "facts", "speed");
}
void PrintRow(const Row& r, const Row& first) {
  const auto known = [](double value, int digits) {
    return value > 0 ? absl::StrFormat("%.*f", digits, value) : std::string("-");
  };
  std::printf("%-30s %9.2f %7.2f %9.2f %9.2f %8.3f %7s %8s %9.3f %6.2fx\n", r.spec.c_str(),
              r.prefill_s, r.plan_s, r.attend_s, r.decode_ms, r.density,
              known(r.mass_recall, 3).c_str(), known(r.perplexity, 2).c_str(), r.accuracy,
              first.prefill_s / r.prefill_s);
  std::fflush(stdout);
}
void PrintNotes(const std::vector<Row>& rows, const host::FactPrompt& prompt,
                const host::FactWording& wording) {
  std::printf(
      "\nSpeed is prefill time against dense, planning and everything else included. mass is the "
      "dense probability that the\nattended keys carry (every 509th query). dsa and hisa run "
      "training-free substitutes, and seer_attention where it says\ngate=identity; dense_tail "
      "leaves the last rows of the prompt dense, where it asks. flux_attention chooses dense or\n"
      "sink_window per layer, informed_routing a forecast instead of attention or FFN per token. "
      "ftp and ftp_static compute only\nsome tokens of the prompt in every block; what follows "
      "the prompt is dense.\n");
  const std::string question = wording.Question(prompt.facts[0].first);
  std::printf("\n%s (planted: %s)\n", std::string(absl::StripAsciiWhitespace(question)).c_str(),
              prompt.facts[0].second.c_str());
  for (const Row& r : rows) std::printf("  %-30s%s\n", r.spec.c_str(), r.said.c_str());
}

double Known(double v) { return v > 0 ? v : NAN; }

// `of` against density, a series a router.
ReportChart Chart(const std::vector<Row>& rows, const char* title, const char* y,
                  const std::function<double(const Row&)>& of) {
  ReportChart c{.title = title, .x = "density, measured", .y = y, .log_x = true, .series = {}};
  for (const Row& r : rows) {
    auto at = std::find_if(c.series.begin(), c.series.end(),
                           [&](const auto& s) { return s.name == r.router; });
    if (at == c.series.end()) {
      const bool baseline = r.router == rows[0].router;
      at = c.series.insert(at, {r.router, {}, true, baseline});
    }
    at->points.push_back({r.density, of(r), NAN, NAN, r.spec});
  }
  for (auto& s : c.series)
    std::sort(s.points.begin(), s.points.end(),
              [](const auto& a, const auto& b) { return a.x < b.x; });
  return c;
}
Report MakeDemoReport(const std::vector<Row>& rows, const std::string& notes) {
  Report report;
  report.title = "Routed attention, density against quality";
  report.notes = notes;
  ReportTable table;
  table.title = "Routers";
  table.note = "Speed is prefill time against the first router, planning included.";
  table.columns = {{"router", -1},   {"prefill s", 2}, {"plan s", 2},      {"attend s", 2},
                   {"decode ms", 2}, {"density", 3},   {"mass recall", 3}, {"perplexity", 2},
                   {"facts", 3},     {"speed", 2}};
  for (const Row& r : rows)
    table.rows.push_back({{r.spec},
                          {"", r.prefill_s},
                          {"", r.plan_s},
                          {"", r.attend_s},
                          {"", r.decode_ms},
                          {"", r.density},
                          {"", Known(r.mass_recall)},
                          {"", Known(r.perplexity)},
                          {"", r.accuracy},
                          {"", rows[0].prefill_s / r.prefill_s}});
  report.tables.push_back(std::move(table));
  report.charts.push_back(Chart(rows, "Fact accuracy", "facts answered right",
                                [](const Row& r) { return r.accuracy; }));
  report.charts.push_back(Chart(rows, "Mass recall", "dense probability attended",
                                [](const Row& r) { return Known(r.mass_recall); }));
  report.charts.push_back(
      Chart(rows, "Perplexity", "perplexity", [](const Row& r) { return Known(r.perplexity); }));
  const double dense = rows[0].plan_s + rows[0].attend_s;
  report.charts.push_back(Chart(rows, "Attention speed, planning included",
                                "times the first router",
                                [=](const Row& r) { return dense / (r.plan_s + r.attend_s); }));
  return report;
}
}  // namespace

absl::Status RunDemo(const host::Model& model, host::EngineOptions engine, DemoOptions demo) {
  SLUICE_RETURN_IF_ERROR(CheckLength("a prompt", demo.length, 256, model));
  SLUICE_RETURN_IF_ERROR(CheckWritable(demo.report));
  SLUICE_ASSIGN_OR_RETURN(const host::FactPrompt prompt, Prompt(model, demo));
  const bool all = demo.routers.empty();
  if (all) demo.routers = AllRouters(model);
  const auto n = static_cast<int64_t>(prompt.tokens.size());
  engine.max_tokens = n + kQuestionTokens + kAnswerTokens;
  engine.quality_stride = 509;
  PrintHead(model, engine, demo, n);
  std::vector<Row> rows;
  for (const std::string& spec : demo.routers) {
    const int64_t dense_pairs = rows.empty() ? 0 : rows[0].pairs;
    SLUICE_ASSIGN_OR_RETURN(Row r, Measure(model, engine, spec, prompt, demo.wording, dense_pairs));
    rows.push_back(std::move(r));
    PrintRow(rows.back(), rows[0]);
  }
  PrintNotes(rows, prompt, demo.wording);
  // A router that leaves tokens out has no perplexity, and no place on the charts.
  std::vector<Row> charted = {rows[0]};
  std::copy_if(rows.begin() + 1, rows.end(), std::back_inserter(charted),
               [](const Row& r) { return r.perplexity > 0; });
  const std::string notes =
      absl::StrCat(n, " tokens, ", demo.facts, " planted facts, ", model.shape.layers,
                   " layers; prefill in chunks of ", engine.chunk);
  SLUICE_RETURN_IF_ERROR(WriteWholeFile(demo.report, ReportHtml(MakeDemoReport(charted, notes))));
  std::printf("\nwrote %s\n", demo.report.c_str());
  if (!all) return absl::OkStatus();
  std::printf("\nThe bundled encoder, its layers pruned to one head each by SHRP:");
  EvaluateOptions encoder;
  encoder.folder = host::ModelsFolder();
  encoder.threads = engine.threads;
  return ShrpSpeed(encoder);
}
}  // namespace lab
SLUICE_END_NAMESPACE
