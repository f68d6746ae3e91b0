#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/pruning_task.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using By = host::TokenPruning::By;
constexpr double kSparsity = 0.3;  // what the bundled schedule and routers were made for
constexpr int64_t kLength = 1024;  // and the prompts they were trained on
constexpr int kRandomSeeds = 5;

struct Table {
  double dense_accuracy = 0;
  double Row(const std::string& name, const PruningScore& s) const {
    const double retention = 100 * s.accuracy() / dense_accuracy;
    ClearNote();
    std::printf("%-34s %9.3f %8.3f %8.3f %9.3f %10.2f\n", name.c_str(), s.sparsity, s.facts, s.next,
                s.nll, retention);
    std::fflush(stdout);
    return retention;
  }
};
absl::StatusOr<PruningScore> Measure(const host::Model& model, const host::TokenPruning& p,
                                     const std::vector<PruningPrompt>& prompts, int threads,
                                     const std::string& what) {
  Note(what);
  host::EngineOptions o;
  o.threads = threads;
  o.max_tokens = kLength + 512;
  o.pruning = p;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, o));
  return ScorePruning(*e, prompts);
}
// Share of the ideal that a pruned prefill reaches: dense time, its matrix work and its attention
// each by what is left.
absl::Status Speed(const host::Model& model, const Gguf& weights, int64_t length, double sparsity,
                   const EvaluateOptions& o) {
  host::EngineOptions dense, pruned;
  dense.threads = pruned.threads = o.threads;
  dense.max_tokens = pruned.max_tokens = length;
  host::TokenPruning& p = pruned.pruning;
  p.by = By::kLearned;
  p.weights = &weights;
  p.topk = true;
  const double layers = static_cast<double>(model.shape.layers);
  p.sparsity.assign(model.shape.layers, sparsity * layers / (layers - 1));
  p.sparsity[0] = 0;
  std::vector<int32_t> tokens(length);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = 1 + static_cast<int32_t>(i * 7919 % static_cast<size_t>(model.shape.vocab - 1));
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> a,
                          host::Engine::Create(model, dense));
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> b,
                          host::Engine::Create(model, pruned));
  std::vector<double> full, attend, part, route;
  for (int64_t i = 0; i <= o.repeats; ++i) {
    Note(absl::StrCat("prefill of ", length, " tokens, ", i, "/", o.repeats));
    for (host::Engine* e : {a.get(), b.get()}) {
      e->Reset();
      SLUICE_RETURN_IF_ERROR(e->Feed(tokens, length));
    }
    if (i == 0) continue;  // warm-up
    full.push_back(a->timing().total_s);
    attend.push_back(a->timing().attend_s);
    part.push_back(b->timing().total_s);
    route.push_back(b->timing().route_s);
  }
  const double macs = static_cast<double>(b->linear().macs) / static_cast<double>(a->linear().macs);
  const double pairs = static_cast<double>(b->counters().exact_pairs) /
                       static_cast<double>(a->counters().exact_pairs);
  const double ideal = (Median(full) - Median(attend)) * macs + Median(attend) * pairs;
  ClearNote();
  std::printf("%-8lld %8.1f ms %8.1f ms %7.2fx %8.3f %8.3f %9.2f %9.1f %%  %s\n",
              static_cast<long long>(length), 1e3 * Median(full), 1e3 * Median(part),
              Median(full) / Median(part), macs, pairs, ideal / Median(part),
              100 * Median(route) / Median(part), Verdict(ideal / Median(part) >= 0.7));
  return absl::OkStatus();
}
}  // namespace

