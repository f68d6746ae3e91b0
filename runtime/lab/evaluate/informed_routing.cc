#include "sluice/routers/token/informed_routing/informed_routing.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/calibrate_informed.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/evaluate/trained.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int kPercents[] = {25, 40};
constexpr int64_t kRank = 128;  // of the bundled forecasters, and of the closed form beside them
constexpr int64_t kWindow = 2048;
using Windows = std::vector<std::vector<int32_t>>;

// How well the forecasters of a file explain the dense units, and whether their routers know where
// they fail.
struct Fit {
  std::vector<double> r2, spearman;  // a unit; attention at even places
};
class FitProbe {
 public:
  static absl::StatusOr<FitProbe> Create(const host::Model& model, const WeightSource& weights) {
    FitProbe p;
    p.units_.resize(2 * model.shape.layers);
    for (size_t u = 0; u < p.units_.size(); ++u) {
      SLUICE_ASSIGN_OR_RETURN(
          token::InformedRouting r,
          token::InformedRouting::Create(
              {static_cast<int64_t>(u / 2), static_cast<int64_t>(u % 2), 0}, weights));
      p.units_[u].router.push_back(std::move(r));
    }
    return p;
  }
  void Add(int64_t layer, int64_t unit, int64_t n, const float* h, const float* u) {
    Unit& s = units_[2 * layer + unit];
    const token::InformedRouting& r = s.router[0];
    const int64_t d = r.dim();
    auto plan = r.MakePlan({.items = n, .hidden = d});
    if (workspace_.bytes() < plan->workspace_bytes) workspace_.Resize(plan->workspace_bytes);
    std::vector<float> logits(2 * n), y(n * d), scratch(r.forecaster().scratch_floats(n));
    r.Logits(*plan, {h, n, d, d}, {workspace_.workspace(), nullptr}, logits.data());
    r.forecaster().Apply(h, n, y.data(), scratch.data());
    s.sum.resize(d);
    for (int64_t i = 0; i < n; ++i) {
      double error = 0;
      for (int64_t j = 0; j < d; ++j) {
        const double v = static_cast<double>(u[i * d + j]),
                     e = static_cast<double>(y[i * d + j]) - v;
        error += e * e;
        s.sum[j] += v;
        s.square += v * v;
      }
      s.error += error;
      ++s.rows;
      s.preference.push_back(logits[2 * i + 1] - logits[2 * i]);
      s.goodness.push_back(static_cast<float>(-error));
    }
  }
  Fit Done() const {
    Fit f;
    for (const Unit& s : units_) {
      double variance = s.square;
      for (double x : s.sum) variance -= x * x / static_cast<double>(s.rows);
      f.r2.push_back(1 - s.error / variance);
      f.spearman.push_back(Spearman(s.preference, s.goodness));
    }
    return f;
  }

 private:
  struct Unit {
    std::vector<token::InformedRouting> router;  // one
    double error = 0, square = 0;
    int64_t rows = 0;
    std::vector<double> sum;
    std::vector<float> preference, goodness;
  };
  std::vector<Unit> units_;
  OwnedWorkspace workspace_;
};

struct Result {
  double perplexity = 0, sparsity = 0;
  std::vector<double> rates;  // approximated, a unit
};
// What the gates of one budget cost over dense perplexity, one value a seed.
struct GateCosts {
  int percent = 0;
  std::vector<double> forecast, skip, random;
  std::vector<double> sparsity;                   // met by the forecasting gates
  std::vector<double> trained, trained_sparsity;  // with the offset of training, nothing fitted
  double budget() const { return percent / 100.0; }
};

