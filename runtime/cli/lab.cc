#include "sluice/runtime/cli/lab.h"

#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "sluice/api/check.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/demo.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
LabModel::LabModel() : path(host::ModelsFolder() + "/sluice-mini-q8_0.gguf") {}

void AddThreads(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "0: one per CPU")
      ->capture_default_str()
      ->check(Allowed(0, 1024));
}
absl::StatusOr<int64_t> ReadLength(const std::string& text) {
  constexpr int64_t kMost = int64_t{1} << 30;
  int64_t n = 0;
  const bool thousand = !text.empty() && (text.back() == 'k' || text.back() == 'K');
  if (!absl::SimpleAtoi(text.substr(0, text.size() - thousand), &n) || n <= 0 || n > kMost)
    return absl::InvalidArgumentError(
        absl::StrCat("context '", text, "' is no length; examples: 4096, 4k"));
  return thousand ? n * 1024 : n;
}
void LabTrial::AddTo(CLI::App& app) {
  model.AddTo(app);
  app.add_option("--tokens", tokens, absl::StrCat("held-out text, ", kTokensHelp))
      ->capture_default_str();
}

std::function<void(const std::string&, double)> LabProgress() {
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

void LabFacts::AddTo(CLI::App& app, int64_t count, const std::string& what) {
  const std::string text =
      absl::StrCat(what, ", 1 to ", lab::kMostFacts, " [", count,
                   "]; or a JSON file of their wording, or both: {\"statement\": \" {name} opens "
                   "with {code}.\", "
                   "\"question\": \" {name} opens with\", \"answer\": \" {code}\"}");
  app.add_option("--facts", given, text)->type_name("N|FILE")->allow_extra_args(false);
  app.add_flag("--spaces", spaces,
               "plant facts between spaces instead of line breaks, as some models learned them");
}
absl::StatusOr<lab::FactChoice> LabFacts::Read(int64_t count) const {
  lab::FactChoice choice = {.count = count, .wording = {}};
  SLUICE_RETURN_IF_ERROR(lab::ReadFactChoice(given, 1, spaces, choice));
  return choice;
}
absl::Status LabFacts::ReadInto(lab::CompareOptions& o) const {
  SLUICE_ASSIGN_OR_RETURN(const lab::FactChoice choice, Read(o.facts_each));
  o.facts_each = choice.count;
  o.wording = choice.wording;
  return absl::OkStatus();
}
void KeepProgress(const std::string& progress, bool fresh, lab::CompareOptions& o) {
  o.resume = progress;
  std::error_code ignored;  // of a file that is not there
  if (fresh) std::filesystem::remove(progress, ignored);
}
void LabModel::AddTo(CLI::App& app) {
  app.add_option("--model", path, "GGUF file (Llama architecture; F32, F16 or Q8_0)")
      ->capture_default_str();
  app.add_option("--cache", cache, "KV cache type: f32, bf16 or f16")->capture_default_str();
  app.add_option("--chunk", engine.chunk, "prompt tokens per pass")
      ->capture_default_str()
      ->check(Allowed(1, 65536));
  AddThreads(app, engine.threads);
}
void LabModel::AddRoutedTo(CLI::App& app) {
  AddTo(app);
  app.add_option("--router", engine.router,
                 "policy, name:key=value,...: a router of attention, layers or tokens, or a "
                 "composition  (`sluice list` names them)")
      ->capture_default_str();
  app.add_option("--sparse-weights", engine.sparse_weights,
                 "how the layers' pruned matrices are multiplied: off (as if they were not), "
                 "bitmap, N:M (at most N of M neighbours kept) or RxC (blocks)")
      ->capture_default_str();
  app.add_flag("--packed-experts", engine.experts.packed,
               "hold the experts of a Mixture of Experts as panels too, for prompts");
  app.add_option("--dense-layers", engine.dense_layers, "first layers that stay dense")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, 1 << 20));
}
absl::StatusOr<host::Model> LabModel::Load() {
  SLUICE_ASSIGN_OR_RETURN(engine.cache, host::ReadCacheType(cache));
  return host::LoadModel(path);
}

void AddLab(CLI::App& app, const Exit& exit) {
  AddScoring(app, exit);
  AddComparison(app, exit);
  AddSearch(app, exit);
  AddLearned(app, exit);
  AddEncoder(app, exit);
  AddPrune(app, exit);
}

std::function<int()> AddAttentionDemo(CLI::App& demo, CLI::Option* sidecar) {
  struct Args {
    LabModel model;
    lab::DemoOptions demo;
    LabFacts facts;
  };
  auto a = std::make_shared<Args>();
  CLI::App* group = demo.add_option_group("attention", "of the attention demo");
  a->model.AddRoutedTo(*group);
  group->add_option("--length", a->demo.length, "prompt tokens, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(256, kMostTokens));
  a->facts.AddTo(*group, a->demo.facts, "planted facts");
  group->add_option("--text", a->demo.text, "text file to use instead of this project's own text");
  group->add_option("--routers", a->demo.routers,
                    "router specs, flux_attention or informed_routing; the first is the baseline "
                    "(default: a list of all)");
  group->add_option("--report", a->demo.report, "HTML report to write")->capture_default_str();
  for (CLI::Option* o : group->get_options({})) o->excludes(sidecar);
  return [a] {
    const auto facts = a->facts.Read(a->demo.facts);
    if (!facts.ok()) return Fail(facts.status());
    a->demo.facts = facts->count;
    a->demo.wording = facts->wording;
    const auto model = a->model.Load();
    if (!model.ok()) return Fail(model.status());
    return Done(lab::RunDemo(*model, a->model.engine, a->demo));
  };
}
}  // namespace cli
SLUICE_END_NAMESPACE