absl::Status EvaluateFtp(const host::Model& model, const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> held,
                          ReadTokens(o.folder + "/sluice-mini-eval.u16", 0, -1));
  const int64_t half =
      static_cast<int64_t>(held.size()) / 2;  // the schedule was searched on the other half
  const std::vector<PruningPrompt> prompts =
      PruningPrompts(model, held, 0, half, kLength, o.prompts, 77);
  const auto open = [&](const char* kind, int seed) {
    return Gguf::Open(absl::StrCat(o.folder, "/ftp-", kind, "30-s", seed, ".gguf"));
  };
  SLUICE_ASSIGN_OR_RETURN(const Gguf first, open("full", 1));
  const uint64_t shape[] = {static_cast<uint64_t>(model.shape.layers)};
  SLUICE_ASSIGN_OR_RETURN(const std::vector<float> stored, first.ReadF32("ftp.schedule", shape));
  host::TokenPruning p;
  p.by = By::kStatic;
  p.sparsity.assign(stored.begin(), stored.end());
  std::printf(
      "FTP (arXiv 2412.11494): %zu prompts of %lld tokens, pruned to a mean sparsity of %.2f; "
      "router before the "
      "block\n",
      prompts.size(), static_cast<long long>(kLength), kSparsity);
  std::printf("schedule of the genetic search:");
  for (double s : p.sparsity) std::printf(" %.3f", s);
  std::printf("\n\n%-34s %9s %8s %8s %9s %10s\n", "selection", "sparsity", "facts", "next", "loss",
              "retention");
  Table table;
  SLUICE_ASSIGN_OR_RETURN(const PruningScore dense,
                          Measure(model, {}, prompts, o.threads, "dense"));
  table.dense_accuracy = dense.accuracy();
  table.Row("dense", dense);
  std::vector<double> random, learned, open_loop, nopos, measured;
  for (int seed = 1; seed <= kRandomSeeds; ++seed) {
    host::TokenPruning r = p;
    r.by = By::kRandom;
    r.seed = static_cast<uint64_t>(seed);
    SLUICE_ASSIGN_OR_RETURN(const PruningScore s, Measure(model, r, prompts, o.threads, "random"));
    random.push_back(table.Row(absl::StrCat("random tokens, seed ", seed), s));
  }
  host::TokenPruning uniform = p;
  const double layers = static_cast<double>(model.shape.layers);
  uniform.sparsity.assign(p.sparsity.size(), kSparsity * layers / (layers - 1));
  uniform.sparsity[0] = 0;
  SLUICE_ASSIGN_OR_RETURN(const PruningScore flat,
                          Measure(model, uniform, prompts, o.threads, "uniform"));
  const double uniform_retention = table.Row("static router, uniform schedule", flat);
  SLUICE_ASSIGN_OR_RETURN(const PruningScore searched,
                          Measure(model, p, prompts, o.threads, "static"));
  const double static_retention = table.Row("static router, searched schedule", searched);
  for (int seed = 1; seed <= kSeeds; ++seed) {
    SLUICE_ASSIGN_OR_RETURN(const Gguf full, open("full", seed));
    SLUICE_ASSIGN_OR_RETURN(const Gguf blind, open("nopos", seed));
    host::TokenPruning l = p;
    l.by = By::kLearned;
    l.weights = &full;
    l.topk = true;
    const std::string at = absl::StrCat(", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(const PruningScore exact,
                            Measure(model, l, prompts, o.threads, "learned" + at));
    learned.push_back(table.Row("learned, exact budget" + at, exact));
    l.topk = false;
    SLUICE_ASSIGN_OR_RETURN(const PruningScore free,
                            Measure(model, l, prompts, o.threads, "threshold" + at));
    open_loop.push_back(table.Row("learned, threshold" + at, free));
    measured.push_back(free.sparsity);
    l.topk = true;
    l.weights = &blind;
    SLUICE_ASSIGN_OR_RETURN(const PruningScore lost,
                            Measure(model, l, prompts, o.threads, "no position" + at));
    nopos.push_back(table.Row("without position" + at, lost));
  }
  std::printf(
      "\nretention: random %.2f +- %.2f, static %.2f, learned %.2f +- %.2f (threshold %.2f +- "
      "%.2f), without position "
      "%.2f "
      "+- %.2f\n",
      Mean(random), Spread(random), static_retention, Mean(learned), Spread(learned),
      Mean(open_loop), Spread(open_loop), Mean(nopos), Spread(nopos));
  std::printf("B1 static over random by 10 points (%.2f): %s\n", static_retention - Mean(random),
              Verdict(static_retention - Mean(random) >= 10));
  std::printf("B2 searched over uniform schedule by 5 points (%.2f): %s\n",
              static_retention - uniform_retention,
              Verdict(static_retention - uniform_retention >= 5));
  std::printf("B3 learned over static by 0.3 points (%.2f): %s\n", Mean(learned) - static_retention,
              Verdict(Mean(learned) - static_retention >= 0.3));
  std::printf("B4 position is worth 3 points (%.2f): %s\n", Mean(learned) - Mean(nopos),
              Verdict(Mean(learned) - Mean(nopos) >= 3));
  std::printf("B5 threshold sparsity in [%.2f, %.2f] (%.3f +- %.3f): %s\n", kSparsity,
              kSparsity + 0.03, Mean(measured), Spread(measured),
              Verdict(Mean(measured) >= kSparsity && Mean(measured) <= kSparsity + 0.03));

  // Teacher forcing: a decision may use only what came before, so scores and ranks are causal.
  const std::vector<int32_t> text(held.begin(), held.begin() + 4 * kLength);
  std::vector<double> forced;
  double plain = 0;
  for (int seed = 0; seed <= kSeeds; ++seed) {
    Note(absl::StrCat("perplexity, seed ", seed));
    absl::StatusOr<Gguf> causal = open("causal", std::max(1, seed));
    if (!causal.ok()) return causal.status();
    host::EngineOptions e;
    e.threads = o.threads;
    e.max_tokens = kLength;
    if (seed > 0) {
      e.pruning = p;
      e.pruning.by = By::kLearned;
      e.pruning.weights = &*causal;
      e.pruning.causal = true;
    }
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> engine,
                            host::Engine::Create(model, e));
    double nll = 0, sparsity = 0;
    for (int64_t w = 0; w < 4; ++w) {
      SLUICE_ASSIGN_OR_RETURN(const double ppl,
                              host::Perplexity(*engine, {text.begin() + w * kLength,
                                                         text.begin() + (w + 1) * kLength}));
      nll += std::log(ppl) / 4;
      for (int64_t l = 0; l < model.shape.layers; ++l)
        sparsity += engine->block_counters(l).sparsity() / layers / 4;
    }
    ClearNote();
    if (seed == 0) {
      plain = std::exp(nll);
    } else {
      forced.push_back(std::exp(nll));
      std::printf("B7 perplexity by causal decisions, seed %d: %.2f at sparsity %.3f, dense %.2f\n",
                  seed, forced.back(), sparsity, plain);
    }
  }
  if (o.speed_length <= 0) return absl::OkStatus();
  std::printf(
      "\nprefill at sparsity 0.40 (medians of %lld; ideal: dense matrix and attention time by what "
      "is left of each)\n"
      "%-8s %11s %11s %8s %8s %8s %9s %11s\n",
      static_cast<long long>(o.repeats), "tokens", "dense", "pruned", "speed", "macs", "pairs",
      "of ideal", "deciding");
  for (int64_t length : {int64_t{1024}, int64_t{4096}})
    SLUICE_RETURN_IF_ERROR(Speed(model, first, length, 0.4, o));
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