class InformedEvaluation {
 public:
  InformedEvaluation(const host::Model& model, const EvaluateOptions& o) : model_(model), o_(o) {}
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(CutText());
    SLUICE_ASSIGN_OR_RETURN(const Result dense, Measure(text_, {}, "dense"));
    dense_perplexity_ = dense.perplexity;
    std::printf(
        "Informed Routing (arXiv 2510.13831), %lld residual units, rank %lld, %zu windows of %lld "
        "held-out tokens\n"
        "dense perplexity %.4f\n\n%-26s %9s %10s %12s\n",
        static_cast<long long>(2 * model_.shape.layers), static_cast<long long>(kRank),
        text_.size(), static_cast<long long>(kWindow), dense_perplexity_, "gate", "sparsity",
        "perplexity", "over dense");
    if (sample_.empty())
      return absl::InvalidArgumentError(
          absl::StrCat("--prompts ", o_.prompts, " leaves no held-out text to calibrate on; ",
                       "allowed at most ", held_.size() / kWindow - 1));

    std::vector<GateCosts> costs;
    for (int percent : kPercents) {
      SLUICE_ASSIGN_OR_RETURN(GateCosts c, CompareGates(percent));
      costs.push_back(std::move(c));
    }
    std::printf("\nover %d training seeds; %s\n", kSeeds, kMarginNote);
    for (const GateCosts& c : costs) PrintGateVerdicts(c);

