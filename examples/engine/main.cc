// The example host's command line: perplexity, planted facts, generation and the demo.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/examples/engine/calibrate.h"
#include "sluice/examples/engine/engine.h"
#include "sluice/examples/engine/evaluate/evaluate.h"
#include "sluice/examples/engine/evaluate/pruning_task.h"
#include "sluice/examples/engine/policy.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/encoder.h"
#include "sluice/runtime/weights/gguf.h"

namespace {
using engine::Engine;
using engine::EngineOptions;

int Fail(const absl::Status& s) {
  std::fprintf(stderr, "error: %s\n", std::string(s.message()).c_str());
  return 1;
}
// Progress goes to stderr and only to a terminal.
std::function<void(int64_t)> Progress(const std::string& what, int64_t total) {
  const bool terminal = isatty(2) != 0;
  return [=](int64_t done) {
    if (terminal)
      std::fprintf(stderr, "\r%-44s %3d%%%s", what.c_str(),
                   static_cast<int>(100 * done / std::max<int64_t>(total, 1)),
                   done >= total ? "\r\033[K" : "");
  };
}
// The project's own documentation and headers, as one text.
std::string ProjectText(const std::string& root) {
  std::string text;
  std::vector<std::filesystem::path> files = {std::filesystem::path(root) / "README.md",
                                              std::filesystem::path(root) / "CHANGELOG.md"};
  for (const char* dir : {"api", "runtime", "routers", "examples/training"}) {
    std::vector<std::filesystem::path> more;
    if (!std::filesystem::exists(std::filesystem::path(root) / dir)) continue;
    for (const auto& e :
         std::filesystem::recursive_directory_iterator(std::filesystem::path(root) / dir)) {
      if (e.path().extension() == ".h" || e.path().extension() == ".py" ||
          e.path().extension() == ".md")
        more.push_back(e.path());
    }
    std::sort(more.begin(), more.end());
    files.insert(files.end(), more.begin(), more.end());
  }
  for (const auto& p : files) {
    std::ifstream f(p);
    std::stringstream s;
    s << f.rdbuf();
    text += s.str() + "\n";
  }
  return text;
}
struct DemoOptions {
  int64_t length = 16000, facts = 16;
  std::string separator = "\n";
  std::string text, report = "report.html";
  std::vector<std::string> routers;
};
int Demo(const engine::Model& model, EngineOptions options, DemoOptions demo) {
  std::string text;
  if (demo.text.empty()) {
    text = ProjectText(SLUICE_SOURCE_DIR);
  } else {
    std::ifstream f(demo.text);
    if (!f) return Fail(absl::NotFoundError(absl::StrCat("cannot open ", demo.text)));
    std::stringstream s;
    s << f.rdbuf();
    text = s.str();
  }
  std::vector<int32_t> ids =
      model.tokenizer.Encode(text.substr(0, static_cast<size_t>(demo.length) * 6));
  const engine::FactPrompt prompt =
      engine::PlantFacts(model.tokenizer, ids, demo.length, demo.facts, 7, demo.separator);
  const int64_t n = static_cast<int64_t>(prompt.tokens.size());
  const bool all = demo.routers.empty();
  if (all) {
    demo.routers = {"dense",
                    "sink_window:window=512",
                    "sink_window:window=2048",
                    "mean_pool:k=16",
                    "mean_pool:k=32",
                    "mean_pool:k=0,p=0.9",
                    "seer_attention:density=0.2",
                    "seer_attention:density=0.5",
                    "hip:mask_k=512",
                    "hip:mask_k=2048",
                    "dsa:k=512",
                    "hisa:k=512,m=16",
                    "oracle_block_topk:k=16"};
  }
  if (all) {
    int64_t at = 1;
    for (const std::string& name : engine::LearnedPolicies(model))
      demo.routers.insert(demo.routers.begin() + at++, name);
  }
  options.max_tokens = n + 64;
  std::printf("%lld tokens of %s with %lld planted facts; %s cache, %lld layers\n\n",
              static_cast<long long>(n),
              demo.text.empty() ? "this project's text" : demo.text.c_str(),
              static_cast<long long>(demo.facts), sluice::DTypeName(options.cache),
              static_cast<long long>(model.shape.layers));
  std::printf("%-30s %9s %7s %9s %9s %8s %7s %8s %9s %7s\n", "router", "prefill s", "plan s",
              "attend s", "decode ms", "density", "mass", "ppl", "facts", "speed");
  struct Row {
    std::string router, spec;
    double prefill_s = 0, plan_s = 0, attend_s = 0, decode_ms = 0, density = 0, mass_recall = 0,
           perplexity = 0, accuracy = 0;
  };
  std::vector<Row> rows;
  std::string spoken;
  int64_t first_pairs = 0;
  for (const std::string& spec : demo.routers) {
    options.quality_stride = 509;
    auto e = engine::CreateWithPolicy(model, options, spec);
    if (!e.ok()) return Fail(e.status());
    auto score =
        engine::ScoreMarked(**e, prompt.tokens, prompt.answer, prompt.text, Progress(spec, n));
    if (!score.ok()) return Fail(score.status());
    Row r;
    r.spec = spec;
    r.router = spec.substr(0, spec.find(':'));
    r.prefill_s = (*e)->timing().total_s;
    r.plan_s = (*e)->timing().plan_s;
    r.attend_s = (*e)->timing().attend_s;
    // Of the pairs that the first router evaluates, where tokens are missing altogether.
    const int64_t pairs = (*e)->counters().exact_pairs;
    if (first_pairs == 0) first_pairs = pairs;
    r.density = (*e)->prunes() ? static_cast<double>(pairs) /
                                     static_cast<double>(std::max<int64_t>(1, first_pairs))
                               : (*e)->counters().density();
    r.mass_recall = (*e)->quality().mass_recall.mean();
    r.perplexity = score->perplexity;
    r.accuracy = score->accuracy;
    // Decode: ask for the first planted fact again, in words, and time the steps after the
    // question.
    const std::string question = engine::FactQuestion(prompt.facts[0].first, demo.separator);
    std::vector<int32_t> answer;
    std::chrono::steady_clock::time_point first;
    auto made = engine::Generate(**e, model.tokenizer.Encode(question), 12, {}, [&](int32_t id) {
      if (answer.empty()) first = std::chrono::steady_clock::now();
      answer.push_back(id);
      return true;
    });
    if (!made.ok()) return Fail(made.status());
    r.decode_ms =
        answer.size() > 1
            ? 1e3 *
                  std::chrono::duration<double>(std::chrono::steady_clock::now() - first).count() /
                  static_cast<double>(answer.size() - 1)
            : 0;
    const auto known = [](double value, int digits) {
      return value > 0 ? absl::StrFormat("%.*f", digits, value) : std::string("-");
    };
    if (rows.empty() || r.perplexity > 0) rows.push_back(r);
    std::printf("%-30s %9.2f %7.2f %9.2f %9.2f %8.3f %7s %8s %9.3f %6.2fx\n", spec.c_str(),
                r.prefill_s, r.plan_s, r.attend_s, r.decode_ms, r.density,
                known(r.mass_recall, 3).c_str(), known(r.perplexity, 2).c_str(), r.accuracy,
                rows[0].prefill_s / r.prefill_s);
    std::fflush(stdout);
    std::string said = model.tokenizer.Decode(*made);
    said = said.substr(0, said.find('\n'));
    absl::StrAppend(&spoken, "  ", absl::StrFormat("%-30s", spec), said, "\n");
  }
  std::printf(
      "\nSpeed is prefill time against dense, planning and everything else included. mass is the "
      "dense probability "
      "that the\nattended keys carry (every 509th query). seer_attention, dsa and hisa run their "
      "training-free "
      "substitutes; the trained flux_attention\nchooses dense or sink_window per layer, "
      "informed_routing a forecast instead of attention or FFN per token. ftp and ftp_static "
      "compute only some\ntokens "
      "of the "
      "prompt in every block; what follows the prompt is dense.\n");
  std::printf("\nQuestion: what is the code of the %s? (planted: %s)\n%s",
              prompt.facts[0].first.c_str(), prompt.facts[0].second.c_str(), spoken.c_str());
  sluice::Report report;
  report.title = "Routed attention, density against quality";
  report.notes = absl::StrCat(n, " tokens, ", demo.facts, " planted facts, ", model.shape.layers,
                              " layers; prefill in chunks of ", options.chunk);
  report.tables.push_back({"Routers",
                           "Speed is prefill time against the first router, planning included.",
                           {{"router", -1},
                            {"prefill s", 2},
                            {"plan s", 2},
                            {"attend s", 2},
                            {"decode ms", 2},
                            {"density", 3},
                            {"mass recall", 3},
                            {"perplexity", 2},
                            {"facts", 3},
                            {"speed", 2}},
                           {},
                           {}});
  const auto chart = [&](const char* title, const char* y,
                         const std::function<double(const Row&)>& of) {
    sluice::ReportChart c{title, "density, measured", y, true, {}};
    for (const Row& r : rows) {
      auto at = std::find_if(c.series.begin(), c.series.end(),
                             [&](const auto& s) { return s.name == r.router; });
      if (at == c.series.end())
        at = c.series.insert(at, {r.router, {}, true, r.router == rows[0].router});
      at->points.push_back({r.density, of(r), NAN, NAN, r.spec});
    }
    for (auto& s : c.series)
      std::sort(s.points.begin(), s.points.end(),
                [](const auto& a, const auto& b) { return a.x < b.x; });
    report.charts.push_back(std::move(c));
  };
  const auto known_value = [](double v) { return v > 0 ? v : NAN; };
  chart("Fact accuracy", "facts answered right", [](const Row& r) { return r.accuracy; });
  chart("Mass recall", "dense probability attended",
        [&](const Row& r) { return known_value(r.mass_recall); });
  chart("Perplexity", "perplexity", [&](const Row& r) { return known_value(r.perplexity); });
  chart("Attention speed, planning included", "times the first router", [&](const Row& r) {
    return (rows[0].plan_s + rows[0].attend_s) / (r.plan_s + r.attend_s);
  });
  for (const Row& r : rows)
    report.tables[0].rows.push_back({{r.spec},
                                     {"", r.prefill_s},
                                     {"", r.plan_s},
                                     {"", r.attend_s},
                                     {"", r.decode_ms},
                                     {"", r.density},
                                     {"", known_value(r.mass_recall)},
                                     {"", known_value(r.perplexity)},
                                     {"", r.accuracy},
                                     {"", rows[0].prefill_s / r.prefill_s}});
  if (absl::Status s = sluice::WriteWholeFile(demo.report, sluice::ReportHtml(report)); !s.ok())
    return Fail(s);
  std::printf("\nwrote %s\n", demo.report.c_str());
  if (!all) return 0;
  std::printf("\nThe bundled encoder, its layers pruned to one head each by SHRP:");
  engine::EvaluateOptions encoder;
  encoder.folder = engine::kModels;
  encoder.threads = options.threads;
  const absl::Status s = engine::ShrpSpeed(encoder);
  return s.ok() ? 0 : Fail(s);
}
}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "A small Llama host on top of Sluice.\nExample: engine generate --prompt 'The kernel' "
      "--router mean_pool:k=16");
  app.require_subcommand(1);
  std::string model_path = engine::kModels + "/sluice-mini-q8_0.gguf", cache = "f32", tokens_path,
              nll_path, prompt = "The";
  EngineOptions options;
  DemoOptions demo;
  engine::Sampling sampling;
  int64_t skip = 0, count = 2048, windows = 1, length = 4096, facts = 4, repeats = 4, generate = 64;
  const auto common = [&](CLI::App* sub) {
    sub->add_option("--model", model_path, "GGUF file (Llama architecture; F32, F16 or Q8_0)")
        ->capture_default_str();
    sub->add_option("--router", options.router,
                    "attention router, name:key=value,...  ('engine routers' lists them)")
        ->capture_default_str();
    sub->add_option("--cache", cache, "KV cache type: f32, bf16 or f16")->capture_default_str();
    sub->add_option("--chunk", options.chunk, "prompt tokens per pass")
        ->capture_default_str()
        ->check(CLI::Range(1, 65536));
    sub->add_option("--threads", options.threads, "0: one per CPU")
        ->capture_default_str()
        ->check(CLI::Range(0, 1024));
    sub->add_option("--dense-layers", options.dense_layers, "first layers that stay dense")
        ->capture_default_str();
  };
  CLI::App* ppl = app.add_subcommand(
      "perplexity",
      "Perplexity over a file of 16-bit token ids.\nExample: engine perplexity --tokens "
      "eval.u16 --count 16384 --windows 4");
  common(ppl);
  ppl->add_option("--tokens", tokens_path, "little-endian 16-bit token ids")->required();
  ppl->add_option("--skip", skip, "tokens to skip")->capture_default_str();
  ppl->add_option("--count", count, "tokens per window")->capture_default_str();
  ppl->add_option("--windows", windows, "consecutive windows, each with an empty context")
      ->capture_default_str();
  ppl->add_option("--nll", nll_path,
                  "write the negative log-likelihoods of the last window as float32");
  CLI::App* fact = app.add_subcommand("facts",
                                      "Accuracy on planted facts in held-out text.\nExample: "
                                      "engine facts --tokens eval.u16 --length 8192");
  common(fact);
  fact->add_option("--tokens", tokens_path, "little-endian 16-bit token ids")->required();
  fact->add_option("--length", length, "tokens per prompt")->capture_default_str();
  fact->add_option("--facts", facts, "facts per prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  bool spaces = false;
  fact->add_flag("--spaces", spaces,
                 "plant facts between spaces instead of line breaks, as some models learned them");
  fact->add_option("--prompts", repeats, "prompts")->capture_default_str();
  CLI::App* gen = app.add_subcommand(
      "generate",
      "Continue a prompt.\nExample: engine generate --prompt 'The kernel' --temperature 0.8");
  common(gen);
  gen->add_option("--prompt", prompt, "text to continue")->capture_default_str();
  gen->add_option("--count", generate, "tokens to generate")->capture_default_str();
  gen->add_option("--temperature", sampling.temperature, "0: greedy")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  gen->add_option("--top-k", sampling.top_k, "candidates when sampling; 0: all")
      ->capture_default_str();
  gen->add_option("--seed", sampling.seed, "of the sampling")->capture_default_str();
  CLI::App* show = app.add_subcommand(
      "demo",
      "Prefill a long prompt with planted facts under every router and "
      "compare.\nExample: engine demo --length 8000 --routers dense mean_pool:k=16");
  common(show);
  show->add_option("--length", demo.length, "prompt tokens")
      ->capture_default_str()
      ->check(CLI::Range(256, 1 << 20));
  show->add_option("--facts", demo.facts, "planted facts")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  show->add_flag("--spaces", spaces,
                 "plant facts between spaces instead of line breaks, as some models learned them");
  show->add_option("--text", demo.text, "text file to use instead of this project's own text");
  show->add_option("--routers", demo.routers,
                   "router specs, flux_attention or informed_routing; the first is the baseline "
                   "(default: a list of all)");
  show->add_option("--report", demo.report, "HTML report to write")->capture_default_str();
  CLI::App* list = app.add_subcommand("routers", "List the attention routers and their settings.");
  CLI::App* evaluate =
      app.add_subcommand("evaluate",
                         "Trained quality of a learned method, over its training seeds.\nExample: "
                         "engine evaluate flux_attention --prompts 12");
  std::string method;
  engine::EvaluateOptions eval;
  eval.folder = engine::kModels;
  eval.data = std::string(SLUICE_SOURCE_DIR) + "/../shared/data/llm-routing";
  evaluate->add_option("method", method, "learned method")
      ->required()
      ->check(CLI::IsMember({"flux_attention", "informed_routing", "ftp", "shrp"}));
  evaluate->add_option("--prompts", eval.prompts, "prompts a task")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  evaluate->add_option("--length", eval.length, "tokens of a prompt")->capture_default_str();
  evaluate
      ->add_option("--speed-length", eval.speed_length, "tokens of a timed prompt; 0: no timing")
      ->capture_default_str();
  evaluate->add_option("--repeats", eval.repeats, "timed repetitions")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  evaluate->add_option("--threads", eval.threads, "0: one per CPU")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  evaluate
      ->add_option("--weights", eval.folder, "folder of the trained weights and held-out tokens")
      ->capture_default_str();
  evaluate->add_option("--data", eval.data, "shrp: folder of the query sets pool_a and mmlu_pro")
      ->capture_default_str();
  CLI::App* prune =
      app.add_subcommand("prune-encoder",
                         "Cut an encoder converted by SHRP to its most used heads; writes a model "
                         "of its own.\nExample: engine "
                         "prune-encoder --conversion shrp-half-routed-s1.gguf --out pruned.gguf");
  std::string encoder_path = engine::kModels + "/intent-encoder-q8_0.gguf", conversion_path,
              pruned_path = "pruned.gguf", text_in;
  prune->add_option("--encoder", encoder_path, "dense encoder, GGUF")->capture_default_str();
  prune->add_option("--conversion", conversion_path, "converted layers, routed or pruned, GGUF")
      ->required();
  prune->add_option("--out", pruned_path, "GGUF file to write")->capture_default_str();
  CLI::App* classify = app.add_subcommand(
      "classify",
      "Which task family is this query of?\nExample: engine classify --text 'What is 12 times 7?'");
  classify->add_option("--encoder", encoder_path, "encoder, dense or pruned, GGUF")
      ->capture_default_str();
  classify->add_option("--text", text_in, "the query")->required();
  CLI::App* calibrate =
      app.add_subcommand("calibrate",
                         "Fit Informed Routing's forecasters and routers in closed form, without "
                         "training.\nExample: engine calibrate "
                         "--tokens eval.u16 --count 16384 --sparsity 0.25 --out informed.gguf");
  engine::CalibrateOptions fit;
  std::string out_path = "informed_routing.gguf";
  calibrate->add_option("--model", model_path, "GGUF file")->capture_default_str();
  calibrate->add_option("--tokens", tokens_path, "little-endian 16-bit token ids")->required();
  calibrate->add_option("--skip", skip, "tokens to skip")->capture_default_str();
  calibrate->add_option("--count", count, "tokens to fit on")->capture_default_str();
  calibrate->add_option("--window", fit.window, "tokens a sequence")->capture_default_str();
  calibrate->add_option("--rank", fit.rank, "of the forecasters; 0: skip")->capture_default_str();
  calibrate->add_option("--ridge", fit.ridge, "regularisation")->capture_default_str();
  calibrate->add_option("--sparsity", fit.sparsity, "rows approximated, over all units")
      ->capture_default_str();
  calibrate->add_option("--threads", fit.threads, "0: one per CPU")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  calibrate->add_option("--out", out_path, "GGUF file to write")->capture_default_str();
  CLI::App* search = app.add_subcommand("search",
                                        "Search the sparsity of every block for FTP by a genetic "
                                        "algorithm; prints the schedule.\nExample: engine search "
                                        "--sparsity 0.3 --prompts 4");
  engine::SearchOptions plan;
  std::string router_path;
  search->add_option("--model", model_path, "GGUF file")->capture_default_str();
  search->add_option("--tokens", tokens_path,
                     "little-endian 16-bit token ids; the second half is used (default: bundled)");
  search->add_option("--sparsity", plan.sparsity, "mean over the blocks")->capture_default_str();
  search->add_option("--prompts", plan.prompts, "prompts of each of two tasks")
      ->capture_default_str();
  search->add_option("--length", plan.length, "tokens of a prompt")->capture_default_str();
  search->add_option("--population", plan.population, "schedules a generation")
      ->capture_default_str();
  search->add_option("--generations", plan.generations, "generations")->capture_default_str();
  search->add_option("--seed", plan.seed, "of the search")->capture_default_str();
  search->add_option("--weights", router_path,
                     "GGUF of a trained router (default: the static router)");
  search->add_option("--start", plan.start, "schedule to start from")->delimiter(',');
  search->add_option("--threads", plan.threads, "0: one per CPU")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);
  if (spaces) demo.separator = " ";

  if (list->parsed()) {
    for (const auto& [name, factory] : sluice::InstalledMethods().registry.attention)
      std::printf("%s\n%s", name.c_str(), factory->Describe().c_str());
    return 0;
  }
  absl::StatusOr<sluice::DType> type = engine::ReadCacheType(cache);
  if (!type.ok()) return Fail(type.status());
  options.cache = *type;
  absl::StatusOr<engine::Model> model = engine::LoadModel(model_path);
  if (!model.ok()) return Fail(model.status());
  if (evaluate->parsed()) {
    const absl::Status done =
        method == "flux_attention"     ? engine::EvaluateFluxAttention(*model, eval)
        : method == "informed_routing" ? engine::EvaluateInformedRouting(*model, eval)
        : method == "ftp"              ? engine::EvaluateFtp(*model, eval)
                                       : engine::EvaluateShrp(eval);
    return done.ok() ? 0 : Fail(done);
  }
  if (search->parsed()) {
    auto held = sluice::ReadTokens(
        tokens_path.empty() ? engine::kModels + "/sluice-mini-eval.u16" : tokens_path, 0, -1);
    if (!held.ok()) return Fail(held.status());
    absl::StatusOr<sluice::Gguf> weights;
    if (!router_path.empty()) {
      weights = sluice::Gguf::Open(router_path);
      if (!weights.ok()) return Fail(weights.status());
      plan.weights = &*weights;
    }
    auto best = engine::SearchSchedule(*model, *held, plan);
    if (!best.ok()) return Fail(best.status());
    for (size_t i = 0; i < best->size(); ++i) std::printf("%s%.4f", i == 0 ? "" : ",", (*best)[i]);
    std::printf("\n");
    return 0;
  }
  if (prune->parsed() || classify->parsed()) {
    auto dense = sluice::Gguf::Open(encoder_path);
    if (!dense.ok()) return Fail(dense.status());
    if (prune->parsed()) {
      auto conversion = sluice::Gguf::Open(conversion_path);
      if (!conversion.ok()) return Fail(conversion.status());
      const absl::Status done = sluice::Encoder::WritePruned(*dense, *conversion, pruned_path);
      if (!done.ok()) return Fail(done);
      std::printf("wrote %s: %ju bytes (dense: %ju)\n", pruned_path.c_str(),
                  std::filesystem::file_size(pruned_path),
                  std::filesystem::file_size(encoder_path));
      return 0;
    }
    auto encoder = sluice::Encoder::Load(*dense);
    if (!encoder.ok()) return Fail(encoder.status());
    if (!encoder->tokenizer().has_value())
      return Fail(absl::InvalidArgumentError(encoder_path + " has no tokenizer"));
    sluice::InlineExecutor one;
    auto said = encoder->Run({encoder->tokenizer()->Encode(text_in)}, one);
    if (!said.ok()) return Fail(said.status());
    std::vector<float> p = said->logits;
    sluice::kernels::Softmax(p.data(), p.size());
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    for (size_t i = 0; i < std::min<size_t>(3, order.size()); ++i)
      std::printf("%.3f  %s\n", static_cast<double>(p[order[i]]),
                  encoder->labels()[order[i]].c_str());
    return 0;
  }
  if (calibrate->parsed()) {
    auto tokens = sluice::ReadTokens(tokens_path, skip, count);
    if (!tokens.ok()) return Fail(tokens.status());
    auto bytes = engine::CalibrateInformedRouting(
        *model, *tokens, fit,
        [](const std::string& what) { std::fprintf(stderr, "\r%-60s", what.c_str()); });
    if (!bytes.ok()) return Fail(bytes.status());
    std::ofstream f(out_path, std::ios::binary);
    f.write(bytes->data(), static_cast<std::streamsize>(bytes->size()));
    f.close();
    if (!f) return Fail(absl::UnavailableError(absl::StrCat("cannot write '", out_path, "'")));
    std::printf("\nwrote %s (%zu bytes)\n", out_path.c_str(), bytes->size());
    return 0;
  }
  if (show->parsed()) return Demo(*model, options, demo);
  if (gen->parsed()) {
    options.max_tokens =
        std::min(model->shape.context,
                 static_cast<int64_t>(model->tokenizer.Encode(prompt).size()) + generate + 1);
    auto e = Engine::Create(*model, options);
    if (!e.ok()) return Fail(e.status());
    std::printf("%s", prompt.c_str());
    auto made =
        engine::Generate(**e, model->tokenizer.Encode(prompt), generate, sampling, [&](int32_t id) {
          std::printf("%s", model->tokenizer.Decode({id}).c_str());
          std::fflush(stdout);
          return true;
        });
    std::printf("\n");
    return made.ok() ? 0 : Fail(made.status());
  }
  if (ppl->parsed()) {
    options.max_tokens = count;
    auto e = Engine::Create(*model, options);
    if (!e.ok()) return Fail(e.status());
    double sum = 0;
    std::vector<float> nll;
    for (int64_t w = 0; w < windows; ++w) {
      auto tokens = sluice::ReadTokens(tokens_path, skip + w * count, count);
      if (!tokens.ok()) return Fail(tokens.status());
      auto p = engine::Perplexity(**e, *tokens, &nll,
                                  Progress(absl::StrCat("window ", w + 1, "/", windows), count));
      if (!p.ok()) return Fail(p.status());
      sum += std::log(*p);
    }
    std::printf(
        "perplexity %.4f over %lld windows of %lld tokens; density %.4f, %.2f s in the last window "
        "(attention %.2f, "
        "planning %.2f)\n",
        std::exp(sum / static_cast<double>(windows)), static_cast<long long>(windows),
        static_cast<long long>(count), (*e)->counters().density(), (*e)->timing().total_s,
        (*e)->timing().attend_s, (*e)->timing().plan_s);
    if (!nll_path.empty()) {
      std::ofstream f(nll_path, std::ios::binary);
      f.write(reinterpret_cast<const char*>(nll.data()),
              static_cast<std::streamsize>(nll.size() * sizeof(float)));
    }
    return 0;
  }
  options.max_tokens = length + 64;
  auto e = Engine::Create(*model, options);
  if (!e.ok()) return Fail(e.status());
  double right = 0, asked = 0, density = 0;
  for (int64_t r = 0; r < repeats; ++r) {
    auto tokens = sluice::ReadTokens(tokens_path, r * length, length);
    if (!tokens.ok()) return Fail(tokens.status());
    const engine::FactPrompt p = engine::PlantFacts(model->tokenizer, *tokens, length, facts,
                                                    static_cast<uint64_t>(r) + 1, demo.separator);
    auto score =
        engine::ScoreMarked(**e, p.tokens, p.answer, p.text,
                            Progress(absl::StrCat("prompt ", r + 1, "/", repeats), length));
    if (!score.ok()) return Fail(score.status());
    right += score->accuracy * static_cast<double>(score->asked);
    asked += static_cast<double>(score->asked);
    density += (*e)->counters().density() / static_cast<double>(repeats);
  }
  std::printf(
      "fact accuracy %.4f (%.0f of %.0f answer tokens) in %lld prompts of %lld tokens; density "
      "%.4f\n",
      right / asked, right, asked, static_cast<long long>(repeats), static_cast<long long>(length),
      density);
  return 0;
}
