#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/pruning_task.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/evaluate/trained.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr double kSparsity = 0.3;  // what the bundled schedule and routers were made for
constexpr int64_t kLength = 1024;  // and the prompts they were trained on
constexpr int kRandomSeeds = 5;
constexpr double kDecodeThreshold = 0.5;  // published: blocks above it are skipped by single tokens
constexpr double kLeastOfIdeal = 0.85;

// The same sparsity in every block but the first, which stays whole.
std::vector<double> UniformSchedule(const host::Model& model, double sparsity) {
  const double layers = static_cast<double>(model.shape.layers);
  std::vector<double> schedule(static_cast<size_t>(model.shape.layers),
                               sparsity * layers / (layers - 1));
  schedule[0] = 0;
  return schedule;
}

// Every way of choosing tokens over the same prompts and, but for one control, the same schedule.
class FtpEvaluation {
 public:
  FtpEvaluation(const host::Model& model, const EvaluateOptions& o) : model_(model), o_(o) {}
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Load());
    std::printf(
        "FTP (arXiv 2412.11494): %zu prompts of %lld tokens, pruned to a mean sparsity of %.2f; "
        "router before the block\n",
        prompts_.size(), static_cast<long long>(kLength), kSparsity);
    std::printf("schedule of the genetic search:");
    for (double s : schedule_) std::printf(" %.3f", s);
    std::printf("\n\n%-34s %9s %8s %8s %9s %10s\n", "selection", "sparsity", "facts", "next",
                "loss", "retention");
    SLUICE_RETURN_IF_ERROR(MeasureControls());
    for (int seed = 1; seed <= kSeeds; ++seed) SLUICE_RETURN_IF_ERROR(MeasureLearned(seed));
    PrintVerdicts();
    SLUICE_RETURN_IF_ERROR(TeacherForcing());
    return o_.speed_length > 0 ? Speed() : absl::OkStatus();
  }

 private:
  absl::Status Load() {
    SLUICE_ASSIGN_OR_RETURN(held_, ReadHeldOut(o_));
    // The schedule was searched on the other half.
    const int64_t half = static_cast<int64_t>(held_.size()) / 2;
    prompts_ = PruningPrompts(model_, held_, 0, half, kLength, o_.prompts, 77);
    SLUICE_ASSIGN_OR_RETURN(const Gguf first, OpenTrained(o_, "ftp-full30", 1));
    SLUICE_ASSIGN_OR_RETURN(schedule_, Schedule(first, "ftp.static_schedule"));
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<double>> Schedule(const Gguf& weights, const char* tensor) const {
    const uint64_t shape[] = {static_cast<uint64_t>(model_.shape.layers)};
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> stored, weights.ReadF32(tensor, shape));
    return std::vector<double>(stored.begin(), stored.end());
  }

  host::TokenPruning Pruning(const std::string& router) const {
    host::TokenPruning p;
    p.router = router;
    p.sparsity = schedule_;
    return p;
  }
  // Under the schedule that the weights were made for.
  absl::StatusOr<host::TokenPruning> Learned(const std::string& router, const Gguf& weights) const {
    host::TokenPruning p = Pruning(router);
    p.weights = &weights;
    SLUICE_ASSIGN_OR_RETURN(p.sparsity, Schedule(weights, "ftp.schedule"));
    return p;
  }
  absl::StatusOr<PruningScore> Measure(const host::TokenPruning& p, const std::string& what,
                                       bool single = false) const {
    Note(what);
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kLength + 512;
    o.pruning = p;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    return ScorePruning(*e, prompts_, single);
  }
  // Prints a row; the accuracy kept of dense, in percent.
  double Retention(const std::string& name, const PruningScore& s) const {
    const double retention = 100 * s.accuracy() / dense_accuracy_;
    PrintRow("%-34s %9.3f %8.3f %8.3f %9.3f %10.2f\n", name, s.sparsity, s.facts, s.next, s.nll,
             retention);
    return retention;
  }

  absl::Status MeasureControls() {
    SLUICE_ASSIGN_OR_RETURN(const PruningScore dense, Measure({}, "dense"));
    dense_accuracy_ = dense.accuracy();
    Retention("dense", dense);
    for (int seed = 1; seed <= kRandomSeeds; ++seed) {
      const host::TokenPruning p = Pruning(absl::StrCat("token/random:seed=", seed));
      SLUICE_ASSIGN_OR_RETURN(const PruningScore s, Measure(p, "random"));
      random_.push_back(Retention(absl::StrCat("random tokens, seed ", seed), s));
    }
    host::TokenPruning p = Pruning("token/ftp_static");
    p.sparsity = UniformSchedule(model_, kSparsity);
    SLUICE_ASSIGN_OR_RETURN(const PruningScore flat, Measure(p, "uniform"));
    uniform_ = Retention("static router, uniform schedule", flat);
    SLUICE_ASSIGN_OR_RETURN(const PruningScore searched,
                            Measure(Pruning("token/ftp_static"), "static"));
    static_ = Retention("static router, searched schedule", searched);
    return MeasureForms();
  }
  // What the paper leaves open: where the router stands, and what single tokens skip.
  absl::Status MeasureForms() {
    host::TokenPruning p = Pruning("token/ftp_static");
    p.after_attention = true;
    SLUICE_ASSIGN_OR_RETURN(const PruningScore after, Measure(p, "after attention"));
    Retention("static, only the FFN skipped", after);
    p = Pruning("token/ftp_static");
    p.decode = kDecodeThreshold;
    SLUICE_ASSIGN_OR_RETURN(const PruningScore decoding, Measure(p, "decoding", true));
    Retention("static, decoding skips blocks too", decoding);
    return absl::OkStatus();
  }

  absl::Status MeasureLearned(int seed) {
    SLUICE_ASSIGN_OR_RETURN(const Gguf full, OpenTrained(o_, "ftp-full30", seed));
    SLUICE_ASSIGN_OR_RETURN(const Gguf blind, OpenTrained(o_, "ftp-nopos30", seed));
    const std::string at = absl::StrCat(", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(host::TokenPruning p, Learned("token/ftp:topk=1", full));
    SLUICE_ASSIGN_OR_RETURN(const PruningScore exact, Measure(p, "learned" + at));
    learned_.push_back(Retention("learned, exact budget" + at, exact));
    p.router = "token/ftp";
    SLUICE_ASSIGN_OR_RETURN(const PruningScore free, Measure(p, "threshold" + at));
    threshold_.push_back(Retention("learned, threshold" + at, free));
    threshold_sparsity_.push_back(free.sparsity);
    SLUICE_ASSIGN_OR_RETURN(p, Learned("token/ftp:topk=1", blind));
    SLUICE_ASSIGN_OR_RETURN(const PruningScore lost, Measure(p, "no position" + at));
    blind_.push_back(Retention("without position" + at, lost));
    return absl::OkStatus();
  }

  void PrintVerdicts() const {
    std::printf(
        "\nover %d training seeds (random: %d seeds); %s\nretention: random %s, static %.2f, "
        "learned %s (threshold %s), "
        "without position %s\n",
        kSeeds, kRandomSeeds, kMarginNote, MeanAndMargin(random_, 2).c_str(), static_,
        MeanAndMargin(learned_, 2).c_str(), MeanAndMargin(threshold_, 2).c_str(),
        MeanAndMargin(blind_, 2).c_str());
    const auto at_least = [](const char* what, double points, double least) {
      std::printf("%s (%.2f): %s\n", what, points, Verdict(points >= least));
    };
    at_least("B1 static over random by 10 points", static_ - Mean(random_), 10);
    at_least("B2 searched over uniform schedule by 5 points", static_ - uniform_, 5);
    at_least("B3 learned over static by 0.3 points", Mean(learned_) - static_, 0.3);
    at_least("B4 position is worth 3 points", Mean(learned_) - Mean(blind_), 3);
    const double sparsity = Mean(threshold_sparsity_);
    std::printf("B5 threshold sparsity in [%.2f, %.2f] (%s): %s\n", kSparsity, kSparsity + 0.03,
                MeanAndMargin(threshold_sparsity_, 3).c_str(),
                Verdict(sparsity >= kSparsity && sparsity <= kSparsity + 0.03));
  }

  // A decision may use only what came before, so scores and ranks are causal.
  absl::Status TeacherForcing() const {
    Note("perplexity, seed 0");
    SLUICE_ASSIGN_OR_RETURN(const Forced dense, Force({}));
    ClearNote();
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Note(absl::StrCat("perplexity, seed ", seed));
      SLUICE_ASSIGN_OR_RETURN(const Gguf causal, OpenTrained(o_, "ftp-causal30", seed));
      SLUICE_ASSIGN_OR_RETURN(host::TokenPruning p, Learned("token/ftp", causal));
      p.causal = true;
      SLUICE_ASSIGN_OR_RETURN(const Forced forced, Force(p));
      ClearNote();
      std::printf("B7 perplexity by causal decisions, seed %d: %.2f at sparsity %.3f, dense %.2f\n",
                  seed, forced.perplexity, forced.sparsity, dense.perplexity);
    }
    return absl::OkStatus();
  }
  struct Forced {
    double perplexity = 0, sparsity = 0;
  };
  absl::StatusOr<Forced> Force(const host::TokenPruning& p) const {
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kLength;
    o.pruning = p;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    const double layers = static_cast<double>(model_.shape.layers);
    double nll = 0, sparsity = 0;
    for (int64_t w = 0; w < 4; ++w) {
      const auto at = held_.begin() + w * kLength;
      SLUICE_ASSIGN_OR_RETURN(const double ppl, host::Perplexity(*e, {at, at + kLength}));
      nll += std::log(ppl) / 4;
      for (int64_t l = 0; l < model_.shape.layers; ++l)
        sparsity += e->block_counters(l).sparsity() / layers / 4;
    }
    return Forced{std::exp(nll), sparsity};
  }

  absl::Status Speed() const {
    constexpr double kTimedSparsity = 0.4;
    std::printf(
        "\nB6 prefill at sparsity %.2f (medians of %lld; ideal: dense matrix and attention time by "
        "what is left of each; at least %.2f of it)\n"
        "%-8s %11s %11s %8s %8s %8s %9s %11s\n",
        kTimedSparsity, static_cast<long long>(o_.repeats), kLeastOfIdeal, "tokens", "dense",
        "pruned", "speed", "macs", "pairs", "of ideal", "deciding");
    SLUICE_ASSIGN_OR_RETURN(const Gguf weights, OpenTrained(o_, "ftp-full30", 1));
    host::EngineOptions pruned;
    pruned.threads = o_.threads;
    pruned.pruning.router = "token/ftp:topk=1";
    pruned.pruning.weights = &weights;
    pruned.pruning.sparsity = UniformSchedule(model_, kTimedSparsity);
    for (int64_t length : {int64_t{1024}, int64_t{4096}}) {
      pruned.max_tokens = length;
      SLUICE_RETURN_IF_ERROR(TimePrefill(pruned, length));
    }
    return absl::OkStatus();
  }
  absl::Status TimePrefill(const host::EngineOptions& pruned, int64_t length) const {
    std::vector<int32_t> tokens(length);
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = 1 + static_cast<int32_t>(i * 7919 % static_cast<size_t>(model_.shape.vocab - 1));
    SLUICE_ASSIGN_OR_RETURN(EnginePair pair, EnginePair::Create(model_, pruned));
    std::vector<double> full, attend, part, route;
    for (int64_t i = 0; i <= o_.repeats; ++i) {
      Note(absl::StrCat("prefill of ", length, " tokens, ", i, "/", o_.repeats));
      SLUICE_RETURN_IF_ERROR(pair.Prefill(tokens));
      if (i == 0) continue;  // warm-up
      full.push_back(pair.dense->timing().total_s);
      attend.push_back(pair.dense->timing().attend_s);
      part.push_back(pair.routed->timing().total_s);
      route.push_back(pair.routed->timing().route_s);
    }
    // Dense time, its matrix work and its attention each by what is left.
    const double macs = static_cast<double>(pair.routed->linear().macs) /
                        static_cast<double>(pair.dense->linear().macs);
    const double pairs = pair.PairsKept();
    const double ideal = (Median(full) - Median(attend)) * macs + Median(attend) * pairs;
    PrintRow("%-8d %8.1f ms %8.1f ms %7.2fx %8.3f %8.3f %9.2f %9.1f %%  %s\n", length,
             1e3 * Median(full), 1e3 * Median(part), Median(full) / Median(part), macs, pairs,
             ideal / Median(part), 100 * Median(route) / Median(part),
             Verdict(ideal / Median(part) >= kLeastOfIdeal));
    return absl::OkStatus();
  }

  const host::Model& model_;
  const EvaluateOptions& o_;
  std::vector<int32_t> held_;
  std::vector<PruningPrompt> prompts_;
  std::vector<double> schedule_;  // of the genetic search
  double dense_accuracy_ = 0;
  // Retention: one value, or one a seed.
  double uniform_ = 0, static_ = 0;
  std::vector<double> random_, learned_, threshold_, blind_;
  std::vector<double> threshold_sparsity_;
};
}  // namespace

absl::Status EvaluateFtp(const host::Model& model, const EvaluateOptions& o) {
  return FtpEvaluation(model, o).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