    SLUICE_ASSIGN_OR_RETURN(const std::vector<Fit> fits, FitForecasts());
    PrintFits(fits);
    return absl::OkStatus();
  }

 private:
  // Windows to measure on; behind them, what no window holds: for offsets and for the fit in closed
  // form.
  absl::Status CutText() {
    SLUICE_ASSIGN_OR_RETURN(held_, ReadHeldOut(o_));
    const int64_t windows = static_cast<int64_t>(held_.size()) / kWindow;
    const int64_t count = std::min(o_.prompts, windows);
    const auto window = [&](int64_t i) {
      const auto at = held_.begin() + i * kWindow;
      return std::vector<int32_t>(at, at + kWindow);
    };
    for (int64_t i = 0; i < count; ++i) text_.push_back(window(i));
    for (int64_t i = count; i < std::min(windows, count + 4); ++i) sample_.push_back(window(i));
    rest_.assign(held_.begin() + count * kWindow, held_.end());
    return absl::OkStatus();
  }

  absl::StatusOr<Result> Measure(const Windows& text, const host::TokenRouting& tokens,
                                 const std::string& what) const {
    host::EngineOptions o;
    o.tokens = tokens;
    o.threads = o_.threads;
    o.max_tokens = kWindow;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    Result r;
    r.rates.assign(2 * model_.shape.layers, 0);
    double nll = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      Note(absl::StrCat(what, ", window ", i + 1, "/", text.size()));
      SLUICE_ASSIGN_OR_RETURN(const double ppl, host::Perplexity(*e, text[i]));
      nll += std::log(ppl);
      for (size_t u = 0; u < r.rates.size(); ++u)
        r.rates[u] +=
            e->token_counters(static_cast<int64_t>(u / 2), static_cast<int64_t>(u % 2)).sparsity() /
            static_cast<double>(text.size());
    }
    r.perplexity = std::exp(nll / static_cast<double>(text.size()));
    r.sparsity = Mean(r.rates);
    ClearNote();
    return r;
  }
  // Prints a row; what the gate costs.
  double CostOf(const std::string& name, const Result& r) const {
    const double cost = r.perplexity - dense_perplexity_;
    PrintRow("%-26s %9.3f %10.3f %+12.3f\n", name, r.sparsity, r.perplexity, cost);
    return cost;
  }

  // Learned gates at the offset where they meet a budget on other text: the trained one holds for
  // the training mix only.
  absl::StatusOr<Result> MeasureLearned(const WeightSource& weights, double budget,
                                        const std::string& name) const {
    host::TokenRouting t;
    t.router = "token/informed_routing";
    t.weights = &weights;
    double low = -8, high = 8;
    for (int turn = 0; turn < 8; ++turn) {
      const double offset = (low + high) / 2;
      t.router = absl::StrCat("token/informed_routing:offset=", offset);
      SLUICE_ASSIGN_OR_RETURN(const Result r,
                              Measure(sample_, t, absl::StrCat("budget of ", name)));
      (r.sparsity > budget ? low : high) = offset;
    }
    return Measure(text_, t, name);
  }

  absl::StatusOr<GateCosts> CompareGates(int percent) {
    GateCosts c;
    c.percent = percent;
    for (int seed = 1; seed <= kSeeds; ++seed) SLUICE_RETURN_IF_ERROR(MeasureAsTrained(seed, c));
    for (int seed = 1; seed <= kSeeds; ++seed) SLUICE_RETURN_IF_ERROR(CompareSeed(seed, c));
    SLUICE_RETURN_IF_ERROR(MeasureRidge(c));
    return c;
  }
  absl::Status MeasureAsTrained(int seed, GateCosts& c) const {
    SLUICE_ASSIGN_OR_RETURN(const Gguf weights,
                            OpenTrained(o_, absl::StrCat("informed_routing-lff", c.percent), seed));
    host::TokenRouting t;
    t.router = "token/informed_routing";
    t.weights = &weights;
    const std::string name = absl::StrCat("as trained .", c.percent, ", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(const Result r, Measure(text_, t, name));
    c.trained.push_back(CostOf(name, r));
    c.trained_sparsity.push_back(r.sparsity);
    return absl::OkStatus();
  }
  absl::Status CompareSeed(int seed, GateCosts& c) {
    SLUICE_ASSIGN_OR_RETURN(Gguf forecasts,
                            OpenTrained(o_, absl::StrCat("informed_routing-lff", c.percent), seed));
    SLUICE_ASSIGN_OR_RETURN(
        const Gguf skips, OpenTrained(o_, absl::StrCat("informed_routing-skip", c.percent), seed));
    const std::string at = absl::StrCat(" .", c.percent, ", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(const Result routed,
                            MeasureLearned(forecasts, c.budget(), "forecast" + at));
    c.forecast.push_back(CostOf("forecast" + at, routed));
    c.sparsity.push_back(routed.sparsity);

    host::TokenRouting coin;  // at the same rates, a unit
    coin.router = "token/informed_routing";
    coin.weights = &forecasts;
    coin.random = routed.rates;
    coin.seed = static_cast<uint64_t>(seed);
    SLUICE_ASSIGN_OR_RETURN(const Result tossed, Measure(text_, coin, "random" + at));
    c.random.push_back(CostOf("random gate" + at, tossed));

    SLUICE_ASSIGN_OR_RETURN(const Result skipped, MeasureLearned(skips, c.budget(), "skip" + at));
    c.skip.push_back(CostOf("skip" + at, skipped));
    if (c.percent == kPercents[0]) forecasts_.push_back(std::move(forecasts));
    return absl::OkStatus();
  }
  absl::Status MeasureRidge(const GateCosts& c) const {
    CalibrateOptions options;
    options.rank = kRank;
    options.sparsity = c.budget();
    options.threads = o_.threads;
    SLUICE_ASSIGN_OR_RETURN(const std::string bytes,
                            CalibrateInformedRouting(model_, rest_, options, Note));
    SLUICE_ASSIGN_OR_RETURN(
        const Gguf ridge,
        Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}));
    const std::string name = absl::StrCat("ridge .", c.percent, ", no training");
    SLUICE_ASSIGN_OR_RETURN(const Result fitted, MeasureLearned(ridge, c.budget(), name));
    CostOf(name, fitted);
    return absl::OkStatus();
  }
  static void PrintGateVerdicts(const GateCosts& c) {
    const double forecast = Mean(c.forecast), skip = Mean(c.skip), random = Mean(c.random);
    std::printf(
        "sparsity .%d: forecast %+.3f +- %.3f, skip %+.3f +- %.3f, random gate %+.3f +- %.3f\n",
        c.percent, forecast, Margin(c.forecast), skip, Margin(c.skip), random, Margin(c.random));
    const double most = c.percent == 25 ? 0.6 : 1.0;
    std::printf("B1 forecast costs at most %.1f of skip (%.2f): %s\n", most, forecast / skip,
                Verdict(forecast <= most * skip));
    std::printf("B2 forecast costs at most 0.5 of a random gate (%.2f): %s\n", forecast / random,
                Verdict(forecast <= 0.5 * random));
    std::printf("as trained: %s at sparsity %s, within 2 points of .%d: %s\n",
                MeanAndMargin(c.trained, 3).c_str(), MeanAndMargin(c.trained_sparsity, 3).c_str(),
                c.percent, Verdict(std::abs(Mean(c.trained_sparsity) - c.budget()) <= 0.02));
    std::printf("B5 sparsity within 2 points of .%d (%s): %s\n", c.percent,
                MeanAndMargin(c.sparsity, 3).c_str(),
                Verdict(std::abs(Mean(c.sparsity) - c.budget()) <= 0.02));
  }

  absl::StatusOr<std::vector<Fit>> FitForecasts() const {
    std::vector<Fit> fits;
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Note(absl::StrCat("forecast errors, seed ", seed));
      SLUICE_ASSIGN_OR_RETURN(FitProbe probe, FitProbe::Create(model_, forecasts_[seed - 1]));
      SLUICE_RETURN_IF_ERROR(ObserveDense(probe));
      fits.push_back(probe.Done());
    }
    ClearNote();
    return fits;
  }
  absl::Status ObserveDense(FitProbe& probe) const {
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kWindow;
    o.observe = [&](int64_t layer, int64_t unit, int64_t n, const float* h, const float* u) {
      probe.Add(layer, unit, n, h, u);
    };
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    for (const std::vector<int32_t>& w : text_) {
      e->Reset();
      SLUICE_RETURN_IF_ERROR(e->Feed(w, e->model().shape.context));
    }
    return absl::OkStatus();
  }
  static void PrintFits(const std::vector<Fit>& fits) {
    const size_t units = fits[0].r2.size();
    std::printf("\n%-6s %24s %24s\n", "unit", "R^2 (mean, margin)", "Spearman");
    std::vector<double> attention, ffn;
    size_t explained = 0, known = 0;
    for (size_t u = 0; u < units; ++u) {
      std::vector<double> r2, rho;
      for (const Fit& f : fits) {
        r2.push_back(f.r2[u]);
        rho.push_back(f.spearman[u]);
      }
      const bool of_attention = u % 2 == 0;
      (of_attention ? attention : ffn).push_back(Mean(r2));
      explained += of_attention && Mean(r2) >= 0.3;
      known += Mean(rho) >= 0.3;
      std::printf("%-6s %15.3f +- %.3f %15.3f +- %.3f\n",
                  absl::StrCat(u / 2, of_attention ? "a" : "f").c_str(), Mean(r2), Margin(r2),
                  Mean(rho), Margin(rho));
    }
    std::printf(
        "B3 Spearman of preference and forecast quality at least 0.3 (%zu of %zu units): %s\n",
        known, units, Verdict(known == units));
    std::printf(
        "B4 R^2 at least 0.3 on half of the attention units (%zu of %zu), above the FFNs' in the "
        "median (%.2f, %.2f): %s\n",
        explained, attention.size(), Median(attention), Median(ffn),
        Verdict(2 * explained >= attention.size() && Median(attention) > Median(ffn)));
  }

  const host::Model& model_;
  const EvaluateOptions& o_;
  std::vector<int32_t> held_, rest_;
  Windows text_, sample_;
  double dense_perplexity_ = 0;
  std::vector<Gguf> forecasts_;  // of the smaller budget, a seed
};
}  // namespace

absl::Status EvaluateInformedRouting(const host::Model& model, const EvaluateOptions& o) {
  return InformedEvaluation(model, o).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
