#include "sluice/routers/token/informed_routing/informed_routing.h"

#include <algorithm>
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
constexpr int64_t kSampleWindows = 8;   // that an offset is set on
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
  std::vector<double> sampled, sampled_sparsity;  // the same, decisions drawn
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
    return TimePrefills();
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
    for (int64_t i = count; i < std::min(windows, count + kSampleWindows); ++i)
      sample_.push_back(window(i));
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
    // Sparsity falls as the offset grows, on the scale of logits about as fast: secants, kept
    // between what is known to be too low and too high.
    double low = -8, high = 8, offset = 0, last = 0, last_gap = 0;
    for (int turn = 0; turn < 6; ++turn) {
      t.router = absl::StrCat("token/informed_routing:offset=", offset);
      SLUICE_ASSIGN_OR_RETURN(const Result r,
                              Measure(sample_, t, absl::StrCat("budget of ", name)));
      const double gap = Logit(r.sparsity) - Logit(budget);
      if (std::abs(r.sparsity - budget) < 0.003) break;
      (gap > 0 ? low : high) = offset;
      const double slope = turn > 0 && gap != last_gap ? (offset - last) / (gap - last_gap) : -1;
      double next = offset - gap * slope;
      if (!(next > low && next < high)) next = (low + high) / 2;
      last = offset;
      last_gap = gap;
      offset = next;
    }
    return Measure(text_, t, name);
  }
  static double Logit(double share) {
    const double p = std::clamp(share, 1e-4, 1 - 1e-4);
    return std::log(p / (1 - p));
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
    const std::string at = absl::StrCat(" .", c.percent, ", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(const Result r, Measure(text_, t, "as trained" + at));
    c.trained.push_back(CostOf("as trained" + at, r));
    c.trained_sparsity.push_back(r.sparsity);

    t.router = absl::StrCat("token/informed_routing:eval_mode=sampled,seed=", seed);
    SLUICE_ASSIGN_OR_RETURN(const Result drawn, Measure(text_, t, "sampled" + at));
    c.sampled.push_back(CostOf("sampled" + at, drawn));
    c.sampled_sparsity.push_back(drawn.sparsity);
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
    std::printf("decisions drawn, as the released evaluation has it: %s at sparsity %s\n",
                MeanAndMargin(c.sampled, 3).c_str(), MeanAndMargin(c.sampled_sparsity, 3).c_str());
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

  // What gathering, computing and scattering some of the rows keeps of the time that the
  // multiply-adds saved allow.
  absl::Status TimePrefills() const {
    if (o_.speed_length == 0) return absl::OkStatus();
    std::printf("\n%-10s %10s %10s %10s %8s %10s\n", "prefill", "sparsity", "dense ms", "routed ms",
                "speed", "of ideal");
    double least = INFINITY;
    for (int64_t length : {int64_t{1024}, int64_t{4096}}) {
      if (length > o_.speed_length || length > static_cast<int64_t>(held_.size())) continue;
      for (int percent : kPercents) {
        SLUICE_ASSIGN_OR_RETURN(const double ratio, TimePrefill(length, percent));
        least = std::min(least, ratio);
      }
    }
    if (std::isfinite(least))
      std::printf("B5 at least 0.7 of the ideal from 1,024 tokens on (%.2f): %s\n", least,
                  Verdict(least >= 0.7));
    return absl::OkStatus();
  }
  // Tokens drawn at the budget's rate, the bundled forecasts for the others; dense and routed in
  // turn. Median share of the ideal speed.
  absl::StatusOr<double> TimePrefill(int64_t length, int percent) const {
    SLUICE_ASSIGN_OR_RETURN(const Gguf weights,
                            OpenTrained(o_, absl::StrCat("informed_routing-lff", percent), 1));
    host::EngineOptions options;
    options.threads = o_.threads;
    options.max_tokens = length;
    options.tokens.router = "token/informed_routing";
    options.tokens.weights = &weights;
    options.tokens.random = {percent / 100.0};
    SLUICE_ASSIGN_OR_RETURN(EnginePair pair, EnginePair::Create(model_, options));
    const std::vector<int32_t> tokens(held_.begin(), held_.begin() + length);
    const auto macs = [](const host::Engine& e) {
      return static_cast<double>(e.linear().macs + e.counters().macs);
    };
    std::vector<double> dense_ms, routed_ms, speed, share;
    SLUICE_RETURN_IF_ERROR(pair.Prefill(tokens));  // warms caches up
    for (int64_t i = 0; i < o_.repeats; ++i) {
      Note(absl::StrCat("prefill of ", length, " tokens ", i + 1, "/", o_.repeats));
      SLUICE_RETURN_IF_ERROR(pair.Prefill(tokens));
      dense_ms.push_back(1e3 * pair.dense->timing().total_s);
      routed_ms.push_back(1e3 * pair.routed->timing().total_s);
      speed.push_back(dense_ms.back() / routed_ms.back());
      share.push_back(speed.back() * macs(*pair.routed) / macs(*pair.dense));
    }
    PrintRow("%-10d %10.2f %10.1f %10.1f %7.2fx %10.2f\n", length, percent / 100.0,
             Median(dense_ms), Median(routed_ms), Median(speed), Median(share));
    return Median(share);
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
