#include "sluice/routers/token/informed_routing/informed_routing.h"

#include <cmath>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/host/calibrate.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using Gate = host::TokenRouting::Gate;
constexpr int kPercents[] = {25, 40};
constexpr int64_t kRank = 64;

struct Text {
  std::vector<std::vector<int32_t>> windows;
  int threads = 0;
};
struct Result {
  double perplexity = 0, sparsity = 0;
  std::vector<double> rates;  // approximated, a unit
};
absl::StatusOr<Result> Measure(const host::Model& model, const Text& text,
                               const host::TokenRouting& tokens, const std::string& what) {
  host::EngineOptions o;
  o.tokens = tokens;
  o.threads = text.threads;
  o.max_tokens = static_cast<int64_t>(text.windows[0].size());
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, o));
  Result r;
  r.rates.assign(2 * model.shape.layers, 0);
  double nll = 0;
  for (size_t i = 0; i < text.windows.size(); ++i) {
    Note(absl::StrCat(what, ", window ", i + 1, "/", text.windows.size()));
    SLUICE_ASSIGN_OR_RETURN(const double ppl, host::Perplexity(*e, text.windows[i]));
    nll += std::log(ppl);
    for (size_t u = 0; u < r.rates.size(); ++u)
      r.rates[u] +=
          e->token_counters(static_cast<int64_t>(u / 2), static_cast<int64_t>(u % 2)).sparsity() /
          static_cast<double>(text.windows.size());
  }
  r.perplexity = std::exp(nll / static_cast<double>(text.windows.size()));
  r.sparsity = Mean(r.rates);
  ClearNote();
  return r;
}

// Sets the offset at which these routers meet a budget on this text: the trained one holds for the
// training mix only.
absl::Status MeetBudget(const host::Model& model, const Text& text, double sparsity,
                        const std::string& what, host::TokenRouting& t) {
  double low = -8, high = 8;
  for (int turn = 0; turn < 8; ++turn) {
    t.offset = (low + high) / 2;
    SLUICE_ASSIGN_OR_RETURN(const Result r,
                            Measure(model, text, t, absl::StrCat("budget of ", what)));
    (r.sparsity > sparsity ? low : high) = t.offset;
  }
  return absl::OkStatus();
}

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
          InformedRouting r,
          InformedRouting::Create({static_cast<int64_t>(u / 2), static_cast<int64_t>(u % 2), 0},
                                  weights));
      p.units_[u].router.push_back(std::move(r));
    }
    return p;
  }
  void Add(int64_t layer, int64_t unit, int64_t n, const float* h, const float* u) {
    Unit& s = units_[2 * layer + unit];
    const InformedRouting& r = s.router[0];
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
    std::vector<InformedRouting> router;  // one
    double error = 0, square = 0;
    int64_t rows = 0;
    std::vector<double> sum;
    std::vector<float> preference, goodness;
  };
  std::vector<Unit> units_;
  OwnedWorkspace workspace_;
};
absl::Status Observe(
    const host::Model& model, const Text& text,
    const std::function<void(int64_t, int64_t, int64_t, const float*, const float*)>& see) {
  host::EngineOptions o;
  o.threads = text.threads;
  o.max_tokens = static_cast<int64_t>(text.windows[0].size());
  o.observe = see;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, o));
  for (const std::vector<int32_t>& w : text.windows) {
    e->Reset();
    SLUICE_RETURN_IF_ERROR(e->Feed(w, e->model().shape.context));
  }
  return absl::OkStatus();
}
std::string Unit(size_t u) { return absl::StrCat(u / 2, u % 2 == 0 ? "a" : "f"); }
}  // namespace

