#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/routers/expert/spt/split.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/calibrate_spt.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/evaluate/trained.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int64_t kCalibrationWindows = 6;
constexpr int64_t kErrorWindows = 2;
constexpr int64_t kBlockCounts[] = {4, 16};  // published: 4

// Every way of making blocks, over the same calibration and the same held-out text.
class SptEvaluation {
 public:
  SptEvaluation(const host::Model& model, const EvaluateOptions& o) : model_(model), o_(o) {}
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Load());
    std::printf(
        "SPT's routed FFN (arXiv 2312.10365) of a dense model, not trained: half of the blocks a "
        "token; %lld tokens to calibrate on, %zu held out, dense perplexity %.3f\n"
        "error: |y - dense|^2 / |dense|^2 of an FFN, the mean over layers, on %lld tokens; by the "
        "fitted router, and of the blocks that add most\n\n%-34s %8s %8s %12s\n",
        static_cast<long long>(kCalibrationWindows * kTextWindow), held_.size(), dense_,
        static_cast<long long>(kErrorWindows * kTextWindow), "blocks", "error", "best",
        "perplexity");
    for (int64_t blocks : kBlockCounts) SLUICE_RETURN_IF_ERROR(MeasureBlocks(blocks));
    return absl::OkStatus();
  }

 private:
  struct Measured {
    double error = 0, best = 0, perplexity = 0;
  };

  absl::Status Load() {
    SLUICE_ASSIGN_OR_RETURN(FitText text, ReadFitText(o_, kCalibrationWindows, kErrorWindows));
    held_ = std::move(text.held);
    Note("observing");
    const std::vector<int32_t> errors(held_.begin(), held_.begin() + kErrorWindows * kTextWindow);
    SLUICE_ASSIGN_OR_RETURN(seen_, ObserveFfn(model_, text.fit, kTextWindow, o_.threads));
    SLUICE_ASSIGN_OR_RETURN(unseen_, ObserveFfn(model_, errors, kTextWindow, o_.threads));
    SLUICE_ASSIGN_OR_RETURN(dense_, Perplexity({}));
    ClearNote();
    return absl::OkStatus();
  }

  absl::Status MeasureBlocks(int64_t blocks) {
    SptOptions o;
    o.blocks = blocks;
    const auto measure = [&](const std::string& name) -> absl::StatusOr<Measured> {
      Note(absl::StrCat(blocks, " ", name));
      SLUICE_ASSIGN_OR_RETURN(const Measured m, Measure(o));
      PrintRow("%-34s %8.4f %8.4f %12.3f\n", absl::StrCat(blocks, " ", name), m.error, m.best,
               m.perplexity);
      return m;
    };
    SLUICE_ASSIGN_OR_RETURN(const Measured clustered, measure("clustered"));
    o.order = BlockOrder::kAsTheyStand;
    SLUICE_ASSIGN_OR_RETURN(const Measured plain, measure("as they stand"));
    o.order = BlockOrder::kRandom;
    std::vector<double> random;
    for (o.seed = 1; o.seed <= kSeeds; ++o.seed) {
      SLUICE_ASSIGN_OR_RETURN(const Measured m, measure(absl::StrCat("at random, seed ", o.seed)));
      random.push_back(m.perplexity);
    }
    o.order = BlockOrder::kClustered;
    o.random_router = true;
    std::vector<double> chance;
    for (o.seed = 1; o.seed <= kSeeds; ++o.seed) {
      SLUICE_ASSIGN_OR_RETURN(const Measured m,
                              measure(absl::StrCat("clustered, random router, seed ", o.seed)));
      chance.push_back(m.perplexity);
    }
    const double other =
        std::min(plain.perplexity, *std::min_element(random.begin(), random.end()));
    std::printf(
        "%lld blocks, perplexity: clustered %.3f, as they stand %.3f, at random %s, random router "
        "%s\nB1 clustered below every other order: %s; B2 the fitted router below every random "
        "one: %s\n\n",
        static_cast<long long>(blocks), clustered.perplexity, plain.perplexity,
        MeanAndMargin(random, 3).c_str(), MeanAndMargin(chance, 3).c_str(),
        Verdict(clustered.perplexity < other),
        Verdict(clustered.perplexity < *std::min_element(chance.begin(), chance.end())));
    return absl::OkStatus();
  }

  absl::StatusOr<Measured> Measure(const SptOptions& o) const {
    std::vector<SptLayer> layers;
    Measured m;
    for (int64_t i = 0; i < model_.shape.layers; ++i) {
      const auto at = static_cast<size_t>(i);
      SLUICE_ASSIGN_OR_RETURN(SptLayer split, SplitFfn(model_, i, seen_[at], o));
      AddErrors(i, split, o.blocks, m);
      layers.push_back(std::move(split));
    }
    SLUICE_ASSIGN_OR_RETURN(const std::string bytes, WriteSpt(model_, layers, o.blocks));
    SLUICE_ASSIGN_OR_RETURN(
        const Gguf weights,
        Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}));
    host::ExpertRouting routing;
    routing.router = absl::StrCat("expert/spt:m=", o.blocks / 2);
    routing.weights = &weights;
    SLUICE_ASSIGN_OR_RETURN(m.perplexity, Perplexity(routing));
    return m;
  }

  // A layer's share of the mean errors.
  void AddErrors(int64_t layer, const SptLayer& split, int64_t blocks, Measured& m) const {
    const host::ModelShape& s = model_.shape;
    const FfnSamples& seen = unseen_[static_cast<size_t>(layer)];
    const std::vector<float> y = expert::BlockOutputs(
        {seen.activity.data(), seen.tokens, s.ffn, s.ffn},
        {model_.layers[static_cast<size_t>(layer)].down.data(), s.width, s.ffn, s.ffn}, split.order,
        blocks);
    const std::vector<double> energy = expert::BlockEnergies(y, s.width);
    std::vector<float> logits(static_cast<size_t>(blocks));
    double routed = 0;
    double best = 0;
    double all = 0;
    for (int64_t t = 0; t < seen.tokens; ++t) {
      split.router.Apply(&seen.input[t * s.width], logits.data());
      const float* of_token = &y[t * blocks * s.width];
      routed += LeftOut(of_token, logits.data(), blocks);
      best += LeftOut(of_token, &energy[t * blocks], blocks);
      all += LeftOut(of_token, logits.data(), blocks, 0);
    }
    m.error += routed / all / static_cast<double>(s.layers);
    m.best += best / all / static_cast<double>(s.layers);
  }
  // Squared length of the sum of the blocks y [blocks, width] that are not among the `kept` of the
  // greatest score.
  template <class Score>
  double LeftOut(const float* y, const Score* score, int64_t blocks, int64_t kept = -1) const {
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return score[a] > score[b]; });
    const int64_t width = model_.shape.width;
    std::vector<double> sum(static_cast<size_t>(width));
    for (int64_t i = kept < 0 ? blocks / 2 : kept; i < blocks; ++i) {
      for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<double>(y[order[i] * width + c]);
    }
    return std::inner_product(sum.begin(), sum.end(), sum.begin(), 0.0);
  }

  // Of the held-out text, in windows of their own.
  absl::StatusOr<double> Perplexity(const host::ExpertRouting& routing) const {
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kTextWindow;
    o.experts = routing;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    return WindowPerplexity(*e, held_);
  }

  const host::Model& model_;
  const EvaluateOptions& o_;
  std::vector<int32_t> held_;
  std::vector<FfnSamples> seen_, unseen_;  // a layer
  double dense_ = 0;
};
}  // namespace

absl::Status EvaluateSpt(const host::Model& model, const EvaluateOptions& o) {
  return SptEvaluation(model, o).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