absl::Status EvaluateInformedRouting(const host::Model& model, const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> held,
                          ReadTokens(o.folder + "/sluice-mini-eval.u16", 0, -1));
  constexpr int64_t kWindow = 2048;
  Text text;
  text.threads = o.threads;
  const int64_t count = std::min<int64_t>(o.prompts, static_cast<int64_t>(held.size()) / kWindow);
  for (int64_t i = 0; i < count; ++i)
    text.windows.emplace_back(held.begin() + i * kWindow, held.begin() + (i + 1) * kWindow);
  SLUICE_ASSIGN_OR_RETURN(const Result dense, Measure(model, text, {}, "dense"));
  std::printf(
      "Informed Routing (arXiv 2510.13831), %lld residual units, rank %lld, %lld windows of %lld "
      "held-out tokens\n"
      "dense perplexity %.4f\n\n%-26s %9s %10s %12s\n",
      static_cast<long long>(2 * model.shape.layers), static_cast<long long>(kRank),
      static_cast<long long>(count), static_cast<long long>(kWindow), dense.perplexity, "gate",
      "sparsity", "perplexity", "over dense");
  const auto row = [&](const std::string& name, const Result& r) {
    std::printf("%-26s %9.3f %10.3f %+12.3f\n", name.c_str(), r.sparsity, r.perplexity,
                r.perplexity - dense.perplexity);
    std::fflush(stdout);
    return r.perplexity - dense.perplexity;
  };
  // Held-out tokens that no window holds: for offsets and for the fit in closed form.
  const std::vector<int32_t> rest(held.begin() + count * kWindow, held.end());
  Text sample;
  sample.threads = o.threads;
  for (int64_t at = 0;
       at + kWindow <= static_cast<int64_t>(rest.size()) && sample.windows.size() < 4;
       at += kWindow)
    sample.windows.emplace_back(rest.begin() + at, rest.begin() + at + kWindow);
  if (sample.windows.empty())
    return absl::InvalidArgumentError(absl::StrCat("--prompts ", o.prompts,
                                                   " leaves no held-out text to calibrate on; ",
                                                   "allowed at most ", held.size() / kWindow - 1));
  std::map<int, std::vector<double>> lff, skip, random, sparsity;
  std::vector<Gguf> files;  // forecasters at 0.25
  for (int percent : kPercents) {
    for (int seed = 1; seed <= kSeeds; ++seed) {
      const auto learned = [&](const Gguf& weights, const std::string& name,
                               std::vector<double>& cost) -> absl::StatusOr<Result> {
        host::TokenRouting t;
        t.gate = Gate::kLearned;
        t.weights = &weights;
        SLUICE_RETURN_IF_ERROR(MeetBudget(model, sample, percent / 100.0, name, t));
        SLUICE_ASSIGN_OR_RETURN(Result r, Measure(model, text, t, name));
        cost.push_back(row(name, r));
        return r;
      };
      const auto open = [&](const char* kind) {
        return Gguf::Open(
            absl::StrCat(o.folder, "/informed_routing-", kind, percent, "-s", seed, ".gguf"));
      };
      SLUICE_ASSIGN_OR_RETURN(Gguf forecasts, open("lff"));
      SLUICE_ASSIGN_OR_RETURN(const Gguf skips, open("skip"));
      const std::string at = absl::StrCat(" .", percent, ", seed ", seed);
      SLUICE_ASSIGN_OR_RETURN(const Result routed,
                              learned(forecasts, "forecast" + at, lff[percent]));
      sparsity[percent].push_back(routed.sparsity);
      host::TokenRouting coin;
      coin.gate = Gate::kRandom;
      coin.weights = &forecasts;
      coin.rates = routed.rates;
      coin.seed = static_cast<uint64_t>(seed);
      SLUICE_ASSIGN_OR_RETURN(const Result tossed, Measure(model, text, coin, "random" + at));
      random[percent].push_back(row("random gate" + at, tossed));
      SLUICE_RETURN_IF_ERROR(learned(skips, "skip" + at, skip[percent]).status());
      if (percent == 25) files.push_back(std::move(forecasts));
    }
    host::CalibrateOptions c;
    c.rank = kRank;
    c.sparsity = percent / 100.0;
    c.threads = o.threads;
    SLUICE_ASSIGN_OR_RETURN(const std::string bytes,
                            host::CalibrateInformedRouting(model, rest, c, Note));
    SLUICE_ASSIGN_OR_RETURN(
        const Gguf ridge,
        Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}));
    host::TokenRouting t;
    t.gate = Gate::kLearned;
    t.weights = &ridge;
    const std::string name = absl::StrCat("ridge .", percent, ", no training");
    SLUICE_RETURN_IF_ERROR(MeetBudget(model, sample, percent / 100.0, name, t));
    SLUICE_ASSIGN_OR_RETURN(const Result fitted, Measure(model, text, t, name));
    row(name, fitted);
  }
  std::printf("\n");
  for (int percent : kPercents) {
    const double f = Mean(lff[percent]), s = Mean(skip[percent]), r = Mean(random[percent]);
    std::printf(
        "sparsity .%d: forecast %+.3f +- %.3f, skip %+.3f +- %.3f, random gate %+.3f +- %.3f\n",
        percent, f, Spread(lff[percent]), s, Spread(skip[percent]), r, Spread(random[percent]));
    std::printf("B1 forecast costs at most %.1f of skip (%.2f): %s\n", percent == 25 ? 0.6 : 1.0,
                f / s, Verdict(f <= (percent == 25 ? 0.6 : 1.0) * s));
    std::printf("B2 forecast costs at most 0.5 of a random gate (%.2f): %s\n", f / r,
                Verdict(f <= 0.5 * r));
    std::printf("B5 sparsity within 2 points of .%d (%.3f +- %.3f): %s\n", percent,
                Mean(sparsity[percent]), Spread(sparsity[percent]),
                Verdict(std::abs(Mean(sparsity[percent]) - percent / 100.0) <= 0.02));
  }

  std::vector<Fit> fits;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Note(absl::StrCat("forecast errors, seed ", seed));
    SLUICE_ASSIGN_OR_RETURN(FitProbe probe, FitProbe::Create(model, files[seed - 1]));
    SLUICE_RETURN_IF_ERROR(
        Observe(model, text, [&](int64_t l, int64_t u, int64_t n, const float* h, const float* y) {
          probe.Add(l, u, n, h, y);
        }));
    fits.push_back(probe.Done());
  }
  const size_t units = fits[0].r2.size();
  ClearNote();
  std::printf("\n%-6s %24s %24s\n", "unit", "R^2 (mean +- spread)", "Spearman");
  std::vector<double> attention, ffn;
  size_t explained = 0, known = 0;
  for (size_t u = 0; u < units; ++u) {
    std::vector<double> r2, rho;
    for (const Fit& f : fits) {
      r2.push_back(f.r2[u]);
      rho.push_back(f.spearman[u]);
    }
    (u % 2 == 0 ? attention : ffn).push_back(Mean(r2));
    explained += u % 2 == 0 && Mean(r2) >= 0.3;
    known += Mean(rho) >= 0.3;
    std::printf("%-6s %15.3f +- %.3f %15.3f +- %.3f\n", Unit(u).c_str(), Mean(r2), Spread(r2),
                Mean(rho), Spread(rho));
  }
  std::printf(
      "B3 Spearman of preference and forecast quality at least 0.3 (%zu of %zu units): %s\n", known,
      units, Verdict(known == units));
  std::printf(
      "B4 R^2 at least 0.3 on half of the attention units (%zu of %zu), above the FFNs' in the "
      "median (%.2f, "
      "%.2f): %s\n",
      explained, attention.size(), Median(attention), Median(ffn),
      Verdict(2 * explained >= attention.size() && Median(attention) > Median(ffn)));
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
